"""The pickles of the original CIFAR archives, read without Python's unpickler.

An unpickler calls what the file names, with arguments of the file's choice, and can be made to
allocate any amount of memory. Here the few operations that such files need build plain values: a
dictionary of numbers, bytes, texts, lists and one kind of array.
"""

from __future__ import annotations

import pickletools
from typing import Any

import numpy as np

MAX_OPERATIONS = 1_000_000  # CIFAR-100's train file has 250,000

VALUES = {  # operations that push their argument
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
NUMPY_MODULES = (
    "numpy",
    *(f"numpy.{core}.{part}" for core in ("core", "_core") for part in ("multiarray", "numeric")),
)


class UnsafePickle(Exception):
    """The pickle holds something that no CIFAR archive needs; the message says what."""


class _Uint8:
    """Stands for numpy's dtype uint8; its state in the pickle is not looked at."""


class _Array:
    """An array whose content is still to come."""

    value: np.ndarray | None = None


def read_cifar_pickle(data: bytes) -> dict[str, Any]:
    """Return the dictionary that `data`, of pickle protocol 2 to 5, holds, with texts as keys.

    Arrays are uint8 of two dimensions. Raises UnsafePickle, or ValueError for broken data.
    """
    value = _Machine().run(data)
    if not isinstance(value, dict):
        raise UnsafePickle("it holds no dictionary")
    return {
        key.decode("utf-8", "replace") if isinstance(key, bytes) else key: _finished(item)
        for key, item in value.items()
    }


def _finished(value: Any) -> Any:
    return value.value if isinstance(value, _Array) else value


class _Machine:
    """The stack, the marks and the memo of a pickle that is being read."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.bytes_left = 0  # that calls may still make

    def run(self, data: bytes) -> Any:
        """Return what the pickle holds."""
        self.bytes_left = len(data)
        try:
            for count, (operation, argument, _) in enumerate(pickletools.genops(data)):
                if count > MAX_OPERATIONS:
                    raise UnsafePickle(f"it has over {MAX_OPERATIONS:,} operations")
                if operation.name == "STOP":
                    return self.stack.pop()
                self.step(operation.name, argument)
        except (IndexError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"it is damaged ({type(error).__name__})") from None
        raise ValueError("it ends too early")

    def step(self, name: str, argument: Any) -> None:
        """Do one operation of `pickletools`."""
        stack, memo = self.stack, self.memo
        if name in VALUES:
            stack.append(argument)
        elif name in ("SHORT_BINSTRING", "BINSTRING"):  # of Python 2
            stack.append(argument.encode("latin-1"))
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name == "MARK":
            self.marks.append(len(stack))
        elif name == "TUPLE":
            stack.append(tuple(self._above_mark()))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            items = [stack.pop() for _ in range(int(name[-1]))]
            stack.append(tuple(reversed(items)))
        elif name == "APPEND":
            item = stack.pop()
            self._list().append(item)
        elif name == "APPENDS":
            items = self._above_mark()
            self._list().extend(items)
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            self._set(key, value)
        elif name == "SETITEMS":
            items = self._above_mark()
            for key, value in zip(items[::2], items[1::2], strict=True):
                self._set(key, value)
        elif name == "GLOBAL":
            stack.append(_symbol(*argument.split(" ")))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            stack.append(_symbol(module, attribute))
        elif name == "REDUCE":
            arguments, symbol = stack.pop(), stack.pop()
            result = _call(symbol, arguments)
            self.bytes_left -= len(result) if isinstance(result, bytes) else 0
            if self.bytes_left < 0:
                raise UnsafePickle("it repeats its content")
            stack.append(result)
        elif name == "BUILD":
            state = stack.pop()
            _build(stack[-1], state)
        elif name not in ("PROTO", "FRAME"):
            raise UnsafePickle(f"it has the operation {name}, which no CIFAR archive needs")

    def _above_mark(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def _list(self) -> list[Any]:
        if type(self.stack[-1]) is not list:
            raise ValueError("it appends to something that is no list")
        return self.stack[-1]

    def _set(self, key: Any, value: Any) -> None:
        # A key of nested tuples can take for ever to hash.
        if type(self.stack[-1]) is not dict or not isinstance(key, str | bytes):
            raise ValueError("it has a key that is no text")
        self.stack[-1][key] = value


def _symbol(module: Any, attribute: Any) -> str:
    """Return which of the known functions and classes a pickle names. Raises UnsafePickle."""
    if (module, attribute) == ("_codecs", "encode"):
        return "encode"
    if module in NUMPY_MODULES and attribute in ("_reconstruct", "_frombuffer", "ndarray", "dtype"):
        return f"numpy {attribute}"
    raise UnsafePickle(
        f"it would import {str(module)[:80]}.{str(attribute)[:80]}, which no CIFAR archive needs"
    )


def _call(symbol: Any, arguments: Any) -> Any:
    """Return what a known function gives. Raises UnsafePickle for any other call."""
    match symbol, arguments:
        case "encode", (str(text), "latin1" | "latin-1"):  # how protocol 2 spells bytes
            return text.encode("latin-1")
        case "numpy _reconstruct", ("numpy ndarray", *_):
            return _Array()
        case "numpy dtype", (("u1" | b"u1" | "|u1"), *_):
            return _Uint8()
        case "numpy _frombuffer", (bytes() | bytearray() as content, _Uint8(), shape, "C"):
            return _array(shape, content)
    raise UnsafePickle(f"it calls {str(symbol)[:80]} in a way that no CIFAR archive does")


def _build(target: Any, state: Any) -> None:
    """Give an array its content."""
    match target, state:
        case _Uint8(), tuple():
            return
        case _Array(), (int(), shape, _Uint8(), False, bytes() as content) if target.value is None:
            target.value = _array(shape, content)
        case _:
            raise UnsafePickle("it has an array that is not of uint8 in rows")


def _array(shape: Any, content: bytes | bytearray) -> np.ndarray:
    if not isinstance(shape, tuple) or len(shape) != 2 or not all(type(n) is int for n in shape):
        raise UnsafePickle("it has an array that is not of two dimensions")
    if min(shape) < 0 or shape[0] * shape[1] != len(content):
        raise ValueError("it has an array whose shape does not fit its content")
    return np.frombuffer(content, np.uint8).reshape(shape)
