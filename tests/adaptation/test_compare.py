"""`data check --against`: in what the pictures of two places differ."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hf_cifar.adaptation.compare import LOOKS, compare_places, looks
from hf_cifar.cli.main import run as command


def write(folder: Path, pictures: np.ndarray, names: list[str]) -> Path:
    """Put the pictures, uint8 [n, H, W, 3], into class folders, in turn."""
    for number, pixels in enumerate(pictures):
        place = folder / names[number % len(names)]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Noise, and other noise that is darker and has a third class."""
    random, folder = np.random.default_rng(0), tmp_path_factory.mktemp("places")
    pictures = random.integers(0, 256, (160, 16, 16, 3)).astype(np.uint8)
    return (
        write(folder / "plain", pictures[:80], ["a", "b"]),
        write(folder / "dark", (pictures[80:] * 0.5).astype(np.uint8), ["a", "b", "b", "c"]),
    )


def test_looks_are_what_their_names_say() -> None:
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    images[0, 0] = 200
    images[1, :, :, ::2] = 100
    values = [dict(zip(LOOKS, row, strict=True)) for row in looks(images)]
    assert values[0]["red"] == 200 and values[0]["green"] == 0 and values[0]["saturation"] == 1
    assert values[0]["brightness"] == pytest.approx(59.8) and values[0]["sharpness"] == 0
    assert values[1]["contrast"] == pytest.approx(50, rel=0.01) and values[1]["saturation"] == 0
    assert values[1]["sharpness"] == pytest.approx(200, rel=0.02)


def test_what_differs_is_found_and_what_does_not_is_not(
    places: tuple[Path, Path], tiny: Callable[[str], Path]
) -> None:
    plain, dark = map(str, places)
    result, sides = compare_places(plain, dark, str(tiny("resnet")))
    assert result["looks"]["brightness"]["p_value"] < 1e-6
    assert result["looks"]["brightness"]["difference"] < -3
    means = result["looks"]["red"]["means"]
    assert means[1] == pytest.approx(means[0] / 2, rel=0.05)
    assert result["features"]["p_value"] < 0.01 and result["features"]["distance"] > 0
    assert sum(first for first, _ in result["labels"].values()) == pytest.approx(1)
    assert result["labels"]["c"][0] == 0 and result["labels"]["c"][1] > 0
    same, _ = compare_places(plain, plain, None)
    assert all(look["p_value"] == 1 for look in same["looks"].values())
    assert same["features"] is None and len(sides[0].split) == result["images"][0]


def test_the_command_writes_pictures_and_json(
    places: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    plain, dark = map(str, places)
    words = ["data", "check", plain, "--against", dark]
    assert command([*words, "--out", str(tmp_path / "out"), "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["looks"]) == set(LOOKS)
    assert (tmp_path / "out" / "comparison.png").stat().st_size > 5000
    assert command(words) == 0
    assert "sharpness" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--against", "./nowhere"], ["--json"]])
def test_bad_input_is_one_line(
    words: list[str], places: tuple[Path, Path], capsys: pytest.CaptureFixture
) -> None:
    assert command(["data", "check", str(places[0]), *words]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
