"""The whole way through the stand-in Hub with the command itself: download dataset and base model,
push the run, measure anybody's model. Bad input is one line and exit code 2.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from helpers.hub_fixtures import LABELS, Client, save_model, tiny_model
from helpers.hub_server import HubServer
from PIL import Image


def command(client: Client, *words: str, **more: str) -> subprocess.CompletedProcess:
    """Run `hf-cifar` in a process that knows only the stand-in Hub."""
    environment = client.environment(**more) | {
        "HF_CIFAR_CACHE": str(client.folder / "cache"),
        "TQDM_DISABLE": "1",
    }
    return subprocess.run(
        [sys.executable, "-m", "hf_cifar", *words],
        env=environment,
        cwd=client.folder,
        capture_output=True,
        text=True,
        timeout=240,
    )


def put_cifar(hub: HubServer) -> None:
    """A small data set of ten plain colours under CIFAR-10's name and in its layout."""
    features = {"img": {"_type": "Image"}, "label": {"names": LABELS, "_type": "ClassLabel"}}
    files = {}
    for split, each in (("train", 12), ("test", 6)):
        images, labels = [], []
        for i in range(10 * each):
            picture = np.full((32, 32, 3), 25 * (i % 10) + 5, np.uint8)
            picture[i // 10, i // 10] = 255
            out = io.BytesIO()
            Image.fromarray(picture).save(out, "PNG")
            images.append({"bytes": out.getvalue(), "path": None})
            labels.append(i % 10)
        table = pa.table({"img": images, "label": pa.array(labels, pa.int64())})
        table = table.replace_schema_metadata(
            {"huggingface": json.dumps({"info": {"features": features}})}
        )
        out = io.BytesIO()
        pq.write_table(table, out)
        files[f"plain_text/{split}-00000-of-00001.parquet"] = out.getvalue()
    data_files = [{"split": s, "path": f"plain_text/{s}-*"} for s in ("train", "test")]
    front = {
        "license": "unknown",
        "configs": [{"config_name": "plain_text", "data_files": data_files}],
    }
    hub.put(
        "uoft-cs/cifar10",
        {**files, "README.md": f"---\n{json.dumps(front)}\n---\n".encode()},
        "dataset",
    )


def put_model(hub: HubServer, client: Client, name: str) -> None:
    save_model(tiny_model(), client.folder / "base")
    hub.put(name, {p.name: p.read_bytes() for p in (client.folder / "base").iterdir()})


def test_train_from_the_hub_push_evaluate_predict_verify(hub: HubServer, client: Client) -> None:
    put_cifar(hub)
    put_model(hub, client, "alice/base")
    (client.folder / "mine.yaml").write_text(
        "model_name_or_path: alice/base@main\nmethod: lora\nlora_r: 4\nlearning_rate: 3e-3\n"
        "num_train_epochs: 2\nper_device_train_batch_size: 20\nvalidation_fraction: 0.2\n"
        "bf16: false\npush_to_hub: true\nhub_model_id: alice/net\n"
    )
    trained = command(client, "train", "mine.yaml")
    assert trained.returncode == 0, trained.stderr
    run = client.folder / "runs" / "mine"
    metrics = json.loads((run / "metrics.json").read_text())
    assert (
        metrics["dataset"] == "uoft-cs/cifar10"
        and metrics["test_samples"] == 60
        and metrics["base_model"] == "alice/base"
    )
    up = hub.repo("alice/net").at("main")
    assert up is not None and {
        "model.safetensors",
        "README.md",
        "adapter/adapter_model.safetensors",
    } <= set(up.files)

    scored = command(client, "evaluate", "alice/net@main", "--precision", "fp32", "--json")
    assert scored.returncode == 0, scored.stderr
    assert abs(json.loads(scored.stdout)["test_accuracy"] - metrics["test_accuracy"]) < 1e-9

    Image.new("RGB", (32, 32), "white").save(client.folder / "white.png")
    asked = command(client, "predict", "alice/net", "white.png", "--json", HF_HUB_OFFLINE="1")
    assert asked.returncode == 0, asked.stderr
    assert {a["label"] for a in json.loads(asked.stdout)["labels"]} <= set(LABELS)

    verified = command(client, "verify", "alice/net")
    assert verified.returncode == 0 and "confirmed" in verified.stdout, (
        verified.stdout + verified.stderr
    )
    lying = (
        (run / "README.md")
        .read_text()
        .replace(f"value: {metrics['test_accuracy']}", "value: 0.999")
    )
    files = {path: file.data for path, file in up.files.items()} | {"README.md": lying.encode()}
    hub.put("alice/liar", files)
    refuted = command(client, "verify", "alice/liar")
    assert refuted.returncode == 1 and "refuted" in refuted.stdout, refuted.stdout + refuted.stderr


ASK = """
import io, logging, os
from contextlib import redirect_stderr, redirect_stdout
from hf_cifar.cli.main import run
outcomes = []
for words, token in json.loads(sys.argv[1]):
    os.environ["HF_TOKEN"] = os.environ["ALICE"] if token is None else token
    logging.getLogger().handlers.clear()
    with redirect_stderr(io.StringIO()) as err, redirect_stdout(io.StringIO()):
        code = run(words)
    outcomes.append([code, err.getvalue()])
answer(outcomes)
"""


def test_bad_input_is_one_line_and_exit_2(hub: HubServer, client: Client, full_run: Path) -> None:
    put_model(hub, client, "alice/base")
    hub.put("alice/card-only", {"README.md": b"hello\n"})
    cases = [
        (["push", str(full_run), "--to", "alice/x"], "", "hf auth login"),
        (["push", str(full_run), "--to", "alice/x"], "hf_wrong", "token"),
        (["push", str(full_run), "--to", "bob/x"], None, "bob"),
        (["push", str(full_run), "--to", "no name"], None, "USER/NAME"),
        (["push", "nowhere", "--to", "alice/x"], None, "nowhere"),
        (["predict", "alice/card-only", "x.png"], None, "config.json"),
        (["predict", "alice/base", "x.png"], None, "x.png"),
        (["verify", "alice/card-only", "--dataset", "sample"], None, "config.json"),
        (["verify", "alice/base", "--dataset", "sample", "--labels", "cat"], None, "theirs=ours"),
        (["evaluate", "alice/nothing", "--dataset", "sample"], None, "alice/nothing"),
        (["evaluate", "alice/base@nowhere", "--dataset", "sample"], None, "nowhere"),
    ]
    asked = json.dumps([[words, token] for words, token, _ in cases])
    cache = str(client.folder / "cache")
    outcomes = client(ASK, asked, ALICE=hub.token("alice"), HF_CIFAR_CACHE=cache)
    for (words, _, part), (code, err) in zip(cases, outcomes, strict=True):
        lines = err.strip().splitlines()
        assert code == 2 and len(lines) == 1, (words, code, err)
        assert lines[0].startswith("hf-cifar: ") and part in lines[0], (words, err)


def test_a_push_that_fails_leaves_the_run_and_exits_1(
    hub: HubServer, client: Client, full_run: Path
) -> None:
    before = {p: p.read_bytes() for p in full_run.rglob("*") if p.is_file()}
    hub.order("commit", 501, times=99)
    done = command(client, "push", str(full_run), "--to", "alice/x")
    assert done.returncode == 1, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert f"hf-cifar push {full_run} --to alice/x" in line
    assert before == {p: p.read_bytes() for p in full_run.rglob("*") if p.is_file()}
