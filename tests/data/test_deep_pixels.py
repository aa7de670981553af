"""Pictures with more than 8 bits a channel: an error with a remedy, or converted on demand."""

import re

import numpy as np
import PIL.Image
import pytest
from helpers.pictures import class_folders, loaded

from hf_cifar.data.check import check
from hf_cifar.data.decode import BadImage, DeepImage, open_image, to_rgb
from hf_cifar.data.deep_pixels import PixelRange
from hf_cifar.data.load import load_split
from hf_cifar.errors import UserError
from hf_cifar.recipe.recipe import Recipe


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_CIFAR_CACHE", str(tmp_path / "cache"))


def values(dtype, seed=0, low=0, high=65535):
    """A picture of one channel, [6, 8]."""
    random = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return random.uniform(low, high, (6, 8)).astype(dtype)
    return random.integers(low, high + 1, (6, 8)).astype(dtype)


def deep_folder(root, pictures):
    """Two classes of ordinary pictures, and `pictures` of one channel in the first."""
    class_folders(root, per_class=2)
    for name, pixels in pictures.items():
        PIL.Image.fromarray(pixels).save(root / "cat" / name)
    return root


KINDS = {
    "grey16.png": values(np.uint16),
    "grey16.tif": values(np.uint16, 1),
    "integer32.tif": values(np.int32, 2),
    "float32.tif": values(np.float32, 3, 0, 1),
}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("data_path", ["auto", "workers"])
def test_deep_pictures_are_an_error_that_names_one_and_the_remedy(tmp_path, name, data_path):
    folder = deep_folder(tmp_path / "data", {name: KINDS[name]})
    for keys in ({}, {"on_bad_image": "skip"}):
        with pytest.raises(UserError) as error:
            loaded(folder, data_path=data_path, **keys)
        message = str(error.value)
        assert f"cat/{name}: it has more than 8 bits a channel" in message
        assert message.endswith("convert the pictures to 8 bits, or set deep_pixels: rescale")
        assert "\n" not in message
    (result,) = check(folder)
    assert not result.ok and name in result.message and "deep_pixels: rescale" in result.message


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("data_path", ["auto", "workers"])
def test_rescale_maps_the_range_of_the_type_to_8_bits(tmp_path, name, data_path):
    folder = deep_folder(tmp_path / "data", {name: KINDS[name]})
    data = loaded(folder, deep_pixels="rescale", data_path=data_path)
    row = sorted(path.name for path in (folder / "cat").iterdir()).index(name)
    pixels = data.train.images.picture(row)
    scale = 255 if name.startswith("float") else 255 / 65535
    expected = np.round(KINDS[name].astype(np.float64) * scale)
    assert pixels.shape == (6, 8, 3) and pixels.dtype == np.uint8
    assert np.abs(pixels - expected[..., None]).max() <= 0.51
    plain = np.asarray(PIL.Image.open(folder / "cat" / "0.png"))
    assert np.array_equal(data.train.images.picture(0), plain)  # 8 bits stay as they are
    assert data.pixel_range == PixelRange()
    assert "1 had more than 8 bits a channel and were converted" in data.messages[0]


def test_the_instructions_of_the_card_give_the_same_pixels(tmp_path):
    folder = deep_folder(tmp_path / "data", {"x.png": KINDS["grey16.png"]})
    for setting in ("rescale", [1.0, 99.0]):
        data = loaded(folder, deep_pixels=setting)
        row = sorted(path.name for path in (folder / "cat").iterdir()).index("x.png")
        *_, formula, bounds = re.findall("`(.*?)`", data.pixel_range.instructions())
        low, high = map(float, bounds.removeprefix("LOW, HIGH = ").split(", "))
        picture = PIL.Image.open(folder / "cat" / "x.png")
        names = {"np": np, "PIL": PIL, "picture": picture, "LOW": low, "HIGH": high}
        grey = np.asarray(eval(formula, names))
        assert np.array_equal(data.train.images.picture(row)[..., 0], grey)


def test_values_beyond_the_range_of_their_type_ask_for_percentiles(tmp_path):
    for name, pixels in (
        ("x.tif", values(np.int32, 0, 0, 70_000) + 1),
        ("x.tif", values(np.float32, 0, -5, 300)),
    ):
        folder = deep_folder(tmp_path / pixels.dtype.name, {name: pixels})
        with pytest.raises(UserError, match=r"cat/x\.tif: its values lie between .*percentiles"):
            loaded(folder, deep_pixels="rescale")
        data = loaded(folder, deep_pixels=[0, 100])
        low, high = data.pixel_range.bounds
        assert (low, high) == (pixels.min(), pixels.max())
        grey = data.train.images.picture(2)[..., 0]
        assert grey.min() == 0 and grey.max() == 255


def test_percentiles_are_those_of_train_and_serve_all_splits(tmp_path):
    for split, low, high in (("train", 1000, 3000), ("test", 0, 60_000)):
        for number, name in enumerate(("cat", "dog")):
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for i in range(5):
                pixels = values(np.uint16, 10 * number + i, low, high)
                PIL.Image.fromarray(pixels).save(folder / f"{i}.png")
    train = np.stack(
        [np.asarray(PIL.Image.open(path)) for path in sorted(tmp_path.glob("data/train/*/*.png"))]
    )
    bounds = tuple(np.percentile(train, [5, 95]).tolist())
    for _ in range(2):  # built, and from the cache
        data = loaded(tmp_path / "data", deep_pixels=[5, 95])
        assert data.pixel_range.bounds == pytest.approx(bounds)
        assert (data.test.images.picture(0) == 255).any()
    recipe = Recipe(dataset_name=str(tmp_path / "data"), deep_pixels=[5, 95])
    alone = load_split(recipe, "test")
    assert np.array_equal(alone.images.pixels, data.test.images.pixels)
    # A trained model's range comes before what the recipe says.
    as_trained = load_split(Recipe(dataset_name=str(tmp_path / "data")), "test", data.pixel_range)
    assert np.array_equal(as_trained.images.pixels, data.test.images.pixels)


def test_the_range_is_part_of_what_features_are_named_by(tmp_path):
    folder = deep_folder(tmp_path / "data", {"x.png": KINDS["grey16.png"]})
    prints = {
        (path, str(setting)): loaded(folder, deep_pixels=setting, data_path=path).fingerprint
        for path in ("auto", "workers")
        for setting in ("rescale", [1, 99])
    }
    assert len(set(prints.values())) == 4
    plain = class_folders(tmp_path / "plain")
    assert loaded(plain).fingerprint == loaded(plain, deep_pixels="rescale").fingerprint
    assert loaded(plain, deep_pixels="rescale").pixel_range is None


@pytest.mark.parametrize("setting", [[1], [99, 1], [5, 5], [1, 2, 3]])
def test_percentiles_that_are_none(tmp_path, setting):
    with pytest.raises(UserError, match="choose error, rescale or two percentiles"):
        loaded(class_folders(tmp_path / "data"), deep_pixels=setting)


def test_percentiles_of_a_plain_picture(tmp_path):
    folder = deep_folder(tmp_path / "data", {"x.png": np.full((6, 8), 7, np.uint16)})
    with pytest.raises(UserError, match="both percentiles of the pixels are 7"):
        loaded(folder, deep_pixels=[1, 99])


def test_floats_that_are_no_numbers_are_a_bad_picture(tmp_path):
    pixels = values(np.float32, 0, 0, 1)
    pixels[2, 3] = np.nan
    folder = deep_folder(tmp_path / "data", {"x.tif": pixels})
    with pytest.raises(UserError, match=r"cat/x\.tif cannot be read .*not finite"):
        loaded(folder, deep_pixels="rescale")
    data = loaded(folder, deep_pixels="rescale", on_bad_image="skip")
    assert data.train.images.bad == ["cat/x.tif"]


def test_16_bits_in_netpbm_and_in_big_endian_tiff(tmp_path):
    pixels = KINDS["grey16.png"]
    path = tmp_path / "x.pgm"
    path.write_bytes(b"P5 8 6 65535\n" + pixels.astype(">u2").tobytes())
    big_endian = PIL.Image.frombytes("I;16B", (8, 6), pixels.astype(">u2").tobytes())
    big_endian.save(tmp_path / "x.tif")
    expected = PixelRange().to_8_bits(pixels)
    for file in (path, tmp_path / "x.tif"):
        image = open_image(file.read_bytes())
        with pytest.raises(DeepImage):
            to_rgb(image)
        image = open_image(file.read_bytes())
        assert np.array_equal(to_rgb(image, PixelRange())[0], expected)


@pytest.mark.parametrize("pixel_range", [None, PixelRange(), PixelRange((-1.5, 3000.0))])
def test_a_range_survives_a_models_config(pixel_range):
    value = None if pixel_range is None else pixel_range.to_config()
    assert PixelRange.from_config(value) == pixel_range


@pytest.mark.parametrize("value", ["percent", [1], [2, 1], [1, float("nan")], ["1", "2"], {}, 3])
def test_a_config_that_says_something_else(value):
    with pytest.raises(UserError, match="deep_pixels must be"):
        PixelRange.from_config(value)


def test_deep_is_a_kind_of_bad():
    assert issubclass(DeepImage, BadImage)
