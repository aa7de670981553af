"""The JSON files of a model, read within bounds and checked before a library acts on them.

A config may tell transformers and timm to run code, to open other files or to fetch other models,
and to build something that fits no memory. What is checked here only describes a model.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from hf_cifar.data.regular_files import MAX_TEXT_BYTES, read_regular_file
from hf_cifar.errors import UserError
from hf_cifar.text import visible

MAX_DEPTH = 50  # objects and lists inside each other
MAX_INTEGER = 1_000_000  # the widths, depths and vocabularies of real models lie below
MAX_LAYERS = 10_000
COUNTS_OF_LAYERS = re.compile("depth|layers|blocks|repeats|stages")  # names of keys
DROP_RATES = re.compile("drop.*(rate|prob)|dropout$")
MAX_SIDE = 4096  # px of the pictures that a model or its processor may ask for

# Keys of transformers that lead away from the description of a model.
REFUSED_KEYS = {
    "auto_map": "it would run code of its own, and trust_remote_code is refused",
    "quantization_config": "its weights are quantised; name the model that was not quantised",
    "configuration_files": "it names another file; name a model with one config.json",
    "transformers_weights": "it names another file; name a model with model.safetensors",
    "fusion_config": "it would change transformers' own code; remove the key",
    "use_pretrained_backbone": "it would fetch another model; remove the key",
}
ATTENTION_KEYS = ("attn_implementation", "experts_implementation")
ATTENTIONS = (None, "eager", "sdpa")

# Arguments of timm's models that describe an architecture. Others, such as checkpoint_path, open
# files or fetch models.
TIMM_ARGUMENTS = """
    act_layer aa_layer attn_drop_rate attn_layer attn_type avg_down base_width block_args
    block_reduce_first cardinality channels class_token conv_bias conv_mlp depth depths dims
    down_kernel_size drop_block_rate drop_path_rate drop_rate dynamic_img_pad dynamic_img_size
    embed_dim embed_dims expand_ratio fc_norm final_norm fix_init global_pool head_bias head_dim
    head_hidden_size head_init_scale head_norm_first hidden_size img_size in_chans init_values
    kernel_size kernel_sizes layer_scale_init_value layers ls_init_value mlp_layer mlp_ratio
    mlp_ratios no_embed_class norm_eps norm_layer num_features num_heads num_reg_tokens
    output_stride pad_type patch_drop_rate patch_norm patch_size pool_include_prefix pos_drop_rate
    pos_embed pre_norm proj_bias proj_drop_rate qk_norm qkv_bias qkv_fused reg_tokens se_layer
    stem_chs stem_size stem_type stem_width strict_img_size swiglu_mlp use_abs_pos_emb use_fc_norm
    use_grn use_pos_embed use_post_norm use_rel_pos_bias use_rot_pos_emb use_shared_rel_pos_bias
    window_ratio window_size zero_init_last
"""


def read_json(path: Path, where: str) -> dict[str, Any]:
    """Return the JSON object in a file of at most 16 MiB. Raises UserError that begins with
    `where`.
    """
    try:
        value = json.loads(read_regular_file(path, MAX_TEXT_BYTES))
    except OSError as error:
        raise UserError(f"{where} can't be read: {error.strerror or error}") from None
    except RecursionError:
        raise UserError(f"{where} is nested too deeply; name a model with a sound one") from None
    except ValueError:
        raise UserError(f"{where} is not valid JSON; name a model with a sound one") from None
    if not isinstance(value, dict):
        raise UserError(f"{where} must hold a JSON object, got {visible(value, 80)}")
    return value


def check_config(config: dict[str, Any], where: str) -> None:
    """Check the content of a config.json, or of a recipe's `model_config`.

    where: how messages begin.
    Raises UserError for keys that do more than describe a model, and for values of the wrong kind.
    """
    _check_values(config, where, 0)
    for key in ("id2label", "label2id"):
        _expect(dict, config, key, where)
    for key in ("architectures", "label_names"):
        _expect(list, config, key, where)
    for label in config.get("id2label") or {}:
        if not str(label).isdecimal():
            raise UserError(f"{where}: id2label: keys must be class numbers, got {_shown(label)}")
    if config.get("model_type") == "timm_wrapper" or "pretrained_cfg" in config:
        _check_timm(config, where)


def check_labels(config: dict[str, Any], where: str) -> None:
    """Raise UserError unless `id2label`, where there is one, names every class from 0 on."""
    labels = config.get("id2label") or {}
    numbers = {int(number) for number in labels}
    if gaps := sorted(set(range(len(labels))) - numbers):
        raise UserError(f"{where}: id2label has {len(labels)} names but none for class {gaps[0]}")


def check_processor_config(config: dict[str, Any], where: str) -> None:
    """Check the content of preprocessor_config.json or processor_config.json. Raises UserError."""
    _check_values(config, where, 0, MAX_SIDE**2)
    for part in (config, config.get("image_processor")):
        if isinstance(part, dict):
            for key in ("size", "crop_size", "pad_size"):
                _check_sides(part.get(key), f"{where}: {key}")
            for key in ("image_mean", "image_std"):
                _check_colours(part.get(key), f"{where}: {key}", zero=key == "image_mean")
            share = part.get("crop_pct")
            if share is not None and not (_is_number(share) and 0.1 <= share <= 1):
                raise UserError(f"{where}: crop_pct must lie in 0.1 to 1, got {_shown(share)}")


def _check_values(value: Any, where: str, depth: int, max_integer: int = MAX_INTEGER) -> None:
    """Raise UserError for refused keys, deep nesting and large integers, anywhere in `value`."""
    if depth > MAX_DEPTH:
        raise UserError(f"{where} is nested too deeply; name a model with a sound one")
    if isinstance(value, dict):
        for key, entry in value.items():
            _check_key(str(key), entry, where)
            if key != "label2id":  # its keys are the words of others
                counts_layers = COUNTS_OF_LAYERS.search(str(key)) is not None
                limit = MAX_LAYERS if counts_layers else max_integer
                _check_values(entry, where if depth else f"{where}: {key}", depth + 1, limit)
    elif isinstance(value, list):
        for entry in value:
            _check_values(entry, where, depth + 1, max_integer)
    elif isinstance(value, int) and abs(value) > max_integer:
        raise UserError(f"{where}: {_shown(value)} is no size of a model; correct it")


def _check_key(key: str, entry: Any, where: str) -> None:
    """Raise UserError for a key that does more than describe a model."""
    if key in REFUSED_KEYS and entry not in (None, False):
        raise UserError(f"{where}: {key}: {REFUSED_KEYS[key]}")
    if key.removeprefix("_").removesuffix("_internal") in ATTENTION_KEYS:
        choices = entry.values() if isinstance(entry, dict) else [entry]
        if foreign := [choice for choice in choices if choice not in ATTENTIONS]:
            raise UserError(
                f"{where}: {key}: only eager and sdpa are used, got {_shown(foreign[0])};"
                " remove the key"
            )
    if DROP_RATES.search(key) and _is_number(entry) and not 0 <= entry <= 1:
        raise UserError(f"{where}: {key} must lie in 0 to 1, got {_shown(entry)}")


def _check_timm(config: dict[str, Any], where: str) -> None:
    """Raise UserError unless a config of timm's names an architecture that timm has, with arguments
    that only describe it.
    """
    import timm

    architecture = config.get("architecture")
    if not isinstance(architecture, str) or not timm.is_model(architecture):
        raise UserError(f"{where}: timm has no architecture {_shown(architecture)}")
    for key in ("model_args", "pretrained_cfg"):
        _expect(dict, config, key, where)
    for name, value in (config.get("model_args") or {}).items():
        if name not in TIMM_ARGUMENTS.split():
            raise UserError(
                f"{where}: model_args: {_shown(name)} is not an argument that describes an"
                " architecture; remove it"
            )
        if isinstance(value, dict):
            raise UserError(f"{where}: model_args: {name} must be a number, a word or a list")
    pretrained = config.get("pretrained_cfg") or {}
    for key in ("input_size", "test_input_size"):
        _check_sides(pretrained.get(key), f"{where}: {key}")
    for key in ("mean", "std"):
        _check_colours(pretrained.get(key), f"{where}: {key}", zero=key == "mean")


def _check_sides(value: Any, where: str) -> None:
    """Raise UserError unless every number of a size, which has several spellings, is a side."""
    if value is None:
        return
    sides = value.values() if isinstance(value, dict) else value
    for side in sides if isinstance(value, dict | list) else [value]:
        if side is not None and not (_is_number(side) and 1 <= side <= MAX_SIDE):
            raise UserError(f"{where}: a side must lie in 1 to {MAX_SIDE} px, got {_shown(side)}")


def _check_colours(value: Any, where: str, zero: bool) -> None:
    """Raise UserError unless a value is a finite number, or one for each of three colours.

    zero: whether 0 is allowed.
    """
    if value is None:
        return
    colours = value if isinstance(value, list) and len(value) == 3 else [value]
    for colour in colours:
        if not _is_number(colour) or not math.isfinite(colour) or not (zero or colour):
            raise UserError(f"{where}: must be a number for each colour, got {_shown(value)}")


def _expect(kind: type[dict] | type[list], config: dict[str, Any], key: str, where: str) -> None:
    value = config.get(key)
    if value is not None and not isinstance(value, kind):
        name = "an object" if kind is dict else "a list"
        raise UserError(f"{where}: {key} must be {name}, got {_shown(value)}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    return visible(json.dumps(value, default=str), 80)
