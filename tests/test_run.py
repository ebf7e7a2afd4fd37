"""The run folder of a real run, repetition, and refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from modeling.infer import EmotionModel, LoadedEncoder
from tests.conftest import LABELS, fake_encoder, tiny_flags, write_corpus
from training.data.encoding import encode
from training.run import main

FILES = [
    "recipe.yaml",
    "environment.json",
    "audit.json",
    "label_frequencies.png",
    "metrics.json",
    "per_label.csv",
    "per_label.png",
    "thresholds.json",
    "golden.json",
    "train.log",
    "focal_config.json",
    "scores.md",
    "calibration.json",
    "predictions.npz",
    "precision_recall.png",
    "thresholds.png",
    "confusions.png",
    "reliability.png",
    "model/config.json",
    "model/adapter_model.safetensors",
]


def test_the_run_folder_is_complete(finished_run: Path) -> None:
    assert [name for name in FILES if not (finished_run / name).is_file()] == []
    metrics = json.loads((finished_run / "metrics.json").read_text())
    calibration = json.loads((finished_run / "calibration.json").read_text())
    for split in ("validation", "test"):
        for policy, name in (("fixed", "0.5"), ("per_label", "own_thresholds")):
            after = calibration[split]["after"][f"macro_f1_at_{name}"]
            assert after == pytest.approx(metrics[split][policy]["macro_f1"], abs=1e-6)
    assert (
        metrics.pop("protocol") == "official"
        and metrics.pop("null_test") is None
        and set(metrics) == {"validation", "test", "bag_of_words"}
    )
    for split in metrics.values():
        assert set(split) == {"fixed", "global", "per_label"}
        for policy in split.values():
            low, high = policy["intervals_95"]["macro_f1"]
            assert low <= policy["macro_f1"] <= high
    audit = json.loads((finished_run / "audit.json").read_text())
    assert audit["training_rows"]["synthetic"] > 0
    log = (finished_run / "train.log").read_text()
    assert "parameters train" in log and "eval_macro_f1" in log and "hub_release export" in log


BAD_SETTINGS = {
    "--data_dir nowhere": "nowhere",
    "--alpha unheard-of": "alpha",
    "--lora_target_modules nothing": "lora_target_modules",
    "--model_name /nope": "model_name: '/nope' cannot be loaded",
    "--model_name no/model": "model_name: 'no/model' cannot be loaded",
    "--model_name {empty}": "model_name",
    "--encoder sentence-transformers/nope": "encoder: 'sentence-transformers/nope' cannot be loaded",
    "--encoder sentence-transformers/{empty}": "encoder",
}


@pytest.mark.parametrize("bad", BAD_SETTINGS)
def test_bad_input_costs_no_finished_run(
    finished_run: Path, tmp_path: Path, tiny_backbone: str, capsys: pytest.CaptureFixture[str], bad: str
) -> None:
    (tmp_path / "empty").mkdir()
    run = shutil.copytree(finished_run, tmp_path / "run")

    def content() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != "train.log"}

    before = content()
    flags = tiny_flags(finished_run.parent / "corpus", tiny_backbone, run)
    assert main([*flags, *bad.format(empty=tmp_path / "empty").split(), "--overwrite"]) == 2
    assert content() == before
    message = capsys.readouterr().err.rpartition("error: ")[2]
    assert BAD_SETTINGS[bad] in message and "Traceback" not in message
    assert "Remedy: " in message


def test_files_of_others_are_left_alone(finished_run: Path, tmp_path: Path, tiny_backbone: str) -> None:
    mine = tmp_path / "mine"
    (mine / "model").mkdir(parents=True)
    (mine / "model" / "weights.txt").write_text("mine")
    assert main(tiny_flags(finished_run.parent / "corpus", tiny_backbone, mine)) == 2
    assert (mine / "model" / "weights.txt").read_text() == "mine"


def test_a_run_is_not_resumed_on_other_rows(
    finished_run: Path, tmp_path: Path, tiny_backbone: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    corpus = shutil.copytree(finished_run.parent / "corpus", tmp_path / "corpus")
    rows = (corpus / "validation.jsonl").read_text()
    (corpus / "validation.jsonl").write_text(rows.replace("sunny cake", "sunny pie", 1))
    before = {name: (run / name).read_bytes() for name in FILES if name != "train.log"}
    flags = [*tiny_flags(corpus, tiny_backbone, run), "--balance_target", "30", "--resume"]
    assert main(flags) == 2
    message = capsys.readouterr().err
    assert "validation changed since the run started" in message and "Remedy" in message
    assert {name: (run / name).read_bytes() for name in before} == before


def test_dropped_copies_are_on_record(finished_run: Path, tmp_path: Path) -> None:
    corpus = shutil.copytree(finished_run.parent / "corpus", tmp_path / "corpus")
    copies = (corpus / "test.jsonl").read_text().splitlines()[:3]
    with (corpus / "train.jsonl").open("a") as file:
        file.write("\n".join(copies) + "\n")
    shared = ["--head", "mlp", "--epochs", "1", "--audit_policy"]
    flags = [*tiny_flags(corpus, tmp_path, tmp_path / "kept"), *shared, "report"]
    assert main(flags) == 0
    metrics = json.loads((tmp_path / "kept" / "metrics.json").read_text())
    assert "test_without_copies" in metrics
    assert main([*tiny_flags(corpus, tmp_path, tmp_path / "dropped"), *shared, "drop-from-train"]) == 0
    audit = json.loads((tmp_path / "dropped" / "audit.json").read_text())
    assert audit["audit_policy"]["rows_dropped"] == 3 and audit["splits"]["train"]["rows"] == 48
    assert audit["audit_policy"]["copies_before"]["test_in_train"]["exact"] == 3
    assert audit["suspected_label_permutations"] == {"validation": [], "test": []}
    assert audit["imbalance"]["before"]["MeanIR"] >= 1
    assert main([*tiny_flags(corpus, tmp_path, tmp_path / "refused"), *shared, "fail"]) == 2


def test_checkpoints_hold_trained_weights_only(finished_run: Path) -> None:
    checkpoints = list((finished_run / "checkpoints").glob("checkpoint-*"))
    assert checkpoints
    for checkpoint in checkpoints:
        weights = [path for path in checkpoint.rglob("*") if path.suffix in (".safetensors", ".bin")]
        weights = [path for path in weights if path.name != "training_args.bin"]
        assert [path.name for path in weights] == ["adapter_model.safetensors"]
        with safe_open(weights[0], framework="numpy") as file:
            assert all("lora" in key or "projection" in key or "classifier" in key for key in list(file.keys()))


def test_a_second_run_encodes_nothing_and_gives_the_same(finished_run: Path, tiny_backbone: str) -> None:
    base = finished_run.parent
    flags = [*tiny_flags(base / "corpus", tiny_backbone, base / "again"), "--balance_target", "30"]
    assert main(flags) == 0
    log = (base / "again" / "train.log").read_text()
    assert "encoded nothing, all 84 texts are cached" in log
    for name in ("metrics.json", "golden.json", "thresholds.json", "audit.json"):
        assert (base / "again" / name).read_bytes() == (finished_run / name).read_bytes()


def test_a_run_is_not_overwritten_unasked(
    finished_run: Path, tiny_backbone: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (finished_run / "metrics.json").read_bytes()
    assert main(tiny_flags(finished_run.parent / "corpus", tiny_backbone, finished_run)) == 2
    assert "--resume" in capsys.readouterr().err
    assert (finished_run / "metrics.json").read_bytes() == before


def test_bad_input_ends_with_a_message(tmp_path: Path, tiny_backbone: str, capsys: pytest.CaptureFixture[str]) -> None:
    write_corpus(tmp_path / "corpus")
    (tmp_path / "corpus" / "train.jsonl").write_text('{"text": "x", "labels": ["sorrow"]}\n')
    assert main(tiny_flags(tmp_path / "corpus", tiny_backbone, tmp_path / "run")) == 2
    assert "train.jsonl, line 1, column 'labels': unknown label 'sorrow'" in capsys.readouterr().err


def test_encoding_is_cached_by_text_and_resumes(tmp_path: Path) -> None:
    seen: list[str] = []

    def counting(texts: list[str]) -> np.ndarray:
        if "stop" in texts:
            raise KeyboardInterrupt
        seen.extend(texts)
        return fake_encoder(texts)

    encoder = LoadedEncoder("fake", "1", counting)
    texts = [f"text {i % 700}" for i in range(900)]
    with pytest.raises(KeyboardInterrupt):
        encode([*texts, "stop"], encoder, tmp_path)
    assert len(seen) == 512
    vectors = encode(texts, encoder, tmp_path)
    np.testing.assert_array_equal(vectors, fake_encoder(texts))
    assert len(seen) == len(set(seen)) == 700
    encode(texts, encoder._replace(version="2"), tmp_path)
    assert len(seen) == 1_400
    assert LABELS and EmotionModel
