"""The verbs push and pull: what they ask, print and return; and the way from a run to a stranger."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from huggingface_hub import constants, snapshot_download
from typer.testing import CliRunner

import hub_release.check.gate
import hub_release.hub.push
from hub_release.cli import app
from hub_release.package import LAYOUT, package_files
from hub_release.shipped.requirements import project_version
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
    """A fast replacement of the check that records the packages it gets; a package with bad.txt does not pass."""
    shown: list[dict[str, bytes]] = []

    def check(package: Path, allow_contaminated: bool = False) -> list[str]:
        shown.append({path: file.read_bytes() for path, file in package_files(package).items()})
        problems = ["bad. Remedy: one", "worse. Remedy: two"] if (package / "bad.txt").exists() else []
        return problems + ["contaminated"] * ((package / "pooled.txt").exists() and not allow_contaminated)

    monkeypatch.setattr(hub_release.hub.push, "check", check)
    monkeypatch.setattr(hub_release.check.gate, "check", check)
    return shown


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    assert WRITER not in result.output
    return result.stdout if "--json" in arguments else result.output


def test_push_and_pull_as_verbs(hub: TestHub, folder: Path, tmp_path: Path, checked: list[dict[str, bytes]]) -> None:
    text = run("push", folder, NAME, "--dry-run")
    assert "will be created" in text and "+ config.json (new)" in text and "Nothing was touched" in text
    assert not hub.repositories and len(checked) == 1
    text = run("push", folder, NAME, "--yes", "--tag", "v1", "--message", "First")
    head = hub.repositories["model", NAME].branches["main"]
    assert f"{hub.url}/{NAME}/commit/{head}" in text and hub.repositories["model", NAME].resolve(head).title == "First"
    assert checked[1:] == [FILES, FILES], "before the push, and what a stranger gets"
    assert hub.repositories["model", NAME].tags == {"v1": head}
    assert "already has this package" in run("push", folder, NAME, "--yes", "--tag", "v1", "--no-verify")
    (folder / "config.json").write_bytes(b"[]")
    taken = run("push", folder, NAME, "--yes", "--tag", "v1", code=2)
    assert f"v1 of {NAME} already names the commit {head}. Remedy: give another --tag" in taken
    assert hub.repositories["model", NAME].files() == FILES, "the tag is checked before anything is pushed"
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
    real = hub_release.hub.push.check
    monkeypatch.setattr(
        hub_release.hub.push, "check", lambda package, allow: real(package, allow) or ["b"] * (len(checked) > 1)
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
    """A change of the folder while the push waits for an answer does not change what is pushed."""
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
    assert "--yes to push" in answer("push", folder, NAME, code=2)["error"], "there is nobody to ask"
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


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def type_in(monkeypatch: pytest.MonkeyPatch, typed: str, *arguments: object) -> int:
    """The exit code of a verb in a terminal with this typed input."""
    monkeypatch.setattr(sys, "stdin", Terminal(typed))
    with pytest.raises(SystemExit) as ended:
        app([str(argument) for argument in arguments])
    return int(str(ended.value.code))


def test_asks_before_it_pushes(
    hub: TestHub,
    folder: Path,
    checked: list[dict[str, bytes]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for typed, code in (("n\n", 1), ("", 1), ("y\n", 0)):
        assert type_in(monkeypatch, typed, "push", folder, NAME, "--no-verify") == code
        assert bool(hub.repositories) == (code == 0)
        assert ("you said no; nothing was pushed" in capsys.readouterr().err) == (code == 1)


def test_a_no_is_also_in_json(
    hub: TestHub,
    package: Path,
    checked: list[dict[str, bytes]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    push = ("push", package, NAME, "--space", "you/page", "--no-verify", "--json")
    for typed in ("n\n", "y\nn\n"):  # no to the package; no to its Space
        assert type_in(monkeypatch, typed, *push) == 1
        said = capsys.readouterr()
        answer = json.loads(said.out)
        assert not answer["ok"] and answer["error"] == "you said no; nothing was pushed"
        assert answer["commit"] is None and answer["plan"]["new"] and not hub.repositories
        assert "+ config.json (new)" in said.err, "the plan must be shown before the question"
    assert type_in(monkeypatch, "y\ny\n", *push) == 0
    assert len(hub.repositories) == 2 and json.loads(capsys.readouterr().out)["space"]["commit"]
    monkeypatch.setattr(hub_release.hub.push, "plan_files", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
    assert type_in(monkeypatch, "", *push, "--yes") == 130
    assert (
        "interrupted; nothing is left half done. Remedy: to go on, run hub_release"
        in json.loads(capsys.readouterr().out)["error"]
    )


def test_a_dry_run_shows_the_space_and_a_taken_tag(
    hub: TestHub, package: Path, checked: list[dict[str, bytes]], tmp_path: Path
) -> None:
    look = ("push", package, NAME, "--space", "you/page", "--tag", "v1", "--dry-run")
    text = run(*look)
    assert f"model {NAME}: does not exist" in text and "space you/page: does not exist" in text
    assert "+ config.json (new)" in text and "+ app.py (new)" in text and "Nothing was touched" in text
    planned = json.loads(run(*look, "--json"))
    assert "app.py" in planned["space"]["plan"]["new"] and planned["space"]["commit"] is None
    hub.add("model", NAME, {"config.json": b"old"}).tags["v1"] = "0" * 40
    hub.repositories["model", NAME].tags["v1"] = hub.repositories["model", NAME].branches["main"]
    assert f"v1 of {NAME} already names the commit" in run(*look, code=2)
    text = run("push", package, NAME, "--revision", "dev", "--dry-run")
    assert "+ branch dev (new, from main)" in text
    assert not any(request.startswith("POST") for request in hub.requests)


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["--space", "page"], 2, "'page' is not a repository name"),
        (["--space", "you/a--b"], 2, "'you/a--b' is not a repository name"),
        (["--space", "others/page"], 3, "others/page does not exist, and this token may not create it"),
        (["--space", "readers/page"], 3, "may write to you, team. Remedy: name it you/page"),
        (["--space", "others/theirs"], 3, "the token may not do this"),
        (["--space", "you/page", "--revision", "dev"], 2, "a Space serves the branch main, not dev"),
        (["--tag", "v1"], 2, "v1 of you/model already names the commit"),
        (["--tag", "v 2"], 2, "'v 2' is not a branch or tag name"),
        (["--revision", "a..b"], 2, "'a..b' is not a branch or tag name"),
        (["--message", " "], 2, "the message is empty. Remedy: give --message"),
    ],
)
@pytest.mark.parametrize("how", ["--yes", "--dry-run"])
def test_what_can_be_refused_is_refused_before_anything_is_touched(
    hub: TestHub, package: Path, checked: list[dict[str, bytes]], flags: list[str], code: int, words: str, how: str
) -> None:
    there = hub.add("model", NAME, {"config.json": b"old"})
    there.tags["v1"] = there.branches["main"]
    hub.add("space", "others/theirs", {"app.py": b"theirs"})
    assert words in run("push", package, NAME, how, *flags, code=code)
    assert there.files() == {"config.json": b"old"} and len(hub.repositories) == 2
    assert not any(request.startswith("POST") for request in hub.requests)


def test_a_tag_of_an_earlier_commit_stays(hub: TestHub, folder: Path, checked: list[dict[str, bytes]]) -> None:
    """The package is already there, but the tag names the commit before it."""
    there = hub.add("model", NAME, {"config.json": b"old"})
    there.tags["v1"] = before = there.branches["main"]
    run("push", folder, NAME, "--yes", "--no-verify")
    assert f"already names the commit {before}" in run("push", folder, NAME, "--yes", "--tag", "v1", code=2)
    assert there.tags["v1"] == before


@pytest.mark.parametrize(
    ("within", "words"),
    [
        ("/tag/", "is pushed, but is not tagged v1: "),
        ("/resolve/", "is pushed, but what a stranger gets could not be checked: "),
        ("/api/spaces/you/page/commit/", "is pushed, but its Space you/page is not: "),
    ],
)
def test_a_failure_after_the_commit_says_what_is_pushed(
    hub: TestHub, package: Path, checked: list[dict[str, bytes]], within: str, words: str
) -> None:
    push = ("push", package, NAME, "--yes", "--tag", "v1", "--space", "you/page")
    hub.fail("500", within=within, times=1000)
    assert words in run(*push, code=3)
    assert hub.repositories["model", NAME].files().keys() == package_files(package).keys()
    hub.count_from_here()
    run(*push)
    assert len(hub.repositories) == 2 and hub.repositories["model", NAME].tags


def test_a_refused_download_is_not_kept(hub: TestHub, tmp_path: Path, checked: list[dict[str, bytes]]) -> None:
    hub.add("model", NAME, {**FILES, "bad.txt": b"bad"})
    text = run("pull", NAME, tmp_path / "pulled", code=1)
    assert f"fails the check, and {tmp_path / 'pulled'} is not written" in text and "✗ bad. Remedy: one" in text
    assert len(checked) == 1 and not (tmp_path / "pulled").exists() and not list(tmp_path.glob(".pull-*"))


@pytest.mark.parametrize("where", ["a file", "in a file", "full"])
def test_places_that_cannot_be_written(
    hub: TestHub, finished_run: Path, tmp_path: Path, checked: list[dict[str, bytes]], where: str
) -> None:
    hub.add("model", NAME, FILES)
    target = write_files(tmp_path, {"file": b"mine", "folder/mine": b"mine"}) / "file"
    target = {"a file": target, "in a file": target / "package", "full": tmp_path / "folder"}[where]
    words = {"a file": "is a file. Remedy: ", "in a file": "Remedy: name a place", "full": "is not empty. Remedy: "}
    for verb in (("export", finished_run), ("pull", NAME)):
        answer = json.loads(run(*verb, target, "--json", code=2))
        assert not answer["ok"] and words[where] in answer["error"] and str(tmp_path) in answer["error"]
    assert (tmp_path / "file").read_bytes() == (tmp_path / "folder" / "mine").read_bytes() == b"mine"
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "home") == ["file", "folder"]


def test_odd_sources(hub: TestHub, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "nothing", tmp_path / "file", tmp_path):
        for verb, code in ((("export",), 2), (("card",), 2), (("check",), 1), (("push", NAME), 2)):
            command = [verb[0], place, *verb[1:], *([tmp_path / "package"] if verb == ("export",) else [])]
            command += ["--dry-run"] if verb[0] == "push" else []
            answer = json.loads(run(*command, "--json", code=code))
            assert "Remedy: " in answer["error"] + "".join(answer["problems"]), command
        assert "Remedy: " in run("demo", place, code=2)
    assert not hub.requests and not (tmp_path / "package").exists()


def test_odd_hubs(
    hub: TestHub, folder: Path, tmp_path: Path, checked: list[dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for verb in (("push", folder, NAME, "--yes"), ("pull", NAME, tmp_path / "pulled")):
        for endpoint, code, words in (
            ("localhost", 2, "HF_ENDPOINT is 'localhost', not an address. Remedy: unset it"),
            ("ada:s3cret/@hub.example", 2, "HF_ENDPOINT is '…@hub.example', not an address. Remedy: unset it"),
            ("https://ada:s3c@ret@hub.example", 2, "HF_ENDPOINT is '…@hub.example', not an address. Remedy: unset it"),
            ("http://[bad", 3, "Remedy: check"),
            ("http://localhost:port", 3, "Remedy: check"),
            ("http://127.0.0.1:9", 3, "the connection failed"),
        ):
            with monkeypatch.context() as elsewhere:
                elsewhere.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
                assert words in json.loads(run(*verb, "--json", code=code))["error"]
    monkeypatch.delenv("HF_TOKEN")
    assert "there is no token" in json.loads(run("push", folder, NAME, "--yes", "--json", code=2))["error"]


def test_a_dry_run_needs_no_token(
    hub: TestHub, folder: Path, checked: list[dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run("push", folder, NAME, "--yes")
    run("push", folder, "you/secret", "--yes", "--private")
    head = hub.repositories["model", NAME].branches["main"]
    (folder / "config.json").write_bytes(b"[]")
    monkeypatch.delenv("HF_TOKEN")
    text = run("push", folder, NAME, "--dry-run")
    assert f"{NAME}: is at {head}" in text and "~ config.json (changed)" in text and "= README.md (same)" in text
    assert "There is no token, so a private repository seems not to exist." in text
    for name in ("you/secret", "you/nothing"):
        assert f"{name}: does not exist" in run("push", folder, name, "--dry-run")
    assert "there is no token" in run("push", folder, NAME, "--yes", code=2)
    assert hub.repositories["model", NAME].branches["main"] == head


@pytest.mark.parametrize("verb", [("export", "packages/new"), ("card",), ("push", NAME, "--yes"), ("demo",)])
def test_a_mistyped_path_is_said_to_be_one(hub: TestHub, tmp_path: Path, verb: tuple[str, ...]) -> None:
    """It looks like a Hub id, but nobody asks the Hub for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        text = run(verb[0], "packages/tikets", *verb[1:], code=2)
        (tmp_path / "file").touch()
        assert "file is a file, not a folder" in run(verb[0], "file", *verb[1:], code=2)
    assert "packages/tikets does not exist here, and the Hub was not asked. Remedy: check the path" in text
    assert not hub.requests and not (tmp_path / "packages").exists()


def test_version() -> None:
    assert run("--version").strip() == project_version()


def test_a_screen_that_is_not_utf8(tmp_path: Path) -> None:
    """The work is done when the result is printed: a sign that the screen lacks must not lose it."""

    def screen(*command: str) -> subprocess.CompletedProcess[bytes]:
        own = {**os.environ, "PYTHONIOENCODING": "cp1252"}
        return subprocess.run([sys.executable, *command], cwd=ROOT, env=own, capture_output=True, check=False)

    refused = screen("-m", "hub_release.cli", "check", str(tmp_path / "喜び"))
    assert refused.returncode == 1 and b"\\u2717 " in refused.stderr and b"Traceback" not in refused.stderr
    assert b"\\u559c\\u3073" in refused.stderr
    end = "from hub_release.commands.console import errors, finish\nwith errors(False): finish(False, '✓ fine, 喜び')"
    done = screen("-c", end)
    assert (done.returncode, done.stdout.strip()) == (0, rb"\u2713 fine, \u559c\u3073"), done.stderr


def test_commands_to_copy_are_quoted(hub: TestHub, finished_run: Path, tmp_path: Path) -> None:
    place = tmp_path / "my package; rm x"
    assert run("export", finished_run, place).strip().endswith(f"Next: run hub_release check '{place}'")


def test_a_wrong_command_line_in_json(hub: TestHub) -> None:
    for arguments in (["push", NAME], ["pull", NAME], ["check", "--loud", "x"], ["demo"], ["fly", "x"]):
        answer = json.loads(run(*arguments, "--json", code=2))
        assert not answer["ok"] and answer["error"]
        assert "Usage:" in run(*arguments, code=2)


@pytest.mark.parametrize("fault", ["reset", "503 page"])
def test_nothing_signed_and_no_token_in_the_log(
    hub: TestHub,
    folder: Path,
    checked: list[dict[str, bytes]],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
) -> None:
    """The client logs the URL of each request that it repeats, and the URL of an upload is signed."""
    caplog.set_level("DEBUG")
    monkeypatch.setattr(logging.getLogger("huggingface_hub"), "propagate", True)
    monkeypatch.setattr(logging.getLogger("huggingface_hub"), "level", logging.DEBUG)
    monkeypatch.setattr(constants, "HF_DEBUG", True)
    hub.fail(fault, within="/upload/", times=2)
    run("push", folder, NAME, "--yes")
    assert "thrown while requesting PUT" in caplog.text and "/upload/" in caplog.text
    assert "secret" not in caplog.text and WRITER not in caplog.text
    hub.refuse_all = RefusalError(403, f"see https://a.b/c?X-Amz-Signature=secret and {WRITER}")
    text = run("push", folder, NAME, "--yes", code=3)
    assert "https://a.b/c?…" in text and "secret" not in text


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
    assert "already has this package" in again and "already has this Space" in again
    assert "leave out one" in run("push", package, NAME, "--space", "you/page", "--yes", "--create-pr", code=2)


# From a run to a stranger


STRANGER = """
import json, sys
from pathlib import Path
import numpy as np
from huggingface_hub import constants, snapshot_download
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
    """One command each; the stranger knows only the Hub's address and the model's name."""
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
    pulled = json.loads(run("pull", NAME, package, "--json"))  # with the real check, which runs in its own process
    assert pulled["ok"] and pulled["commit"] == pushed["commit"]
    golden = json.loads((package / LAYOUT.golden).read_text(encoding="utf-8"))
    found = json.loads(shell("-I", "-c", STRANGER, home="stranger"))
    np.testing.assert_allclose(found, [row["probabilities"] for row in golden["rows"]], atol=1e-4)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 40
    assert not [path for path in written if WRITER.encode() in path.read_bytes()], "the token was written"
