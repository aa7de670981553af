"""Recipe values validated against the type and range of their key."""

from __future__ import annotations

import difflib
import functools
import reprlib
import types
import typing
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from hf_cifar.errors import UserError
from hf_cifar.recipe.yaml_text import read_yaml
from hf_cifar.text import visible

BOUNDS = {
    "greater_than": "above {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "below {lt:g}",
    "less_than_equal": "at most {le:g}",
    "finite_number": "a finite number",
}
MOST_CHOICES = 12  # that a message lists
SINGULAR = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    types.NoneType: "null",
}
PLURAL = {int: "whole numbers", float: "numbers", bool: "true or false", str: "texts"}


def validate(value: Any, hint: Any, where: str) -> Any:
    """Return `value` as the type `hint`.

    Text, from a command line or from quotes, may stand for any type: `3`, `null`, `0.1,0.2`,
    `[0.1, 0.2]`. Raises UserError that begins with `where` and says what was expected.
    """
    from pydantic import ValidationError

    adapter = _adapter(hint)
    errors: list[Any] = []
    for reading in _readings(value) if isinstance(value, str) else [value]:
        try:
            return adapter.validate_python(reading)
        except ValidationError as error:
            errors += error.errors(include_url=False, include_input=True)
    bound = next((error for error in errors if error["type"] in BOUNDS), None)
    if bound is None:
        raise UserError(
            f"{where}: must be {_expected(hint)}, got {shown(value)}{_nearest(hint, value)}"
        )
    limit = BOUNDS[bound["type"]].format(**bound.get("ctx", {}))
    raise UserError(f"{where}: must be {limit}, got {shown(bound['input'])}")


@functools.cache
def _adapter(hint: Any) -> Any:
    from pydantic import ConfigDict, TypeAdapter

    return TypeAdapter(hint, config=ConfigDict(strict=True, allow_inf_nan=False))


def _readings(text: str) -> Iterator[Any]:
    """Yield what a text may mean, the likeliest first: a YAML value, a list, the text itself."""
    value = _yaml_value(text)
    if value is not text:
        yield value
    if "," in text:
        yield [_yaml_value(part) for part in text.split(",")]
    yield text
    yield [value]


def _yaml_value(text: str) -> Any:
    """Return the number, null, truth value, list or mapping that a text means, or the text."""
    try:
        value = read_yaml(text)
    except UserError:
        return text
    is_text = isinstance(value, str) or (value is None and text not in ("", "~", "null"))
    return text if is_text else value


def shown(value: Any) -> str:
    """Return a value for a message: at most 80 characters, cut before it is formatted."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = 80
    short.maxlist = short.maxdict = short.maxset = 10
    return visible(short.repr(value), most=80)


def _nearest(hint: Any, value: Any) -> str:
    """Return a remedy that names the nearest choice, where `_expected` does not name them all."""
    choices = [str(choice) for choice in typing.get_args(hint)]
    if typing.get_origin(hint) is not Literal or len(choices) <= MOST_CHOICES:
        return ""
    word = visible(value, most=80)
    longer = [choice for choice in choices if choice.startswith(word)]
    near = longer or difflib.get_close_matches(word, choices, 1, 0.5)
    return f"; did you mean `{near[0]}`?" if near else ""


def _expected(hint: Any, names: dict[Any, str] = SINGULAR) -> str:
    """Return a type in words, such as "a list of numbers or null"."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _expected(arguments[0], names)
    if origin is Literal:
        choices = ", ".join(map(str, arguments[:MOST_CHOICES]))
        choices += ", …" if len(arguments) > MOST_CHOICES else ""
        return f"one of {choices}" if names is SINGULAR else choices
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_expected(argument, names) for argument in arguments)
    if origin is list:
        return f"{'a list' if names is SINGULAR else 'lists'} of {_expected(arguments[0], PLURAL)}"
    if hint is dict or origin is dict:
        return "a mapping"
    return names.get(hint, str(hint))
