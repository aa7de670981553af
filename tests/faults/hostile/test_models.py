"""Models that mean harm or are damaged: every command ends in one line and exit code 2."""

import json
import math
import os
import pickle
import shutil
import struct
import time
import unicodedata
import zipfile
from pathlib import Path

import pytest
import torch
from helpers import tiny_models
from helpers.runs import LABELS
from safetensors.torch import load_file, save_file

from hf_cifar.cli import main
from hf_cifar.errors import UserError
from hf_cifar.models.load import load_backbone, skeleton
from hf_cifar.recipe.fields import ModelKeys

WEIGHTS = "model.safetensors"
COMMANDS = ("evaluate", "predict", "verify")


@pytest.fixture
def net(tiny, tmp_path):
    """A copy of the tiny ViT that a test may spoil."""
    return shutil.copytree(tiny("vit"), tmp_path / "net")


@pytest.fixture
def timm_net(tiny, tmp_path):
    return shutil.copytree(tiny("timm_vit"), tmp_path / "net")


def run_command(name, net):
    """Run a command on a model in this process; return its exit code."""
    if name == "predict":
        picture = net.parent / "picture.ppm"
        picture.write_bytes(b"P6 8 8 255\n" + bytes(range(192)))
        return main.run(["predict", str(net), str(picture), "--json"])
    if name == "verify":
        out = str(net.parent / "verify")
        return main.run(["verify", str(net), "--dataset", "sample", "--out", out])
    return main.run(["evaluate", str(net), "--dataset", "sample", "--json"])


def one_line(capsys, code):
    """Return the one line that a command ended with, after looking at it."""
    output = capsys.readouterr()
    assert code == 2, output.err
    *notes, line = output.err.splitlines()
    assert line.startswith("hf-cifar: ") and len(line) < 600, output.err
    assert not any("Traceback" in note for note in notes)
    assert not [c for c in output.err if unicodedata.category(c) in ("Cc", "Cf") and c != "\n"]
    assert "hf-cifar-model-" not in line, "the name of a temporary folder says nothing"
    assert output.out == "", "nothing is said of a model that is not whole"
    return line


def train_message(net, **keys):
    """Return what `train` says of a model, "" if it takes it."""
    try:
        load_backbone(ModelKeys(model_name_or_path=str(net), **keys), LABELS)
    except UserError as error:
        return str(error)
    return ""


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(net, change):
    weights = load_file(net / WEIGHTS)
    change(weights)
    save_file(weights, net / WEIGHTS, metadata={"format": "pt"})


def write_header(header, data=b""):
    def write(net):
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        (net / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + data)

    return write


def keep_bytes(count):
    return lambda net: (net / WEIGHTS).write_bytes((net / WEIGHTS).read_bytes()[:count])


def config(**changes):
    return lambda net: edit_json(net / "config.json", **changes)


def processor(**changes):
    return lambda net: edit_json(net / "preprocessor_config.json", **changes)


def text(file, content):
    return lambda net: (net / file).write_text(content)


def without(file):
    return lambda net: (net / file).unlink()


def weights(change):
    return lambda net: edit_weights(net, change)


def named_pipe(file):
    def replace(net):
        (net / file).unlink()
        os.mkfifo(net / file)

    return replace


def link_to(file, target):
    def replace(net):
        (net / file).unlink()
        (net / file).symlink_to(target)

    return replace


def index(weight_map):
    """Weights in parts, with this map of tensors to files."""

    def write(net):
        (net / WEIGHTS).rename(net / "part.safetensors")
        path = net / "model.safetensors.index.json"
        path.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))

    return write


class Harm:
    """Leaves a file behind if it is unpickled."""

    def __reduce__(self):
        return (Path.touch, (Path("harmed"),))


def pickled(value, file="pytorch_model.bin"):
    def write(net):
        (net / WEIGHTS).unlink()
        torch.save(value, net / file)

    return write


def pickle_in_index(net):
    index({"vit.x": "weights.safetensors.pkl"})(net)
    (net / "weights.safetensors.pkl").write_bytes(pickle.dumps(Harm()))


def pickle_as_safetensors(net):
    (net / WEIGHTS).write_bytes(pickle.dumps(Harm()))


def compressed_pickle(net):
    (net / WEIGHTS).unlink()
    torch.save({"x": torch.zeros(1_000_000)}, net / "plain.bin")
    with (
        zipfile.ZipFile(net / "plain.bin") as plain,
        zipfile.ZipFile(net / "pytorch_model.bin", "w", zipfile.ZIP_DEFLATED) as compressed,
    ):
        for entry in plain.infolist():
            compressed.writestr(entry.filename, plain.read(entry))


NAN = float("nan")
F32 = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
DAMAGE = {
    # Weights that are cut, broken or not there.
    "an empty file of weights": keep_bytes(0),
    "weights cut in the length of their header": keep_bytes(5),
    "weights cut in their header": keep_bytes(1000),
    "weights cut at the end": keep_bytes(-100),
    "a header of 10 GB": lambda net: (net / WEIGHTS).write_bytes(struct.pack("<Q", 10**10) + b"{}"),
    "a header of 2^64 bytes": lambda net: (net / WEIGHTS).write_bytes(b"\xff" * 8 + b"{}"),
    "a header that is no JSON": write_header(b"{nonsense"),
    "a header nested 100,000 deep": write_header(b'{"a":' * 100_000),
    "a header that is a list": write_header([1]),
    "a tensor beyond the file": write_header({"x": {**F32, "data_offsets": [0, 10**12]}}),
    "a tensor that overlaps another": write_header({"x": F32, "y": F32}, bytes(16)),
    "a shape of 2^80 elements": write_header({"x": {**F32, "shape": [2**40, 2**40]}}, bytes(16)),
    "a negative shape": write_header({"x": {**F32, "shape": [-4]}}, bytes(16)),
    "an unknown type of numbers": write_header({"x": {**F32, "dtype": "F7"}}, bytes(16)),
    "quantised weights": weights(lambda w: w.update({k: v.to(torch.int8) for k, v in w.items()})),
    "no weights": without(WEIGHTS),
    "weights that are a folder": lambda net: ((net / WEIGHTS).unlink(), (net / WEIGHTS).mkdir()),
    "weights that are a pipe": named_pipe(WEIGHTS),
    "weights that are /dev/zero": link_to(WEIGHTS, "/dev/zero"),
    "weights that are a dangling link": link_to(WEIGHTS, "nowhere"),
    # Weights that do not fit.
    "a layer is missing": weights(lambda w: [w.pop(k) for k in [*w] if ".1." in k]),
    "a bias is missing": weights(lambda w: w.pop(next(k for k in w if "layernorm" in k))),
    "everything is missing": weights(lambda w: (w.clear(), w.update(other=torch.zeros(3)))),
    "a tensor of another shape": config(intermediate_size=72),
    "weights of another width": config(hidden_size=64),
    "weights for another number of layers": config(num_hidden_layers=5),
    "weights that are not finite": weights(lambda w: [t.fill_(NAN) for t in w.values()]),
    "one weight that is infinite": weights(
        lambda w: next(t for k, t in w.items() if t.ndim == 2)[0].fill_(math.inf)
    ),
    # Configs that ask for much.
    "a billion layers": config(num_hidden_layers=10**9),
    "a million layers": config(num_hidden_layers=10**6),
    "a width of a million": config(hidden_size=10**6, intermediate_size=10**6),
    "a width of nothing": config(hidden_size=0),
    "no attention heads": config(num_attention_heads=0),
    "a patch of nothing": config(patch_size=0),
    "an image side of a million": config(image_size=10**6),
    "an image side below nothing": config(image_size=-32),
    "a number of 5,000 digits": text("config.json", f'{{"hidden_size": {"9" * 5000}}}'),
    # Configs of the wrong kind.
    "a config that is no JSON": text("config.json", "{nonsense"),
    "a config that is empty": text("config.json", ""),
    "a config that is a list": text("config.json", "[]"),
    "a config nested 100,000 deep": text("config.json", '{"a": ' * 100_000),
    "a config nested 900 deep": text("config.json", '{"a": ' * 900 + "1" + "}" * 900),
    "a config of 20 MB": text("config.json", f'{{"a": "{"x" * 20_000_000}"}}'),
    "a config that is no UTF-8": lambda net: (net / "config.json").write_bytes(b"\xff\xfe{}"),
    "a config that is a pipe": named_pipe("config.json"),
    "a config that is /dev/zero": link_to("config.json", "/dev/zero"),
    "no config": without("config.json"),
    "a width that is a word": config(hidden_size="wide"),
    "a width that is a list": config(hidden_size=[32]),
    "a width that is an object": config(hidden_size={"x": 1}),
    "no type of model": config(model_type=None),
    "a type of model that is a list": config(model_type=["vit"]),
    "an unknown type of model": config(model_type="nonsense"),
    "a model of text": config(model_type="bert", architectures=["BertForImageClassification"]),
    "an activation that is unknown": config(hidden_act="os.system"),
    "a type of numbers that is unknown": config(dtype="nonsense", torch_dtype="nonsense"),
    "architectures that are a word": config(architectures="ViTForImageClassification"),
    "labels that are a list": config(id2label=["a", "b"]),
    "labels that are a word": config(id2label="cat"),
    "labels whose numbers are words": config(id2label={"cat": "cat", "dog": "dog"}),
    "labels below nothing": config(id2label={"-1": "cat", "0": "dog"}),
    # Configs that lead elsewhere.
    "code of its own": config(auto_map={"AutoModel": "modeling.Net"}),
    "an attention from elsewhere": config(_attn_implementation="flash_attention_2"),
    "an attention from the Hub": config(attn_implementation="kernels-community/flash-attn"),
    "an attention for each part": config(attn_implementation={"vision": "someone/kernel"}),
    "quantisation": config(quantization_config={"quant_method": "bitsandbytes"}),
    "quantisation of an unknown kind": config(quantization_config={"quant_method": "nonsense"}),
    "quantisation that is a list": config(quantization_config=[1]),
    "weights at another place": config(transformers_weights="../other.safetensors"),
    "a config at another place": config(configuration_files=["../../config.json"]),
    "a change of transformers' code": config(fusion_config={"a": "b"}),
    # Indexes and pickles.
    "an index of nothing": index({}),
    "an index that is a list": index(["part.safetensors"]),
    "an index of lists": index({"x": ["part.safetensors"]}),
    "an index that leads out": index({"x": "../part.safetensors"}),
    "an index to an absolute path": index({"x": "/etc/part.safetensors"}),
    "an index to a file that is absent": index({"x": "other.safetensors"}),
    "an index with a pickle": pickle_in_index,
    "a pickle that runs code": pickled({"x": Harm()}),
    "a pickle in place of safetensors": pickle_as_safetensors,
    "a pickle of a list": pickled([torch.zeros(3)]),
    "a pickle of nested weights": pickled({"model": {"x": torch.zeros(3)}}),
    "a pickle of a tensor larger than its file": pickled(
        {"x": torch.zeros(1).expand(10**6, 10**6)}
    ),
    "a pickle that is compressed": compressed_pickle,
    "a pickle of older kind": lambda net: (
        (net / WEIGHTS).unlink(),
        (net / "pytorch_model.bin").write_bytes(pickle.dumps({"x": Harm()})),
    ),
    "a pickle that is cut": lambda net: (
        pickled({"x": torch.zeros(100)})(net),
        (net / "pytorch_model.bin").write_bytes((net / "pytorch_model.bin").read_bytes()[:500]),
    ),
    # Processors.
    "no processor": without("preprocessor_config.json"),
    "a processor that is no JSON": text("preprocessor_config.json", "nonsense"),
    "a processor that is a list": text("preprocessor_config.json", "[]"),
    "a processor nested 100,000 deep": text("preprocessor_config.json", "[" * 100_000),
    "a processor with code": processor(auto_map={"AutoImageProcessor": "p.P"}),
    "an unknown processor": processor(image_processor_type="Nonsense"),
    "a processor's type that is a list": processor(image_processor_type=["ViTImageProcessor"]),
    "pictures of no side": processor(size={"height": 0, "width": 0}),
    "pictures of a side below nothing": processor(size={"height": -32, "width": 32}),
    "pictures of 60,000 px": processor(size={"height": 60_000, "width": 60_000}),
    "pictures of a side in words": processor(size={"height": "32", "width": "32"}),
    "pictures of a size in words": processor(size="large"),
    "an average of five channels": processor(image_mean=[0.5] * 5),
    "an average in words": processor(image_mean="grey"),
    "a deviation of nothing": processor(image_std=[0, 0, 0]),
    "a crop of 60,000 px": processor(crop_size=60_000, do_center_crop=True),
    "a range of pixels in words": config(deep_pixels="all"),
    "a range of pixels that is not finite": config(deep_pixels=[0, NAN]),
}
# What `train` need not refuse: its own recipe says how deep pictures are converted.
TRAINABLE = {"a range of pixels in words", "a range of pixels that is not finite"}


@pytest.mark.parametrize("kind", DAMAGE)
def test_ends_in_one_line(kind, net, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    DAMAGE[kind](net)
    command = COMMANDS[list(DAMAGE).index(kind) % 3]  # they load a model by the same function
    start = time.perf_counter()
    line = one_line(capsys, run_command(command, net))
    assert str(net) in line
    if kind not in TRAINABLE:
        message = train_message(net)
        assert str(net) in message and "\n" not in message
    assert time.perf_counter() - start < 10
    assert not list(tmp_path.rglob("harmed"))


TIMM = {
    "a checkpoint elsewhere": {"model_args": {"checkpoint_path": "weights.bin"}},
    "weights from the Hub": {"model_args": {"pretrained": True}},
    "another config": {"model_args": {"pretrained_cfg": {"file": "weights.bin"}}},
    "a folder of downloads": {"model_args": {"cache_dir": "harmed"}},
    "arguments that are a list": {"model_args": [1]},
    "an argument that is an object": {"model_args": {"depth": {"a": 1}}},
    "an architecture on the Hub": {"architecture": "hf-hub:someone/net"},
    "an architecture in a folder": {"architecture": "local-dir:net"},
    "an unknown architecture": {"architecture": "nonsense"},
    "an architecture that is a list": {"architecture": ["test_vit"]},
    "a billion layers": {"model_args": {"img_size": 32, "depth": 10**9}},
    "a million layers": {"model_args": {"img_size": 32, "depth": 10**6}},
    "a width of a million": {"model_args": {"img_size": 32, "depth": 3, "embed_dim": 10**6}},
    "a width below nothing": {"model_args": {"img_size": 32, "depth": 3, "embed_dim": -64}},
    "an activation that is unknown": {"model_args": {"img_size": 32, "act_layer": "os.system"}},
    "settings that are a list": {"pretrained_cfg": [1]},
    "pictures of 60,000 px": {
        "pretrained_cfg": {**tiny_models.TIMM, "input_size": [3, 60_000, 60_000]}
    },
    "pictures of no side": {"pretrained_cfg": {**tiny_models.TIMM, "input_size": [3, 0, 0]}},
    "a size in words": {"pretrained_cfg": {**tiny_models.TIMM, "input_size": "large"}},
    "a deviation of nothing": {"pretrained_cfg": {**tiny_models.TIMM, "std": [0, 0, 0]}},
    "an average in words": {"pretrained_cfg": {**tiny_models.TIMM, "mean": "grey"}},
    "an unknown filter": {"pretrained_cfg": {**tiny_models.TIMM, "interpolation": "nonsense"}},
    "labels that are a word": {"label_names": "cat"},
}


@pytest.mark.parametrize("kind", TIMM)
def test_timm_config_ends_in_one_line(kind, timm_net, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    edit_json(timm_net / "config.json", **TIMM[kind])
    start = time.perf_counter()
    line = one_line(capsys, run_command("predict", timm_net))
    assert str(timm_net) in line
    if "pretrained_cfg" not in TIMM[kind] and "label_names" not in TIMM[kind]:
        with pytest.raises(UserError):
            skeleton(ModelKeys(model_name_or_path=str(timm_net)))
        entries = json.loads((timm_net / "config.json").read_text()) | {
            "model_type": "timm_wrapper"
        }
        for key in ("pretrained_cfg", "num_classes", "label_names"):
            entries.pop(key, None)
        keys = ModelKeys(from_scratch=True, model_config=entries, image_size=32)
        with pytest.raises(UserError, match="model_config"):
            load_backbone(keys, LABELS)
    assert time.perf_counter() - start < 10
    assert not (tmp_path / "harmed").exists()


def test_timm_arguments_that_describe_an_architecture_are_taken(timm_net, capsys):
    edit_json(timm_net / "config.json", model_args={"img_size": 32, "depth": 3, "drop_rate": 0.1})
    assert run_command("predict", timm_net) == 0
    assert json.loads(capsys.readouterr().out)["labels"]


# ---- what each command must not do ----


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    "kind", ["a layer is missing", "weights that are not finite", "an index that leads out"]
)
def test_no_command_scores_weights_that_are_not_there(kind, command, net, capsys):
    DAMAGE[kind](net)
    one_line(capsys, run_command(command, net))
    assert not (net.parent / "verify").exists()


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (weights(lambda w: [w.pop(k) for k in [*w] if "classifier" in k]), "classifier"),
        (config(architectures=["ViTModel"]), "ViTModel"),
        (config(id2label={"0": "cat", "2": "dog"}), "none for class 1"),
        (config(id2label={}, num_labels=0), "classes"),
        (weights(lambda w: w["classifier.weight"].fill_(3e38)), "not finite"),
    ],
)
def test_a_model_without_a_sound_classifier_scores_nothing(change, reason, command, net, capsys):
    change(net)
    assert reason in one_line(capsys, run_command(command, net))


@pytest.mark.parametrize("command", COMMANDS)
def test_tensors_without_a_place_are_named_and_pass(command, net, capsys, caplog):
    edit_weights(net, lambda w: w.update({"decoder.\x1b[2J": torch.ones(3)}))
    caplog.set_level("INFO")
    assert run_command(command, net) in (0, 1)
    assert "tensors without a place in the model: 1 (decoder.\\x1b[2J)" in caplog.text
    assert "NaN" not in capsys.readouterr().out


def test_nothing_beside_the_checked_files_is_read(net, capsys):
    """An adapter in the folder names another model, and its weights are a pickle with code."""
    adapter = {"base_model_name_or_path": "someone/else", "peft_type": "LORA", "r": 2}
    (net / "adapter_config.json").write_text(json.dumps(adapter | {"target_modules": ["q_proj"]}))
    torch.save({"x": Harm()}, net / "adapter_model.bin")
    (net / "custom_generate").mkdir()
    (net / "custom_generate" / "generate.py").write_text("raise SystemExit('code ran')")
    assert run_command("predict", net) == 0
    assert json.loads(capsys.readouterr().out)["labels"]
    assert train_message(net) == ""


def test_labels_are_words_of_others(net, capsys):
    labels = ["\x1b[2J", "a\nb", "\u202egnp", "\ud800", "|", "<img>", "", " ", "x" * 500, "日本"]
    edit_json(net / "config.json", id2label=dict(enumerate(labels)), label2id={})
    picture = net.parent / "picture.ppm"
    picture.write_bytes(b"P6 8 8 255\n" + bytes(192))
    assert main.run(["predict", str(net), str(picture), "--top", "10"]) == 0
    output = capsys.readouterr().out
    assert output.count("\n") == 1 and "\\x1b[2J" in output and "日本" in output
    assert not [c for c in output[:-1] if unicodedata.category(c) in ("Cc", "Cf", "Cs")]


# ---- cards ----


def alias_bomb(levels):
    lines = ["x0: &x0 [a, a, a, a, a, a, a, a, a, a]"]
    for level in range(1, levels):
        lines.append(f"x{level}: &x{level} [{', '.join([f'*x{level - 1}'] * 10)}]")
    return "\n".join(lines)


CARDS = {
    "300,000 lines": "---\n" + "\n" * 300_000,
    "300,000 lines before": "\n" * 300_000 + "---\nlicense: mit\n---\n",
    "300,000 spaces": "---" + " " * 300_000,
    "300,000 marks": "---\n" * 300_000,
    "aliases that multiply": f"---\n{alias_bomb(12)}\nmodel-index: *x11\n---\n",
    "an alias of itself": "---\nmodel-index: &a [*a]\n---\n",
    "lists in lists": f"---\nmodel-index: {'[' * 100_000}\n---\n",
    "a card of 20 MB": "---\n" + "a: b\n" * 4_000_000 + "---\n",
    "a number of 100,000 digits": "---\nmodel-index:\n- results:\n  - dataset: {type: cifar10}\n"
    f"    metrics: [{{type: accuracy, value: {'9' * 100_000}}}]\n---\n",
    "a number beyond floats": "---\nmodel-index:\n- results:\n  - dataset: {type: cifar10}\n"
    "    metrics: [{type: accuracy, value: 1e99999}]\n---\n",
    "a name of 100,000 spaces": "---\nmodel-index:\n- results:\n  - dataset: {type: 'cifar"
    f"{' ' * 100_000}10'}}\n    metrics: [{{type: accuracy, value: 0.5}}]\n---\n",
}


@pytest.mark.parametrize("kind", CARDS)
def test_a_card_claims_nothing_and_ends_nothing(kind, net, capsys):
    (net / "README.md").write_text(CARDS[kind])
    start = time.perf_counter()
    assert run_command("verify", net) == 0
    assert time.perf_counter() - start < 10
    assert "verdict: no claim" in capsys.readouterr().out
    assert train_message(net) == ""


def test_a_card_that_is_a_pipe_is_no_card(net, capsys):
    os.mkfifo(net / "README.md")
    assert run_command("verify", net) == 0
    assert "verdict: no claim" in capsys.readouterr().out
