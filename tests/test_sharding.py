"""Sharded training: FSDP2 over gloo gives what one whole model gives, and its checkpoints continue in one process."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from accelerate import PartialState
from accelerate.commands.config.config_args import load_config_from_file
from transformers import MistralModel

from hub_release.export import export
from modeling.backbones import load_frozen_backbone
from modeling.infer import EmotionClassifier, find_damage
from modeling.memory.plan import plan_memory
from modeling.memory.shards import FETCHED, shard
from modeling.recipe import Recipe
from tests import EXHAUSTIVE
from tests.conftest import ROOT, tiny_config, tiny_flags, write_corpus
from tests.forks import FSDP2, Training
from tests.test_trainer import cut_off, weights_of
from training.corpora import Corpora
from training.fit import sharding
from training.fit.batch import read_setting
from training.fit.build import build_model
from training.fit.prepare import prepare
from training.fit.sharding import prepare_sharding, refuse_other_checkpoints, refuse_unshardable, sharded_by
from training.options import parse
from training.recipe import RecipeError
from training.run import main
from training.run_folder import RunFolder, RunFolderError

pytestmark = pytest.mark.usefixtures("pixels")
STEPS = 12


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharding")
    write_corpus(folder / "corpus", rows=58)
    return folder


def flags_of(base: Path, backbone: str | Path, reads: str, run: Path, processes: int) -> list[str]:
    """A checkpoint after each of twelve steps of 16 rows."""
    flags = tiny_flags(base / "corpus", backbone, run)
    flags += ["--head_dropout", "0", "--embedding_noise", "0", "--balance", "none", "--input", reads]
    return [*flags, "--batch_size", str(16 // processes), "--checkpoint_minutes", "1e-9", "--save_total_limit", "99"]


def train(
    base: Path, backbone: str | Path, reads: str, run: Path, processes: int, *more: str, sharded: bool = True
) -> None:
    command = [*flags_of(base, backbone, reads, run, processes), *more]
    done = Training(command, base, processes, sharded=sharded and processes > 1).wait()
    assert done == 0, (base / "launch.log").read_text(encoding="utf-8")[-3000:]


@pytest.fixture(scope="module", params=["embedding", "tokens"])
def runs(base: Path, tiny_backbone: str, request: pytest.FixtureRequest) -> dict[str, Path]:
    """The same run in one process, and sharded over two."""
    found = {name: base / f"{request.param}-{name}" for name in ("whole", "sharded")}
    for (_, run), processes in zip(found.items(), (1, 2), strict=True):
        train(base, tiny_backbone, request.param, run, processes)
    return found


def apart(first: Path, second: Path) -> float:
    """The greatest difference between the weights of two runs."""
    one, two = weights_of(first), weights_of(second)
    assert one.keys() == two.keys() and len(one) > 20
    return max(float((one[name] - two[name]).abs().max()) for name in one)


def test_sharded_training_gives_the_weights_of_one_model(runs: dict[str, Path]) -> None:
    assert apart(runs["whole"], runs["sharded"]) < 1e-5
    saved = torch.load(runs["sharded"] / "checkpoints" / "checkpoint-4" / "optimizer.bin", weights_only=True)
    assert len(saved["state"]) == len(weights_of(runs["whole"]))  # whole, not a part of each


def test_the_exported_package_is_the_same(runs: dict[str, Path], tmp_path: Path) -> None:
    found = {}
    for name, run in runs.items():
        export(run, tmp_path / name)
        found[name] = EmotionClassifier(tmp_path / name).predict_proba(["a sunny cake", "a dark cellar"])
    np.testing.assert_allclose(found["sharded"], found["whole"], rtol=0, atol=1e-5)
    files = [{path.relative_to(tmp_path / name) for path in (tmp_path / name).rglob("*")} for name in runs]
    assert files[0] == files[1]


@pytest.mark.skipif(not EXHAUSTIVE, reason="takes a minute; EXHAUSTIVE=1 runs it")
def test_bfloat16_and_checkpointing_are_sharded_too(
    base: Path, runs: dict[str, Path], tiny_backbone: str, tmp_path: Path
) -> None:
    reads, checkpointing = runs["whole"].name.split("-")[0], ["--gradient_checkpointing", "true"]
    train(base, tiny_backbone, reads, tmp_path / "checkpointing", 2, *checkpointing)
    assert apart(runs["whole"], tmp_path / "checkpointing") < 1e-5
    for name, processes in (("bfloat16", 1), ("both", 2)):
        train(base, tiny_backbone, reads, tmp_path / name, processes, *checkpointing, "--bf16", "true")
    rounding = apart(runs["whole"], tmp_path / "bfloat16")  # of matrices; sharded, also of norms, heads and gradients
    assert 0 < apart(tmp_path / "bfloat16", tmp_path / "both") < 4 * rounding


@pytest.mark.parametrize("before", ["whole", "sharded"])
def test_a_checkpoint_continues_in_the_other_form(
    base: Path, runs: dict[str, Path], before: str, tiny_backbone: str, tmp_path: Path
) -> None:
    """From the middle of the second epoch, with the best checkpoint before it."""
    reads, cut = runs[before].name.split("-")[0], tmp_path / "cut"
    cut_off(runs[before], cut, last=6, steps=STEPS)
    processes = {"whole": 2, "sharded": 1}[before]
    as_before = ["--batch_size", str(8 * processes)]  # of a process, which would change the rows of a step
    with pytest.raises(AssertionError, match=r"steps of (8|32) rows, but those of .* have 16\. Remedy"):
        train(base, tiny_backbone, reads, cut, processes, "--resume", *as_before)
    train(base, tiny_backbone, reads, cut, processes, "--resume")
    log = (cut / "train.log").read_text(encoding="utf-8").split("resuming from")[1]
    assert "checkpoint-6" in log.splitlines()[0] and "checkpoint-6 was converted" in log
    assert apart(runs["whole"], cut) < 1e-5


def test_four_bit_weights_are_sharded(base: Path, tmp_path: Path) -> None:
    config = tiny_config()
    config.hidden_size, config.intermediate_size, config.head_dim = 128, 256, 32
    MistralModel(config).save_pretrained(tmp_path / "backbone")
    quantized = ["--quantization", "nf4", "--bnb_4bit_quant_storage", "bfloat16"]
    for name in ("whole", "sharded"):  # both in two processes: 4-bit layers round otherwise for other batches
        sharded = name == "sharded"
        train(base, tmp_path / "backbone", "embedding", tmp_path / name, 2, *quantized, sharded=sharded)
    assert apart(tmp_path / "whole", tmp_path / "sharded") < 1e-5
    # What accelerate says of weights that it leaves whole.
    assert "Excluding from FSDP2 sharding" not in (base / "launch.log").read_text(encoding="utf-8")


REFUSED = {
    "head": ["--head", "mlp"],
    "bnb_4bit_quant_storage": ["--quantization", "nf4"],
    "quantization": ["--quantization", "8bit"],
    "loader": [
        "--loader",
        "unsloth",
        "--quantization",
        "nf4",
        "--one_token",
        "false",
        "--bnb_4bit_quant_storage",
        "bfloat16",
    ],
    "optim": ["--optim", "adamw_bnb_8bit"],
    "torch_compile": ["--torch_compile", "true"],
    "split": ["--recipe", "adapt", "--dataset", "starter"],
}


@pytest.mark.parametrize("setting", REFUSED)
def test_what_cannot_be_sharded_is_refused(setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = parse(REFUSED[setting]).recipe
    refuse_unshardable(recipe, sharded_by())  # nobody asked to shard
    for engine, key in (("FSDP", "ACCELERATE_USE_FSDP"), ("DeepSpeed", "ACCELERATE_USE_DEEPSPEED")):
        with monkeypatch.context() as patch:
            patch.setenv(key, "true")
            with pytest.raises(RecipeError, match=rf"^{setting}: .* does not go with {engine}: .*Remedy: "):
                refuse_unshardable(recipe, sharded_by())


def test_the_plan_of_a_rank(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the 24B in 4-bit: a process holds its share of weights and states, and some layers as they are needed."""
    flags = ["--recipe", "mistral_24b_tokens", "--bnb_4bit_quant_storage", "bfloat16", "--optim", "adamw_torch"]
    setting = read_setting(parse(flags).recipe)
    plan = plan_memory(setting)
    shards = {ranks: shard(plan, ranks, 40) for ranks in (1, 2, 8)}
    for moment in ("step", "optimizer"):
        parts, whole = plan.training[moment], shards[1][moment]
        assert {name: size for name, size in whole.items() if name != FETCHED} == parts
        for ranks in (2, 8):
            mine = shards[ranks][moment]
            assert mine.get("activations") == parts.get("activations")
            for name in ("quantized matrices", "optimizer states"):
                assert parts[name] <= ranks * mine[name] < parts[name] + ranks
    step = plan.training["step"]
    one_layer = (step["quantized matrices"] + step["adapters"]) // 40
    assert shards[8]["step"][FETCHED] == one_layer + max(one_layer, 131_072 * 5_120 * 2)
    assert sum(shards[8]["step"].values()) < 0.5 * sum(step.values())
    monkeypatch.setattr("training.commands.plan.savings", lambda _: {"the recipe as it stands": setting})
    monkeypatch.setattr("training.commands.plan.plan_memory", lambda _: plan)
    assert main(["plan", *flags, "--ranks", "8"]) == 0
    printed = capsys.readouterr().out
    assert "a step/8" in printed and FETCHED in printed and "one of 8 GPUs that shard the training by FSDP2" in printed
    assert main(["plan", "--ranks", "0"]) == 2 and "Remedy: use 1" in capsys.readouterr().err
    assert main(["plan", "--recipe", "mistral_24b_tokens", "--ranks", "2"]) == 2
    assert "bnb_4bit_quant_storage: uint8 does not go with FSDP" in capsys.readouterr().err


def test_weights_that_were_quantized_before_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config()
    config.hidden_size, config.intermediate_size, config.head_dim = 128, 256, 32
    MistralModel(config).save_pretrained(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(RecipeError, match=r"packed in torch\.uint8, which FSDP cannot shard. Remedy: "):
        prepare_sharding(load_frozen_backbone(str(tmp_path), None, "nf4", "cpu"))
    prepare_sharding(load_frozen_backbone(str(tmp_path), None, "nf4", "cpu", bnb_4bit_quant_storage="bfloat16"))


CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "ddp_two_hosts": {"distributed_type": "MULTI_GPU", "num_machines": 2, "num_processes": 16},
    "fsdp2": {"distributed_type": "FSDP", "num_processes": 8},
    "fsdp_qlora": {"distributed_type": "FSDP", "num_processes": 2},
    "deepspeed_zero3": {"distributed_type": "DEEPSPEED", "num_processes": 8},
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_accelerate_reads_its_configurations(name: str) -> None:
    found = load_config_from_file(str(ROOT / "training" / "accelerate_configs" / f"{name}.yaml"))
    for key, value in CONFIGURATIONS[name].items():
        assert getattr(found, key) == value
    if found.fsdp_config:
        names = {f"FSDP_{key.removeprefix('fsdp_').upper()}": str(value) for key, value in found.fsdp_config.items()}
        for key, value in FSDP2.items():
            assert key == "ACCELERATE_USE_FSDP" or names[key].lower() == value.lower(), key


def test_every_configuration_is_tested() -> None:
    files = {path.stem for path in (ROOT / "training" / "accelerate_configs").glob("*.yaml")}
    assert files == set(CONFIGURATIONS)


@pytest.mark.parametrize("stops_at", ["_write", "_drop_other_form", "seal"])
def test_a_conversion_that_is_stopped_loses_nothing(
    runs: dict[str, Path], stops_at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped at the second call of each step, a checkpoint is as it was sealed, and the next start finishes."""
    for before, processes in (("whole", "2"), ("sharded", "1")):
        folder = tmp_path / before
        shutil.copytree(runs[before], folder)
        run, trainer = RunFolder(str(folder)), trainer_of(folder)
        calls, whole = [0], getattr(sharding, stops_at)

        def stop(*arguments: Any, whole: Any = whole, calls: list[int] = calls) -> Any:
            calls[0] += 1
            if calls[0] == 2:
                raise KeyboardInterrupt
            return whole(*arguments)

        with monkeypatch.context() as patch:
            if processes == "2":
                patch.setenv("ACCELERATE_USE_FSDP", "true")
            with patch.context() as stopped:
                stopped.setattr(sharding, stops_at, stop)
                with pytest.raises(KeyboardInterrupt):
                    sharding.fit_checkpoints(run, trainer)
            assert len(run.inspect_checkpoints()[1]) == 0  # none is damaged
            sharding.fit_checkpoints(run, trainer)
        for checkpoint in run.checkpoints.iterdir():
            assert not find_damage(checkpoint)
            names = {path.name for path in checkpoint.iterdir()}
            assert ("optimizer.bin" in names) == ("pytorch_model_fsdp.bin" in names) == (processes == "2")
            assert ("optimizer.pt" in names) == (processes == "1")


def test_deepspeed_goes_on_with_its_own_checkpoints_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunFolder(str(tmp_path))
    checkpoint = run.checkpoints / "checkpoint-4"
    checkpoint.mkdir(parents=True)
    for own in (False, True):
        for engine in ("", "ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"):
            with monkeypatch.context() as patch:
                patch.setenv(engine or "NOTHING", "true")
                if own == (engine == "ACCELERATE_USE_DEEPSPEED"):
                    refuse_other_checkpoints(run)
                    continue
                with pytest.raises(RunFolderError, match=rf"checkpoint-4 is {'' if own else 'not '}one of DeepSpeed"):
                    refuse_other_checkpoints(run)
        (checkpoint / "global_step4").mkdir(exist_ok=True)


def trainer_of(run: Path) -> Any:
    """The model of a run, as a trainer has it before it trains."""
    recipe = Recipe(**yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8")))
    data = prepare(recipe, Corpora())
    return SimpleNamespace(model=build_model(recipe, data, PartialState(cpu=True)))


def test_settings_of_accelerate_that_do_not_work_here_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = parse([]).recipe
    for key, value in FSDP2.items():
        monkeypatch.setenv(key, value)
    refuse_unshardable(recipe, sharded_by())
    for key, value in {
        "FSDP_VERSION": "1",
        "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
        "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
    }.items():
        with monkeypatch.context() as patch:
            patch.setenv(key, value)
            with pytest.raises(RecipeError, match=rf"{key.lower()} is {value.lower()}, .*Remedy: "):
                refuse_unshardable(recipe, sharded_by())
    plain: Any = SimpleNamespace(is_fsdp_enabled=False, is_deepspeed_enabled=False)
    with pytest.raises(RecipeError, match=r"asked for FSDP, and does none: it needs GPUs.*Remedy: "):
        sharding.refuse_other_engine(plain)  # what accelerate does on a CPU
    monkeypatch.delenv("ACCELERATE_USE_FSDP")
    sharding.refuse_other_engine(plain)
