"""`hf-cifar recipes`: list, show, copy or check recipes."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

from hf_cifar.cli.options import new_command
from hf_cifar.cli.output import say
from hf_cifar.errors import UserError
from hf_cifar.recipe.load import find_recipe, load_recipe
from hf_cifar.recipe.recipe import packaged, recipe_names


def add_parser(commands: Any) -> None:
    command = new_command(commands, "recipes", "List, show, copy or check recipes.")
    actions = command.add_subparsers(required=True, metavar="ACTION")

    action = actions.add_parser("list", help="name the packaged recipes")
    action.set_defaults(run=list_recipes)

    action = actions.add_parser("show", help="print recipes")
    action.set_defaults(run=show)
    action.add_argument("names", metavar="NAME", nargs="+", help="a packaged recipe or a file")

    action = actions.add_parser("copy", help="copy a recipe, to change it")
    action.set_defaults(run=copy)
    action.add_argument(
        "name", metavar="NAME", help="a packaged recipe, or a folder of them such as `accelerate`"
    )
    action.add_argument(
        "target",
        metavar="TO",
        nargs="?",
        type=Path,
        help="file or folder; default: the same name, here",
    )

    action = actions.add_parser("check", help="read recipes as `train` would")
    action.set_defaults(run=check)
    action.add_argument(
        "names", metavar="NAME", nargs="*", help="packaged recipes or files; default: all packaged"
    )


def list_recipes(args: argparse.Namespace) -> None:
    for name in recipe_names():
        first_line = find_recipe(name).read_text(encoding="utf-8").partition("\n")[0]
        say(f"{name:<28}{first_line.lstrip('# ')}")


def show(args: argparse.Namespace) -> None:
    for name in args.names:
        say(find_recipe(name).read_text(encoding="utf-8"), end="")


def check(args: argparse.Namespace) -> None:
    for name in args.names or recipe_names():
        load_recipe(name)
        say(f"{name}: ok")


def copy(args: argparse.Namespace) -> None:
    folder = packaged("recipes") / args.name
    source = folder if folder.is_dir() else find_recipe(args.name)
    target = args.target or Path(source.name)
    target = target / source.name if target.is_dir() else target
    if target.exists():
        raise UserError(f"recipes copy: {target} exists already; name another file")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    except OSError as error:
        raise UserError(
            f"recipes copy: {target}: can't be written: {error.strerror}; name another file"
        ) from None
    say(str(target))
