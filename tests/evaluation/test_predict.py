"""Pictures, folders and URLs are classified as `pipeline` does it."""

import os
import shutil

import numpy as np
import PIL.Image
import pytest
from helpers import pictures as pictures_helper
from helpers import tiny_models
from helpers.picture_server import serving
from transformers import pipeline

from hf_cifar.data.decode import PICTURE_SUFFIXES
from hf_cifar.errors import UserError
from hf_cifar.evaluation.predict import predict


@pytest.fixture
def pictures(tmp_path):
    """A folder of pictures of several kinds, one in a subfolder, with other files between them."""
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.webp", "c.avif", "d.JPG", "more/e.tiff"):
        image = PIL.Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8))
        image.save(folder / name)
    (folder / "notes.txt").write_text("no picture")
    (folder / ".hidden.png").write_text("no picture")
    return folder


def test_a_folder_stands_for_its_pictures_as_pipeline_reads_them(tiny, pictures):
    model = str(tiny("vit"))
    answers = dict(predict(model, [str(pictures)], top=3))
    names = ["a.png", "b.webp", "c.avif", "d.JPG", "more/e.tiff"]
    assert list(answers) == [str(pictures / name) for name in names]
    classify = pipeline("image-classification", model=model, top_k=3)
    for name, answer in answers.items():
        expected = classify(name)
        assert [a["label"] for a in answer] == [e["label"] for e in expected]
        scores = [e["score"] for e in expected]
        assert [a["score"] for a in answer] == pytest.approx(scores, abs=1e-6)


def test_a_folder_without_pictures_says_which_are_read(tiny, tmp_path):
    with pytest.raises(UserError) as caught:
        next(predict(str(tiny("vit")), [str(tmp_path)], top=1))
    assert all(suffix in str(caught.value) for suffix in PICTURE_SUFFIXES)


def test_a_picture_that_cannot_be_read_ends_it_after_the_answers_before(tiny, pictures):
    (pictures / "b.webp").write_bytes(b"no picture")
    answers = predict(str(tiny("vit")), [str(pictures)], top=1)
    assert next(answers)[0] == str(pictures / "a.png")
    with pytest.raises(UserError, match=r"b\.webp: its content is no image; name a picture"):
        next(answers)


def test_a_file_that_is_not_there_is_named_before_the_first_answer(tiny, pictures):
    with pytest.raises(UserError, match=r"typo\.png: No such file or directory; name a picture"):
        next(predict(str(tiny("vit")), [str(pictures), "typo.png"], top=1))


def test_deep_pixels_are_refused_with_a_remedy(tiny, tmp_path):
    picture = tmp_path / "x-ray.png"
    PIL.Image.fromarray(np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)).save(picture)
    with pytest.raises(UserError, match=r"x-ray\.png: it has more than 8 bits .*rescale"):
        next(predict(str(tiny("vit")), [str(picture)], top=1))


def test_deep_pixels_are_converted_as_in_training(tiny, tmp_path):
    folder = shutil.copytree(tiny("vit"), tmp_path / "net")
    tiny_models.edit_config(folder, deep_pixels=[0, 4095])
    deep = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)
    PIL.Image.fromarray(deep).save(tmp_path / "deep.png")
    converted = (deep * np.float32(255 / 4095)).round().astype(np.uint8)
    PIL.Image.fromarray(converted).save(tmp_path / "converted.png")
    names = [str(tmp_path / "deep.png"), str(tmp_path / "converted.png")]
    first, second = [answers for _, answers in predict(str(folder), names, top=2)]
    assert first == second


def test_pipes_and_devices_are_no_pictures(tiny, tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    for name in ("pipe.png", "zero.png"):
        with pytest.raises(UserError, match=f"{name}: it is not a regular file"):
            next(predict(str(tiny("vit")), [str(tmp_path / name)], top=1))


def test_urls_are_downloaded_once(tiny):
    with serving({"/cat.png": pictures_helper.encoded(pictures_helper.noise(0))}) as server:
        name = f"{server.root}/cat.png"
        ((answered, answers),) = predict(str(tiny("vit")), [name], top=2)
        assert answered == name and len(answers) == 2
        with pytest.raises(UserError, match=r"none\.png: .*404"):
            next(predict(str(tiny("vit")), [f"{server.root}/none.png"], top=1))
    assert server.asked == {"/cat.png": 1, "/none.png": 1}
