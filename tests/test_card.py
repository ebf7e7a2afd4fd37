"""The model card: every figure from a recorded file, a strict template, code that runs, metadata that the Hub reads."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results
from safetensors.numpy import load_file
from typer.testing import CliRunner

from hub_release import card as card_module
from hub_release.card import render_card, write_card
from hub_release.card_facts import read_sources
from hub_release.card_sections import duration
from hub_release.cli import app
from hub_release.package import ReleaseError, template_path
from tests.conftest import LABELS, ROOT
from training.corpus import GOEMOTIONS_HUB, Corpus
from training.prepare import Prepared
from training.results import comparable
from training.taxonomy import GOEMOTIONS_28

Change = Callable[[Any], None]
POLICIES = {"fixed": "0.5 for all labels", "global": "one for all labels", "per_label": "one for each label"}


@pytest.fixture(scope="module")
def full(package: Path, finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package with the run's pictures and, in its files, rows that were copied and a part of test apart."""
    folder = shutil.copytree(package, tmp_path_factory.mktemp("card") / "package")
    for picture in finished_run.glob("*.png"):
        shutil.copy(picture, folder)
    (folder / "requirements.txt").write_text("torch\n")

    def copied(audit: Any) -> None:
        audit["copies"]["test_in_train"] |= {"exact": 1_203, "normalised": 4, "near": 5, "rows": 1_212}
        audit["audit_policy"] = {"policy": "drop-from-train", "rows_dropped": 3_017}

    def apart(metrics: Any) -> None:
        metrics["test_without_copies"] = metrics["validation"]

    edit(folder / "audit.json", copied)
    edit(folder / "metrics.json", apart)
    write_card(folder)
    return folder


def edit(path: Path, change: Change) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def put(**values: Any) -> Change:
    return lambda content: content.update(values)


@pytest.fixture
def changed(full: Path, tmp_path: Path) -> Callable[..., str]:
    """Renders the card of a copy with some of its JSON files changed."""

    def render(**changes: Change) -> str:
        copy = shutil.copytree(full, tmp_path / "copy", dirs_exist_ok=True)
        for name, change in changes.items():
            edit(copy / f"{name}.json", change)
        return render_card(copy)

    return render


@pytest.fixture
def published(changed: Callable[..., str]) -> Callable[..., str]:
    """Renders the card as that of GoEmotions on the bundled backbone, with more changes to the configuration."""

    def render(**config: Any) -> str:
        parts = {"dataset": GOEMOTIONS_HUB, "dataset_revision": "a" * 40, "model_name": "smollm2-135m"}
        systems = [
            {"system": "Another", "protocol": "official test split, 0.5", "macro_f1": 0.4715, "micro_f1": None},
            {"system": "Third", "protocol": "own split", "macro_f1": 0.8, "micro_f1": 0.75},
        ]
        local = {"backbone": False, "encoder": False, "dataset": False}
        return changed(config=put(**{**parts, **config}), context=put(published=systems, local=local))

    return render


def tables_of(card: str) -> dict[tuple[str, ...], list[list[str]]]:
    """The Markdown tables: header → rows."""
    found: dict[tuple[str, ...], list[list[str]]] = {}
    header: tuple[str, ...] | None = None
    for line in card.splitlines():
        if not line.startswith("| "):
            header = header if line.startswith("|-") else None
            continue
        cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if header is None:
            header = tuple(cells)
            assert header not in found
            found[header] = []
        else:
            assert len(cells) == len(header), line
            found[header].append(cells)
    return found


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text(encoding="utf-8"))


def score(scores: dict[str, Any], name: str) -> str:
    low, high = scores["intervals_95"][name]
    return f"{scores[name]:.3f} [{low:.3f}, {high:.3f}]"


def test_the_tables_of_scores(full: Path) -> None:
    card, metrics = (full / "README.md").read_text(encoding="utf-8"), read(full, "metrics.json")
    tables = tables_of(card)
    assert len(tables) == 9
    parts = {"test": "test", "test_without_copies": "test, without texts of train"}
    assert tables["rows", "thresholds", "macro F1", "micro F1", "exact accuracy"] == [
        [rows, words, *(score(metrics[part][policy], name) for name in ("macro_f1", "micro_f1", "exact_accuracy"))]
        for part, rows in parts.items()
        for policy, words in POLICIES.items()
    ]
    assert f"**{score(metrics['test']['per_label'], 'macro_f1')}**" in card
    with (full / "per_label.csv").open(encoding="utf-8", newline="") as file:
        rows = {(r["label"], r["thresholds"]): r for r in csv.DictReader(file) if r["split"] == "test"}

    def interval(row: dict[str, str], name: str) -> str:
        value, low, high = (float(row[f"{name}{end}"]) for end in ("", "_low", "_high"))
        return f"{value:.3f} [{low:.3f}, {high:.3f}]"

    header = ("label", "test rows", "threshold", "precision", "recall", "F1", "AP", "F1 at 0.5")
    thresholds = read(full, "thresholds.json")["per_label"]
    assert tables[header] == [
        [
            label,
            rows[label, "per_label"]["support"],
            f"{thresholds[label]:.3f}",
            *(interval(rows[label, "per_label"], name) for name in ("precision", "recall", "f1", "average_precision")),
            f"{float(rows[label, 'fixed']['f1']):.3f}",
        ]
        for label in LABELS
    ]
    assert tables["label", "test rows", "F1"] == [
        [label, rows[label, "per_label"]["support"], interval(rows[label, "per_label"], "f1")]
        for label in read(full, "config.json")["unreliable_labels"]
    ]
    golden = read(full, "golden.json")
    said = tables["text", "labels that reach their threshold"]
    assert len(said) >= 5
    for text, found in said:
        probabilities = next(row["probabilities"] for row in golden["rows"] if row["text"] == text)
        pairs = [pair for pair in zip(LABELS, probabilities, strict=True) if pair[1] >= thresholds[pair[0]]]
        ordered = sorted(pairs, key=lambda pair: -pair[1])
        assert found == (", ".join(f"{label} {value:.3f}" for label, value in ordered) or "none")


def test_the_tables_of_model_and_data(full: Path) -> None:
    card, audit = (full / "README.md").read_text(encoding="utf-8"), read(full, "audit.json")
    tables = tables_of(card)
    head, adapter = load_file(full / "head.safetensors"), load_file(full / "lora_adapter/adapter_model.safetensors")
    sizes = {
        part: sum(t.size for key, t in head.items() if key.startswith(part)) for part in ("projection", "classifier")
    }
    lora = sum(tensor.size for tensor in adapter.values())
    first, second = head["projection.0.weight"].shape, head["projection.2.weight"].shape
    assert tables["part", "shape", "parameters in this package"] == [
        ["projection", f"{first[1]} → {first[0]}, GELU, {second[1]} → {second[0]}", f"{sizes['projection']:,}"],
        [
            "backbone: of the publisher's own, not published, full precision, frozen",
            "mistral, 2 layers, width 16, 4 heads (2 for keys and values)",
            "0",
        ],
        ["LoRA adapter", "rank 16, alpha 32, on 14 linear layers", f"{lora:,}"],
        ["classifier", "16 → 3", f"{sizes['classifier']:,}"],
        ["all", "", f"{sum(sizes.values()) + lora:,}"],
    ]
    assert tables["split", "rows", "without a label", "SHA-256"] == [
        [split, f"{found['rows']:,}", f"{found['rows_without_label']:,}", f"`{found['sha256']}`"]
        for split, found in audit["splits"].items()
    ]
    header = ("rows of", "copies in", "exact", "but for case and punctuation", "near", "labelled differently")
    assert ["test", "train", "1,203", "4", "5", "0"] in tables[header]
    assert "1,212 of the test rows have a copy in train" in card and "3,017 were dropped" in card
    rows = audit["training_rows"]
    assert f"Trained on {rows['real']:,} real and {rows['synthetic']:,} synthetic rows" in card and rows["synthetic"]
    names = ("expected_calibration_error", "mean_label_calibration_error", "brier_score")
    calibration = read(full, "calibration.json")
    header = ("rows", "when", "expected calibration error", "its mean over labels", "Brier score")
    assert tables[header] == [
        [split, when, *(f"{calibration[split][when][name]:.4f}" for name in names)]
        for split in ("validation", "test")
        for when in ("before", "after")
    ]
    recipe = yaml.safe_load((full / "recipe.yaml").read_text(encoding="utf-8"))
    settings = dict(tables["setting", "value"])
    assert len(settings) >= 30
    for key, value in settings.items():
        recorded = recipe[key.strip("`")]
        shown = ", ".join(recorded) or "none" if isinstance(recorded, list) else recorded
        assert value == (shown if isinstance(shown, str) else json.dumps(shown))


def test_no_figure_but_from_the_files(full: Path) -> None:
    card = (full / "README.md").read_text(encoding="utf-8").split("---\n", 2)[2]
    prose = re.sub(r"```.*?```", "", card, flags=re.DOTALL)
    for row in tables_of(prose)["text", "labels that reach their threshold"]:
        prose = prose.replace(row[0], "")
    figures: set[str] = set(
        re.findall(r"\d[\d,]*\.?\d*", re.sub(r"```.*?```", "", template_path().read_text(), flags=re.DOTALL))
    )

    def collect(value: Any) -> None:
        if isinstance(value, dict | list):
            for item in value.values() if isinstance(value, dict) else value:
                collect(item)
        elif isinstance(value, str):
            figures.update(re.findall(r"\d[\d,]*\.?\d*", value))
            collect(float(value)) if re.fullmatch(r"\d+\.\d+", value) else None
        elif isinstance(value, int | float) and not isinstance(value, bool):
            figures.update(f"{value:{form}}" for form in (".3f", ".4f", ",", "g"))
            figures.add(duration(value).split()[0])

    for path in full.glob("*.json"):
        collect(read(full, path.name))
    collect(read(full, "lora_adapter/adapter_config.json"))
    collect(yaml.safe_load((full / "recipe.yaml").read_text(encoding="utf-8")))
    collect(list(csv.reader((full / "per_label.csv").read_text(encoding="utf-8").splitlines())))
    collect([read_sources()["encoders"], len(LABELS)])
    tensors = [load_file(full / name) for name in ("head.safetensors", "lora_adapter/adapter_model.safetensors")]
    collect([list(tensor.shape) for part in tensors for tensor in part.values()])
    sizes = [sum(t.size for key, t in tensors[0].items() if key.startswith(p)) for p in ("projection", "classifier")]
    lora = sum(tensor.size for tensor in tensors[1].values())
    collect([*sizes, lora, sum(sizes) + lora, len(tensors[1]) // 2])
    shown = {figure.rstrip(",.") for figure in re.findall(r"\d[\d,]*\.?\d*", prose)}
    assert len(shown) > 80
    assert shown <= {figure.rstrip(",.") for figure in figures}


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("metrics", lambda m: m["test"]["fixed"].update(micro_f1=0.9871)),
        ("metrics", lambda m: m["test"]["global"]["intervals_95"].update(macro_f1=[0.1, 0.9871])),
        ("audit", lambda a: a["splits"]["validation"].update(sha256="0" * 64)),
        ("audit", lambda a: a["training_rows"].update(synthetic_with_parent_outside_train=7)),
        ("audit", lambda a: a["repeated_in_train"].update(groups_with_different_labels=9)),
        ("audit", lambda a: a["labels_without_positives"].update(test=["joy"])),
        ("audit", lambda a: a["suspected_label_permutations"].update(test=[{"meaning": {"joy": "fear"}}])),
        ("environment", put(gpu="NVIDIA H200", gpus=8)),
        ("environment", put(processes=4)),
        ("timing", put(seconds_of_training=7_300.0)),
        ("timing", put(resumed=True)),
        ("calibration", put(method="none")),
        ("context", put(bootstrap_draws=17)),
        ("context", put(unreliable={"positives_below": 41, "f1_interval_wider_than": 0.2})),
        ("golden", lambda g: g["rows"][0].update(probabilities=[0.9871] * 3)),
        ("config", put(unreliable_labels=[])),
        ("config", put(prefix="bos")),
        ("config", put(quantization="nf4")),
    ],
)
def test_each_recorded_fact_moves_the_card(full: Path, changed: Callable[..., str], file: str, change: Change) -> None:
    assert changed(**{file: change}) != (full / "README.md").read_text(encoding="utf-8")


def test_the_template_is_strict(full: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    template = template_path().read_text(encoding="utf-8")
    cases = {
        "{{ carbon }}" + template: "differ: carbon",
        template.replace("{{ hardware }}", ""): "differ: hardware",
        template.replace("{{ title }}", "{{ title.upper_case }}"): "UndefinedError",
        template + "{% if %}": "TemplateSyntaxError",
    }
    for text, message in cases.items():
        (tmp_path / "template.md").write_text(text, encoding="utf-8")
        monkeypatch.setattr(card_module, "template_path", lambda: tmp_path / "template.md")
        with pytest.raises(ReleaseError, match=message):
            render_card(full)


def test_written_again_from_the_package_alone(full: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = (full / "README.md").read_bytes()
    moved = shutil.copytree(full, tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    (moved / "README.md").write_text("by hand")
    before = sorted(path.name for path in moved.iterdir())
    result = CliRunner().invoke(app, ["card", str(moved)])
    assert result.exit_code == 0, result.output
    assert (moved / "README.md").read_bytes() == card
    assert sorted(path.name for path in moved.iterdir()) == before
    (moved / "timing.json").unlink()
    result = CliRunner().invoke(app, ["card", str(moved)])
    assert result.exit_code == 2 and "timing.json is missing. Remedy:" in result.output
    (moved / "timing.json").write_text("[]")
    assert "not what a run writes" in CliRunner().invoke(app, ["card", str(moved)]).output
    assert (moved / "README.md").read_bytes() == card


def test_files_that_contradict_each_other(changed: Callable[..., str]) -> None:
    with pytest.raises(ReleaseError, match="anger was scored at threshold"):
        changed(config=lambda config: config["thresholds"].update(anger=0.987))
    with pytest.raises(ReleaseError, match="list different labels"):
        changed(config=put(emotion_labels=["joy", "anger", "hope"]))
    with pytest.raises(ReleaseError, match=r"projection.0.weight is \[8, 512\]"):
        changed(config=put(embed_dim=384))


BLOCKS = ["predict_proba(", "threshold=0.0", "exclude_unreliable=True"]
"""What each Python block of the card that is run here has in it."""


def test_the_code_runs(full: Path, tmp_path: Path) -> None:
    card = (full / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    chosen = [block for block in blocks if any(part in block for part in BLOCKS)]
    assert len(chosen) == len(BLOCKS)
    # One process for all, in which each block starts with no names: importing torch takes longer than the rest.
    (tmp_path / "blocks.json").write_text(json.dumps(chosen), encoding="utf-8")
    program = f"import json, sys\nsys.path.insert(0, '.')\nfor block in json.load(open({str(tmp_path / 'blocks.json')!r})):\n    exec(block, {{}})"
    result = subprocess.run([sys.executable, "-I", "-c", program], cwd=full, capture_output=True, text=True, check=True)
    lines = result.stdout.splitlines()
    assert lines[0].startswith("[{") and str(read(full, "config.json")["unreliable_labels"]) in lines
    assert lines[-1] == "[{}]"  # all three labels of the fixture are unreliable


def test_links_lead_somewhere(full: Path, package: Path) -> None:
    card = (full / "README.md").read_text(encoding="utf-8")
    pictures = re.findall(r"!\[.+?\]\((.+?)\)", card)
    assert set(pictures) == {"per_label.png", "precision_recall.png", "reliability.png", "label_frequencies.png"}
    assert "pip install -r requirements.txt" in card
    bare = render_card(package)
    for file in re.findall(r"!\[.+?\]\((.+?)\)", bare):
        assert (package / file).is_file()
    assert ("requirements.txt" in bare) == (package / "requirements.txt").is_file()


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
    assert name == "SmolLM2-135M-Instruct-GoEmotions" and results == card.data.eval_results
    assert eval_results_to_model_index(name, results) == data["model-index"]
    for result in results:
        assert result.verified is False and result.dataset_split == "test" and result.dataset_config == "simplified"
        assert result.dataset_type == GOEMOTIONS_HUB and result.dataset_revision == "a" * 40
    shown = {(r.metric_name, r.metric_args["threshold_policy"]): (r.metric_type, r.metric_value) for r in results}
    assert len(shown) == len(results) == 6
    measured = {"emissions": {"grams": 1.25, "source": "codecarbon 3", "location": "ITA"}}
    with_emissions = changed(timing=put(**measured))
    emissions = ModelCard(with_emissions).data.to_dict()["co2_eq_emissions"]
    assert emissions["emissions"] == 1.25 and emissions["training_type"] == "fine-tuning"
    assert "1.25 g of CO2" in with_emissions


def test_results_are_the_recorded_scores(full: Path) -> None:
    metrics = read(full, "metrics.json")["test"]
    names = {"macro F1": "macro_f1", "micro F1": "micro_f1", "exact accuracy": "exact_accuracy"}
    for result in ModelCard((full / "README.md").read_text(encoding="utf-8")).data.eval_results:
        recorded = metrics[result.metric_args["threshold_policy"]][names[result.metric_name]]
        assert math.isclose(result.metric_value, recorded, abs_tol=5.1e-5)


def test_contaminated_scores_are_no_results(changed: Callable[..., str]) -> None:
    card = changed(metrics=put(protocol="pooled-r2"))
    assert card.count("**These scores are contaminated.**") == 1
    assert "model-index" not in ModelCard(card).data.to_dict()


def test_what_is_not_published_is_not_named(full: Path, tiny_backbone: Path) -> None:
    card = (full / "README.md").read_text(encoding="utf-8")
    data = ModelCard(card).data.to_dict()
    assert not {"base_model", "base_model_relation", "datasets", "language", "license", "emotion"} & set(data)
    assert "The rows are the publisher's own and are not published." in card
    assert "The licence of the trained weights is not stated here" in card
    for hidden in (str(tiny_backbone), tiny_backbone.name, str(ROOT), str(full.parent), str(Path.home())):
        assert hidden not in card
    assert not re.search(r"(?<![\w.:/<])/(home|root|tmp|usr|Users|var|mnt)\b", card)
    assert "Beside published systems" not in card and "GoEmotions" not in card.replace("goemotions-mistral", "")


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
    assert cited == wanted and not re.search(r"\{\{|\}\}", card)  # what an unfilled template would leave
    assert "{hu2022lora" in card and "{lin2017focal" in card and "{li2025ismote" in card
    for part in (encoder.removeprefix("sentence-transformers/"), backbone):
        if part in ("BAAI/bge-small-en-v1.5", "some/model"):
            assert f"https://huggingface.co/{part}" in card


def test_methods_that_were_not_used_are_not_cited(full: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(full, tmp_path / "plain")
    recipe = yaml.safe_load((copy / "recipe.yaml").read_text(encoding="utf-8"))
    (copy / "recipe.yaml").write_text(yaml.safe_dump(recipe | {"gamma": 0.0, "balance": "smote"}), encoding="utf-8")
    card = render_card(copy)
    assert "lin2017focal" not in card and "li2025ismote" not in card and "focal-loss" not in card


def test_published_figures_stand_beside_their_own(published: Callable[..., str]) -> None:
    card = published()
    rows = tables_of(card)["system", "protocol", "macro F1", "micro F1"]
    assert rows[0][0] == "**this model**" and rows[0][1].startswith("official test split")
    assert rows[1:] == [["Another", "official test split, 0.5", "0.4715", ""], ["Third", "own split", "0.8", "0.75"]]
    corpus = Corpus(GOEMOTIONS_HUB, "", GOEMOTIONS_28, {})
    starter = Corpus("starter", "1", GOEMOTIONS_28, {})
    found = [comparable(Prepared(c, {}, None, {}, {}, "")) for c in (corpus, starter)]  # type: ignore[arg-type]
    assert len(found[0]) == 8 and found[1] == []


def test_odd_label_names(full: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(full, tmp_path / "odd")
    for path in [*copy.glob("*.json"), copy / "per_label.csv"]:
        path.write_text(path.read_text(encoding="utf-8").replace("joy", "j|oy <b>*`"), encoding="utf-8")
    card = render_card(copy)
    tables = tables_of(card)
    header = ("label", "test rows", "threshold", "precision", "recall", "F1", "AP", "F1 at 0.5")
    assert tables[header][0][0] == "j|oy \\<b>\\*\\`"
    compile(re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)[1], "block", "exec")
