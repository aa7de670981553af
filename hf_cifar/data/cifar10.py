"""CIFAR-10 itself: its classes, the SHA-256 of its content, and its card."""

from __future__ import annotations

from pathlib import Path

from hf_cifar.data import hub_layout

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
# Of the records of the binary version (a label byte, then 3,072 image bytes) in the order of
# uoft-cs/cifar10, which is that of data_batch_1 to 5 and test_batch of
# https://www.cs.toronto.edu/~kriz/cifar.html.
SHA256 = {
    ("train", 50_000): "a0181da372c0d63a5920fdbea2ec3f83ecbc552d378218e1cb473cf634941a3b",
    ("test", 10_000): "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
}
CITATION = """Alex Krizhevsky, *Learning Multiple Layers of Features from Tiny Images*, 2009
(https://www.cs.toronto.edu/~kriz/cifar.html). Its authors state no licence; they ask for a citation
of that report."""


def write_card(folder: Path, title: str, text: str) -> None:
    """Write README.md, with the configuration and the class names that `datasets` reads."""
    hub_layout.write_card(
        folder,
        title=f"CIFAR-10{title}",
        text=f"{text}\n\n{CITATION}",
        license="unknown",
        size="10K<n<100K",
        names=CLASSES,
        config="plain_text",
    )
