"""Recipes: those that ship are valid, flags win, and every mistake is named with its key, file and remedy."""

from __future__ import annotations

import dataclasses
import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest

from modeling.infer import EmotionConfig
from modeling.infer.settings import ModelSettings
from modeling.recipe import (
    FIELDS,
    GROUPS,
    Recipe,
    choices,
    hide_local_paths,
    marked,
    model_settings,
    not_on_card,
)
from tests.conftest import ROOT
from training.commands.verbs import VERBS
from training.options import RECIPES, parse
from training.recipe import RecipeError
from training.run_folder import RunFolder


def test_every_recipe_that_ships_is_valid() -> None:
    names = sorted(path.stem for path in RECIPES.glob("*.yaml"))
    embedding = ["goemotions", "goemotions_mlp", "goemotions_pooled_r2", "mistral_24b", "quickstart"]
    assert names == sorted(["adapt", *embedding, "goemotions_small", "goemotions_tokens", "mistral_24b_tokens"])
    for name in names:
        options = parse(["--recipe", name]).options
        assert options.output_dir == f"runs/{name}"
    reference = parse(["--recipe", "mistral_24b"]).recipe
    assert (reference.batch_size, reference.gradient_accumulation_steps, reference.epochs) == (32, 0, 15)
    assert reference.quantization == "nf4" and reference.learning_rate_lora == 1e-4 and reference.alpha == "r2"


def test_flags_win_and_the_saved_recipe_gives_the_same(tmp_path: Path) -> None:
    recipe = parse(["--recipe", "goemotions", "--epochs", "3", "--labels", "joy", "anger"]).recipe
    assert recipe.epochs == 3 and recipe.labels == ["joy", "anger"] and recipe.token_norm == 960
    RunFolder(tmp_path).write_recipe(recipe)
    command = parse(["--recipe", str(tmp_path / "recipe.yaml")])
    again, options = command.recipe, command.options
    assert again == recipe and options.output_dir == "runs/recipe"


BAD = {
    "epoch: 3": r"bad\.yaml: unknown key 'epoch'. Did you mean 'epochs'\?",
    "epochs: many": r"bad\.yaml: argument --epochs: invalid int value: 'many'",
    "epochs: 0": r"bad\.yaml: epochs: 0 is out of range. Remedy: use at least 1",
    "head_dropout: 1.5": r"head_dropout: 1.5 is out of range. Remedy: use 0 to 1",
    "quantization: fp4": r"argument --quantization: invalid choice: 'fp4' .*nf4",
    "epochs: [1]": r"bad\.yaml: epochs: \[1\] has the wrong type. Remedy: write a whole number",
    "epochs: null": r"bad\.yaml: epochs: None has the wrong type. Remedy: write a whole number",
    "gamma: {a: 2}": r"bad\.yaml: gamma: .* Remedy: write a number",
    "bf16: 1": r"bad\.yaml: bf16: 1 has the wrong type. Remedy: write true or false",
    "dataset_revision: 0123": r"bad\.yaml: dataset_revision: 83 has the wrong type. Remedy: write text .*, or null",
    "labels: [yes, no]": r"bad\.yaml: labels: \[True, False\] has the wrong type. Remedy: write a list of texts",
    "text_column: [text]": r"bad\.yaml: text_column: \['text'\] has the wrong type. Remedy: write text",
    "- a": r"expected a mapping key: value, got \['a'\]\. Remedy: write",
    "a: [": r"not YAML: (?s:.*)\nRemedy: correct",
}


@pytest.mark.parametrize("content", BAD)
def test_mistakes_are_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    with pytest.raises(RecipeError, match=BAD[content]):
        parse(["--recipe", str(path)])


@pytest.mark.parametrize(
    "flags",
    [
        "--quantization nf4",
        "--quantization 8bit",
        "--head mlp",
        "--loader unsloth --quantization nf4 --one_token false",
    ],
)
def test_what_cannot_be_compiled_is_refused(flags: str) -> None:
    parse(flags.split())
    with pytest.raises(RecipeError, match=r"torch_compile: .* Remedy: use torch_compile false, or head backbone"):
        parse([*flags.split(), "--torch_compile", "true"])


def test_every_way_to_load_is_supported_or_names_the_remedy() -> None:
    ways = itertools.product(
        *(("transformers", "unsloth"), ("none", "nf4", "8bit"), ("backbone", "mlp"), choices("input")),
        *(("none", "bos"), ("true", "false")),
    )
    supported, refused = set(), 0
    for loader, quantization, head, reads, prefix, one_token in ways:
        flags = (
            f"--loader {loader} --quantization {quantization} --head {head} --input {reads} --prefix {prefix} "
            f"--one_token {one_token} --balance none"
        )
        try:
            parse(flags.split())
            one = reads == "embedding" and prefix == "none" and one_token == "true"
            supported.add((loader, quantization, head, reads, one))
        except RecipeError as error:
            refused += 1
            assert "Remedy: " in str(error), flags
    quantizations = ("none", "nf4", "8bit")
    assert supported == {
        *(("transformers", q, "backbone", "embedding", one) for q in quantizations for one in (True, False)),
        *(("transformers", q, "backbone", reads, False) for q in quantizations for reads in ("tokens", "hybrid")),
        *(("transformers", "none", "mlp", "embedding", one) for one in (True, False)),
        ("unsloth", "nf4", "backbone", "embedding", False),
    }
    assert refused == 144 - (12 + 24 + 4 + 3)


def test_unknown_recipe_and_flag() -> None:
    with pytest.raises(
        RecipeError,
        match="Remedy: use one of adapt, goemotions, goemotions_mlp, goemotions_pooled_r2, goemotions_small, goemotions_tokens, ",
    ):
        parse(["--recipe", "nothing"])
    with pytest.raises(RecipeError, match=r"epoch.*--help"):
        parse(["--epoch", "3"])


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert "--learning_rate_projection" in shown and "Built-in recipes: adapt, goemotions" in shown


def test_help_is_grouped_and_comes_at_once() -> None:
    code = (
        "import sys, training.run as run\n"
        "try: run.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'peft', 'sklearn', 'datasets', 'accelerate', 'pandas'} & set(sys.modules)\n"
        "print('HEAVY', sorted(heavy))"
    )
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "HEAVY []" in shown
    places = [shown.index(f"\n{group}:\n") for group in GROUPS]
    assert places == sorted(places) and shown.index("verbs") < places[0]
    assert all(shown.count(f"  --{name} ") == 1 for name in FIELDS)


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse([name, "--help"])
    shown = capsys.readouterr().out
    assert VERBS[name].help[1:] in shown or name == "train"
    assert ("--learning_rate_lora" in shown) == VERBS[name].takes_recipe


OLD = {
    "--plan --recipe goemotions": "plan --recipe goemotions",
    "--recipe goemotions --null_test": "null-test --recipe goemotions",
    "--plan true --recipe goemotions": "plan --recipe goemotions",
    "--evaluate runs/a --data b.csv": "evaluate runs/a --data b.csv",
    "--evaluate=runs/a --data=b.csv": "evaluate runs/a --data b.csv",
    "--recipe goemotions_mlp --compare gamma=1,2 loss=bce --seeds 0 1": "compare gamma=1,2 loss=bce --recipe goemotions_mlp --seeds 0 1",
    "--compare_runs runs/a runs/b --output_dir c": "compare-runs runs/a runs/b --output_dir c",
}


@pytest.mark.parametrize("old", OLD)
def test_a_verb_may_be_written_as_the_flag_it_was(old: str) -> None:
    assert parse(old.split()) == parse(OLD[old].split())


def test_a_mistyped_verb_is_named() -> None:
    with pytest.raises(
        RecipeError, match=r"'compair' is not a verb. Did you mean 'compare'\? Remedy: use one of train"
    ):
        parse(["compair", "gamma=1,2"])


def test_every_setting_has_a_group_a_help_and_choices_that_hold() -> None:
    assert len(FIELDS) == len(dataclasses.fields(Recipe)) > 55
    for name, setting in FIELDS.items():
        assert setting.metadata["help"] and setting.metadata["group"] in GROUPS, name
    assert {"dataset", "labels", "data_dir"} <= set(marked("decides_rows"))
    assert set(marked("local_path")) == {"data_dir", "leave_out", "start_from", "teachers"}
    assert {"balance", "seed"}.isdisjoint(marked("decides_rows")) and "gamma" not in not_on_card()
    hidden = hide_local_paths({"data_dir": "/home/me", "teachers": ["/home/me"], "seed": 1, "unknown": 2})
    assert hidden == {"data_dir": None, "teachers": [], "seed": 1, "unknown": 2}


def test_settings_of_the_model_are_those_of_the_configuration() -> None:
    recipe = Recipe(input="tokens", pooling="mean", window_length=9, window_overlap=1, head_dropout=0.5)
    config = EmotionConfig(**model_settings(recipe))
    assert (config.input, config.pooling, config.window_length, config.head_dropout) == ("tokens", "mean", 9, 0.5)
    same = {item.name: item.default for item in dataclasses.fields(EmotionConfig)}
    assert all(same[item.name] == item.default for item in dataclasses.fields(ModelSettings))


MISPLACED = {
    "plan mistral_24b": "'mistral_24b' is a recipe. Remedy: write --recipe mistral_24b",
    "--recipe quickstart compare gamma=1,2": "'compare' is a verb. Remedy: give it first",
    "evaluate runs/a --data b.csv --epochs 3": "--epochs is a setting of a recipe, which this verb does not take",
    "plan nonsense": "'nonsense' is not expected here. Remedy: write settings as --name value",
    "--seeds 0 1": "--seeds belongs to the verb compare. Remedy: give that verb first",
}


@pytest.mark.parametrize("words", MISPLACED)
def test_a_misplaced_word_is_named(words: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(MISPLACED[words])):
        parse(words.split())
