"""The verbs push and pull: what they ask, print and return; and from a run to a stranger, one command each."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from huggingface_hub import snapshot_download
from typer.testing import CliRunner

import hub_release.check
import hub_release.push
from hub_release.cli import app
from hub_release.package import LAYOUT, package_files
from tests import HUB_CACHE
from tests.conftest import ROOT, write_files
from tests.hub_server import WRITER, TestHub, environment
from tests.hub_store import RefusalError

NAME = "you/model"
FILES = {"README.md": b"# hello", "config.json": b"{}", "head_weights.pt": b"tensors" * 50}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_files(tmp_path / "package", FILES)


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, bytes]]:
    """Stands in for the check, which takes seconds: what it was shown; a package with bad.txt does not pass it."""
    shown: list[dict[str, bytes]] = []

    def check(package: Path, allow_contaminated: bool = False) -> list[str]:
        shown.append({path: file.read_bytes() for path, file in package_files(package).items()})
        problems = ["bad. Remedy: one", "worse. Remedy: two"] if (package / "bad.txt").exists() else []
        return problems + ["contaminated"] * ((package / "pooled.txt").exists() and not allow_contaminated)

    monkeypatch.setattr(hub_release.push, "check", check)
    monkeypatch.setattr(hub_release.check, "check", check)
    return shown


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    assert WRITER not in result.output
    return result.stdout if "--json" in arguments else result.output


def test_push_and_pull_as_verbs(hub: TestHub, folder: Path, tmp_path: Path, checked: list[dict[str, bytes]]) -> None:
    text = run("push", folder, NAME, "--dry-run")
    assert "will be made" in text and "+ config.json (new)" in text and "Nothing was touched" in text
    assert not hub.repositories and len(checked) == 1
    text = run("push", folder, NAME, "--yes", "--tag", "v1", "--message", "First")
    head = hub.repositories["model", NAME].branches["main"]
    assert f"{hub.url}/{NAME}/commit/{head}" in text and hub.repositories["model", NAME].resolve(head).title == "First"
    assert checked[1:] == [FILES, FILES], "before the push, and what a stranger gets"
    assert hub.repositories["model", NAME].tags == {"v1": head}
    assert "holds this package already" in run("push", folder, NAME, "--yes", "--tag", "v1", "--no-verify")
    (folder / "config.json").write_bytes(b"[]")
    taken = run("push", folder, NAME, "--yes", "--tag", "v1", code=2)
    assert f"v1 of {NAME} names the commit {head} already. Remedy: another --tag" in taken
    assert hub.repositories["model", NAME].files() == FILES, "the tag is looked at before anything is pushed"
    assert "~ config.json (changed)" in run("push", folder, NAME, "--yes", "--no-verify", "--tag", "v2")
    assert "complete" in run("pull", NAME, tmp_path / "first", "--revision", "v1")
    assert checked[-1] == FILES


def test_a_lost_answer_to_the_tag(hub: TestHub, folder: Path, checked: list[dict[str, bytes]]) -> None:
    hub.fail("lost answer", within="/tag/")
    run("push", folder, NAME, "--yes", "--tag", "v1", "--no-verify")
    assert hub.repositories["model", NAME].tags == {"v1": hub.repositories["model", NAME].branches["main"]}


def test_what_a_stranger_gets_is_checked(
    hub: TestHub, folder: Path, checked: list[dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = hub_release.push.check
    monkeypatch.setattr(
        hub_release.push, "check", lambda package, allow: real(package, allow) or ["b"] * (len(checked) > 1)
    )
    text = run("push", folder, NAME, "--yes", code=1)
    assert "is pushed, but what a stranger gets fails the check" in text and "✗ b" in text


def test_refused_packages(hub: TestHub, folder: Path, checked: list[dict[str, bytes]]) -> None:
    (folder / "bad.txt").write_text("bad")
    text = run("push", folder, NAME, "--yes", code=1)
    assert "✗ bad. Remedy: one\n✗ worse. Remedy: two" in text and not hub.repositories and not hub.requests
    (folder / "bad.txt").rename(folder / "pooled.txt")
    assert "✗ contaminated" in run("push", folder, NAME, "--yes", code=1) and not hub.requests
    run("push", folder, NAME, "--yes", "--allow-contaminated")
    assert "pooled.txt" in hub.repositories["model", NAME].files()


def test_what_was_checked_is_what_is_pushed(
    hub: TestHub, folder: Path, checked: list[dict[str, bytes]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whoever changes the folder while the push waits for an answer changes nothing of what is pushed."""
    (tmp_path / "secret").write_bytes(b"secret")

    def change(*arguments: object, **options: object) -> bool:
        (folder / "config.json").write_bytes(b"[]")
        (folder / "README.md").unlink()
        (folder / "README.md").symlink_to(tmp_path / "secret")
        (folder / "more.txt").write_bytes(b"secret")
        return True

    monkeypatch.setattr(typer, "confirm", change)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    with pytest.raises(SystemExit):
        app(["push", str(folder), NAME, "--no-verify"])
    assert checked == [FILES] and hub.repositories["model", NAME].files() == FILES
    text = run("push", folder, NAME, "--yes", code=1)
    assert "✗ README.md is a link that leaves the package. Remedy: delete it" in text and len(checked) == 1


def test_json_and_exit_codes(hub: TestHub, folder: Path, tmp_path: Path, checked: list[dict[str, bytes]]) -> None:
    def answer(*arguments: object, code: int = 0) -> dict[str, Any]:
        result = json.loads(run(*arguments, "--json", code=code))
        assert result["ok"] == (code == 0)
        return result

    planned = answer("push", folder, NAME, "--dry-run")
    assert planned["plan"]["new"] == sorted(FILES) and planned["commit"] is None
    pushed = answer("push", folder, NAME, "--yes", "--tag", "v1")
    assert pushed["changed"] and pushed["verified"] and pushed["tag"] == "v1"
    assert pushed["url"] == f"{hub.url}/{NAME}/commit/{pushed['commit']}"
    assert not answer("push", folder, NAME, "--yes")["changed"]
    assert answer("pull", NAME, tmp_path / "pulled")["commit"] == pushed["commit"]
    assert "Remedy: delete it" in answer("pull", NAME, tmp_path / "pulled", code=2)["error"]
    assert "--yes to push" in answer("push", folder, NAME, code=2)["error"], "nobody is here to be asked"
    assert "leave out one" in answer("push", folder, NAME, "--yes", "--tag", "v1", "--create-pr", code=2)["error"]
    assert "not a finished run" in answer("push", tmp_path, NAME, "--yes", code=2)["error"]
    assert "not a finished run" in answer("export", tmp_path, tmp_path / "package2", code=2)["error"]
    assert answer("check", folder)["package"] == str(folder)
    assert "config.json is missing" in answer("card", tmp_path, code=2)["error"]
    (folder / "bad.txt").write_text("bad")
    assert answer("check", folder, code=1)["problems"] == ["bad. Remedy: one", "worse. Remedy: two"]
    assert len(answer("push", folder, NAME, "--yes", code=1)["problems"]) == 2
    hub.refuse_all = RefusalError(403, "no")
    assert "the token may not" in answer("pull", NAME, tmp_path / "other", code=3)["error"]


def test_asks_before_it_pushes(
    hub: TestHub, folder: Path, checked: list[dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for typed, code in (("n\n", 1), ("y\n", 0)):
        monkeypatch.setattr(sys, "stdin", Terminal(typed))
        with pytest.raises(SystemExit) as ended:
            app(["push", str(folder), NAME, "--no-verify"])
        assert ended.value.code == code
        assert bool(hub.repositories) == (code == 0)


@pytest.mark.parametrize("verb", ["export", "card", "check", "push", "pull", "demo"])
def test_help_teaches(verb: str) -> None:
    assert f"Example: hub_release {verb} " in run(verb, "--help").replace("`", "")
    assert "Exit codes: 0 done; 1 the check found problems" in " ".join(run("--help").split())


def test_a_space_is_published_too(hub: TestHub, package: Path, checked: list[dict[str, bytes]]) -> None:
    pushed = json.loads(run("push", package, NAME, "--space", "you/page", "--yes", "--json"))
    files = hub.repositories["space", "you/page"].files()
    assert {"app.py", "app.css", "infer.py", "requirements.txt"} <= set(files) and NAME in files["README.md"].decode()
    assert pushed["space"]["url"] == f"{hub.url}/spaces/you/page/commit/{pushed['space']['commit']}"
    again = run("push", package, NAME, "--space", "you/page", "--yes", "--no-verify")
    assert "holds this package already" in again and "holds this Space already" in again
    assert "leave out one" in run("push", package, NAME, "--space", "you/page", "--yes", "--create-pr", code=2)


# From a run to a stranger


STRANGER = """
import json, sys
from pathlib import Path
import numpy as np
from huggingface_hub import snapshot_download
folder = Path(snapshot_download("you/model"))
sys.path.insert(0, str(folder))
from infer import EmotionClassifier
golden = json.loads((folder / "golden.json").read_text(encoding="utf-8"))
texts = [row["text"] for row in golden["rows"]]
found = EmotionClassifier("you/model").predict_proba(texts)
from transformers import AutoConfig, AutoModelForSequenceClassification, pipeline
assert AutoConfig.from_pretrained("you/model", trust_remote_code=True).emotion_labels == golden["labels"]
model = AutoModelForSequenceClassification.from_pretrained("you/model", trust_remote_code=True)
assert model.config.thresholds
classify = pipeline("text-classification", model="you/model", trust_remote_code=True, top_k=None)
said = [{entry["label"]: entry["score"] for entry in row} for row in classify(texts)]
np.testing.assert_allclose([[row[label] for label in golden["labels"]] for row in said], found, atol=1e-5)
print(json.dumps(found.tolist()))
"""


def test_from_a_run_to_a_stranger(
    finished_run: Path, tiny_backbone: str, hub: TestHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One command each; the stranger knows nothing but the Hub's address and the model's name."""
    backbone = Path(snapshot_download(tiny_backbone, cache_dir=HUB_CACHE, local_files_only=True))
    hub.add("model", tiny_backbone, {path.name: path.read_bytes() for path in backbone.iterdir()})

    def shell(*command: object, home: str, token: str = "") -> str:
        known = {**environment(hub, tmp_path / home), "HF_TOKEN": token, "HF_DEBUG": "1", "PYTHONPATH": str(ROOT)}
        result = subprocess.run(
            [sys.executable, *map(str, command)],
            cwd=tmp_path,
            env={**os.environ, **known},
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
        (tmp_path / home / "output.txt").write_text(result.stdout + result.stderr, encoding="utf-8")
        return result.stdout.strip().splitlines()[-1]

    push_command = [
        "-m",
        "hub_release.cli",
        "push",
        finished_run,
        NAME,
        "--yes",
        "--json",
        "--tag",
        "v1",
        "--no-verify",
    ]
    pushed = json.loads(shell(*push_command, home="author", token=WRITER))
    assert pushed["ok"] and set(LAYOUT.files()) <= set(hub.repositories["model", NAME].files("v1"))
    assert sum("/commit/" in request for request in hub.requests) == 1
    package = tmp_path / "pulled"
    monkeypatch.delenv("HF_TOKEN")
    pulled = json.loads(run("pull", NAME, package, "--json"))  # with the real check, in its own process
    assert pulled["ok"] and pulled["commit"] == pushed["commit"]
    golden = json.loads((package / LAYOUT.golden).read_text(encoding="utf-8"))
    found = json.loads(shell("-I", "-c", STRANGER, home="stranger"))
    np.testing.assert_allclose(found, [row["probabilities"] for row in golden["rows"]], atol=1e-4)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 40
    assert not [path for path in written if WRITER.encode() in path.read_bytes()], "the token was written"
