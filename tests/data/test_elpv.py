"""`data fetch --source elpv`: the layout of the PyPI package `elpv-dataset`."""

import collections
import hashlib
import importlib.util
import io

import numpy as np
import PIL.Image
import pyarrow.parquet as pq
import pytest
from helpers.package_layouts import write_elpv_package

from hf_cifar.data import elpv
from hf_cifar.data.download import download
from hf_cifar.data.load import load_data
from hf_cifar.errors import UserError
from hf_cifar.recipe.recipe import Recipe

COUNTS = {(0.0, "mono"): 8, (1 / 3, "mono"): 4, (2 / 3, "poly"): 4, (1.0, "poly"): 8}


@pytest.fixture
def package(tmp_path):
    """The data folder of a made-up package, and its digest."""
    return write_elpv_package(tmp_path / "site", COUNTS)


def rows(folder, split):
    return pq.read_table(folder / "elpv" / f"{split}-00000-of-00001.parquet").to_pylist()


def test_a_cell_is_a_defect_from_a_probability_of_one_half(tmp_path, package):
    elpv.write(package[0], tmp_path / "out", package[1])
    for row in rows(tmp_path / "out", "train") + rows(tmp_path / "out", "test"):
        assert elpv.CLASSES[row["label"]] == (
            "defect" if row["probability"] > 0.5 else "functional"
        )


def test_each_quarter_of_a_kind_of_cell_is_test(tmp_path, package):
    elpv.write(package[0], tmp_path / "out", package[1])
    splits = {split: rows(tmp_path / "out", split) for split in ("train", "test")}
    kinds = collections.Counter((row["probability"], row["type"]) for row in splits["test"])
    assert kinds == {kind: count // 4 for kind, count in COUNTS.items()}
    pictures = [row["image"]["bytes"] for split in splits.values() for row in split]
    files = sorted(file.read_bytes() for file in (package[0] / "images").iterdir())
    assert sorted(pictures) == files


def test_it_is_read_by_the_recipes_and_by_datasets(tmp_path, package):
    import datasets

    elpv.write(package[0], tmp_path / "out", package[1])
    data = load_data(Recipe(dataset_name=str(tmp_path / "out"), validation_fraction=0.0))
    assert data.label_names == ["functional", "defect"] and data.license == "cc-by-nc-sa-4.0"
    assert len(data.train) == 18 and data.test is not None and len(data.test) == 6
    loaded = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    first = loaded["train"][0]
    assert first["type"] == "mono" and first["probability"] == 0.0
    file = io.BytesIO((package[0] / "images" / "cell0000.png").read_bytes())
    assert np.array_equal(np.asarray(first["image"]), np.asarray(PIL.Image.open(file)))


def test_the_split_of_the_real_counts_is_the_papers():
    counts = {
        (0.0, "mono"): 588,
        (0.0, "poly"): 920,
        (1 / 3, "mono"): 117,
        (1 / 3, "poly"): 178,
        (2 / 3, "mono"): 56,
        (2 / 3, "poly"): 50,
        (1.0, "mono"): 313,
        (1.0, "poly"): 402,
    }
    cells = [elpv.Cell("", *kind) for kind, count in counts.items() for _ in range(count)]
    split = elpv.split_rows(cells)
    assert (len(split["train"]), len(split["test"])) == (1968, 656)


def test_the_installed_module_is_read_and_not_run(tmp_path, monkeypatch, package):
    (tmp_path / "site" / "elpv_dataset" / "__init__.py").write_text("raise SystemExit('it ran')")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    importlib.invalidate_caches()
    with pytest.raises(UserError, match=f"sha256 {package[1]} of its content is another"):
        download("elpv", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: (data / "labels.csv").unlink(), "No such file"),
        (lambda data: (data / "images" / "cell0003.png").unlink(), "No such file"),
        (lambda data: (data / "labels.csv").write_text("a b"), "has 2 columns, not 3"),
        (lambda data: (data / "labels.csv").write_text("a b c"), "could not convert"),
        (lambda data: (data / "labels.csv").write_text("../../x 0 mono"), "leads out of"),
        (lambda data: (data / "labels.csv").write_bytes(b"\xff\xfe 0 mono"), "codec can't decode"),
    ],
)
def test_a_damaged_package_is_refused(tmp_path, package, damage, message):
    damage(package[0])
    with pytest.raises(UserError, match=message) as error:
        elpv.write(package[0], tmp_path / "out", package[1])
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


@pytest.mark.skipif(
    importlib.util.find_spec("elpv_dataset") is not None, reason="the package is installed here"
)
def test_without_a_network_one_line_says_what_to_do(tmp_path, monkeypatch):
    pytest.importorskip("pip")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(
        UserError, match=r"`python\S* -m pip install .* failed \(ERROR: .*; on a"
    ) as error:
        download("elpv", tmp_path / "out")
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_the_digest_covers_table_and_pictures(package):
    table = (package[0] / "labels.csv").read_bytes()
    pictures = [(package[0] / line.split()[0]).read_bytes() for line in table.decode().splitlines()]
    assert hashlib.sha256(b"".join([table, *pictures])).hexdigest() == package[1]
