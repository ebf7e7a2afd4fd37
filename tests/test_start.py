"""``start_from``: what is taken over from a finished model, what begins anew, and what the records say of it."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from accelerate import PartialState
from huggingface_hub import metadata_load
from typer.testing import CliRunner

from hub_release.check.gate import check
from hub_release.cli import app
from hub_release.export import export
from modeling.infer import EmotionClassifier
from tests import HUB_CACHE
from tests.conftest import ROOT, tiny_flags, write_corpus
from tests.hub_server import TestHub
from training.corpora import Corpora
from training.fit.build import build_model
from training.fit.prepare import prepare
from training.fit.start import INHERITED
from training.options import override, parse
from training.recipe import RecipeError
from training.run import main
from training.trained import load_classifier

pytestmark = pytest.mark.usefixtures("pixels")

SHAPE = (
    "--input hybrid --pooling attention --attention bidirectional --window_length 8 --window_overlap 2 --lora_rank 3"
)
TRAINED = [*SHAPE.split(), "--num_hidden_layers", "1", "--balance", "none", "--epochs", "2"]
NEW_LABELS = ["anger", "sadness", "joy"]


def write_other_corpus(folder: Path) -> Path:
    """Rows with two of the labels of the first corpus, in another order, and a new one."""
    write_corpus(folder)
    for path in folder.iterdir():
        text = path.read_text()
        path.write_text(text.replace("fear", "sadness").replace("dark", "rainy"))
    return folder


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: str) -> Path:
    """A finished run."""
    base = tmp_path_factory.mktemp("start")
    assert main([*tiny_flags(write_corpus(base / "corpus"), tiny_backbone, base / "run"), *TRAINED]) == 0
    return base / "run"


@pytest.fixture(scope="module")
def package(first: Path) -> Path:
    """Its package."""
    export(first, first.parent / "package")
    return first.parent / "package"


def flags_of(corpus: Path, backbone: str, output: Path, start: Path | str) -> list[str]:
    """Flags of a run that starts from a model, with its own rows and labels."""
    recipe = output.parent / "own.yaml"
    recipe.write_text("balance: none\nepochs: 1\nbatch_size: 8\n")
    labels = " ".join(NEW_LABELS)
    return (
        f"--recipe {recipe} --dataset files --data_dir {corpus} --labels {labels} --output_dir {output} "
        f"--gradient_accumulation_steps 1 --start_from {start}"
    ).split()


@pytest.mark.parametrize("kind", ["run", "package"])
def test_weights_are_taken_over(kind: str, first: Path, package: Path, tiny_backbone: str, tmp_path: Path) -> None:
    """Before its first step a model says of common labels what its start says of them; a new label begins anew."""
    corpus = write_other_corpus(tmp_path / "corpus")
    recipe = parse(flags_of(corpus, tiny_backbone, tmp_path / "run", first if kind == "run" else package)).recipe
    settings = yaml.safe_load((first / "recipe.yaml").read_text())
    assert {name: getattr(recipe, name) for name in INHERITED} == {name: settings[name] for name in INHERITED}
    assert recipe.pooling == "attention" and recipe.lora_rank == 3 and recipe.num_hidden_layers == 1
    data = prepare(recipe, Corpora())
    trained = build_model(recipe, data, PartialState(cpu=True))
    texts = data.corpus["test"].texts
    whole = load_classifier(str(first))
    wanted = torch.logit(torch.from_numpy(whole.predict_proba(texts)).double())
    model = trained.get_base_model().eval()  # type: ignore[operator]
    with torch.no_grad():
        found = EmotionClassifier.from_model(model).predict_proba(texts)
    logits = torch.logit(torch.from_numpy(found).double())
    old = [list(whole.labels).index(label) for label in ("anger", "joy")]
    np.testing.assert_allclose(logits[:, [0, 2]], wanted[:, old], atol=1e-4)
    assert float((logits[:, 1] - wanted[:, 2]).abs().max()) > 1e-2  # sadness is not fear


def test_a_run_from_a_start_trains_and_says_what_it_started_from(
    package: Path, tiny_backbone: str, tmp_path: Path
) -> None:
    corpus = write_other_corpus(tmp_path / "corpus")
    flags = flags_of(corpus, tiny_backbone, tmp_path / "run", package)
    assert main(flags) == 0
    start = json.loads((tmp_path / "run" / "audit.json").read_text())["start"]
    assert start["labels_taken"] == ["anger", "joy"] and start["hub_id"] is None and len(start["sha256"]) == 64
    first = json.loads((package / "audit.json").read_text())
    assert first["splits"]["train"]["sha256"] in start["seen"]
    export(tmp_path / "run", tmp_path / "second")
    assert check(tmp_path / "second") == []
    card = (tmp_path / "second" / "README.md").read_text()
    assert start["sha256"] in card and "rows of 2 labels" in card
    assert (metadata_load(tmp_path / "second" / "README.md") or {})["started_from"] == {
        "model": None,
        "sha256": start["sha256"],
    }
    for path in (tmp_path / "second").rglob("*"):  # it is not told where the start lies
        assert not path.is_file() or str(package.parent).encode() not in path.read_bytes(), path
    # A resumed run has the start that it began with.
    assert main([*flags, "--resume"]) == 0
    moved = shutil.copytree(package, tmp_path / "moved")
    assert main([*[str(moved) if flag == str(package) else flag for flag in flags], "--resume"]) == 0
    assert main([*flags[: flags.index("--start_from")], *_inherited(package), "--resume"]) == 2


def _inherited(package: Path) -> list[str]:
    settings = yaml.safe_load((package / "recipe.yaml").read_text())
    flags: list[str] = []
    for name in INHERITED:
        values = settings[name] if isinstance(settings[name], list) else [settings[name]]
        flags += [] if settings[name] is None else [f"--{name}", *map(str, values)]
    return flags


def publish(hub: TestHub, name: str, package: Path, tiny_backbone: str) -> None:
    """A package and its backbone on the Hub."""
    [backbone] = Path(HUB_CACHE).glob(f"models--{tiny_backbone.replace('/', '--')}/snapshots/*")
    for model, folder in ((name, package), (tiny_backbone, backbone)):
        paths = [path for path in folder.rglob("*") if path.is_file()]
        hub.add("model", model, {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths})


def test_a_model_on_the_hub_is_named(package: Path, tiny_backbone: str, tmp_path: Path, hub: TestHub) -> None:
    publish(hub, "user/start", package, tiny_backbone)
    corpus = write_other_corpus(tmp_path / "corpus")
    assert main(flags_of(corpus, tiny_backbone, tmp_path / "run", "user/start")) == 0
    assert json.loads((tmp_path / "run" / "audit.json").read_text())["start"]["hub_id"] == "user/start"
    export(tmp_path / "run", tmp_path / "second")
    metadata = metadata_load(tmp_path / "second" / "README.md") or {}
    assert metadata["started_from"]["model"] == "user/start"


@pytest.mark.parametrize(
    "other", [["--pooling", "mean"], ["--lora_rank", "4"], ["--input", "tokens"], ["--encoder", "minilm"]]
)
def test_settings_that_do_not_agree_are_refused(
    other: list[str], package: Path, tiny_backbone: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = write_other_corpus(tmp_path / "corpus")
    assert main([*flags_of(corpus, tiny_backbone, tmp_path / "run", package), *other]) == 2
    said = capsys.readouterr().err
    assert f"{other[0][2:]}: " in said and f"Remedy: leave {other[0][2:]} out" in said
    assert not (tmp_path / "run" / "audit.json").exists()


def test_rows_that_the_start_has_seen_are_refused(
    package: Path, first: Path, tiny_backbone: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The start's training rows as test rows; and its corpus, split anew."""
    corpus = write_corpus(tmp_path / "corpus")
    recipe = ["--labels", "joy", "anger", "fear"]
    swapped = shutil.copytree(corpus, tmp_path / "swapped")
    (swapped / "test.jsonl").write_text((corpus / "train.jsonl").read_text())
    (swapped / "train.jsonl").write_text((corpus / "test.jsonl").read_text())
    assert main([*flags_of(swapped, tiny_backbone, tmp_path / "run", package), *recipe]) == 2
    assert "was trained on this run's test rows" in capsys.readouterr().err
    assert main([*flags_of(corpus, tiny_backbone, tmp_path / "run", package), *recipe, "--split", "stratified"]) == 2
    assert "was trained on the same corpus, split otherwise" in capsys.readouterr().err
    assert main([*flags_of(corpus, tiny_backbone, tmp_path / "run", package), *recipe]) == 0  # its own split is fine


@pytest.mark.parametrize("kind", ["tokens", "embedding"])
def test_starts_of_every_input(kind: str, finished_run: Path, tiny_backbone: str, tmp_path: Path) -> None:
    """One that reads words alone has no encoder in its configuration; one that reads one token has no queries and keys."""
    start = finished_run
    if kind == "tokens":
        start = tmp_path / "words"
        words = [
            "--input",
            "tokens",
            "--balance",
            "none",
            "--epochs",
            "1",
            "--window_length",
            "8",
            "--window_overlap",
            "2",
        ]
        assert main([*tiny_flags(write_corpus(tmp_path / "own"), tiny_backbone, start), *words]) == 0
    corpus = write_other_corpus(tmp_path / "corpus")
    assert main(flags_of(corpus, tiny_backbone, tmp_path / "run", start)) == 0
    assert json.loads((tmp_path / "run" / "audit.json").read_text())["start"]["labels_taken"] == ["anger", "joy"]


def test_a_start_is_not_overwritten(
    first: Path, tiny_backbone: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine, corpus = shutil.copytree(first, tmp_path / "mine"), write_other_corpus(tmp_path / "corpus")
    assert main([*flags_of(corpus, tiny_backbone, mine, mine), "--overwrite"]) == 2
    assert "is this run's own folder" in capsys.readouterr().err
    assert {path.name for path in mine.iterdir()} == {path.name for path in first.iterdir()}


def test_a_hostile_start_sets_nothing(
    package: Path, tiny_backbone: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Flags in a list, nested aliases, a rank without end, and a recipe that its model contradicts."""
    corpus, whole = write_other_corpus(tmp_path / "corpus"), yaml.safe_load((package / "recipe.yaml").read_text())
    bomb: list[object] = ["x"]
    for _ in range(30):
        bomb = [bomb] * 9
    for number, (key, value, message) in enumerate(
        [
            ("lora_target_modules", ["q_proj", "--dataset", "evil/rows"], "that is no setting"),
            ("model_name", bomb, "that is no setting"),
            ("lora_rank", 10**6, "in its recipe.yaml, and 3 in its model"),
            ("pooling", "mean", "in its recipe.yaml, and 'attention' in its model"),
        ]
    ):
        hostile = shutil.copytree(package, tmp_path / f"hostile-{number}")
        (hostile / "recipe.yaml").write_text(yaml.safe_dump(whole | {key: value}))
        assert main(flags_of(corpus, tiny_backbone, tmp_path / "run", hostile)) == 2
        assert message in capsys.readouterr().err


def test_what_is_no_start_is_refused(
    package: Path, finished_run: Path, tiny_backbone: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = write_other_corpus(tmp_path / "corpus")

    def refusal(start: Path | str) -> str:
        assert main(flags_of(corpus, tiny_backbone, tmp_path / "run", start)) == 2
        return capsys.readouterr().err

    assert "is neither a finished run nor a package" in refusal(tmp_path)
    assert "is neither a finished run nor a package" in refusal(tmp_path / "nowhere")
    damaged = shutil.copytree(package, tmp_path / "damaged")
    adapter = damaged / "lora_adapter" / "adapter_model.safetensors"
    adapter.write_bytes(adapter.read_bytes()[:-8])
    assert "cannot be taken over" in refusal(damaged)
    shutil.copyfile(finished_run / "model" / "adapter_model.safetensors", adapter)
    assert "cannot be taken over" in refusal(damaged)
    (damaged / "recipe.yaml").write_text("epochs: 3\n")
    assert "without a setting that is needed" in refusal(damaged)


def test_a_null_test_and_a_baseline_have_no_start(package: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="a start knows what the test removes"):
        parse(["null-test", "--start_from", str(package), "--recipe", str(_plain(tmp_path))])
    recipe = parse(["--start_from", str(package), "--recipe", str(_plain(tmp_path))]).recipe
    with pytest.raises(RecipeError, match="start_from: only head backbone"):
        override(recipe, {"head": "mlp", "input": "embedding", "pooling": "last", "attention": "causal"})


def _plain(folder: Path) -> Path:
    (folder / "plain.yaml").write_text("epochs: 1\n")
    return folder / "plain.yaml"


def test_from_a_hub_id_and_sixty_rows_to_a_package_of_ones_own(
    package: Path, tiny_backbone: str, tmp_path: Path, hub: TestHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The README's five commands."""
    text = (ROOT / "training" / "README.md").read_text(encoding="utf-8").split("### Few rows")[1]
    commands = [shlex.split(line) for line in text.split("```bash\n")[1].split("```")[0].splitlines()]
    assert len(commands) == 5
    publish(hub, "you/your-model", package, tiny_backbone)
    monkeypatch.chdir(tmp_path)
    words = {"billing": "charged twice", "delivery": "parcel late", "defect": "screen broken"}
    rows = [f"{i} {words[name]},{name}" for i, name in enumerate([*words] * 20)]
    Path("rows.csv").write_text("text,labels\n" + "\n".join(rows) + "\n")
    for command in commands:
        if command[1] == "training/run.py":
            assert main([*command[2:], "--folds", "2", "--bf16", "false"]) == 0
        elif command[0] == "hub_release":
            done = CliRunner().invoke(app, [*command[1:], *(["--yes"] if command[1] == "push" else [])])
            assert done.exit_code == 0, done.output
        else:
            run = subprocess.run([sys.executable, *command[1:]], capture_output=True, text=True, check=True)
            assert json.loads(run.stdout)["text"].startswith("The parcel")
    audit = json.loads(Path("runs/tickets/audit.json").read_text())
    assert audit["start"]["hub_id"] == "you/your-model" and audit["training_rows"]["real"] == 60
    assert "config.json" in hub.repositories["model", "you/tickets"].files("main")
