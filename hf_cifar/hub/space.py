"""A run's page as a Space on the Hub, or as a folder that runs as it is.

The page and the modules that it needs are copied, so a Space needs nothing of this project. The
model lies in it too. Pictures of the data do not: whoever pushes a Space may not own them.
"""

from __future__ import annotations

import json
import platform
import re
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hf_cifar.demo.facts import page_facts
from hf_cifar.errors import UserError
from hf_cifar.evaluation.classifier import load_classifier
from hf_cifar.hub.privacy import scan
from hf_cifar.hub.repo import check_repo_name
from hf_cifar.hub.run_files import Files, finished_metrics, rejects
from hf_cifar.hub.upload import DEFAULTS, PushOptions, PushResult, send
from hf_cifar.models.model_files import KNOWN_PICTURES
from hf_cifar.recipe.recipe import PACKAGE
from hf_cifar.recipe.yaml_text import write_yaml
from hf_cifar.reporting.card_format import markdown
from hf_cifar.reporting.hub_metadata import is_hub_id, license_keys

MODULES = {  # file in the Space -> file of this package
    "app.py": "demo/page.py",
    "heat_maps.py": "evaluation/heat_maps.py",
    "stranger_scores.py": "evaluation/stranger_scores.py",
}
PINNED = (
    *("gradio", "grad-cam", "huggingface_hub", "numpy", "pillow", "safetensors"),
    *("torch", "torchvision", "transformers"),
)
MODEL_FILES = ("config.json", "preprocessor_config.json", "model.safetensors")


def push_space(run: Path, to: str, options: PushOptions = DEFAULTS) -> PushResult:
    """Push a finished run's page to the Space `to` ("user/name") as one commit.

    Raises what `push` raises.
    """
    run = Path(run)
    return send(
        run,
        to,
        lambda: (space_files(run, to), f"The page of {page_name(run)}"),
        options,
        words=f"--space {to}",
        kind="space",
        is_optional=_is_optional,
    )


def write_space(run: Path, to: str, folder: Path) -> None:
    """Write the files of a Space into a folder, which must be new or empty.

    Raises UserError for a run that can't be pushed, and for the folder.
    """
    check_repo_name(to)
    files = space_files(run, to)
    try:
        if folder.is_dir() and any(folder.iterdir()):
            raise UserError(f"--dry-run {folder}: it holds files already; name a new folder")
        for name, file in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(file, bytes):
                path.write_bytes(file)
            else:
                shutil.copyfile(file, path)
    except OSError as error:
        raise UserError(f"--dry-run {folder}: {error.strerror}; name another folder") from None


def space_files(run: Path, to: str) -> Files:
    """Return the files of a Space by their path in it.

    Raises UserError for an unfinished run, and for a secret in a file.
    """
    metrics = finished_metrics(run)
    classifier = load_classifier(str(run), several_labels=True)
    facts = page_facts(classifier, metrics, page_name(run))
    page = json.dumps(facts, indent=1, ensure_ascii=False) + "\n"
    uses_timm = classifier.model.config.model_type == "timm_wrapper"
    files: Files = {
        "README.md": _readme(facts, metrics).encode(),
        "requirements.txt": _requirements(uses_timm).encode(),
        "page.json": page.encode(),
    }
    for name, source in MODULES.items():
        files[name] = _standing_alone((PACKAGE / source).read_text(encoding="utf-8")).encode()
    for name in MODEL_FILES:
        files[f"model/{name}"] = run / name
    if rejects(run):
        files[f"model/{KNOWN_PICTURES}"] = run / KNOWN_PICTURES
    scan(run, files, allowed=to.split("/"))
    return files


def page_name(run: Path) -> str:
    """Return what the page of a run is called where its metrics.json doesn't say."""
    return run.resolve().name


def _is_optional(name: str) -> bool:
    return name == f"model/{KNOWN_PICTURES}"


def _standing_alone(source: str) -> str:
    """Return a module's text with its imports from this package turned into imports of the files
    beside it.
    """
    return re.sub(r"from hf_cifar\.[\w.]*?(\w+) import", r"from \1 import", source)


def _requirements(uses_timm: bool) -> str:
    """Return the packages that the page needs, at the versions that are installed here.

    A local version such as +cpu names a build that the registry does not have.
    """
    names = sorted([*PINNED, *(["timm"] if uses_timm else [])], key=str.lower)
    return "".join(f"{name}=={version(name).partition('+')[0]}\n" for name in names)


def _readme(facts: dict[str, Any], metrics: dict[str, Any]) -> str:
    """Return the Space's README: its settings, and what the page shows."""
    settings: dict[str, Any] = {
        "title": facts["title"],
        "emoji": "🔎",
        "colorFrom": "blue",
        "colorTo": "green",
        "sdk": "gradio",
        "sdk_version": version("gradio"),
        "python_version": ".".join(platform.python_version_tuple()[:2]),
        "app_file": "app.py",
        "pinned": False,
        **license_keys(metrics.get("license")),
    }
    linked = [metrics.get("hub_model_id"), metrics.get("base_model")]
    if models := [name for name in linked if name and is_hub_id(name)]:
        settings["models"] = models
    lines = [f"- {markdown(name)}: {markdown(value)}" for name, value in facts["figures"]]
    text = "\n".join(
        ["", f"# {markdown(facts['title'])}", "", markdown(facts["about"]), "", *lines]
    )
    run = "To run it elsewhere: `pip install -r requirements.txt`, then `python app.py`."
    return f"---\n{write_yaml(settings)}---\n{text}\n\n{run}\n"
