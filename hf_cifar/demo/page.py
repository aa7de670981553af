"""A page for an image classifier: drop a picture, see labels, a heat map and the model's figures.

`hf-cifar demo` serves it on this machine. A Space carries a copy of this file as its app.py, with
copies of the two modules of this project that are imported here, and needs nothing else of it.
"""

from __future__ import annotations

import html
import io
import json
import threading
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from safetensors import safe_open
from transformers import AutoImageProcessor, AutoModelForImageClassification

from hf_cifar.evaluation.heat_maps import HeatMapLayer, HeatMaps, overlay, seen_picture
from hf_cifar.evaluation.stranger_scores import Known, make_score

FACTS, MODEL, KNOWN_PICTURES = "page.json", "model", "known_pictures.safetensors"
# The readers of PIL that are used. Others, such as that of EPS, start programs.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
MOST_BYTES = 25 * 2**20  # of a file
MOST_PIXELS = 50_000_000
MOST_WAITING = 16  # pictures in the queue
SHOWN_LABELS = 5
EVERY, AGE = 30, 60  # seconds: how often files are deleted, and at which age
LAUNCH: dict[str, Any] = {  # what every way to serve the page has in common
    "max_file_size": MOST_BYTES,
    "allowed_paths": [],
    "show_error": False,
    "footer_links": [],
    "run_history": False,
    "ssr_mode": False,
    "mcp_server": False,
    "pwa": False,
    "enable_monitoring": False,
    "css": "#picture img { width: 100%; height: 100%; object-fit: contain; }",
    # Fonts of the reader's own machine: the default theme's come from another server.
    "theme": gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
}


class NoPicture(Exception):
    """A file that can't be classified; the message is a sentence for whoever sent it."""


class Answer(NamedTuple):
    """The answer to one picture.

    scores: of each label. named: the best label; or, where a picture can have any number of labels,
    those with a score of at least 0.5, the best first. strangeness: where the picture is none of
    the classes, the share of validation pictures that look more like them; else None. heat_map:
    uint8 [side, side, 3], for the best label.
    """

    scores: dict[str, float]
    named: list[str]
    strangeness: float | None
    heat_map: np.ndarray | None


class PictureClassifier:
    """Answers encoded pictures as `pipeline` does, with "none of these" and a heat map.

    model, processor: of transformers. facts: the content of page.json. folder: of the model, where
    known_pictures.safetensors may lie.
    """

    def __init__(self, model: Any, processor: Any, facts: dict[str, Any], folder: Path) -> None:
        self._model, self._processor = model.eval().requires_grad_(False), processor
        self._head = model.get_submodule(facts["head"])
        layer = facts["heat_map"]
        self._heat_maps = HeatMaps(model, HeatMapLayer(**layer)) if layer else None
        self._features = torch.empty(0)  # what the head was given for the newest picture
        self._head.register_forward_pre_hook(self._keep_features)
        self._judge = self._read_known(folder / KNOWN_PICTURES)
        self._lock = threading.Lock()  # the hooks know one picture at a time

    def answer(self, data: bytes) -> Answer:
        """Return the answer to an encoded picture. Raises NoPicture."""
        image = read_picture(data, getattr(self._model.config, "deep_pixels", None))
        with self._lock:
            inputs = self._processor(images=image, return_tensors="pt")["pixel_values"]
            inputs = inputs.to(next(self._model.parameters()).device)
            with torch.no_grad():
                logits = self._model(pixel_values=inputs).logits[0].float().cpu()
            several = self._model.config.problem_type == "multi_label_classification"
            scores = logits.sigmoid() if several else logits.softmax(-1)
            strangeness = self._judge(self._features) if self._judge is not None else None
            heat_map = None
            if self._heat_maps is not None:
                heat = self._heat_maps(inputs, int(logits.argmax()))
                heat_map = overlay(seen_picture(self._processor, image), heat)
        names = self._model.config.id2label
        by_label = {str(names[number]): score for number, score in enumerate(scores.tolist())}
        ranked = sorted(by_label, key=lambda label: -by_label[label])
        named = [label for label in ranked if by_label[label] >= 0.5] if several else ranked[:1]
        return Answer(by_label, named, strangeness, heat_map)

    def _keep_features(self, _: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
        self._features = inputs[0].detach().float().cpu()

    def _read_known(self, path: Path) -> Any:
        """Return the function that gives features' strangeness, or None for features of the
        classes; None where the model rejects no picture.
        """
        if not path.is_file():
            return None
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            reject = json.loads((file.metadata() or {}).get("reject", "{}"))
        if not reject:
            return None
        weight = self._head.weight.float().cpu()
        bias = torch.zeros(len(weight)) if self._head.bias is None else self._head.bias
        references, labels = tensors["references"].float(), tensors["reference_labels"]
        score = make_score(Known(references, labels, weight, bias.float().cpu()), reject["score"])
        validation = np.sort(score(tensors["validation"].float()))

        def judge(features: torch.Tensor) -> float | None:
            (value,) = score(features)
            below = np.searchsorted(validation, value, side="left")
            return float(1 - below / len(validation)) if value < reject["threshold"] else None

        return judge


def read_picture(data: bytes, deep_pixels: Any = None) -> PIL.Image.Image:
    """Return an encoded picture in RGB, turned as its EXIF says.

    deep_pixels: the key of the model's config that says how pictures with more than 8 bits a
    channel become 8 bits; without it they are refused. Raises NoPicture.
    """
    if not data:
        raise NoPicture("This file is empty.")
    if len(data) > MOST_BYTES:
        raise NoPicture(
            f"This file has {len(data) / 2**20:,.0f} MiB; {MOST_BYTES >> 20} are taken."
        )
    try:
        with warnings.catch_warnings():  # PIL's of large pictures: the size is checked below
            warnings.simplefilter("ignore")
            PIL.Image.init()
            known = [name for name in FORMATS if name in PIL.Image.OPEN]
            image = PIL.Image.open(io.BytesIO(data), formats=known)
    except PIL.Image.DecompressionBombError:
        raise NoPicture(_too_large("This picture is far larger")) from None
    except Exception:  # PIL's readers raise nearly anything on what is no picture
        raise NoPicture("This file is no picture that can be read.") from None
    pixels = image.width * image.height
    if pixels > MOST_PIXELS:
        raise NoPicture(_too_large(f"This picture has {pixels / 1e6:,.0f} million pixels, more"))
    try:
        upright = PIL.ImageOps.exif_transpose(image)
        if upright.mode in ("I", "F") or upright.mode.startswith("I;16"):
            return _to_8_bits(np.asarray(upright), deep_pixels)
        return upright.convert("RGB")
    except NoPicture:
        raise
    except Exception:  # PIL's decoders raise nearly anything on broken data
        raise NoPicture("This picture is damaged: it can't be decoded.") from None


def _too_large(beginning: str) -> str:
    return f"{beginning} than the {MOST_PIXELS / 1e6:,.0f} million that are taken; shrink it."


def _to_8_bits(values: np.ndarray, deep_pixels: Any) -> PIL.Image.Image:
    """Return values [H, W] with more than 8 bits as RGB. Raises NoPicture without `deep_pixels`."""
    if deep_pixels is None:
        raise NoPicture("This picture has more than 8 bits a channel; convert it to 8 bits.")
    whole = (0.0, 1.0) if values.dtype.kind == "f" else (0.0, 65_535.0)
    low, high = whole if deep_pixels == "type" else deep_pixels
    if deep_pixels == "type" and not (values.min() >= low and values.max() <= high):
        raise NoPicture("This picture has values beyond the range of its type.")
    scaled = (values.astype(np.float32) - np.float32(low)) * np.float32(255 / (high - low))
    grey = np.clip(scaled, 0, 255).round().astype(np.uint8)
    return PIL.Image.fromarray(np.stack([grey] * 3, axis=-1))


def take_uploads_only(picture: gr.Image) -> None:
    """Let a component hand over the bytes of an uploaded file as they are, whatever they are, so
    that the limits hold before anything decodes them, and refuse everything but uploads.

    Methods of this one object are replaced: Gradio writes a file beside the module of each class
    that is made from a component.
    """
    uploads, move = Path(picture.GRADIO_CACHE).resolve(), picture.async_move_resource_to_block_cache

    def preprocess(payload: Any) -> bytes | None:
        if payload is None or payload.path is None:
            return None
        try:
            with open(payload.path, "rb") as file:
                return file.read(MOST_BYTES + 1)
        except FileNotFoundError:  # deleted since
            raise gr.Error("The picture is gone; drop it again.", print_exception=False) from None

    async def move_upload(name: Any) -> str | None:
        # A request may name an address, which would be fetched, or any file of the machine, which
        # Gradio would read where the page is mounted in another app.
        if not Path(name).resolve().is_relative_to(uploads):
            raise gr.Error("Send a picture, not its name.", print_exception=False)
        return await move(name)

    replaced: Any = picture
    replaced.preprocess, replaced.async_move_resource_to_block_cache = preprocess, move_upload


def build_page(
    classifier: PictureClassifier, facts: dict[str, Any], examples: list[str]
) -> gr.Blocks:
    """Return the page.

    facts: the content of page.json. examples: paths of pictures to try, in the folder of uploads.
    """
    with gr.Blocks(
        title=facts["title"], analytics_enabled=False, delete_cache=(EVERY, AGE)
    ) as page:
        gr.Markdown(f"# {_plain(facts['title'])}\n{_plain(facts['about'])}")
        with gr.Row():
            with gr.Column():
                picture = gr.Image(
                    sources=["upload", "clipboard", "webcam"],
                    label="Picture",
                    buttons=[],
                    height=320,
                    elem_id="picture",
                )
                take_uploads_only(picture)
                if examples:
                    gr.Examples(examples, picture, cache_examples=False, label="To try")
                gr.Markdown(_table(facts["figures"]), elem_id="figures")
            with gr.Column():
                message = gr.Markdown("Drop, paste or snap a picture.", elem_id="message")
                labels = gr.Label(
                    num_top_classes=SHOWN_LABELS,
                    show_heading=False,
                    label="Labels",
                    elem_id="labels",
                )
                heat_map = gr.Image(
                    label="Red spoke most for this answer (Grad-CAM)",
                    interactive=False,
                    buttons=[],
                    height=360,
                    elem_id="heat_map",
                    visible=facts["heat_map"] is not None,
                )

        def classify(data: bytes | None) -> tuple[str, dict[str, float] | None, Any]:
            if data is None:
                return "Drop, paste or snap a picture.", None, None
            try:
                answer = classifier.answer(data)
            except NoPicture as error:
                return str(error), None, None
            return _heading(answer), answer.scores, answer.heat_map

        picture.change(
            classify,
            picture,
            [message, labels, heat_map],
            api_name="classify",
            concurrency_limit=1,
        )
    page.queue(max_size=MOST_WAITING, api_open=False)
    return page


def _heading(answer: Answer) -> str:
    """Return what the page says above the bars, in Markdown."""
    if answer.strangeness is not None:
        return (
            f"## none of these\n{100 * answer.strangeness:.0f} % of the validation pictures look"
            f" more like the classes. The nearest label would be {_plain(answer.named[0])}."
        )
    named = [f"{_plain(label)}: {100 * answer.scores[label]:.1f} %" for label in answer.named]
    return f"## {', '.join(named) or 'none of the labels'}"


def _plain(text: str) -> str:
    """Return a text that Markdown shows as it is."""
    escaped = html.escape(" ".join(text.split()), quote=False)
    return "".join(f"\\{mark}" if mark in "\\`*_[]|#~$" else mark for mark in escaped)


def _table(figures: list[list[str]]) -> str:
    rows = [f"| {_plain(name)} | {_plain(value)} |" for name, value in figures]
    return "\n".join(["| The model | |", "|---|---|", *rows])


def main() -> None:
    """Serve the model that lies beside this file, as a Space does."""
    here = Path(__file__).resolve().parent
    facts = json.loads((here / FACTS).read_text(encoding="utf-8"))
    model = AutoModelForImageClassification.from_pretrained(here / MODEL)
    processor = AutoImageProcessor.from_pretrained(here / MODEL)
    classifier = PictureClassifier(model, processor, facts, here / MODEL)
    build_page(classifier, facts, []).launch(share=False, **LAUNCH)


if __name__ == "__main__":
    main()
