"""The image table and its cache, and images that are decoded on demand."""

import hashlib
import io
import pickle
import time
import warnings

import numpy as np
import PIL.Image
import pytest
from helpers.pictures import class_folders, loaded
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.image_utils import load_image

from hf_cifar.data import image_store
from hf_cifar.data.cache_entry import SplitRequest
from hf_cifar.data.image_cache import load_images
from hf_cifar.data.image_store import ImageFiles, ImageTable
from hf_cifar.errors import UserError


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_CIFAR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def odd_modes(folder, size):
    """One image of every mode that people have, of `size` as seen (EXIF rotation applied)."""
    folder.mkdir(parents=True)
    width, height = size
    random = np.random.default_rng(1)
    rgb = PIL.Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
    rgba = rgb.copy()
    rgba.putalpha(PIL.Image.fromarray(random.integers(0, 256, (height, width), dtype=np.uint8)))
    rgb.convert("L").save(folder / "grey.png")
    rgb.convert("1").save(folder / "bits.png")
    rgb.convert("P").save(folder / "palette.png")
    rgb.convert("P").save(folder / "transparent.png", transparency=bytes(range(256)))
    rgb.convert("LA").save(folder / "grey_alpha.png")
    rgba.save(folder / "rgba.png")
    rgb.convert("CMYK").save(folder / "cmyk.jpg")
    turned = PIL.Image.Exif()
    turned[0x0112] = 6
    rgb.rotate(90, expand=True).save(folder / "turned.jpg", exif=turned)
    rgb.save(folder / "plain.webp")
    return folder


def test_table_holds_the_pixels_and_their_fingerprint(tmp_path):
    folder = class_folders(tmp_path / "data", classes=("c000", "c001", "c002"))
    images = loaded(folder).train.images
    assert isinstance(images, ImageTable) and images.size == (6, 8) and len(images) == 18
    files = sorted(folder.glob("*/*.png"))
    expected = np.stack([np.asarray(load_image(str(file))).transpose(2, 0, 1) for file in files])
    assert images.pixels.dtype == np.uint8 and np.array_equal(images.pixels, expected)
    assert not images.pixels.flags.writeable
    sha = hashlib.sha256()
    for label, pixels in zip([0] * 6 + [1] * 6 + [2] * 6, expected, strict=True):
        sha.update(bytes([label]) + pixels.tobytes())
    assert images.fingerprint == sha.hexdigest()


def test_labels_beyond_256_classes_take_two_bytes():
    labels = np.array([0, 1, 256, 299])
    assert image_store.label_bytes(labels, 300).tobytes() == b"\0\0\0\1\1\0\1\x2b"
    assert image_store.label_bytes(labels[:2], 256).tobytes() == b"\0\1"


@settings(max_examples=50, deadline=None)
@given(rows=st.lists(st.integers(0, 19), max_size=40))
def test_batch_is_one_gather_in_the_order_asked(rows):
    pixels = np.random.default_rng(2).integers(0, 256, (20, 3, 4, 5), dtype=np.uint8)
    images = ImageTable(pixels, np.zeros(20, np.int64), ["a", "b"], "", [])
    batch = images.batch(np.array(rows, dtype=np.int64))
    assert batch.shape == (len(rows), 3, 4, 5)
    assert np.array_equal(batch.numpy(), pixels[rows] if rows else np.empty((0, 3, 4, 5)))


@pytest.mark.parametrize("name", ["pixels.npy", "labels.npy", "meta.json"])
@pytest.mark.parametrize("harm", ["truncate", "remove", "overwrite"])
def test_a_damaged_cache_entry_is_rebuilt(tmp_path, own_cache, name, harm):
    folder = class_folders(tmp_path / "data")
    good = loaded(folder).train.images
    expected, fingerprint = good.pixels.copy(), good.fingerprint
    (path,) = own_cache.glob(f"*/{name}")
    if harm == "truncate":
        path.write_bytes(path.read_bytes()[:-5])
    elif harm == "remove":
        path.unlink()
    else:
        path.write_bytes(b"\0" * (path.stat().st_size))
    data = loaded(folder)
    again = data.train.images
    assert "decoded in" in data.messages[0]
    assert np.array_equal(again.pixels, expected) and again.fingerprint == fingerprint
    assert [entry.is_dir() for entry in own_cache.iterdir()].count(
        True
    ) == 1  # nothing is left beside it


def test_an_altered_pixel_is_found(tmp_path, own_cache):
    folder = class_folders(tmp_path / "data")
    from hf_cifar.data.sources.find import find_source

    def load():
        source = find_source(str(folder))
        request = SplitRequest(
            lambda room: source.open("train", room), "x", source.state, where="data"
        )
        return load_images(request).store

    good = load().pixels.copy()
    (path,) = own_cache.glob("*/pixels.npy")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert np.array_equal(load().pixels, good)


def test_changed_files_replace_their_entry(tmp_path, own_cache):
    folder = class_folders(tmp_path / "data")
    old = loaded(folder).fingerprint
    PIL.Image.new("RGB", (8, 6), "red").save(folder / "cat" / "0.png")
    new = loaded(folder)
    assert new.fingerprint != old
    assert np.array_equal(new.train.images.pixels[0, :, 0, 0], [255, 0, 0])
    assert len(list(own_cache.glob("*/meta.json"))) == 1


def test_what_a_killed_process_left_is_cleared_away(tmp_path, own_cache):
    folder = class_folders(tmp_path / "data")
    loaded(folder)
    (entry,) = (path for path in own_cache.iterdir() if path.is_dir())
    left = own_cache / f"{entry.name}.12345.partial"
    left.mkdir()
    (entry / "meta.json").unlink()
    loaded(folder)
    assert not left.exists()


def test_every_mode_is_read_as_pipeline_reads_it(tmp_path):
    odd_modes(tmp_path / "same" / "odd", (12, 10))
    odd_modes(tmp_path / "mixed" / "odd", (12, 10))
    for root, size in (("same", (12, 10)), ("mixed", (7, 9))):
        (tmp_path / root / "plain").mkdir()
        PIL.Image.new("RGB", size, "blue").save(tmp_path / root / "plain" / "0.png")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
            data = loaded(tmp_path / root)
        images = data.train.images
        assert isinstance(images, ImageTable if root == "same" else ImageFiles)
        for row, file in enumerate(
            [*sorted((tmp_path / root / "odd").iterdir()), tmp_path / root / "plain" / "0.png"]
        ):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                expected = np.asarray(load_image(str(file))).transpose(2, 0, 1)
            found = images.batch(np.array([row]))[0] if root == "same" else images.read(row)
            assert np.array_equal(found.numpy(), expected), file.name


def test_mixed_sizes_are_decoded_on_demand(tmp_path):
    folder = class_folders(tmp_path / "data", sizes=((8, 6), (5, 7)))
    first = loaded(folder)
    images = first.train.images
    assert isinstance(images, ImageFiles) and images.size is None and len(images) == 12
    assert "sizes differ" in first.messages[0] and "cat/1.png" in first.messages[0]
    again = loaded(folder)
    assert "checked before" in again.messages[0]
    assert [tuple(images.read(row).shape) for row in range(2)] == [(3, 6, 8), (3, 7, 5)]
    assert again.fingerprint == first.fingerprint
    with pytest.raises(UserError, match=r"data_path is table.*sizes differ"):
        loaded(folder, data_path="table")


def test_the_table_and_the_workers_give_the_same(tmp_path):
    tabled, files = (
        loaded("sample", data_path="table").train,
        loaded("sample", data_path="workers").train,
    )
    assert isinstance(tabled.images, ImageTable) and isinstance(files.images, ImageFiles)
    assert np.array_equal(tabled.labels, files.labels)
    rows = np.arange(0, 2000, 97)
    batch = tabled.images.batch(rows)
    assert all(
        (files.images.read(row) == image).all()
        for row, image in zip(rows.tolist(), batch, strict=True)
    )
    images = pickle.loads(pickle.dumps(files.images))  # as a spawned worker gets it
    assert (images.read(5) == files.images.read(5)).all()
    assert len(pickle.dumps(files.images)) < 100_000  # the images stay on the disk


def truncated(path):
    path.write_bytes(path.read_bytes()[:-40])


def text(path):
    path.write_text("this is no picture")


def empty(path):
    path.write_bytes(b"")


def wide(path):
    PIL.Image.new("L", (100_000, 1)).save(path)


def bomb(path):
    PIL.Image.new("1", (30_000, 10_000)).save(path)


def dangling(path):
    path.unlink()
    path.symlink_to("nowhere")


@pytest.mark.parametrize("sizes", [((8, 6),), ((8, 6), (5, 7))], ids=["table", "files"])
@pytest.mark.parametrize("harm", [truncated, text, empty, wide, bomb, dangling])
def test_a_bad_image_is_named_or_left_out(tmp_path, harm, sizes):
    folder = class_folders(tmp_path / "data", sizes=sizes)
    harm(folder / "dog" / "3.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(
            UserError, match=r"dog/3\.png cannot be read as an image .*on_bad_image: skip"
        ) as error:
            loaded(folder)
        assert "\n" not in str(error.value)
        data = loaded(folder, on_bad_image="skip")
    images = data.train.images
    assert images.bad == ["dog/3.png"] and "1 bad images left out (dog/3.png)" in data.messages[0]
    assert np.bincount(images.labels).tolist() == [6, 5]
    last = np.asarray(PIL.Image.open(folder / "dog" / "5.png")).transpose(2, 0, 1)
    found = images.batch(np.array([10]))[0] if len(sizes) == 1 else images.read(10)
    assert np.array_equal(found.numpy(), last)
    with pytest.raises(
        UserError, match=r"dog/3\.png"
    ):  # the cache of the tolerant run is not the strict run's excuse
        loaded(folder)


def test_a_truncated_jpeg_among_mixed_sizes_is_found_at_the_start(tmp_path):
    folder = class_folders(tmp_path / "data", sizes=((8, 6), (5, 7)))
    noise = np.random.default_rng(3).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(noise).save(file, "JPEG")
    (folder / "cat" / "late.jpg").write_bytes(file.getvalue()[: len(file.getvalue()) // 2])
    with pytest.raises(UserError, match=r"cat/late\.jpg"):
        loaded(folder)


def test_an_image_that_goes_bad_later_is_named(tmp_path):
    folder = class_folders(tmp_path / "data", sizes=((8, 6), (5, 7)))
    images = loaded(folder).train.images
    (folder / "cat" / "1.png").unlink()
    with pytest.raises(UserError, match=r"cat/1\.png cannot be read any more"):
        images.read(1)


def test_nothing_but_bad_images(tmp_path):
    folder = class_folders(tmp_path / "data", per_class=1)
    for file in folder.glob("*/*.png"):
        empty(file)
    with pytest.raises(UserError, match="none of the 2 images can be read"):
        loaded(folder, on_bad_image="skip")


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HF_CIFAR_CACHE", str(tmp_path / "file" / "below"))
    with pytest.raises(UserError, match="set HF_CIFAR_CACHE"):
        loaded(class_folders(tmp_path / "data"))


def test_time_of_a_warm_start_does_not_grow_with_the_pixels(tmp_path):
    loaded("sample")
    begun = time.perf_counter()
    for _ in range(5):
        loaded("sample")
    assert (time.perf_counter() - begun) / 5 < 0.5


def test_an_entry_knows_what_it_cost_to_build(tmp_path):
    folder = class_folders(tmp_path / "data")
    cold, warm = loaded(folder), loaded(folder)
    assert 0 < cold.build_seconds <= cold.seconds
    assert warm.build_seconds == cold.build_seconds  # what it would take from nothing
    both = class_folders(tmp_path / "two" / "train"), class_folders(tmp_path / "two" / "test")
    data = loaded(both[0].parent)
    assert 0 < data.build_seconds <= data.seconds
