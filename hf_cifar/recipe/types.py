"""Recipe values read as the type and range that a key has."""

from __future__ import annotations

import enum
import math
import types
import typing
from typing import Any, Literal

import yaml

from hf_cifar.errors import UserError


def check_range(
    value: Any, low: float | None, high: float | None, above: float | None, where: str
) -> None:
    """Raises UserError where a number, or a number of a list, is out of range or not finite."""
    for v in value if isinstance(value, list) else [value]:
        if isinstance(v, bool) or not isinstance(v, int | float):
            continue
        if not math.isfinite(v):
            raise UserError(f"{where}: must be a finite number, got {v}")
        if above is not None and v <= above:
            raise UserError(f"{where}: must be above {above:g}, got {v:g}")
        if low is not None and v < low:
            raise UserError(f"{where}: must be at least {low:g}, got {v:g}")
        if high is not None and v > high:
            raise UserError(f"{where}: must be at most {high:g}, got {v:g}")


def coerce(value: Any, hint: Any, where: str) -> Any:
    """`value` as the type `hint` says; text (from a command line, or YAML's `1e-3`) is read. Raises
    UserError.
    """
    options = [hint]
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        options = list(typing.get_args(hint))
    if any(
        _is_enum(o) for o in options
    ):  # `SchedulerType | str`: the enum says which texts there are
        options = [o for o in options if o is not str]
    if (
        isinstance(value, str)
        and str in options
        and not ("," in value or value.lstrip().startswith("["))
    ):
        options = [
            o for o in options if not _is_list(o)
        ]  # `report_to: none` is one text, not a list of one
    for option in sorted(options, key=lambda o: o is str):  # text is the last resort
        try:
            return _coerce_one(value, option)
        except (
            ValueError,
            TypeError,
            OverflowError,
            yaml.YAMLError,
            UserError,
        ):  # UserError: of an item of a list
            continue
    raise UserError(f"{where}: must be {' or '.join(_describe(o) for o in options)}, got {value!r}")


def _is_enum(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, enum.Enum)


def _is_list(hint: Any) -> bool:
    return hint is list or typing.get_origin(hint) is list


def _coerce_one(value: Any, hint: Any) -> Any:
    origin = typing.get_origin(hint)
    if isinstance(value, str) and (hint in (dict, list) or origin in (dict, list)):
        value = (
            yaml.safe_load(value)
            if value.strip()[:1] in "[{" and value.strip()
            else value.split(",")
        )
    if hint is type(None):
        if value is None or (isinstance(value, str) and value.lower() in ("null", "~", "")):
            return None
    elif origin is Literal:
        if value in typing.get_args(hint):
            return value
    elif _is_enum(hint):
        return hint(value).value
    elif hint is bool:
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.lower() in ("true", "false", "yes", "no"):
            return value.lower() in ("true", "yes")
    elif hint is int:
        if isinstance(value, bool):
            raise TypeError
        if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
            return int(value)
        if isinstance(value, str):
            return int(value)
    elif hint is float:
        if isinstance(value, bool):
            raise TypeError
        return float(value)
    elif hint is str:
        if isinstance(value, str):
            return value
    elif _is_list(hint):
        if isinstance(value, list):
            return [coerce(v, (typing.get_args(hint) or (Any,))[0], "") for v in value]
    elif hint is dict or origin is dict:
        if isinstance(value, dict):
            return value
    elif hint is Any:
        return value
    raise TypeError


def _describe(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, typing.get_args(hint)))
    if _is_enum(hint):
        return "one of " + ", ".join(str(e.value) for e in hint)
    if typing.get_origin(hint) is list:
        return f"a list of {_describe(typing.get_args(hint)[0])}"
    if typing.get_origin(hint) is dict:
        return "a mapping"
    names = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "text",
        type(None): "null",
        dict: "a mapping",
        list: "a list",
    }
    return names.get(hint, getattr(hint, "__name__", str(hint)))
