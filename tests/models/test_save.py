"""A saved model: whole, and readable to whom the umask says."""

import os

import pytest
from helpers import tiny_models
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForImageClassification

from hf_cifar.models.save import save_model


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_every_file_has_the_mode_of_the_umask(umask, mode, tmp_path):
    model = tiny_models.build("vit")
    adapted = get_peft_model(tiny_models.build("vit"), LoraConfig(r=2, target_modules=["q_proj"]))
    before = os.umask(umask)
    try:
        save_model(model, tmp_path / "whole")
        save_model(model, tmp_path / "parts", max_shard_size="50KB")
        save_model(adapted, tmp_path / "adapter", save_embedding_layers=False)
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len([path for path in files if path.suffix == ".safetensors"]) > 3
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in files} == {
        path.name: oct(mode) for path in files
    }
    AutoModelForImageClassification.from_pretrained(tmp_path / "parts")
