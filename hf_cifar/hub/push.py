"""Push a finished run to the Hub as one commit, and read it back.

huggingface_hub talks to the server. What is added here: only the files that are meant to be pushed
are, nothing private is in them, a failed push leaves the run whole and can be repeated, and what
arrived is what was sent.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hf_cifar.hub.privacy import scan
from hf_cifar.hub.run_files import Files, files_to_push, finished_metrics, is_optional
from hf_cifar.hub.upload import DEFAULTS, PushOptions, PushResult, send


def push(run: Path, to: str, options: PushOptions = DEFAULTS, *, onnx: bool = False) -> PushResult:
    """Push a finished run folder to the model repo `to` ("user/name") as one commit.

    The run folder is only read. Repo and branch are created if they are missing. onnx: take the
    exported graphs along.

    Raises:
        UserError: bad input: an unfinished run, something private in a file, no token or a wrong
            one, no right to `to`.
        PushError: the network or the server failed. The line names the command that repeats the
            push.
    """
    run = Path(run)
    metrics = finished_metrics(run)

    def prepare() -> tuple[Files, str]:
        files = files_to_push(run, metrics, to, onnx)
        scan(run, files, allowed=to.split("/"))
        return files, _commit_message(metrics)

    words = f"--to {to}{' --onnx' if onnx else ''}"
    return send(
        run, to, prepare, options, words=words, is_optional=lambda name: is_optional(name, onnx)
    )


def _commit_message(metrics: dict[str, Any]) -> str:
    model = metrics.get("base_model") or "a model trained from scratch"
    method = f" {metrics['method_description']}" if metrics.get("method_description") else ""
    accuracy, data = 100 * metrics["test_accuracy"], metrics.get("dataset", "the data set")
    interval = ""
    if ends := metrics.get("test_accuracy_ci95"):
        interval = f" (95 % interval {100 * ends[0]:.2f} to {100 * ends[1]:.2f})"
    return f"{model}{method}: {accuracy:.2f} % on {data} test{interval}"
