"""What the model card tells the Hub, and what it cites, compares with and leaves out."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results

from hub_release.card.render import render_card
from modeling.infer.bundled import _GGUF_FILE
from tests.cards import put, read, tables_of
from tests.conftest import ROOT
from training.data.corpus import GOEMOTIONS_HUB, Corpus
from training.data.taxonomy import GOEMOTIONS_28
from training.fit.prepare import Prepared
from training.fit.results import comparable


@pytest.fixture
def published(changed: Callable[..., str]) -> Callable[..., str]:
    """A function that renders the card of a GoEmotions run on the bundled backbone, with more configuration changes."""

    def render(test_rows: int = 5_427, **config: Any) -> str:
        parts = {"dataset": GOEMOTIONS_HUB, "dataset_revision": "a" * 40, "model_name": "smollm2-135m"}
        systems = [
            {"system": "Another", "protocol": "official test split, 0.5", "macro_f1": 0.4715, "micro_f1": None},
            {"system": "Third", "protocol": "own split", "macro_f1": 0.8, "micro_f1": 0.75},
        ]
        local = {"backbone": False, "encoder": False, "dataset": False}
        return changed(
            config=put(**{**parts, **config}),
            context=put(published=systems, local=local),
            audit=lambda audit: audit["splits"]["test"].update(rows=test_rows),
        )

    return render


def test_metadata_round_trip(published: Callable[..., str], changed: Callable[..., str]) -> None:
    content = published()
    card = ModelCard(content)
    data = card.data.to_dict()
    assert data == yaml.safe_load(content.split("---\n")[1])
    assert (data["language"], data["license"], data["datasets"]) == ("en", "apache-2.0", [GOEMOTIONS_HUB])
    assert (data["base_model"], data["base_model_relation"]) == ("HuggingFaceTB/SmolLM2-135M-Instruct", "adapter")
    assert (data["pipeline_tag"], data["library_name"]) == ("text-classification", "transformers")
    assert "co2_eq_emissions" not in data
    name, results = model_index_to_eval_results(data["model-index"])
    assert name == "package" and results == card.data.eval_results
    assert eval_results_to_model_index(name, results) == data["model-index"]
    for result in results:
        assert result.verified is False and result.dataset_split == "test" and result.dataset_config == "simplified"
        assert (result.dataset_type, result.dataset_name) == (GOEMOTIONS_HUB, "GoEmotions")
        assert result.dataset_revision == "a" * 40
    shown = {(r.metric_name, r.metric_args["threshold_policy"]): (r.metric_type, r.metric_value) for r in results}
    assert len(shown) == len(results) == 6
    measured = {"emissions": {"grams": 1.25, "source": "codecarbon 3", "location": "ITA"}}
    with_emissions = changed(timing=put(**measured))
    emissions = ModelCard(with_emissions).data.to_dict()["co2_eq_emissions"]
    assert emissions["emissions"] == 1.25 and emissions["training_type"] == "fine-tuning"
    assert "1.25 g of CO2" in with_emissions


def test_results_are_the_recorded_scores(carded: Path) -> None:
    metrics = read(carded, "metrics.json")["test"]
    names = {"macro F1": "macro_f1", "micro F1": "micro_f1", "exact accuracy": "exact_accuracy"}
    for result in ModelCard((carded / "README.md").read_text(encoding="utf-8")).data.eval_results:
        recorded = metrics[result.metric_args["threshold_policy"]][names[result.metric_name]]
        assert (result.dataset_type, result.dataset_name) == ("unpublished", "not published")
        assert f"{result.metric_value}" == f"{round(recorded, 3)}", "in the metadata as in the text"


def test_contaminated_scores_are_not_results(changed: Callable[..., str]) -> None:
    card = changed(metrics=put(protocol="pooled-r2"))
    assert card.count("**These scores are contaminated.**") == 1
    assert "model-index" not in ModelCard(card).data.to_dict()


def test_what_is_not_published_is_not_named(carded: Path, changed: Callable[..., str]) -> None:
    def own(context: dict[str, Any]) -> None:
        context["local"]["backbone"] = True

    assert ModelCard.load(carded / "README.md").data.base_model == "tiny/mistral"
    card = changed(config=put(model_name="/srv/weights/own-mistral"), context=own)
    data = ModelCard(card).data.to_dict()
    assert not {"base_model", "base_model_relation", "datasets", "language", "license", "emotion"} & set(data)
    assert "The rows are the publisher's own and are not published." in card
    assert "The license of the trained weights is not stated here" in card
    for hidden in ("own-mistral", "weights/", str(ROOT), str(carded.parent), str(Path.home())):
        assert hidden not in card
    assert not re.search(r"(?<![\w.:/<])/(home|root|tmp|usr|Users|var|mnt)\b", card)
    assert "Published systems" not in card and "GoEmotions" not in card.replace("goemotions-mistral", "")


CITATIONS = {
    "demszky2020": {},
    "allal2025": {},
    "yang2020": {},
    "cer2018": {"encoder": "use-v4"},
    "reimers2019": {"encoder": "sentence-transformers/BAAI/bge-small-en-v1.5"},
    "mistral2025": {"model_name": "unsloth/Mistral-Small-3.1-24B-Instruct-2503"},
}


@pytest.mark.parametrize(
    "config", [{}, {"encoder": "use-v4"}, {"encoder": "minilm"}, {"model_name": "some/model"}, *CITATIONS.values()]
)
def test_cited_is_what_is_used(published: Callable[..., str], config: dict[str, str]) -> None:
    card = published(**config)
    cited = {key for key in CITATIONS if f"{{{key}" in card}
    encoder = config.get("encoder", "use-multilingual-v3")
    backbone = config.get("model_name", "smollm2-135m")
    wanted = {"demszky2020", {"use-multilingual-v3": "yang2020", "use-v4": "cer2018"}.get(encoder, "reimers2019")}
    wanted |= {"allal2025"} if backbone == "smollm2-135m" else {"mistral2025"} if "Mistral" in backbone else set()
    assert cited == wanted and not re.search(r"\{\{|\}\}", card)  # what an unfilled template would contain
    assert "{hu2022lora" in card and "{lin2017focal" in card and "{li2025ismote" in card
    for part in (encoder.removeprefix("sentence-transformers/"), backbone):
        if part in ("BAAI/bge-small-en-v1.5", "some/model"):
            assert f"https://huggingface.co/{part}" in card


def test_rows_of_our_own_with_the_labels_of_others(published: Callable[..., str], carded: Path) -> None:
    recipe = carded / "recipe.yaml"
    before = recipe.read_text(encoding="utf-8")
    try:
        recipe.write_text(yaml.safe_dump(yaml.safe_load(before) | {"labels": ["goemotions-28"]}), encoding="utf-8")
        starter, real = published(dataset="starter"), published()
    finally:
        recipe.write_text(before, encoding="utf-8")
    assert "GoEmotions (labels): `demszky2020goemotions`" in starter and "The labels are from GoEmotions." in starter
    assert "go_emotions" not in starter, "rows of GoEmotions were not used"
    assert "GoEmotions (rows): `demszky2020goemotions`" in real and real.count("demszky2020goemotions") == 2


def test_the_bundled_backbone_is_not_called_what_it_is_not(published: Callable[..., str]) -> None:
    bundled, hub = published(), published(model_name="HuggingFaceTB/SmolLM2-135M-Instruct")
    assert "Q4_1" in _GGUF_FILE
    assert "Q4_1, dequantized, frozen" in bundled and "4-bit weights (GGUF, Q4_1), which are dequantized" in bundled
    assert "Q4_1, dequantized, nf4, frozen" in published(quantization="nf4")
    assert "not quantized, frozen" in hub and "Q4_1" not in hub


def test_methods_that_were_not_used_are_not_cited(carded: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(carded, tmp_path / "plain")
    recipe = yaml.safe_load((copy / "recipe.yaml").read_text(encoding="utf-8"))
    (copy / "recipe.yaml").write_text(yaml.safe_dump(recipe | {"gamma": 0.0, "balance": "smote"}), encoding="utf-8")
    card = render_card(copy)
    assert "lin2017focal" not in card and "li2025ismote" not in card and "focal-loss" not in card


@pytest.mark.parametrize("computed", [False, True])
def test_the_precision_is_the_one_that_trained(carded: Path, tmp_path: Path, computed: bool) -> None:
    copy = shutil.copytree(carded, tmp_path / "copy")
    recipe = yaml.safe_load((copy / "recipe.yaml").read_text(encoding="utf-8"))
    (copy / "recipe.yaml").write_text(yaml.safe_dump(recipe | {"bf16": True}, sort_keys=False), encoding="utf-8")
    environment = json.loads((copy / "environment.json").read_text(encoding="utf-8"))
    (copy / "environment.json").write_text(json.dumps(environment | {"bf16": computed}), encoding="utf-8")
    assert f"| `bf16` | {json.dumps(computed)} |" in render_card(copy)


def test_published_figures_are_next_to_their_own(published: Callable[..., str]) -> None:
    card = published()
    rows = tables_of(card)["system", "protocol", "macro F1", "micro F1"]
    assert rows[0][0] == "**this model**" and rows[0][1].startswith("official test split")
    assert rows[1:] == [["Another", "official test split, 0.5", "0.4715", ""], ["Third", "own split", "0.8", "0.75"]]
    assert "not comparable with this model's" not in card
    corpus = Corpus(GOEMOTIONS_HUB, "", GOEMOTIONS_28, {})
    starter = Corpus("starter", "1", GOEMOTIONS_28, {})
    found = [comparable(Prepared(c, {}, None, {}, {}, "")) for c in (corpus, starter)]  # type: ignore[arg-type]
    assert len(found[0]) == 8 and found[1] == []


def test_a_part_of_a_published_test_split_is_not_called_that(published: Callable[..., str]) -> None:
    card = published(test_rows=5_400)
    assert "Their scores are not comparable with this model's" in card and "not its published test split" in card
    for result in ModelCard(card).data.eval_results:
        assert result.dataset_type == "unpublished" and result.dataset_revision is None
        assert result.dataset_name == "GoEmotions, other rows than its test split"
