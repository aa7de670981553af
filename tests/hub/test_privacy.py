"""Nothing private is pushed, and ordinary text is not taken for it."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.hub_fixtures import USER

HOST = "brunhilde-7"  # of this process, where a test needs one that is not generic


def _chunk(kind: bytes, data: bytes) -> bytes:
    import zlib

    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize(
    ("file", "text", "kind"),
    [
        ("README.md", "my token is hf_" + "Q" * 34, "a token"),
        ("recipe.yaml", "# into /data/people/x", "an absolute path"),
        ("recipe.yaml", "run_name: /home/someone/x", "an absolute path"),
        (
            "metrics.json",
            '{"test_accuracy": 0.9, "run": "C:\\\\Users\\\\someone"}',
            "an absolute path",
        ),
        (
            "metrics.json",
            '{"test_accuracy": 0.9, "run": "\\u002fUsers\\u002fsomeone"}',
            "an absolute path",
        ),
        ("README.md", f"trained by {USER.title()}.", "the user's name"),
        ("README.md", f"trained on {HOST}", "the host name"),
        ("README.md", "see {run}", "the run's own absolute path"),
        ("model.safetensors", "/home/someone/base", "an absolute path"),
        ("plots/curves.png", f"made by {USER}", "the user's name"),
        ("plots/curves.png tail", "hf_" + "Q" * 34, "a token"),
        (
            "adapter/adapter_config.json",
            "./weights/base",
            "base_model_name_or_path is a local path",
        ),
        ("adapter/adapter_config.json", "", "base_model_name_or_path is empty"),
    ],
)
def test_private_things_stay_here(
    lora_run: Path,
    own_copy: Callable[[Path], Path],
    monkeypatch: pytest.MonkeyPatch,
    file: str,
    text: str,
    kind: str,
) -> None:
    from hf_cifar.errors import UserError
    from hf_cifar.hub import push as push_module
    from hf_cifar.hub.upload import PushOptions

    monkeypatch.setenv("LOGNAME", USER)
    monkeypatch.setattr(socket, "gethostname", lambda: f"{HOST}.example.org")
    run = own_copy(lora_run)
    name, _, tail = file.partition(" ")
    path = run / name
    text = text.format(run=run) if "{run}" in text else text
    if name.endswith(".json"):
        if name.startswith("adapter"):
            path.write_text(
                json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": text})
            )
        else:
            path.write_text(text)
    elif tail:
        path.write_bytes(path.read_bytes() + text.encode())
    elif name.endswith(".png"):
        png = path.read_bytes()
        path.write_bytes(png[:33] + _chunk(b"tEXt", b"Author\0" + text.encode()) + png[33:])
    elif name.endswith(".safetensors"):
        from safetensors.torch import load_file, save_file

        save_file(load_file(path), path, metadata={"format": "pt", "from": text})
    else:
        path.write_text(path.read_text() + text + "\n")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(UserError) as caught:
        push_module.push(run, "alice/net", PushOptions(dry_run=True))
    line = str(caught.value)
    assert name in line and kind in line and "\n" not in line
    assert "hf_" + "Q" * 34 not in line


def test_ordinary_text_is_not_taken_for_private(
    lora_run: Path, own_copy: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from hf_cifar.hub.privacy import scan

    run = own_copy(lora_run)
    text = (
        "See https://huggingface.co/docs/hub/model-cards, [issue](https://github.com/a/b/issues/1),"
        " `runs/home/x`, 3/4 of it, and/or, </td></tr>, images/s, root mean square,"
        " `AutoModel.from_pretrained('a/b')`."
    )
    (run / "README.md").write_text((run / "README.md").read_text() + text)
    monkeypatch.setenv("LOGNAME", "max")
    (run / "recipe.yaml").write_text("max_steps: 10\nlr_max: 3\n")
    names = ["README.md", "recipe.yaml", "metrics.json", "model.safetensors", "plots/curves.png"]
    scan(run, {name: run / name for name in [*names, "adapter/adapter_config.json"]})
