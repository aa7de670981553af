"""Corruptions: mean and deviation of corrupted pictures against the program that made CIFAR-10-C
(hendrycks/robustness, ImageNet-C/create_c/make_cifar_c.py, run in float64 as its authors wrote it;
it needs opencv-python-headless, scikit-image, Wand and ImageMagick), and the cost of each.

Frost is compared where `imagecorruptions` is installed, from whose photographs both sides read.
"""

import argparse
import os
import re
import time
import types
from pathlib import Path
from typing import Any

import common
import numpy as np

# Names of old versions of numpy, scipy and scikit-image -> what they are called today. Nothing that
# the program computes is changed.
TODAY = {
    "from scipy.ndimage.interpolation import": "from scipy.ndimage import",
    "multichannel=True": "channel_axis=-1",
    "np.float_": "np.float64",
    "np.fromstring(": "np.frombuffer(",
    "import skimage as sk": "import skimage as sk, skimage.util, skimage.color",
}


def definition(file: Path) -> types.ModuleType:
    """Return the functions of make_cifar_c.py, without what it does when it is run."""
    text = file.read_text().partition("# /////////////// End Distortions ///////////////")[0]
    text = re.sub(r"^import torch.*\n", "", text, flags=re.MULTILINE)
    for old, new in TODAY.items():
        text = text.replace(old, new)
    module = types.ModuleType("make_cifar_c")
    exec(compile(text, str(file), "exec"), module.__dict__)
    return module


def defined(
    module: types.ModuleType, pixels: np.ndarray, name: str, severity: int, frost: Path | None
) -> np.ndarray:
    """Return uint8 [n, H, W, 3] of uint8 [n, H, W, 3], by the definition."""
    from PIL import Image

    here = Path.cwd()
    if frost is not None:
        os.chdir(frost)  # the program reads its photographs from the folder that it runs in
    try:
        corrupt = getattr(module, name)
        pictures = [corrupt(Image.fromarray(image), severity) for image in pixels]
        return np.stack([np.uint8(picture) for picture in pictures])
    finally:
        os.chdir(here)


def compare(args: argparse.Namespace, pixels: np.ndarray) -> dict[str, Any]:
    """Return mean and deviation of ours and theirs, in grey levels, by corruption and severity."""
    import torch

    from hf_cifar.augmentation.corruptions import CORRUPTIONS, corrupt, frost_folder, left_out

    module = definition(args.definition)
    figures: dict[str, Any] = {}
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    index = torch.arange(len(images))
    for name in args.only or CORRUPTIONS:
        if left_out([name]):
            continue
        figures[name] = {}
        for severity in (1, 5) if args.quick else (1, 2, 3, 4, 5):
            np.random.seed(0)
            theirs = defined(module, pixels, name, severity, frost_folder()).astype(np.float64)
            ours = corrupt(images, name, severity, index).permute(0, 2, 3, 1).numpy()
            figures[name][severity] = {
                "mean": float(ours.mean()),
                "deviation": float(ours.std(dtype=np.float64)),
                "defined_mean": float(theirs.mean()),
                "defined_deviation": float(theirs.std()),
                "equal": float((ours == theirs).mean()),
                "within_one": float((abs(ours - theirs) <= 1).mean()),
            }
    return figures


def cost(args: argparse.Namespace, pixels: np.ndarray, device: Any) -> dict[str, list[float]]:
    """Return milliseconds a picture by corruption, a figure a turn, over all severities."""
    import torch

    from hf_cifar.augmentation.corruptions import CORRUPTIONS, corrupt, left_out

    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()[: args.batch].to(device)
    index = torch.arange(len(images), device=device)
    figures: dict[str, Any] = {}
    for name in args.only or CORRUPTIONS:
        if left_out([name]):
            continue
        corrupt(images, name, 5, index)
        figures[name] = []
        for _ in range(args.turns):
            common.wait(device)
            began = time.perf_counter()
            for severity in (1, 2, 3, 4, 5):
                corrupt(images, name, severity, index)
            common.wait(device)
            seconds = time.perf_counter() - began
            figures[name].append(1000 * seconds / 5 / len(images))
    return figures


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument(
        "--definition", type=Path, metavar="FILE", help="make_cifar_c.py; without it only the cost"
    )
    parser.add_argument("--images", type=int, default=1000, help="the first of the test images")
    parser.add_argument("--batch", type=int, default=128, help="for the cost")
    parser.add_argument("--only", nargs="*", metavar="NAME", help="these corruptions")
    args = parser.parse_args()
    if args.quick:
        args.images, args.batch, args.turns = 8, 8, 1
    device = common.start(args)

    from hf_cifar.data.load import load_split
    from hf_cifar.recipe.recipe import Recipe

    with common.workplace():
        test = load_split(Recipe(dataset_name=args.data), "test")
        rows = test.rows[: args.images]
        pixels = np.stack([test.images.picture(row) for row in rows])
        results: dict[str, Any] = {"images": len(rows), "cost_ms": cost(args, pixels, device)}
        for name, turns in results["cost_ms"].items():
            print(f"{name}: {np.median(turns):.3f} ms a picture")
        if args.definition is not None:
            figures = results["definition"] = compare(args, pixels)
            compared = [row for by_severity in figures.values() for row in by_severity.values()]
            for what in ("mean", "deviation"):
                worst = max(abs(row[what] - row[f"defined_{what}"]) for row in compared)
                results[f"worst_{what}_difference"] = worst
                print(f"largest difference of a {what}: {worst:.2f} of 255 levels  goal 2.55")
        common.keep(args, device, "corruptions", results)


if __name__ == "__main__":
    main()
