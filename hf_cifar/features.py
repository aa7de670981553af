"""A frozen backbone sees each image once: its features, cached, and linear heads trained on them."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import psutil
import timm
import torch
import transformers
import xxhash
from accelerate import PartialState
from accelerate.utils import gather, gather_object
from torch import nn
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.trainer_utils import EvalPrediction

from hf_cifar.backbones import head
from hf_cifar.batches import ImageBatches, whole_batch

log = logging.getLogger(__name__)
DIGEST = 16  # bytes of an XXH3 digest, at the end of a cache entry


def weights_fingerprint(model: Any) -> str:
    """SHA-256 over every weight but the head's, the architecture and the libraries that run it: what the features depend on."""
    own = head(model)[0] + "."
    labels = ("id2label", "label2id", "label_names", "num_labels", "num_classes", "_name_or_path", "transformers_version")
    config = {k: v for k, v in model.config.to_dict().items() if k not in labels}
    about = [type(model).__name__, config, torch.__version__, transformers.__version__, timm.__version__]
    digest = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode())
    for name, tensor in model.state_dict().items():
        if not name.startswith(own):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def feature_key(weights: str, batches: ImageBatches, views: int, bf16: bool, more: dict[str, Any] | None = None) -> str:
    """Name of a cache entry: everything that the features depend on."""
    t = batches.transforms
    rows = hashlib.sha256(np.ascontiguousarray(batches.split.rows).tobytes()).hexdigest()
    parts = {
        "weights": weights,
        "processor": t.processor.to_json_string(),
        "images": batches.split.images.fingerprint,
        "rows": rows,
        "views": views,
        "augment": {k: v for k, v in vars(t).items() if k != "processor"} if batches.training else None,
        "bf16": bf16,
        "channels_last": batches.channels_last,
        "mirrored": batches.mirrored,
    } | (more or {})
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _processes() -> int:
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def everywhere(holds: bool) -> bool:
    """Whether it holds in every process; all of them must ask."""
    return all(gather_object([holds])) if _processes() > 1 else holds


def writes() -> bool:
    """Whether this process writes for its node."""
    return _processes() == 1 or PartialState().is_local_main_process


class Entry:
    """A cache entry in the making: an .npy file with a digest of it at its end, written aside and renamed once it is whole."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: Any) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path.parent)
        self.path, self.aside = path, path.with_suffix(f".{os.environ.get('RANK', '0')}-{os.getpid()}.tmp")
        self.file, self.digest, header = self.aside.open("wb"), xxhash.xxh3_128(), io.BytesIO()
        about = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(header, about)
        self.write(header.getbuffer())

    def write(self, data: memoryview) -> None:
        """The next of the array's bytes. np.save writes a small array by a copy of the file and doesn't see that it fails."""
        self.digest.update(data)
        self.file.write(data)

    def publish(self) -> None:
        self.file.write(self.digest.digest())
        self.file.flush()
        os.fsync(self.file.fileno())
        self.aside.replace(self.path)

    def close(self) -> None:
        """Whatever has happened; what was not published is removed."""
        with contextlib.suppress(OSError):
            self.file.close()
        self.aside.unlink(missing_ok=True)


def _sweep(folder: Path) -> None:
    """Remove what killed processes were writing: a writer pauses for a batch at most, and may run on another machine."""
    for left in folder.glob("*.tmp"):
        with contextlib.suppress(OSError):
            paused, pid = time.time() - left.stat().st_mtime, left.name.split(".")[-2].rpartition("-")[2]
            if paused > 3600 or (paused > 60 and pid.isdigit() and not psutil.pid_exists(int(pid))):
                left.unlink()


def _whole(path: Path) -> bool:
    digest, left = xxhash.xxh3_128(), path.stat().st_size - DIGEST
    with path.open("rb") as file:
        while left > 0 and (chunk := file.read(min(left, 2**20))):
            digest.update(chunk)
            left -= len(chunk)
        return digest.digest() == file.read()


def cached(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """The array of a cache entry, memory-mapped; None where there is none that is as it was written and of this shape.

    Of a node's processes the one that writes looks at the content.
    """
    try:
        if not path.is_file():
            return None
        if writes() and not _whole(path):
            raise ValueError
        found = np.load(path, mmap_mode="r")
    except (ValueError, EOFError, OSError):
        log.warning("features: %s is damaged; computed anew", path.name)
        return None
    return found if found.shape == shape else None


def once(
    batches: ImageBatches,
    views: int,
    batch_size: int,
    run: Callable[[torch.Tensor], torch.Tensor],
    like: torch.Tensor,
    workers: int = 0,
    progress: Any = None,
) -> Iterator[torch.Tensor]:
    """Values [B, ...] on the host for each batch of each view, in order: what `run` gives for its pixel values [B, 3, S, S].

    Of P processes each runs every Pth batch, and all of them get every batch's values. The batches are those of one process
    alone, so that the values are its values, to the bit. View v is epoch v's augmentation, where `batches` augment.

    like: [0, ...], of the shape and dtype that `run` gives, on the device that it runs on. workers: as in DataLoader.
    """
    processes = _processes()
    own = torch.distributed.get_rank() if processes > 1 else 0
    n, device = len(batches), like.device
    jobs = [range(v * n + i, v * n + min(i + batch_size, n)) for v in range(views) for i in range(0, n, batch_size)]
    mine = jobs[own::processes]
    loader: Any = torch.utils.data.DataLoader(
        batches,
        batch_sampler=[list(tickets) for tickets in mine],
        collate_fn=whole_batch,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # its draw would move the run's own generator
    )
    loaded = iter(loader)

    def start(first: int) -> tuple[torch.Tensor, list[int], Any]:
        """Queue the jobs from this one on, one a process, and the copy of what they give; an event says when it is there."""
        rows = [len(tickets) for tickets in jobs[first : first + processes]]
        values = like.new_zeros(batch_size, *like.shape[1:])
        if own < len(rows):
            values[: rows[own]] = run(batches.model_inputs(next(loaded), device)["pixel_values"])
        if processes > 1:  # as bytes, which every backend carries
            values = gather(values.view(torch.uint8)).view(like.dtype)
        if device.type != "cuda":
            return values.cpu(), rows, None
        values, copied = values.to("cpu", non_blocking=True), torch.cuda.Event()
        copied.record()
        return values, rows, copied

    def finish(values: torch.Tensor, rows: list[int], copied: Any) -> Iterator[torch.Tensor]:
        if copied is not None:
            copied.synchronize()
        if progress is not None:
            progress.update(sum(rows))
        for turn, count in enumerate(rows):
            yield values[turn * batch_size : turn * batch_size + count]

    queued = start(0)
    for first in range(processes, len(jobs), processes):
        ahead = start(first)  # a GPU has the next batch to work on while the host takes this one
        yield from finish(*queued)
        queued = ahead
    yield from finish(*queued)


@torch.inference_mode()
def compute_features(
    model: nn.Module,
    batches: ImageBatches,
    cache: Path,
    *,
    views: int,
    bf16: bool,
    batch_size: int,
    weights: str,
    workers: int = 0,
    progress: Any = None,
) -> np.ndarray:
    """float32 [views, n, D]: what the head of `model` is given for each image of `batches`, in its order.

    The model must be on its device and is put into eval mode. Where `batches` augment, view v is epoch v's augmentation.
    Computed once, each process its share, then memory-mapped from `cache`. Every process must call it.
    """
    path = cache / "features" / f"{feature_key(weights, batches, views, bf16)}.npy"
    _, linear = head(model)
    found = cached(path, (views, len(batches), linear.in_features))
    if everywhere(found is not None):
        log.info("features: %s x %d images from the cache", views, len(batches))
        return cast(np.ndarray, found)
    model.eval()
    device = next(model.parameters()).device
    features = np.empty((views, len(batches), linear.in_features), np.float32)
    caught: list[torch.Tensor] = []
    hook = linear.register_forward_pre_hook(lambda _, args: caught.append(args[0]))

    def run(pixels: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            model(pixel_values=pixels)
        return caught.pop().float()

    flat, filled = features.reshape(-1, linear.in_features), 0
    like = torch.empty(0, linear.in_features, device=device)
    try:
        for values in once(batches, views, batch_size, run, like, workers, progress):
            flat[filled : filled + len(values)] = values.numpy()
            filled += len(values)
    finally:
        hook.remove()
    if writes():
        try:
            with contextlib.closing(Entry(path, features.shape, features.dtype)) as entry:
                entry.write(features.data)
                entry.publish()
        except OSError as error:
            log.warning("features: not cached: %s", error)
    return features


class FeatureBatches(torch.utils.data.Dataset):
    """Whole batches of features by index. A ticket is epoch * n + index; epoch e uses view e modulo their number.

    values: [views, n, ...]. labels: int64 [n].
    """

    def __init__(self, values: np.ndarray, labels: np.ndarray) -> None:
        self.values, self.labels = values, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, tickets: list[int]) -> dict[str, torch.Tensor]:
        epoch, index = np.divmod(np.asarray(tickets), len(self))
        values = np.asarray(self.values[epoch % len(self.values), index])
        return {"features": torch.from_numpy(values), "labels": torch.from_numpy(self.labels[index])}

    def model_inputs(self, batch: dict[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
        """The batch as it is, on `device`."""
        return {k: v.to(device, non_blocking=True) for k, v in batch.items()}


class LinearHeads(nn.Module):
    """K linear classifiers over the same features, trained side by side, each with its own learning rate and weight decay
    (as DINOv2's linear evaluation does). Features are standardised by the train set's mean and deviation, which fold into
    the one linear layer that the model is saved with.

    mean, std: float32 [D].
    """

    main_input_name = "features"
    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, mean: torch.Tensor, std: torch.Tensor, classes: int, count: int) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        linears = [nn.Linear(len(mean), classes) for _ in range(count)]
        for linear in linears:
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
        self.heads = nn.ModuleList(linears)

    def forward(self, features: torch.Tensor) -> ImageClassifierOutput:
        """float32 [B, D] -> logits [B, K, C]."""
        x = (features - self.mean) / self.std
        linears: Any = self.heads
        weight = torch.stack([h.weight for h in linears])
        bias = torch.stack([h.bias for h in linears])
        return ImageClassifierOutput(logits=torch.einsum("bd,kcd->bkc", x, weight) + bias)

    def write_into(self, linear: nn.Linear, k: int) -> None:
        """Put head k, standardisation folded in, into the model's own classifier."""
        with torch.no_grad():
            chosen: Any = self.heads[k]
            weight = chosen.weight / self.std
            linear.weight.copy_(weight)
            linear.bias.copy_(chosen.bias - weight @ self.mean)


def knn_accuracy(train: np.ndarray, labels: np.ndarray, test: np.ndarray, truth: np.ndarray, k: int = 20) -> float:
    """Accuracy of a cosine k-nearest-neighbour vote weighted by exp(similarity / 0.07) (Wu et al. 2018; DINO's k = 20).

    train, test: float32 [n, D]; labels, truth: int64 [n].
    """
    reference = nn.functional.normalize(torch.from_numpy(np.array(train)), dim=1)
    votes_of = nn.functional.one_hot(torch.from_numpy(labels)).float()
    right = 0
    for start in range(0, len(test), 1000):
        query = nn.functional.normalize(torch.from_numpy(np.array(test[start : start + 1000])), dim=1)
        similarity, nearest = (query @ reference.T).topk(min(k, len(reference)), dim=1)
        votes = (votes_of[nearest] * (similarity / 0.07).exp()[..., None]).sum(1)
        right += int((votes.argmax(1).numpy() == truth[start : start + 1000]).sum())
    return right / len(test)


def best_of(logits: np.ndarray, labels: np.ndarray, metric: str | None) -> tuple[int, list[float]]:
    """The best of K heads by `metric_for_best_model` (nll or loss, else accuracy and then nll), and every head's accuracy.

    logits: [n, K, C]; labels: int64 [n].
    """
    log_p = torch.from_numpy(logits).double().log_softmax(-1)
    truth = torch.from_numpy(labels)
    hits = (log_p.argmax(-1) == truth[:, None]).double().mean(0).tolist()
    nll = -log_p.gather(-1, truth[:, None, None].expand(-1, log_p.shape[1], 1)).squeeze(-1).mean(0)
    order = [(-loss,) if metric in ("nll", "loss") else (hit, -loss) for hit, loss in zip(hits, nll.tolist(), strict=True)]
    return max(range(len(order)), key=order.__getitem__), hits


def head_metrics(
    metrics: Callable[[EvalPrediction], dict[str, float]], metric: str | None, prediction: EvalPrediction
) -> dict[str, float]:
    """The Trainer's metrics of the head that is best on these labels."""
    logits, labels = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
    best, _ = best_of(logits, labels, metric)
    return metrics(EvalPrediction(logits[:, best], labels)) | {"best_head": float(best)}
