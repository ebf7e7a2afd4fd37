"""The model card: every figure from a recorded file, a strict template, code that runs."""

from __future__ import annotations

import csv
import hashlib
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
from hypothesis import given, strategies as st
from markdown_it import MarkdownIt
from safetensors.numpy import load_file
from typer.testing import CliRunner

from hub_release.card import facts as facts_module, render as card_module
from hub_release.card.facts import read_sources
from hub_release.card.own import BEGIN, END
from hub_release.card.render import render_card
from hub_release.card.text import cells, code, duration, plain
from hub_release.cli import app
from hub_release.package import LAYOUT, ReleaseError, seal, template_path
from tests.cards import Change, edit, put, read, score, tables_of
from tests.conftest import LABELS

POLICIES = {"fixed": "0.5 for all labels", "global": "one for all labels", "per_label": "one for each label"}


def test_the_tables_of_scores(carded: Path) -> None:
    card, metrics = (carded / "README.md").read_text(encoding="utf-8"), read(carded, "metrics.json")
    tables = tables_of(card)
    assert len(tables) == 9
    parts = {
        "test": "test",
        "test_without_copies": "test, without texts of train",
        "bag_of_words": "test, by a bag of words",
    }
    assert tables["rows", "thresholds", "macro F1", "micro F1", "exact accuracy"] == [
        [rows, words, *(score(metrics[part][policy], name) for name in ("macro_f1", "micro_f1", "exact_accuracy"))]
        for part, rows in parts.items()
        for policy, words in POLICIES.items()
    ]
    assert f"**{score(metrics['test']['per_label'], 'macro_f1')}**" in card
    with (carded / "per_label.csv").open(encoding="utf-8", newline="") as file:
        rows = {(r["label"], r["thresholds"]): r for r in csv.DictReader(file) if r["split"] == "test"}

    def interval(row: dict[str, str], name: str) -> str:
        value, low, high = (float(row[f"{name}{end}"]) for end in ("", "_low", "_high"))
        return f"{value:.3f} [{low:.3f}, {high:.3f}]"

    header = ("label", "test rows", "threshold", "precision", "recall", "F1", "AP", "F1 at 0.5")
    thresholds = read(carded, "thresholds.json")["per_label"]
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
        for label in read(carded, "config.json")["unreliable_labels"]
    ]
    golden = read(carded, "golden.json")
    said = tables["text", "labels that reach their threshold"]
    assert len(said) == 2, "those without feelings"
    for text, found in said:
        probabilities = next(row["probabilities"] for row in golden["rows"] if row["text"] == text)
        pairs = [pair for pair in zip(LABELS, probabilities, strict=True) if pair[1] >= thresholds[pair[0]]]
        ordered = sorted(pairs, key=lambda pair: -pair[1])
        assert found == (", ".join(f"{label} {value:.3f}" for label, value in ordered) or "none")


def test_the_tables_of_model_and_data(carded: Path) -> None:
    card, audit = (carded / "README.md").read_text(encoding="utf-8"), read(carded, "audit.json")
    tables = tables_of(card)
    head, adapter = load_file(carded / "head.safetensors"), load_file(carded / "lora_adapter/adapter_model.safetensors")
    sizes = {
        part: sum(t.size for key, t in head.items() if key.startswith(part)) for part in ("projection", "classifier")
    }
    lora = sum(tensor.size for tensor in adapter.values())
    first, second = head["projection.0.weight"].shape, head["projection.2.weight"].shape
    assert tables["part", "shape", "trained parameters"] == [
        ["projection", f"{first[1]} → {first[0]}, GELU, {second[1]} → {second[0]}", f"{sizes['projection']:,}"],
        [
            "backbone: [tiny/mistral](https://huggingface.co/tiny/mistral), not quantized, frozen",
            "mistral, 2 layers, width 16, 4 heads (2 for keys and values)",
            "0",
        ],
        ["LoRA adapter", "rank 16, alpha 32, on 10 linear layers", f"{lora:,}"],
        ["classifier", "16 → 3", f"{sizes['classifier']:,}"],
        ["all", "", f"{sum(sizes.values()) + lora:,}"],
    ]
    for file in ("head.safetensors", "head_weights.pt", "lora_adapter/adapter_model.safetensors"):
        assert f"`{file}` {hashlib.sha256((carded / file).read_bytes()).hexdigest()}" in card
    assert tables["split", "rows", "without a label", "SHA-256"] == [
        [split, f"{found['rows']:,}", f"{found['rows_without_label']:,}", f"`{found['sha256']}`"]
        for split, found in audit["splits"].items()
    ]
    header = ("rows of", "copies in", "exact", "except for case and punctuation", "near", "labeled differently")
    assert ["test", "train", "1,203", "4", "5", "0"] in tables[header]
    assert "1,212 of the test rows have a copy in train" in card and "3,017 were dropped" in card
    rows = audit["training_rows"]
    assert f"Training used {rows['real']:,} real and {rows['synthetic']:,} synthetic rows" in card and rows["synthetic"]
    names = ("expected_calibration_error", "mean_label_calibration_error", "brier_score")
    calibration = read(carded, "calibration.json")
    header = ("rows", "when", "expected calibration error", "its mean over labels", "Brier score")
    header += ("macro F1 at 0.5", "at own thresholds")
    f1 = ("macro_f1_at_0.5", "macro_f1_at_own_thresholds")
    assert tables[header] == [
        [split, when]
        + [f"{calibration[split][when][name]:.4f}" for name in names]
        + [f"{calibration[split][when][name]:.3f}" for name in f1]
        for split in ("validation", "test")
        for when in ("before", "after")
    ]
    recipe = yaml.safe_load((carded / "recipe.yaml").read_text(encoding="utf-8"))
    settings = dict(tables["setting", "value"])
    assert len(settings) >= 30
    for key, value in settings.items():
        recorded = recipe[key.strip("`")]
        shown = ", ".join(recorded) or "none" if isinstance(recorded, list) else recorded
        assert value == (shown if isinstance(shown, str) else json.dumps(shown))


def test_scores_are_rounded_once(carded: Path) -> None:
    """The table per label is recorded unrounded: rounding twice could give another figure on the card."""
    with (carded / "per_label.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if (row["split"], row["thresholds"]) == ("test", "per_label")]
    mean = sum(float(row["f1"]) for row in rows) / len(rows)
    assert math.isclose(mean, read(carded, "metrics.json")["test"]["per_label"]["macro_f1"], abs_tol=1e-7)


@pytest.mark.parametrize(
    ("unreliable", "words"),
    [
        (LABELS, ["The scores of all 3 labels say little", "(no label is left here)", "All 3 labels have scores"]),
        (LABELS[:2], ["The scores of 2 of the 3 labels say little", "To leave them out:", "2 of the 3 labels have"]),
        (LABELS[:1], ["The scores of 1 of the 3 labels say little", "To leave them out:", "1 of the 3 labels has"]),
        ((), ["None: each label has at least 100 test rows"]),
    ],
)
def test_how_many_labels_are_unreliable(changed: Callable[..., str], unreliable: list[str], words: list[str]) -> None:
    card = changed(config=put(unreliable_labels=list(unreliable)))
    assert all(part in card for part in words)
    assert ("say little" in card) == ("see the unreliable labels" in card) == bool(unreliable)


def test_no_figure_but_from_the_files(carded: Path) -> None:
    card = (carded / "README.md").read_text(encoding="utf-8").split("---\n", 2)[2]
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

    for path in carded.glob("*.json"):
        collect(read(carded, path.name))
    collect(read(carded, "lora_adapter/adapter_config.json"))
    collect((carded / "SHA256SUMS").read_text())
    collect(yaml.safe_load((carded / "recipe.yaml").read_text(encoding="utf-8")))
    collect(list(csv.reader((carded / "per_label.csv").read_text(encoding="utf-8").splitlines())))
    keys_of_works = [entry.split(",")[0] for entry in read_sources()["citations"].values()]
    collect([read_sources()["encoders"], keys_of_works, len(LABELS)])
    tensors = [load_file(carded / name) for name in ("head.safetensors", "lora_adapter/adapter_model.safetensors")]
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
        ("golden", lambda g: g["rows"][2].update(probabilities=[0.9871] * 3)),
        ("config", put(unreliable_labels=[])),
        ("config", put(prefix="bos")),
        ("config", put(quantization="nf4")),
    ],
)
def test_each_recorded_fact_moves_the_card(
    carded: Path, changed: Callable[..., str], file: str, change: Change
) -> None:
    assert changed(**{file: change}) != (carded / "README.md").read_text(encoding="utf-8")


def test_the_template_is_strict(carded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    template = template_path().read_text(encoding="utf-8")
    cases = {
        "{{ carbon }}" + template: "differ: carbon",
        template.replace("{{ exporter }}", ""): "differ: exporter",
        template.replace("{{ exporter }}", "{{ exporter.upper_case }}"): "UndefinedError",
        template + "{% if %}": "TemplateSyntaxError",
    }
    for text, message in cases.items():
        (tmp_path / "template.md").write_text(text, encoding="utf-8")
        monkeypatch.setattr(card_module, "template_path", lambda: tmp_path / "template.md")
        with pytest.raises(ReleaseError, match=message):
            render_card(carded)


def test_written_again_from_the_package_alone(carded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = (carded / "README.md").read_bytes()
    moved = shutil.copytree(carded, tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    (moved / "README.md").write_text("by hand")
    seal(moved)
    before = sorted(path.name for path in moved.iterdir())
    result = CliRunner().invoke(app, ["card", str(moved)])
    assert result.exit_code == 0, result.output
    assert (moved / "README.md").read_bytes() == card
    assert sorted(path.name for path in moved.iterdir()) == before
    assert subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=moved).returncode == 0
    (moved / "timing.json").unlink()
    result = CliRunner().invoke(app, ["card", str(moved)])
    assert result.exit_code == 1 and "timing.json is missing. Remedy:" in result.output
    (moved / "timing.json").write_text("[1]")
    seal(moved)
    result = CliRunner().invoke(app, ["card", str(moved)])
    assert result.exit_code == 2 and "timing.json is not a JSON object. Remedy:" in result.output
    assert (moved / "README.md").read_bytes() == card


@pytest.mark.parametrize("file", ["lora_adapter/adapter_model.safetensors", "metrics.json", "thresholds.png"])
def test_a_new_card_seals_nothing_else(carded: Path, tmp_path: Path, file: str) -> None:
    moved = shutil.copytree(carded, tmp_path / "package")
    content = bytearray((moved / file).read_bytes())
    content[-1] ^= 1
    (moved / file).write_bytes(content)
    (moved / "notes.txt").write_text("mine")
    (moved / "README.md").write_text("by hand")
    sums = (moved / "SHA256SUMS").read_bytes()
    result = CliRunner().invoke(app, ["card", str(moved)])
    assert result.exit_code == 1 and f"✗ {file} does not match SHA256SUMS. Remedy: " in result.output
    assert "✗ notes.txt is not part of a package. Remedy: delete it" in result.output
    assert (moved / "SHA256SUMS").read_bytes() == sums and (moved / "README.md").read_text() == "by hand"


def test_files_that_contradict_each_other(changed: Callable[..., str]) -> None:
    def rename(config: dict[str, Any]) -> None:
        config.update(json.loads(json.dumps(config).replace('"fear"', '"hope"')))
        for key in ("label2id", "thresholds"):
            config[key].pop("fear", None)

    with pytest.raises(ReleaseError, match="anger was scored at threshold"):
        changed(config=lambda config: config["thresholds"].update(anger=0.987))
    with pytest.raises(ReleaseError, match="list different labels"):
        changed(config=rename)
    with pytest.raises(ReleaseError, match=r"config\.json is not valid: id2label and emotion_labels differ"):
        changed(config=put(emotion_labels=["joy", "anger", "hope"]))
    with pytest.raises(ReleaseError, match=r"projection.0.weight is \[8, 512\]"):
        changed(config=put(embed_dim=384))


BLOCKS = ["predict_proba(", "threshold=0.0", "exclude_unreliable=True", "pipeline("]
"""Text that identifies each Python block of the card that is run here."""


def test_the_code_runs(carded: Path, tmp_path: Path) -> None:
    card = (carded / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    chosen = [block for block in blocks if any(part in block for part in BLOCKS)]
    assert len(chosen) == len(BLOCKS)
    # One process runs all blocks, each with empty globals: importing torch takes longer than the rest.
    (tmp_path / "blocks.json").write_text(json.dumps(chosen), encoding="utf-8")
    program = f"import json, sys\nsys.path.insert(0, '.')\nfor block in json.load(open({str(tmp_path / 'blocks.json')!r})):\n    exec(block, {{}})"
    result = subprocess.run(
        [sys.executable, "-I", "-c", program], cwd=carded, capture_output=True, text=True, check=True
    )
    lines = result.stdout.splitlines()
    assert lines[0].startswith("[{") and str(read(carded, "config.json")["unreliable_labels"]) in lines
    assert lines[-1] == "[{}]"  # all three labels of the fixture are unreliable


def test_links_lead_somewhere(carded: Path, package: Path) -> None:
    card = (carded / "README.md").read_text(encoding="utf-8")
    pictures = re.findall(r"!\[.+?\]\((.+?)\)", card)
    assert set(pictures) == {path.name for path in carded.glob("*.png")} and len(pictures) == 6
    assert "pip install -r requirements.txt" in card
    bare = render_card(package)
    for file in re.findall(r"!\[.+?\]\((.+?)\)", bare):
        assert (package / file).is_file()
    assert ("requirements.txt" in bare) == (package / "requirements.txt").is_file()


def test_odd_label_names(carded: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(carded, tmp_path / "odd")
    for path in [*copy.glob("*.json"), copy / "per_label.csv"]:
        path.write_text(path.read_text(encoding="utf-8").replace("joy", "j|oy <b>*`"), encoding="utf-8")
    card = render_card(copy)
    tables = tables_of(card)
    header = ("label", "test rows", "threshold", "precision", "recall", "F1", "AP", "F1 at 0.5")
    assert tables[header][0][0] == "j|oy \\<b>\\*\\`"
    compile(re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)[1], "block", "exec")


TAG = '<img src="https://elsewhere.invalid/x.png" onerror=alert(1)>'
PLACES: dict[str, tuple[str, Change]] = {
    "encoder version": ("config", put(encoder_version=f"1 {TAG}")),
    "exporter": ("config", put(goemotions_mistral_version=f"0.2.0{TAG}")),
    "protocol": ("metrics", put(protocol=f"official` {TAG}")),
    "policy": ("audit", lambda audit: audit["audit_policy"].update(policy=f"`{TAG}`")),
    "split": ("audit", lambda audit: audit["splits"].update({TAG: audit["splits"]["test"]})),
    "empty labels": ("audit", lambda audit: audit["labels_without_positives"].update({TAG: ["joy"]})),
    "hash": ("audit", lambda audit: audit["splits"]["test"].update(sha256=f"``{TAG}")),
    "teacher": ("audit", put(teachers={"a": f"`{TAG}`"})),
    "commit": ("environment", put(git_commit=f"abc`{TAG}`")),
    "cpu": ("environment", put(cpu=f"Xeon\n\n{TAG}")),
    "threads": ("environment", put(cores=TAG)),
    "package": ("environment", lambda found: found["packages"].update({TAG: "1"})),
    "reason": ("calibration", put(reason=f"| {TAG} |")),
    "system": (
        "context",
        put(published=[{"system": TAG, "protocol": "p", "macro_f1": 0.5, "micro_f1": None}]),
    ),
    "emissions": ("timing", put(emissions={"grams": 1.0, "source": TAG, "location": "ITA"})),
}


def html_of(card: str) -> list[str]:
    """The HTML and the pictures' addresses that a Markdown reader finds in a card."""
    tokens = MarkdownIt("commonmark").enable("table").parse(card.split("---\n", 2)[2])
    flat = [inner for token in tokens for inner in (token, *(token.children or []))]
    pictures = [str(token.attrGet("src")) for token in flat if token.type == "image"]
    html = [token.content for token in flat if token.type.startswith("html")]
    return [text for text in html if text.strip() not in (BEGIN, END)] + [path for path in pictures if "/" in path]


@pytest.mark.parametrize("place", PLACES)
def test_html_in_a_record_is_refused_and_never_rendered(
    changed: Callable[..., str], monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    file, change = PLACES[place]
    with pytest.raises(ReleaseError, match=rf"^{file}\.json has HTML in .*<img.*Remedy: run hub_release export again"):
        changed(**{file: change})
    monkeypatch.setattr(facts_module, "_refuse_html", lambda facts: None)
    card = changed(**{file: change})
    assert "onerror" in card.split("---\n", 2)[2] and html_of(card) == []


@given(text=st.text(st.sampled_from("`|\\<>![]()*_~&;#img lt/\n")))
def test_any_text_is_shown_as_it_is(text: str) -> None:
    """Also in a table: what a Markdown reader shows is the text, with its spaces run together."""
    wanted = " ".join(text.split())
    for write in (plain, code):
        [_, shown, _] = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(f"x {write(text)} x")
        assert {token.type for token in shown.children} <= {"text", "text_special", "code_inline"}
        said = "".join(token.content for token in shown.children)
        assert said.split() == f"x {wanted} x".split()
        cell = (
            MarkdownIt("commonmark").enable("table").parse(f"| a | b |\n|---|---|\n| {cells([write(text), 'end'])} |")
        )
        found = [token.content for token in cell if token.type == "inline"]
        assert len(found) == 4 and found[3] == "end"


@pytest.mark.parametrize(
    ("method", "bias", "said"), [("none", 0.0, False), ("temperature", 0.5, True), ("platt", 0.5, False)]
)
def test_a_card_says_which_labels_were_held_back(
    package: Path, tmp_path: Path, method: str, bias: float, said: bool
) -> None:
    """Only where the method's own sentence does not: Platt scaling has a scale and a bias for every label."""
    copy = shutil.copytree(package, tmp_path / "package")
    edit(copy / LAYOUT.calibration, lambda record: record.update(method=method, bias=[bias, 0.0, 0.0]))
    assert ("Labels with few positives have a scale and a bias of their own" in render_card(copy)) == said
