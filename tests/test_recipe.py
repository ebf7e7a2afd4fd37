"""Recipes: what ships is valid, flags win, and every mistake is named with its key, file and remedy."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import pytest

from modeling.infer import INPUTS
from training.options import RECIPES, parse_recipe
from training.recipe import RecipeError
from training.run_folder import RunFolder


def test_every_recipe_that_ships_is_valid() -> None:
    names = sorted(path.stem for path in RECIPES.glob("*.yaml"))
    embedding = ["goemotions", "goemotions_mlp", "goemotions_pooled_r2", "mistral_24b", "quickstart"]
    assert names == sorted([*embedding, "goemotions_tokens", "mistral_24b_tokens"])
    for name in names:
        _, options = parse_recipe(["--recipe", name])
        assert options.output_dir == f"runs/{name}"
    reference, _ = parse_recipe(["--recipe", "mistral_24b"])
    assert (reference.batch_size, reference.gradient_accumulation_steps, reference.epochs) == (32, 0, 15)
    assert reference.quantization == "nf4" and reference.learning_rate_lora == 1e-4 and reference.alpha == "r2"


def test_flags_win_and_the_saved_recipe_gives_the_same(tmp_path: Path) -> None:
    recipe, _ = parse_recipe(["--recipe", "goemotions", "--epochs", "3", "--labels", "joy", "anger"])
    assert recipe.epochs == 3 and recipe.labels == ["joy", "anger"] and recipe.token_norm == 960
    RunFolder(tmp_path).write_recipe(dataclasses.asdict(recipe))
    again, options = parse_recipe(["--recipe", str(tmp_path / "recipe.yaml")])
    assert again == recipe and options.output_dir == "runs/recipe"


BAD = {
    "epoch: 3": r"bad\.yaml: unknown key 'epoch'; did you mean 'epochs'\?",
    "epochs: many": r"bad\.yaml: argument --epochs: invalid int value: 'many'",
    "epochs: 0": r"bad\.yaml: epochs: 0 is out of range; accepted: at least 1",
    "head_dropout: 1.5": r"head_dropout: 1.5 is out of range; accepted: 0 to 1",
    "quantization: fp4": r"argument --quantization: invalid choice: 'fp4' .*nf4",
    "epochs: [1]": r"bad\.yaml: epochs: \[1\] is of another type; accepted: a whole number",
    "epochs: null": r"bad\.yaml: epochs: None is of another type; accepted: a whole number",
    "gamma: {a: 2}": r"bad\.yaml: gamma: .* accepted: a number",
    "bf16: 1": r"bad\.yaml: bf16: 1 is of another type; accepted: true or false",
    "dataset_revision: 0123": r"bad\.yaml: dataset_revision: 83 is of another type; accepted: text .*, or null",
    "labels: [yes, no]": r"bad\.yaml: labels: \[True, False\] is of another type; accepted: a list of texts",
    "text_column: [text]": r"bad\.yaml: text_column: \['text'\] is of another type; accepted: text",
    "- a": "a mapping key: value is expected",
    "a: [": "not YAML",
}


@pytest.mark.parametrize("content", BAD)
def test_mistakes_are_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    with pytest.raises(RecipeError, match=BAD[content]):
        parse_recipe(["--recipe", str(path)])


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
    parse_recipe(flags.split())
    with pytest.raises(RecipeError, match=r"torch_compile: .* Remedy: torch_compile false, or head backbone"):
        parse_recipe([*flags.split(), "--torch_compile", "true"])


def test_every_way_to_load_is_supported_or_names_the_remedy() -> None:
    ways = itertools.product(
        *(("transformers", "unsloth"), ("none", "nf4", "8bit"), ("backbone", "mlp"), INPUTS),
        *(("none", "bos"), ("true", "false")),
    )
    supported, refused = set(), 0
    for loader, quantization, head, reads, prefix, one_token in ways:
        flags = (
            f"--loader {loader} --quantization {quantization} --head {head} --input {reads} --prefix {prefix} "
            f"--one_token {one_token} --balance none"
        )
        try:
            parse_recipe(flags.split())
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
        match="the recipes are goemotions, goemotions_mlp, goemotions_pooled_r2, goemotions_tokens, mistral_24b, mistral",
    ):
        parse_recipe(["--recipe", "nothing"])
    with pytest.raises(RecipeError, match=r"epoch.*--help"):
        parse_recipe(["--epoch", "3"])


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse_recipe(["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert "--learning_rate_projection" in shown and "Recipes that ship: goemotions" in shown
