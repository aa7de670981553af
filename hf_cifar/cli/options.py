"""Options that several commands share: recipe keys, their help, and types of numbers."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import sys
from typing import Any, NoReturn

from hf_cifar.cli.output import say
from hf_cifar.errors import UserError
from hf_cifar.recipe.fields import BLOCKS, TRAINING_DEFAULTS
from hf_cifar.text import visible


class CommandParser(argparse.ArgumentParser):
    """Reports a word that it can't take as a UserError, and writes help as commands write."""

    def __init__(self, prog: str, **options: Any) -> None:
        super().__init__(prog, allow_abbrev=False, **options)

    def print_help(self, file: Any = None) -> None:
        say(self.format_help(), end="")

    def error(self, message: str) -> NoReturn:
        _, _, command = self.prog.partition(" ")
        where = f"{command}: " if command else ""
        message = message.removeprefix("argument ")
        raise UserError(f"{where}{message}; `{self.prog} --help` shows how to call it")


def new_command(commands: Any, name: str, help: str, **options: Any) -> argparse.ArgumentParser:
    """Return the parser of a command that takes no recipe keys.

    commands: what `ArgumentParser.add_subparsers` returned. help: one line.
    """
    command = commands.add_parser(
        name,
        help=help,
        description=help,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        **options,
    )
    command.set_defaults(takes_keys=False)
    return command


def new_recipe_command(commands: Any, name: str, help: str) -> argparse.ArgumentParser:
    """Return the parser of a command that takes a recipe, and its keys as `--key value`."""
    command = new_command(commands, name, help, epilog=keys_help())
    command.set_defaults(takes_keys=True)
    command.add_argument(
        "recipe", metavar="RECIPE", help="a file, a run folder, or the name of a packaged recipe"
    )
    return command


def new_backbone_command(commands: Any, name: str, help: str) -> argparse.ArgumentParser:
    """Return the parser of a command that takes a backbone or a recipe, and recipe keys as
    `--key value`.
    """
    command = new_command(commands, name, help, epilog=keys_help())
    command.set_defaults(takes_keys=True)
    command.add_argument(
        "backbone",
        metavar="BACKBONE_OR_RECIPE",
        help="a model folder, a run folder, a Hub id or a `pypi:` package; or a recipe, by file or"
        " packaged name, of which backbone and data count",
    )
    return command


def parse_overrides(words: list[str]) -> dict[str, str]:
    """Return the recipe keys of a command line with their text.

    They are written `--key value`, `--key=value`, or `--key` for true; dashes may stand for
    underscores. Raises UserError for any other word.
    """
    overrides: dict[str, str] = {}
    position = 0
    while position < len(words):
        word = words[position]
        position += 1
        if not word.startswith("--"):
            raise UserError(
                f"command line: {visible(word, most=80)}: write a recipe key as `--key value`"
            )
        name, equals, value = word[2:].partition("=")
        if not equals:
            next_is_value = position < len(words) and not words[position].startswith("--")
            value = words[position] if next_is_value else "true"
            position += next_is_value
        overrides[name.replace("-", "_")] = value
    return overrides


def keys_help() -> str:
    """Return the recipe keys with defaults and help, in blocks."""
    lines = ["Every recipe key can be set as --key value:"]
    for title, block in BLOCKS.items():
        lines += ["", f"# {title}"]
        for field in dataclasses.fields(block):
            lines += [f"  {field.name} ({default_of(field)})", f"      {field.metadata['help']}"]
    defaults = [
        f"{name} ({value})" for name, value in TRAINING_DEFAULTS.items() if value is not None
    ]
    lines += [
        "",
        "# Training",
        "  every key of transformers.TrainingArguments; this project's defaults:",
        f"      {', '.join(defaults)}",
    ]
    return "\n".join(lines)


def default_of(field: dataclasses.Field) -> str:
    """Return the default of a key as a recipe would write it."""
    factory = field.default_factory
    return json.dumps(field.default if factory is dataclasses.MISSING else factory())


def positive_integer(text: str) -> int:
    """Return the whole number from 1 on that an option was given."""
    if not (text.isdecimal() and len(text) <= 18 and int(text) >= 1):
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, got {_shown(text)}")
    return int(text)


def positive_integers(text: str) -> list[int]:
    """Return the rising whole numbers from 1 on that an option was given, such as 1,5,10."""
    numbers = [positive_integer(word.strip()) for word in text.split(",")]
    if numbers != sorted(set(numbers)):
        raise argparse.ArgumentTypeError(f"must be numbers that rise, got {_shown(text)}")
    return numbers


def positive_number(text: str) -> float:
    """Return the finite number above 0 that an option was given."""
    number = _number(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {_shown(text)}")
    return number


def positive_share(text: str) -> float:
    """Return the number above 0 and up to 1 that an option was given."""
    number = _number(text)
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"must be above 0 and at most 1, got {_shown(text)}")
    return number


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _shown(text: str) -> str:
    return visible(text, most=80)


def quiet_libraries() -> None:
    """Turn off what the libraries print themselves, before a command imports the rest of them.

    Their progress bars of loading go, and their warnings about what this package turns into errors.
    Bars are only drawn on a terminal: elsewhere they would fill a log with half lines.
    """
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")
    import warnings

    import datasets
    import transformers

    warnings.filterwarnings(
        "ignore", category=FutureWarning, module=r"(transformers|peft|accelerate)\."
    )
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
