"""What must not leave this machine: tokens, the user's name, the host's name, absolute paths.

The files of a push are read here byte by byte before the first of them is sent. A finding names the
file and the kind of what was found, never the text itself, since the message ends in logs.
"""

from __future__ import annotations

import getpass
import json
import mmap
import re
import socket
import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from hf_cifar.errors import UserError

TOKEN = re.compile(rb"hf_[A-Za-z0-9]{20,}")
# Two or more components from the root, or anything below a home. What comes before the slash keeps
# addresses (https://host/a/b), relative paths (runs/a/b) and closing tags (</a>) out.
ABSOLUTE = re.compile(
    rb"""(?<![\w.\-])/(?:home|root|Users)/      # a home, wherever it stands
       | (?<![\w.\-/~)\]}>*<])/[A-Za-z_][\w.\-]*/[\w.\-]+
       | (?<![A-Za-z])[A-Z]:\\+\w                # a drive, with the backslash doubled in JSON
       | \bfile:/+\w""",
    re.VERBOSE,
)
# Names that identify nobody, and that occur in ordinary text.
GENERIC = {
    "root",
    "user",
    "users",
    "admin",
    "ubuntu",
    "debian",
    "runner",
    "docker",
    "jovyan",
    "node",
    "server",
}
GENERIC |= {
    "localhost",
    "localhost.localdomain",
    "local",
    "host",
    "home",
    "gpu",
    "test",
    "train",
    "main",
    "data",
}
GENERIC |= {"model", "models", "cifar", "cifar10", "vit"}
TEXT_SUFFIXES = {".json", ".md", ".yaml", ".yml", ".txt"}


def _names() -> Iterator[tuple[str, str]]:
    """(kind, name) of this user and this host, without the generic ones."""
    with suppress(OSError, KeyError):  # a container may have no entry for this user id
        yield "the user's name", getpass.getuser()
    host = socket.gethostname()
    yield "the host name", host
    yield "the host name", host.split(".")[0]


def _patterns(run: Path, allowed: Iterable[str]) -> list[tuple[str, re.Pattern[bytes]]]:
    skip = GENERIC | {word.lower() for word in allowed}
    found = [("a token", TOKEN)]
    for path in {str(run.resolve()), str(run.absolute())}:
        found.append(("the run's own absolute path", re.compile(re.escape(path).encode())))
    home = str(Path.home()).rstrip("/\\")
    if len(home) > 1:
        found.append(("the home directory", re.compile(re.escape(home).encode() + rb"(?![\w.\-])")))
    for kind, name in _names():
        if len(name) > 2 and name.lower() not in skip:
            word = re.compile(
                rb"(?<![A-Za-z0-9_])" + re.escape(name).encode() + rb"(?![A-Za-z0-9_])",
                re.IGNORECASE,
            )
            found.append((kind, word))
    return [*found, ("an absolute path", ABSOLUTE)]


def _texts(path: Path) -> bytes:
    """The part of a file that is text: all of it, a safetensors header, or the text chunks of a
    PNG.
    """
    if path.suffix in TEXT_SUFFIXES:
        raw = path.read_bytes()
        if path.suffix != ".json":
            return raw
        try:  # so that nothing hides behind \u escapes
            return raw + b"\n" + json.dumps(json.loads(raw), ensure_ascii=False).encode()
        except ValueError:
            return raw
    if path.suffix == ".safetensors":
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))
            return file.read(min(size, 100_000_000))
    if path.suffix == ".png":
        from PIL import Image

        with Image.open(path) as image:
            image.load()
            return json.dumps(
                {str(k): str(v) for k, v in image.info.items()}, ensure_ascii=False
            ).encode()
    return b""


def scan(
    run: Path, files: Iterable[str], allowed: Iterable[str] = (), own: Path | None = None
) -> None:
    """Reads every byte of `files` (paths relative to `run`; `own` is the run folder where `run` is
    a copy of it).

    Text (text files, safetensors headers, PNG text) is searched for tokens, the user's and the
    host's name, the home directory and any absolute path; the rest of a binary file for tokens and
    for this machine's own paths. `allowed` are names that may stand in the text, such as the
    namespace that is pushed to.

    Raises:
        UserError: something was found; the line names file and kind.
    """
    own = own or run
    patterns = _patterns(own, allowed)
    for name in files:
        path = run / name
        try:
            text = _texts(path)
        except (OSError, SyntaxError, ValueError) as error:
            raise UserError(
                f"{own / name} can't be read ({type(error).__name__}): write it again before pushing"
            ) from None
        for kind, pattern in patterns:
            if pattern.search(text):
                raise _found(own / name, kind)
        if path.suffix not in TEXT_SUFFIXES and path.stat().st_size:
            with (
                path.open("rb") as file,
                mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
            ):
                for kind, pattern in patterns:
                    exact = kind in ("a token", "the run's own absolute path")
                    if exact and pattern.search(data):
                        raise _found(own / name, kind)
        if path.name == "adapter_config.json":
            _check_base(path, own / name)


def _found(path: Path, kind: str) -> UserError:
    return UserError(
        f"{path} holds {kind}: nothing was pushed; take it out (or train from a Hub id) and repeat"
    )


def _check_base(path: Path, shown: Path) -> None:
    """peft writes the folder the base was loaded from (transformers #33922); nobody else could load
    the adapter.
    """
    base = json.loads(path.read_bytes()).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise UserError(
            f"{shown}: base_model_name_or_path is empty; name the base model's Hub id there"
        )
    if base.startswith((".", "~")) or "\\" in base or base.count("/") > 1 or Path(base).is_dir():
        raise UserError(
            f"{shown}: base_model_name_or_path is a local path; name the base model's Hub id there, so that others can load"
        )
