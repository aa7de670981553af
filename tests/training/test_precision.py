"""The precision of products, and the layout of weights."""

from __future__ import annotations

import torch
from helpers import tiny_models

from hf_cifar.features.logistic_regression import fit_logistic_regression
from hf_cifar.training.precision import exact_products, set_weight_layout


def test_a_solver_multiplies_without_tf32_and_training_goes_on_with_it() -> None:
    matmul, seen = torch.backends.cuda.matmul, []

    class Watched(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            if func is torch.addmm:
                seen.append(matmul.fp32_precision)
            return super().__torch_function__(func, types, args, kwargs or {})

    before = torch.backends.fp32_precision
    torch.backends.fp32_precision = "tf32"  # as TrainingArguments' `tf32` does
    try:
        assert matmul.fp32_precision == "tf32"
        features = torch.randn(1, 12, 4, generator=torch.Generator().manual_seed(0))
        labels = torch.arange(12) % 2
        fit_logistic_regression(features.as_subclass(Watched), labels, 2, seed=0)
        assert set(seen) == {"ieee"}
        assert matmul.fp32_precision == "tf32"
        torch.backends.fp32_precision = "ieee"
        assert matmul.fp32_precision == "ieee"  # nothing of it is kept
        with exact_products():
            assert matmul.fp32_precision == "ieee"
    finally:
        torch.backends.fp32_precision = before


def test_weights_change_their_layout_on_a_gpu_alone() -> None:
    model, cpu = tiny_models.build("resnet"), torch.device("cpu")
    set_weight_layout(model, cpu, True)
    assert all(parameter.is_contiguous() for parameter in model.parameters())
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    parameters = list(model.parameters())
    set_weight_layout(model, torch.device("cuda"), True)
    convolutions = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    laid_out = [m.weight.is_contiguous(memory_format=torch.channels_last) for m in convolutions]
    assert laid_out and all(laid_out)
    assert all(new is old for new, old in zip(model.parameters(), parameters, strict=True))
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
