"""Find what must not leave this machine: tokens, names of user and host, absolute paths.

The files of a push are read here byte by byte before the first of them is sent. A finding names the
file and the kind of the secret, never the secret itself, because messages end in logs.
"""

from __future__ import annotations

import getpass
import json
import mmap
import re
import socket
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path

from hf_cifar.errors import UserError

Patterns = list[tuple[str, re.Pattern[bytes]]]
"""(kind of secret, its pattern)"""

TOKEN = re.compile(rb"hf_[A-Za-z0-9]{20,}")
# Two or more parts from the root, or anything below a home folder. What may stand before the slash
# excludes addresses (https://host/a/b), relative paths (runs/a/b) and closing tags (</a>).
ABSOLUTE = re.compile(
    rb"""(?<![\w.\-])/(?:home|root|Users)/      # a home folder, wherever it stands
       | (?<![\w.\-/~)\]}>*<])/[A-Za-z_][\w.\-]*/[\w.\-]+
       | (?<![A-Za-z])[A-Z]:\\+\w                # a drive; JSON doubles the backslash
       | \bfile:/+\w""",
    re.VERBOSE,
)
# Names of users and hosts that identify nobody and are words of ordinary text.
COMMON_NAMES = frozenset(
    """
    root user users admin ubuntu debian runner docker jovyan node server localhost local host home
    localhost.localdomain gpu test train main data model models cifar cifar10 vit
    """.split()  # noqa: SIM905 (26 lines of list)
)
TEXT_SUFFIXES = {".json", ".md", ".py", ".yaml", ".yml", ".txt"}
MOST_HEADER = 100_000_000  # bytes of a safetensors header; the library refuses a longer one


def scan(run: Path, files: Mapping[str, Path | bytes], allowed: Iterable[str] = ()) -> None:
    """Read every byte of the files that are to be pushed.

    In text (text files, safetensors headers, texts in a PNG) search for tokens, the names of user
    and host, the home folder and any absolute path; in other bytes for tokens and the path of the
    run.

    run: the run folder. files: path in the repo -> file, or its bytes. allowed: names that may
    stand in the text, such as the namespace that is pushed to.

    Raises UserError for the first secret; the line names its file and kind.
    """
    patterns = _patterns(run, allowed)
    exact = [pair for pair in patterns if pair[0] in ("a token", "the run's own absolute path")]
    for name, file in files.items():
        with _opened(file) as data:
            try:
                text = _text_of(name, data)
            except Exception as error:  # every format has its own
                raise UserError(
                    f"{run / name} can't be read ({type(error).__name__}): write it again before"
                    " pushing"
                ) from None
            for searched, those in ((text, patterns), (data, exact)):
                for kind, pattern in those:
                    if pattern.search(searched):
                        raise UserError(
                            f"{run / name} holds {kind}: nothing was pushed; remove it (or train"
                            " from a Hub id) and push again"
                        )
            if Path(name).name == "adapter_config.json":
                _check_base(bytes(data), run / name)


@contextmanager
def _opened(file: Path | bytes) -> Iterator[bytes | mmap.mmap]:
    """Give the bytes of a file, mapped where they are on disk."""
    if isinstance(file, bytes) or not file.stat().st_size:  # an empty file can't be mapped
        yield b"" if isinstance(file, Path) else file
        return
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
        yield data


def _patterns(run: Path, allowed: Iterable[str]) -> Patterns:
    patterns = [("a token", TOKEN)]
    for path in {str(run.resolve()), str(run.absolute())}:
        patterns.append(("the run's own absolute path", re.compile(re.escape(path).encode())))
    home = str(Path.home()).rstrip("/\\")
    if len(home) > 1:
        pattern = re.compile(re.escape(home).encode() + rb"(?![\w.\-])")
        patterns.append(("the home directory", pattern))
    harmless = COMMON_NAMES | {word.lower() for word in allowed}
    for kind, name in _private_names():
        if len(name) > 2 and name.lower() not in harmless:
            word = rb"(?<![A-Za-z0-9_])" + re.escape(name).encode() + rb"(?![A-Za-z0-9_])"
            patterns.append((kind, re.compile(word, re.IGNORECASE)))
    return [*patterns, ("an absolute path", ABSOLUTE)]


def _private_names() -> Iterator[tuple[str, str]]:
    """Yield (kind, name) of this user and this host."""
    with suppress(OSError, KeyError):  # a container may have no entry for this user id
        yield "the user's name", getpass.getuser()
    host = socket.gethostname()
    yield "the host name", host
    yield "the host name", host.split(".")[0]


def _text_of(name: str, data: bytes | mmap.mmap) -> bytes:
    """Return the part of a file that is text: all of it, a safetensors header, or a PNG's texts."""
    suffix = Path(name).suffix
    if suffix == ".json":
        text = bytes(data)
        with suppress(ValueError):  # what is no JSON is searched as it is
            # Written again, so that nothing hides behind \u escapes.
            text += b"\n" + json.dumps(json.loads(text), ensure_ascii=False).encode()
        return text
    if suffix in TEXT_SUFFIXES:
        return bytes(data)
    if suffix == ".safetensors":
        (size,) = struct.unpack("<Q", data[:8].ljust(8, b"\0"))
        return data[8 : 8 + min(size, MOST_HEADER)]
    if suffix == ".png":
        from PIL import Image

        with Image.open(BytesIO(data)) as image:
            image.load()
            texts = {str(key): str(value) for key, value in image.info.items()}
            return json.dumps(texts, ensure_ascii=False).encode()
    return b""


def _check_base(config: bytes, path: Path) -> None:
    """Raise UserError for an adapter whose base model is a local path, as peft writes it: nobody
    else could load the adapter (transformers #33922).
    """
    base = json.loads(config).get("base_model_name_or_path")
    advice = "name the base model's Hub id there, so that others can load it"
    if not isinstance(base, str) or not base:
        raise UserError(f"{path}: base_model_name_or_path is empty; {advice}")
    if base.startswith((".", "~")) or "\\" in base or base.count("/") > 1 or Path(base).is_dir():
        raise UserError(f"{path}: base_model_name_or_path is a local path; {advice}")
