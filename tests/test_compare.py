"""Grids of runs and the null test, through the real entry point, with the baseline without a backbone."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from modeling.records import AUDIT, LOG_LOSSES
from tests.cards import edit
from tests.conftest import LABELS, write_corpus
from training.commands.compare import build_cells
from training.commands.null_test import chance_scores
from training.recipe import RecipeError
from training.run import main
from training.run_folder import RunFolder

pytestmark = pytest.mark.usefixtures("pixels")


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    base = tmp_path_factory.mktemp("compare")
    corpus = write_corpus(base / "corpus", rows=90)
    return (
        f"--recipe goemotions_mlp --dataset files --data_dir {corpus} --labels {' '.join(LABELS)} --neutral_keep 1 "
        "--epochs 4 --batch_size 16 --mlp_hidden_size 32 --balance_target 60"
    ).split()


def check_compare_runs(grid: Path, table: pd.DataFrame, capsys: pytest.CaptureFixture[str]) -> None:
    """compare-runs on the run folders of a grid gives the grid's table; a run does not differ from itself."""
    settings = [str(grid / f"balance={b}_loss={loss}") for b in ("none", "smote") for loss in ("bce", "focal-uniform")]
    before = sorted(grid.rglob("*"))
    capsys.readouterr()
    assert main(["--compare_runs", *settings]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert sorted(grid.rglob("*")) == before
    of_grid = (grid / "comparison.md").read_text().splitlines()
    assert [line.split(" | ")[1:] for line in shown] == [line.split(" | ")[1:] for line in of_grid]
    out = grid.parent / f"{grid.name}-compared"
    assert main(["--compare_runs", *settings, "--output_dir", str(out)]) == 0
    numbers = table.columns.drop("setting")
    pd.testing.assert_frame_equal(pd.read_csv(out / "comparison.csv")[numbers], table[numbers])
    assert sorted(path.name for path in out.iterdir()) == [f"comparison.{suffix}" for suffix in ("csv", "md", "png")]
    single = f"{settings[1]}/seed-1"
    capsys.readouterr()
    assert main(["--compare_runs", single, single, f"{settings[0]}/seed-1"]) == 0
    _, itself, other = capsys.readouterr().out.splitlines()[-3:]
    assert " | +0.0000 [+0.0000, +0.0000] | " in itself and " | – | – | " not in itself
    assert itself.endswith("| +0.000 [+0.000, +0.000] |") and not other.endswith("| +0.000 [+0.000, +0.000] |")


def test_compare_runs_refuses_what_cannot_be_paired(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [tmp_path / name for name in ("one", "texts", "labels", "references")]
    assert main([*flags, "--epochs", "1", "--output_dir", str(runs[0])]) == 0
    for run in runs[1:]:
        shutil.copytree(runs[0], run)
    edit(runs[1] / "audit.json", lambda audit: audit["splits"]["test"].update(sha256="0" * 64))
    edit(runs[2] / "audit.json", lambda audit: audit["labels"].reverse())
    arrays = RunFolder(runs[3]).read_arrays("predictions.npz")
    RunFolder(runs[3]).write_arrays("predictions.npz", arrays | {"test_references": arrays["test_references"][::-1]})
    for run in runs[1:]:
        capsys.readouterr()
        assert main(["--compare_runs", str(runs[0]), str(run)]) == 2
        told = capsys.readouterr().err
        assert f"{run} was tested on other rows or labels than {runs[0]}" in told and "Remedy: train both" in told
    earlier = RunFolder(tmp_path / "earlier")  # as from a version that did not record log losses
    shutil.copytree(runs[0], earlier.path)
    earlier.write_arrays("predictions.npz", {name: arrays[name] for name in arrays if name != LOG_LOSSES})
    assert main(["--compare_runs", str(runs[0]), str(earlier.path)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].count(" | – | – | ") == 1
    (runs[1] / "timing.json").unlink()
    for bad in (runs[1], tmp_path / "none"):
        assert main(["--compare_runs", str(runs[0]), str(bad)]) == 2
        assert f"{bad} is not a finished run. Remedy" in capsys.readouterr().err
    assert main(["--compare_runs", str(runs[0])]) == 2
    assert "needs at least two run folders" in capsys.readouterr().err


def test_compare_resumes_and_pairs(flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [*flags, "--compare", "balance=none,smote", "loss=bce,focal-uniform", "--seeds", "0", "1"]
    command += ["--output_dir", str(tmp_path)]
    assert main(command) == 0
    table = pd.read_csv(tmp_path / "comparison.csv")
    assert len(table) == 4 and (table["seeds"] == 2).all()
    assert np.isnan(table.loc[0, "difference"])
    others = table.loc[1:]
    np.testing.assert_allclose(others["difference"], others["test"] - table.loc[0, "test"], atol=1e-3)
    assert (others["difference_low"] <= others["difference"]).all()
    assert (others["difference"] <= others["difference_high"]).all()
    log_losses = [RunFolder(run).read("calibration.json") for run in tmp_path.glob("balance=none_loss=bce/seed-*")]
    mean = np.mean([entry["cross_fitted_log_loss"][entry["method"]] for entry in log_losses])
    assert table.loc[0, "log_loss"] == pytest.approx(mean, abs=1e-5)
    paired = others["log_loss"] - table.loc[0, "log_loss"]
    np.testing.assert_allclose(others["log_loss_difference"], paired, atol=2e-5)
    assert (others["log_loss_difference_low"] < others["log_loss_difference"]).all()
    assert (others["log_loss_difference"] < others["log_loss_difference_high"]).all()
    # Both runs use the same resampled rows, so the interval of a difference is narrower than with separate draws.
    apart = np.hypot(table.loc[0, "test_high"] - table.loc[0, "test_low"], others["test_high"] - others["test_low"])
    assert (others["difference_high"] - others["difference_low"] < apart).all()
    assert (table["test_low"] <= table["test"]).all() and (table["test"] <= table["test_high"]).all()
    assert (tmp_path / "comparison.png").stat().st_size > 5_000
    assert "balance none, loss bce" in (tmp_path / "comparison.md").read_text()
    runs = sorted(tmp_path.glob("*/seed-*/timing.json"))
    assert len(runs) == 8 and not list(tmp_path.glob("*/seed-*/checkpoints"))
    metrics = json.loads((runs[0].parent / "metrics.json").read_text())
    found = [
        json.loads(run.with_name("metrics.json").read_text())
        for run in tmp_path.glob("balance=none_loss=bce/*/timing.json")
    ]
    mean = np.mean([entry["test"]["per_label"]["macro_f1"] for entry in found])
    assert table.loc[0, "test"] == pytest.approx(mean, abs=1e-4) and metrics["protocol"] == "official"
    told = (tmp_path / "comparison.md").read_text().partition("\n")[0]
    assert "mean over 2 seeds" in told and "bootstrap samples of the rows" in told and "do not say" in told
    check_compare_runs(tmp_path, table, capsys)
    # Only the missing run is made again.
    stamps = {run: run.stat().st_mtime_ns for run in runs}
    runs[3].unlink()
    assert main(command) == 0
    assert [run for run in runs if run.stat().st_mtime_ns != stamps[run]] == [runs[3]]
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "comparison.csv"), table)
    # Other settings are other runs.
    stamps = {run: run.stat().st_mtime_ns for run in runs}
    assert main([*command, "--epochs", "1"]) == 2
    assert "finished with other settings or rows: " in capsys.readouterr().err
    assert all(run.stat().st_mtime_ns == stamps[run] for run in runs)
    fewer = ["--compare", "balance=none", "loss=bce", "--seeds", "0"]
    again = [*flags, *fewer, "--output_dir", str(tmp_path), "--epochs", "1", "--overwrite"]
    assert main(again) == 0
    replaced = tmp_path / "balance=none_loss=bce" / "seed-0" / "timing.json"
    assert [run for run in runs if run.stat().st_mtime_ns != stamps[run]] == [replaced]


def test_compare_runs_again_where_rows_changed_and_nowhere_else(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = shutil.copytree(flags[flags.index("--data_dir") + 1], tmp_path / "corpus")
    output = corpus / "grid"  # a run folder inside the data folder does not change the data
    copied = (corpus / "test.jsonl").read_text().splitlines(keepends=True)[0]
    (corpus / "train.jsonl").write_text(copied + (corpus / "train.jsonl").read_text())
    command = [*flags, "--data_dir", str(corpus), "--audit_policy", "drop-from-train", "--epochs", "1"]
    command += ["--compare", "balance=none", "--output_dir"]

    def made(*more: str) -> str:
        assert main([*command, str(output), *more]) == 0
        return capsys.readouterr().out.partition(" of 1 runs")[0][-1]

    assert [made(), made()] == ["1", "0"]
    (corpus / "train.jsonl").touch()
    assert made() == "0"
    lines = (corpus / "train.jsonl").read_text().splitlines(keepends=True)
    (corpus / "train.jsonl").write_text("".join(lines[:60]))
    os.utime(corpus / "train.jsonl", (0, 0))  # as from an archive: older than the run
    assert main([*command, str(output)]) == 2  # a finished run is not replaced unasked
    assert "finished with other settings or rows: " in capsys.readouterr().err
    assert [made("--overwrite"), made()] == ["1", "0"]
    audit = json.loads(next(output.glob("*/seed-*/audit.json")).read_text())
    assert audit["training_rows"]["real"] == 59


@pytest.mark.parametrize("has_instructions", [False, True])
def test_a_run_is_done_also_for_a_cpu_with_other_precisions(
    flags: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    has_instructions: bool,
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: has_instructions)
    command = [*flags, "--bf16", "true", "--epochs", "1", "--compare", "balance=none", "--output_dir", str(tmp_path)]
    assert main(command) == 0 and "1 of 1 runs" in capsys.readouterr().out
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: not has_instructions)
    assert main(command) == 0 and "0 of 1 runs" in capsys.readouterr().out


def test_a_setting_against_itself_differs_by_nothing(flags: list[str], tmp_path: Path) -> None:
    command = [*flags, "--compare", "mlsmote_labels=ranking,union", "labels=[joy,anger,fear]"]
    assert main([*command, "--output_dir", str(tmp_path)]) == 0  # with balance ismote both settings are equal
    table = pd.read_csv(tmp_path / "comparison.csv")
    assert table.loc[1, ["difference", "difference_low", "difference_high"]].tolist() == [0, 0, 0]


def test_seeds_share_the_rows_of_a_new_split(
    tmp_path: Path, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    output, quick = tmp_path / "grid", ["--split", "stratified", "--epochs", "1", "--seeds", "0", "1"]
    assert main(["compare", "loss=bce", *flags, *quick, "--output_dir", str(output)]) == 0
    runs = [RunFolder(output / "loss=bce" / f"seed-{seed}") for seed in (0, 1)]
    splits = [run.read(AUDIT)["splits"] for run in runs]
    assert splits[0] == splits[1]
    assert (runs[0].path / "predictions.npz").read_bytes() != (runs[1].path / "predictions.npz").read_bytes()
    other = ["--split_seed", "5", "--output_dir", str(tmp_path / "other")]
    assert main([*flags, *quick[:4], *other]) == 0
    assert RunFolder(tmp_path / "other").read(AUDIT)["splits"] != splits[0]
    capsys.readouterr()
    pooled = ["--split", "pooled-r2", "--neutral_keep", "0.5", "--seeds", "0", "1"]
    assert main(["compare", "loss=bce", *flags, *pooled, "--output_dir", str(tmp_path / "pooled")]) == 2
    assert "each seed is tested on other rows" in capsys.readouterr().err and not (tmp_path / "pooled").exists()


def test_bad_axes(tmp_path: Path, flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for axes, message in (
        (["balance"], "write field=value,value"),
        (["loss=hinge"], "unknown loss hinge"),
        (["seed=0,1"], "seeds of every setting as --seeds"),
        (["balance=none", "balance=smote"], "given twice"),
        (["loss=bce", "gamma=0,2"], "loss sets alpha and gamma"),
        (["balance=none,none"], "balance none is given twice. Remedy"),
        (["gamma=2,2.0"], "gamma 2.0 is given twice"),
        (["labels=[a b],[a-b]"], r"labels .'a b'.* and .*labels .'a-b'.* would share the folder .*Remedy"),
    ):
        with pytest.raises(RecipeError, match=message):
            build_cells(axes, [0], tmp_path)
    long = build_cells([f"teachers=[/{'a' * 300}],[/{'a' * 300}b]"], [0], tmp_path)
    assert len({cell.runs[0].path for cell in long}) == 2
    assert all(len(cell.runs[0].path.parent.name) < 256 for cell in long)
    cells = build_cells(["labels=[joy,anger],ekman", 'alpha={"joy":0.7},r2'], [0], tmp_path)
    assert [cell.overrides["labels"] for cell in cells] == [["joy", "anger"]] * 2 + ["ekman"] * 2
    assert cells[0].overrides["alpha"] == {"joy": 0.7} and len({cell.runs[0].path for cell in cells}) == 4
    for bad, message in (
        (["--seeds", "1"], "--seeds belongs to the verb compare"),
        (["--compare", "gamma=1", "--null_test"], "are different verbs"),
    ):
        assert main([*flags, *bad, "--output_dir", str(tmp_path)]) == 2
        assert message in capsys.readouterr().err
    for axis in ("color=red", "recipe=quickstart,goemotions", "output_dir=a,b", "help=a,b"):
        assert main(["compare", axis, *flags, "--output_dir", str(tmp_path)]) == 2
        assert f"{axis.partition('=')[0]} is not a setting." in capsys.readouterr().err


def test_null_test_passes_the_honest_order_and_fails_the_references(
    flags: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shared = [*flags, "--null_test", "--embedding_noise", "0", "--epochs", "12", "--mlp_hidden_size", "256"]
    assert main([*shared, "--output_dir", str(tmp_path / "honest")]) == 0
    pooled = ["--split", "pooled-r2", "--balance", "ismote-r2", "--balance_target", "400"]
    assert main([*shared, *pooled, "--output_dir", str(tmp_path / "pooled")]) == 1
    outcome = json.loads((tmp_path / "pooled" / "null_test" / "null_test.json").read_text())
    assert outcome["protocol"] == "pooled-r2"
    for name in ("noise", "labels"):
        assert outcome[name]["macro_f1"] > outcome[name]["chance_limit"] > outcome[name]["chance_mean"] > 0
    honest = json.loads((tmp_path / "honest" / "null_test" / "null_test.json").read_text())
    assert all(honest[name]["passed"] for name in ("noise", "labels"))
    audit = json.loads((tmp_path / "pooled" / "null_test" / "noise" / "audit.json").read_text())
    assert audit["training_rows"]["synthetic_with_parent_outside_train"] > 0


def test_chance_is_what_no_skill_gives() -> None:
    from tests.test_splits import make
    from training.fit.prepare import Prepared

    corpus = make(0, 4_000)
    generator = np.random.default_rng(0)
    embeddings = {name: generator.normal(size=(len(split), 8)) for name, split in corpus.splits.items()}
    data = Prepared(corpus, embeddings, None, {}, {}, "")  # type: ignore[arg-type]
    found = chance_scores(data, seed=0, readouts=20)
    share = corpus["test"].labels.mean(axis=0)
    # Predicting a label for every row gives recall 1 and precision p, so 2p / (1 + p): the best F1 for noise.
    assert found.mean() == pytest.approx((2 * share / (1 + share)).mean(), abs=0.03)


def test_settings_that_differ_in_steps_are_told(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", "epochs=1,3", *flags, "--output_dir", str(tmp_path / "grid")]) == 0
    table = pd.read_csv(tmp_path / "grid" / "comparison.csv")
    assert table["steps"][1] == 3 * table["steps"][0] > 0
    told = f"(epochs 1: {table['steps'][0]:,.0f}, epochs 3: {table['steps'][1]:,.0f})"
    assert told in (tmp_path / "grid" / "comparison.md").read_text()
    capsys.readouterr()
    assert main(["compare", "lora_rank=4,8", *flags, "--output_dir", str(tmp_path / "same")]) == 0
    assert "differ in optimizer steps" not in capsys.readouterr().out
