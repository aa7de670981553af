"""Measure the minutes from the command to an accuracy on CIFAR-10's 10,000 test images, from real
weights, for a recipe of ours and for the stock recipe with the same backbone.

The stock recipe is the transformers example at its defaults: 224 px, batch 8, learning rate 5e-5,
float32. While a side trains, the test images are scored now and then: a part of them first, and all
of them where that comes near the goal or training ends. The clock stands still meanwhile, for both
sides. The single scoring of a `linear` recipe counts. A side that misses the goal within the budget
is stopped; if it is the stock recipe, the ratio is a lower bound.
"""

import argparse
import copy
import dataclasses
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import common


class Arrived(Exception):
    """The goal is reached, or the budget is spent. The message is the result as JSON."""


def clock(args: argparse.Namespace, score: Any) -> Any:
    """Return a callback that scores now and then.

    score: score(trainer, part) returns the accuracy on the first `part` images, or on all of them
    for None.
    """
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        trainer: Any = None

        def __init__(self) -> None:
            self.paused, self.next = 0.0, args.every
            self.curve: list[tuple[float, float]] = []

        def seconds(self) -> float:
            return time.time() - args.began - self.paused

        def look(self, steps: int, last: bool) -> None:
            now = self.seconds()
            began = time.time()
            accuracy = score(self.trainer, args.part)
            near = last or accuracy >= args.goal - 0.01
            arrived = near and (accuracy := score(self.trainer, None)) >= args.goal
            self.paused += time.time() - began
            self.curve.append((round(now, 1), accuracy))
            print(f"  {now:.0f} s, step {steps}: {accuracy:.4f}", file=sys.stderr, flush=True)
            if arrived or now > 60 * args.budget:
                result = {
                    "seconds": now if arrived else None,
                    "ran": now,
                    "accuracy": accuracy,
                    "curve": self.curve,
                }
                raise Arrived(json.dumps(result))
            self.next = now + args.every

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            last = state.global_step == state.max_steps
            if self.seconds() >= self.next or last:
                self.look(state.global_step, last)

    return Clock()


def ours(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    from hf_cifar.features.hidden_states import HiddenStateBatches
    from hf_cifar.methods.gradient_learner import GradientLearner
    from hf_cifar.methods.table import METHODS
    from hf_cifar.recipe.load import load_recipe
    from hf_cifar.runs.run import train_recipe

    keys = {"dataset_name": args.data, "output_dir": str(folder / "run"), "disable_tqdm": True}
    recipe = load_recipe(
        args.recipe, keys | ({"model_name_or_path": args.weights} if args.weights else {})
    )
    if METHODS[recipe.method].runs_backbone_once:  # only the whole run has an accuracy
        accuracy = train_recipe(recipe).metrics["test_accuracy"]
        seconds = time.time() - args.began
        arrived = seconds if accuracy >= args.goal else None
        return {
            "seconds": arrived,
            "ran": seconds,
            "accuracy": accuracy,
            "curve": [(seconds, accuracy)],
        }

    train = GradientLearner.train

    def train_with_clock(learner: GradientLearner) -> None:
        def score(trainer: Any, part: int | None) -> float:
            batches: Any = copy.copy(learner.evaluation["test"])
            labels = batches.labels[:part]
            if isinstance(batches, HiddenStateBatches):
                batches.values, batches.labels = batches.values[:, :part], labels
            else:
                batches.split = dataclasses.replace(
                    batches.split, rows=batches.split.rows[:part], labels=labels
                )
            answers = trainer.predict(batches).predictions
            return float((answers.argmax(1) == labels).mean())

        callback = clock(args, score)
        callback.trainer = learner.trainer
        learner.trainer.add_callback(callback)
        train(learner)

    GradientLearner.train = train_with_clock  # type: ignore[method-assign,assignment]
    metrics = train_recipe(recipe).metrics
    return {
        "seconds": None,
        "ran": time.time() - args.began,
        "accuracy": metrics["test_accuracy"],
        "curve": [],
    }


def stock(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    from stock_recipe import load, stock_trainer

    from hf_cifar.models.load import load_backbone
    from hf_cifar.recipe.fields import ModelKeys
    from hf_cifar.recipe.load import load_recipe

    data = load(args.data, None, None)
    weights = args.weights or load_recipe(args.recipe).model_name_or_path
    keys = ModelKeys(model_name_or_path=weights, head_init="default", image_size=224)
    backbone = load_backbone(keys, [str(i) for i in range(10)])

    def score(trainer: Any, part: int | None) -> float:
        whole = trainer.eval_dataset
        return trainer.predict(whole.select(range(part)) if part else whole).metrics[
            "test_accuracy"
        ]

    callback = clock(args, score)
    more = {
        "dataloader_num_workers": args.workers,
        "per_device_eval_batch_size": 64,
        "bf16": args.stock_bf16,
    }
    trainer = callback.trainer = stock_trainer(backbone, folder / "stock", data, [callback], **more)
    trainer.train()
    return {
        "seconds": None,
        "ran": callback.seconds(),
        "accuracy": callback.curve[-1][1],
        "curve": callback.curve,
    }


def main() -> None:
    parser = common.parser(__doc__, turns=1)
    parser.add_argument(
        "--weights", help="backbone of both sides: a folder or Hub id; default: the recipe's"
    )
    parser.add_argument("--recipe", default="fast_90", help="ours: a packaged recipe or a file")
    parser.add_argument("--goal", type=float, default=0.90)
    parser.add_argument(
        "--budget", type=float, default=60.0, help="minutes after which a side is stopped"
    )
    parser.add_argument(
        "--every",
        type=float,
        default=60.0,
        help="seconds of training between two looks at the test images",
    )
    parser.add_argument(
        "--part", type=int, default=1000, help="how many test images a look scores first"
    )
    parser.add_argument("--workers", type=int, default=0, help="of the stock recipe")
    parser.add_argument(
        "--stock-bf16",
        action="store_true",
        help="give the stock recipe bf16, which is not its default",
    )
    parser.add_argument(
        "--side", choices=("hf-cifar", "stock"), help="(used by the benchmark itself)"
    )
    parser.add_argument("--began", type=float, help="(used by the benchmark itself)")
    args = parser.parse_args()
    if args.quick:
        args.recipe, args.goal, args.budget, args.every, args.part, args.turns = (
            "quickstart",
            1.01,
            0.02,
            1.0,
            20,
            1,
        )
    if args.side:
        device = common.start(args)
        with common.workplace() as folder:
            try:
                outcome = (ours if args.side == "hf-cifar" else stock)(args, folder)
            except Arrived as result:
                outcome = json.loads(str(result))
        print(json.dumps(outcome))
        return

    device = common.start(args)
    words = ["--device", args.device]
    for option in ("data", "recipe", "goal", "budget", "every", "part", "workers"):
        words += [f"--{option}", getattr(args, option)]
    words += ["--weights", args.weights] if args.weights else []
    words += ["--stock-bf16"] if args.stock_bf16 else []
    runs: dict[str, list[dict[str, Any]]] = {"hf-cifar": [], "stock": []}
    with common.workplace() as folder:
        for turn in range(args.turns):
            for name in ["stock"] if args.quick else list(runs):
                cache = {
                    "HF_CIFAR_CACHE": str(folder / f"cache-{turn}")
                }  # a first start: nothing decoded, no features
                runs[name].append(
                    common.child(
                        __file__, *words, "--side", name, "--began", time.time(), environment=cache
                    )
                )
    for name, rows in runs.items():
        if rows:
            ran = statistics.median(r["ran"] for r in rows) / 60
            what = (
                f"{ran:.1f} min to"
                if all(r["seconds"] for r in rows)
                else f"stopped after {ran:.1f} min short of"
            )
            print(
                f"{name}: {what} {100 * args.goal:g} %;"
                f" last seen {100 * rows[-1]['accuracy']:.2f} %"
            )
    results = {
        "weights": os.path.basename(args.weights or ""),
        "recipe": args.recipe,
        "goal": args.goal,
        "budget": args.budget,
    }
    results |= times(runs["hf-cifar"], runs["stock"])
    common.keep(args, device, "time-to-accuracy", results | {"runs": runs})


def times(ours: list[dict[str, Any]], stock: list[dict[str, Any]]) -> dict[str, Any]:
    """Print how many times as fast ours reaches the goal, and return it as entries for the JSON.

    It is a lower bound where the stock recipe was stopped, and None where ours missed the goal.
    """
    if not ours or not all(row["seconds"] for row in ours):
        return {"times": None, "lower_bound": None}
    bound = not all(row["seconds"] for row in stock)
    ratio = common.ratio([row["ran"] for row in stock], [row["ran"] for row in ours])
    common.say(f"times as fast{': at least' if bound else ''}", ratio, ">= 4")
    return {"times": ratio, "lower_bound": bound}


if __name__ == "__main__":
    main()
