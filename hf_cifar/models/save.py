"""A model written into a folder that `from_pretrained` and `pipeline` load."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def save_model(model: Any, folder: Path, **options: Any) -> None:
    """Write a model, or an adapter of peft's, into a folder, readable to whom the umask says.

    safetensors gives its files mode 0600, so that others of a group couldn't read a shared run.

    options: of `save_pretrained`.
    """
    model.save_pretrained(folder, **options)
    umask = os.umask(0o077)  # there is no way to ask for it but to set it
    os.umask(umask)
    for weights in folder.glob("*.safetensors"):
        weights.chmod(0o666 & ~umask)
