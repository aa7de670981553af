"""Plots of a made-up run, and of class names in all scripts."""

import math
import warnings

import numpy as np
import pytest
from helpers.made_up_run import LABELS, METRICS, pictures
from matplotlib import font_manager, ft2font
from PIL import Image
from sklearn.metrics import average_precision_score

from hf_cifar.evaluation.metrics import classification_metrics
from hf_cifar.reporting.plot_style import drawing, plot_labels, save_figure
from hf_cifar.reporting.plots import PLOTS, write_plots
from hf_cifar.reporting.predictions import confident_mistakes, write_predictions
from hf_cifar.reporting.ranking_plots import ranking_curves, ranking_curves_by_class
from hf_cifar.reporting.training_plots import range_test_plot


def test_plots_are_pictures_without_metadata_and_the_same_each_time(run, tmp_path):
    (tmp_path / "predictions.parquet").write_bytes((run / "predictions.parquet").read_bytes())
    written = write_plots(tmp_path, METRICS, pictures)
    assert written == [f"plots/{stem}.png" for stem in PLOTS]
    for name in written:
        with Image.open(tmp_path / name) as image:
            image.load()
            assert set(image.info) <= {"dpi"}
            assert 600 <= image.width <= 1300 and image.height <= 1500
            assert np.asarray(image.convert("L")).std() > 5  # not blank
        assert (tmp_path / name).read_bytes() == (run / name).read_bytes()


def test_the_curves_of_two_classes_go_through_the_threshold_s_point():
    truth = np.array([False, False, True, False, True, True])
    scores = np.array([0.1, 0.2, 0.3, 0.6, 0.7, 0.9])
    figure = ranking_curves(truth, scores, "ill", 0.65)
    roc, precision = figure.axes
    assert "area 0.8889" in roc.get_title()
    (dot,) = roc.collections
    assert dot.get_offsets().tolist() == [[0.0, pytest.approx(2 / 3)]]
    (dot,) = precision.collections
    assert dot.get_offsets().tolist() == [[pytest.approx(2 / 3), 1.0]]
    assert not ranking_curves(truth, scores, "ill").axes[0].collections


def test_the_curves_of_many_classes_are_those_of_the_worst():
    random = np.random.default_rng(0)
    truth = np.eye(30, dtype=bool)[np.arange(300) % 30]
    scores = truth * np.linspace(1, 4, 30) + random.normal(size=(300, 30))
    truth[:, 7] = False  # nothing can be drawn of a class that no image has
    names = [f"class ${number}" for number in range(30)]
    figure = ranking_curves_by_class(truth, scores, names)
    roc, precision = figure.axes
    assert len(precision.lines) == 10 and "10 worst of 30" in roc.get_title()
    shown = [text.get_text() for text in precision.get_legend().get_texts()]
    averages = {
        f"{name}: {average_precision_score(truth[:, c], scores[:, c]):.4f}"
        for c, name in enumerate(names)
        if c != 7
    }
    assert set(shown) == set(sorted(averages, key=lambda text: float(text.split(": ")[1]))[:10])
    assert ranking_curves_by_class(truth[:, :1] | True, scores[:, :1], names[:1]) is None


def test_a_mistake_is_shown_as_its_picture(run):
    colours = {tuple(pictures([index])[0][0, 0]) for index, *_ in confident_mistakes(run)}
    with Image.open(run / "plots" / "mistakes.png") as image:
        shown = {colour for _, colour in image.convert("RGB").getcolors(1 << 20)}
    assert colours <= shown


def test_plots_without_their_figures_are_left_out_and_old_ones_removed(tmp_path):
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "mistakes.png").write_bytes(b"of an earlier evaluation")
    losses = [entry for entry in METRICS["history"] if "loss" in entry]
    assert write_plots(tmp_path, {"history": losses}, pictures) == ["plots/learning_curves.png"]
    assert [path.name for path in (tmp_path / "plots").iterdir()] == ["learning_curves.png"]
    assert write_plots(tmp_path, {}, pictures) == []


def test_no_mistakes_no_picture_of_them(tmp_path):
    write_predictions(tmp_path, np.arange(10), np.arange(10), np.eye(10), LABELS)
    metrics = classification_metrics(np.eye(10), np.arange(10), LABELS) | {"labels": LABELS}
    written = write_plots(tmp_path, metrics, pictures)
    assert written == [
        f"plots/{stem}.png"
        for stem in ("confusion_matrix", "per_class_accuracy", "ranking_curves", "reliability")
    ]


@pytest.mark.parametrize("classes", [2, 30, 120])
def test_plots_of_other_class_counts(tmp_path, classes):
    rng = np.random.Generator(np.random.Philox(classes))
    p, y = rng.dirichlet(np.ones(classes), 2 * classes), rng.integers(0, classes, 2 * classes)
    names = [f"a rather long name of $class$ {c}" for c in range(classes)]
    write_predictions(tmp_path, np.arange(len(y)), y, p, names)
    metrics = classification_metrics(p, y, names) | {
        "labels": names,
        "history": [{"loss": math.nan, "step": 1}],
    }
    written = write_plots(tmp_path, metrics, pictures)
    # All but the learning curves; ROC and precision-recall need an image of each class.
    every_class = len(np.unique(y)) == classes
    assert len(written) == (5 if every_class else 4)
    for name in written:
        with Image.open(tmp_path / name) as image:
            assert image.height < 2500


WORLD = [
    "猫",
    "개",
    "قطة سوداء",
    "कुत्ता",
    "😀",
    "👩‍🚒",
    "кошка",
    "σκύλος",
    "ไก่",
    "a $x$ b_1^2 \\frac",
]


def test_class_names_of_the_world_are_drawn_or_numbered_without_a_warning(tmp_path, caplog):
    p = np.random.default_rng(0).dirichlet(np.ones(len(WORLD)), 60)
    y = np.arange(60) % len(WORLD)
    write_predictions(tmp_path, np.arange(60), y, p, WORLD)
    metrics = classification_metrics(p, y, WORLD) | {"labels": WORLD}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        written = write_plots(tmp_path, metrics, pictures)
    assert len(written) == 5 and caplog.text == ""


def test_a_name_is_drawn_where_a_font_has_all_of_its_letters():
    base = set(map(chr, ft2font.FT2Font(font_manager.findfont("DejaVu Sans")).get_charmap()))
    labels = plot_labels(WORLD)
    for number, (name, label) in enumerate(zip(WORLD, labels, strict=True)):
        assert label in (name, f"class {number}")
    assert labels[6:8] == WORLD[6:8]  # Cyrillic and Greek are in the font of every machine
    assert labels[9] == "a $x$ b_1^2 \\frac"
    unassigned = "\U000effff"  # of a private plane: in no font
    assert unassigned not in base and plot_labels(["cat", unassigned]) == ["cat", "class 1"]
    assert plot_labels(["a very long name of a class"]) == ["a very long name …"]
    assert plot_labels(["line\nbreak", "\x1b[31mred", "\u202ereversed"]) == [
        "line\\nbreak",
        "\\x1b[31mred",
        "\\u202ereversed",
    ]


def test_a_dollar_is_a_dollar(tmp_path):
    """Two names with dollars in them look as different as they are, and none becomes a formula."""
    figures = []
    for name in ("$a$", "a"):
        folder = tmp_path / name
        folder.mkdir()
        metrics = classification_metrics(np.eye(2), np.arange(2), [name, "b"])
        write_plots(folder, metrics | {"labels": [name, "b"]}, pictures)
        figures.append((folder / "plots" / "per_class_accuracy.png").read_bytes())
    assert figures[0] != figures[1]


def test_the_plot_of_a_range_test_has_its_powers_of_ten(tmp_path):
    with drawing():
        figure = range_test_plot([1e-4, 1e-3, 1e-2], [2.0, 1.5, 1.8], [2.0, 1.6, 1.7], 1e-3)
        save_figure(figure, tmp_path / "x.png")
    ticks = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert r"$\mathdefault{10^{-3}}$" in ticks
    assert all(label.get_parse_math() for label in figure.axes[0].get_xticklabels())
