"""Recipes that mean harm or are broken: each ends in one line and exit code 2, and soon."""

import random
import time
import unicodedata
from pathlib import Path

import pytest
from helpers.runs import write_recipe

from hf_cifar.cli import main
from hf_cifar.errors import UserError
from hf_cifar.recipe.fields import PATHS
from hf_cifar.recipe.load import find_recipe, load_recipe
from hf_cifar.recipe.recipe import recipe_names


def multiplying_aliases(levels: int, first: str) -> str:
    """Return YAML in which every line holds the line before it ten times."""
    lines = [f"a0: &a0 [{first}]"]
    for level in range(1, levels + 1):
        lines.append(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]")
    return "\n".join(lines)


TEXTS = {
    "aliases of aliases": multiplying_aliases(12, "x"),
    "aliases of a long text": multiplying_aliases(3, "x" * 10_000),
    "aliases in a merge": multiplying_aliases(8, "{seed: 1}") + "\n<<: *a8",
    "an alias of itself": "model_config: &a {model_type: *a}",
    "lists in lists": "seed: " + "[" * 20_000,
    "mappings in mappings": "seed: " + "{a: " * 20_000,
    "blocks in blocks": "\n".join(f"{' ' * depth}a:" for depth in range(1_000)),
    "a number of 5,000 digits": f"seed: {'9' * 5_000}",
    "a number of 400 digits": f"learning_rate: {'9' * 400}",
    "a value of 199,000 characters": f"seed: {'x' * 199_000}",
    "a key of 199,000 characters": f"? {'x' * 199_000}\n: 1",
    "a megabyte": "#" * 1_000_000,
    "a list of 60,000": f"seed: [{', '.join(['1'] * 60_000)}]",
    "a date that is none": "seed: 2026-99-99",
    "a tag of Python": "seed: !!python/object/apply:os.system ['touch harmed']",
    "a tag that does not fit": "seed: !!int x",
    "a truth value that is none": "seed: !!bool x",
    "an empty number": 'seed: !!int ""',
    "a time that is none": "seed: !!timestamp x",
    "bytes": "dataset_name: !!binary aGVsbG8=",
    "a set": "dataset_name: !!set {a, b}",
    "escape sequences in a value": r'seed: "\e[2J\e]0;title\a"',
    "escape sequences in a key": r'"\e[2J": 1',
    "marks of direction": 'dataset_name: "sample"\n"\u202eesrever": 1',
    "two documents": "seed: 1\n---\nseed: 2",
    "nothing": "",
    "comments only": "# seed: 1\n",
    "not finite": "learning_rate: .inf",
    "settings of the accelerator in a file": "accelerator_config: config.json",
    "what metrics see": "include_for_metrics: [inputs]",
    "an object that YAML can't hold": "parallelism_config: {dp_size: 2}",
    "a kernel that is not installed": "use_liger_kernel: true",
    "no home": "output_dir: ~nobody-has-this-name/run",
    "a token": f"hub_token: hf_{'a' * 34}",
}


@pytest.mark.parametrize("kind", TEXTS)
def test_ends_in_one_line(kind, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(TEXTS[kind], encoding="utf-8")
    start = time.perf_counter()
    assert main.run(["recipes", "check", "recipe.yaml"]) == 2
    assert time.perf_counter() - start < 10
    line = capsys.readouterr().err
    assert line.startswith("hf-cifar: recipe.yaml: ") and line.count("\n") == 1, line
    assert len(line) < 500
    assert not [c for c in line[:-1] if unicodedata.category(c) in ("Cc", "Cf")]
    assert "hf_aaa" not in line
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


@pytest.mark.parametrize(
    "keys",
    [
        {"accelerator_config": {"no_such_setting": 1}},
        {"fsdp": "no_such_strategy"},
        {"deepspeed": "no-such-file.json"},
        {"lr_scheduler_kwargs": {"no_such_setting": 1}},
        {"lr_scheduler_kwargs": "no-such-file.json"},
        {"lr_scheduler_type": "cosine_with_min_lr"},
        {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"lr_end": 2.0}},
        {"optim_args": "no equals sign"},
        {"optim": "sgd", "optim_args": "momentum=-1"},
        {"optim": "adamw_bnb_8bit"},
        {"adam_epsilon": -1},
        {"torch_compile_backend": "no_such_backend"},
        {"torch_compile_mode": "no_such_mode"},
        {"debug": "no_such_option"},
        {"report_to": "no_such_service"},
        {"ddp_backend": "no_such_backend"},
        {"log_level": "no_such_level"},
        {"neftune_noise_alpha": 0.1},
        {"prediction_loss_only": True},
        {"eval_accumulation_steps": 0},
        {"dataloader_persistent_workers": True},
        {"dataloader_multiprocessing_context": "no_such_context"},
        {"data_seed": 2**40},
    ],
    ids=str,
)
def test_settings_of_the_trainer_end_in_one_line(keys, tmp_path, tiny, capsys):
    recipe = write_recipe(tmp_path / "recipe.yaml", tiny("resnet"), **keys)
    run = tmp_path / "run"
    assert main.run(["train", str(recipe), "--output_dir", str(run)]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if "hf-cifar: " in line]
    assert len(errors) == 1 and len(errors[0]) < 500
    assert not (run / "metrics.json").exists()


@pytest.mark.parametrize("key", sorted(PATHS))
def test_a_tilde_is_the_home_folder_wherever_a_path_is_given(key, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    recipe = tmp_path / "recipe.yaml"
    needed = {"teacher": "distillation", "unlabelled_dataset": "semi_supervised"}
    objective = needed.get(key, "classification")
    recipe.write_text(f"objective: {objective}\n{key}: ~/there\n")
    from_file = load_recipe(str(recipe)).to_dict()[key]
    recipe.write_text(f"objective: {objective}\n")
    from_override = load_recipe("~/recipe.yaml", {key: "~/there"}).to_dict()[key]
    assert from_file == from_override == str(tmp_path / "there")
    assert str(tmp_path) not in load_recipe(str(recipe), {key: "~/there"}).public().to_yaml()


def test_a_run_in_the_home_folder_is_whole(tmp_path, tiny, monkeypatch, capsys):
    work, home = tmp_path / "work", tmp_path / "home"
    work.mkdir()
    home.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("HOME", str(home))
    recipe = write_recipe(home / "recipe.yaml", tiny("resnet"), max_steps=2, save_strategy="no")
    assert main.run(["train", str(recipe), "--output_dir=~/run"]) == 0
    assert (home / "run" / "metrics.json").is_file() and list(work.iterdir()) == []


def test_damaged_recipes_are_read_or_refused(tmp_path):
    """Bytes are changed, removed, doubled and moved in packaged recipes, by a seeded generator."""
    generator = random.Random(0)
    path = tmp_path / "recipe.yaml"
    signs = [
        b"\x00",
        b"\xff",
        b"\n",
        b"\t",
        b" ",
        b":",
        b"-",
        b"[",
        b"{",
        b"&a ",
        b"*a",
        b"!!",
        b'"',
    ]
    refused = 0
    for _ in range(300):
        text = bytearray(find_recipe(generator.choice(recipe_names())).read_bytes())
        for _ in range(generator.randint(1, 8)):
            at = generator.randrange(len(text))
            end = at + generator.choice([0, 0, 1, 1, generator.randint(1, 40)])
            text[at:end] = generator.choice([b"", *signs, text[at:end] * generator.randint(1, 50)])
        path.write_bytes(text)
        try:
            load_recipe(str(path))
        except UserError as error:
            refused += 1
            assert str(error).startswith(f"{path}: ") and len(str(error)) < 500 + len(str(path))
    assert 50 < refused < 300
