"""Push and pull against a Hub on this machine: one commit, lost races, limited retries, refusals with a remedy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants

from hub_release.hub import client as hub_module
from hub_release.hub.client import HubError, connect, redact
from hub_release.hub.commit import Destination, LostRaceError, Pushed, plan_files, push_files
from hub_release.hub.diff import CommitPlan
from hub_release.hub.pull import pull
from hub_release.package import ReleaseError, package_files
from tests.conftest import write_files
from tests.hub_server import READER, WRITER, TestHub
from tests.hub_store import File, RefusalError

NAME = "you/model"
FILES = {
    "README.md": b"---\nlicense: mit\n---\n# hello",
    "config.json": b"{}",
    "empty.txt": b"",
    "head_weights.pt": b"tensors" * 50,
    "lora/adapter.safetensors": b"more" * 50,
}


@pytest.fixture
def api(hub: TestHub) -> HfApi:
    return connect()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_files(tmp_path / "package", FILES)


def push(
    api: HfApi, folder: Path, confirm: Callable[[CommitPlan], bool] = lambda plan: True, **options: object
) -> Pushed:
    race = bool(options.pop("retry_on_race", False))
    destination = Destination(NAME, **options)  # type: ignore[arg-type]
    return push_files(api, destination, package_files(folder), "message", confirm, race)


def commits(hub: TestHub) -> list[str]:
    return [commit.title for commit in hub.repositories["model", NAME].commits.values()]


# One commit


def test_one_commit_with_large_files_in_lfs(api: HfApi, hub: TestHub, folder: Path) -> None:
    plans: list[CommitPlan] = []
    pushed = push(api, folder, lambda plan: not plans.append(plan))
    repository = hub.repositories["model", NAME]
    assert repository.files() == FILES and commits(hub) == ["initial commit", "message"]
    assert sum("/commit/" in request for request in hub.requests) == 1
    assert {path for path, file in repository.resolve("main").files.items() if file.is_lfs} == {
        "head_weights.pt",
        "lora/adapter.safetensors",
    }
    assert ".gitattributes" in repository.resolve("main").files
    assert pushed.changed and pushed.commit == repository.branches["main"]
    assert pushed.url == f"{hub.url}/{NAME}/commit/{pushed.commit}"
    assert plans[0].parent is None and set(plans[0].new) == set(FILES)
    assert plans[0].bytes == sum(len(content) for content in FILES.values())


def test_the_same_again_is_nothing(api: HfApi, hub: TestHub, folder: Path) -> None:
    first = push(api, folder)
    hub.count_from_here()
    again = push(api, folder, lambda plan: pytest.fail("nothing to confirm"))
    assert not again.changed and again.commit == first.commit
    assert hub.requests and all(request.startswith("GET ") for request in hub.requests)


def test_plan_of_changes(api: HfApi, hub: TestHub, folder: Path) -> None:
    push(api, folder)
    (folder / "config.json").write_bytes(b"[]")  # the same length as before
    (folder / "head_weights.pt").write_bytes(b"tensorz" * 50)
    (folder / "new.txt").write_bytes(b"new")
    (folder / "lora" / "adapter.safetensors").unlink()
    notes = {
        ".gitattributes": b"",
        ".cache/huggingface/download/config.json.metadata": b"",
        ".cache/huggingface/.gitignore": b"*",
    }
    write_files(folder, notes)
    before = hub.repositories["model", NAME].files()
    hub.count_from_here()
    plan = plan_files(api, Destination(NAME), package_files(folder))
    assert plan.new == ("new.txt",) and plan.changed == ("config.json", "head_weights.pt")
    assert plan.removed == ("lora/adapter.safetensors",) and plan.same == ("README.md", "empty.txt")
    assert plan.bytes == 3 + 2 + 350
    declined = push(api, folder, lambda plan: False)
    assert declined.commit is None and hub.repositories["model", NAME].files() == before
    assert all(request.startswith("GET ") for request in hub.requests), "a plan or a no changes nothing"
    push(api, folder)
    assert hub.repositories["model", NAME].files() == {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.glob("[!.]*.*")
    }


def test_a_look_at_a_repository_that_does_not_exist(api: HfApi, hub: TestHub, folder: Path) -> None:
    plan = plan_files(api, Destination(NAME), package_files(folder))
    assert plan.parent is None and not hub.repositories


def test_branch_space_and_private(api: HfApi, hub: TestHub, folder: Path) -> None:
    push(api, folder, private=True)
    assert hub.repositories["model", NAME].private
    (folder / "config.json").write_bytes(b"[]")
    pushed = push(api, folder, revision="dev/2")
    repository = hub.repositories["model", NAME]
    assert repository.files("main") == FILES and repository.files("dev/2")["config.json"] == b"[]"
    assert repository.resolve("dev/2").parent == repository.branches["main"] and pushed.plan.changed == ("config.json",)
    assert push(api, folder, revision="main").changed
    assert push(api, folder, revision="same").changed, "a branch was created although its files equal main's"
    push_files(api, Destination(NAME, "space"), package_files(folder), "message", lambda plan: True)
    assert hub.repositories["space", NAME].files()["config.json"] == b"[]"


def test_pull_request(api: HfApi, hub: TestHub, folder: Path) -> None:
    push(api, folder)
    (folder / "config.json").write_bytes(b"[]")
    opened = push(api, folder, create_pr=True)
    repository = hub.repositories["model", NAME]
    assert repository.files() == FILES and repository.files("refs/pr/1")["config.json"] == b"[]"
    assert opened.url == f"{hub.url}/{NAME}/discussions/1"
    again = push(api, folder, create_pr=True)
    assert again.url == opened.url and not again.changed and len(repository.pull_requests) == 1
    repository.pull_requests[0].status = "closed"
    assert push(api, folder, create_pr=True).changed and len(repository.pull_requests) == 2


@pytest.mark.parametrize("fault", ["lost answer", "silence after", "500", "reset", "429"])
def test_no_second_pull_request_after_a_lost_answer(
    api: HfApi, hub: TestHub, folder: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("model", NAME, {"config.json": b"old"})
    monkeypatch.setattr(hub_module, "TIMEOUT", dict.fromkeys(hub_module.TIMEOUT, 0.5))
    hub.fail(fault, within="/commit/")
    try:
        assert push(api, folder, create_pr=True).url.endswith("/discussions/1")
    except HubError as error:
        assert fault in ("500", "reset") and "discussions; run again" in str(error)
        assert push(api, folder, create_pr=True).changed
    assert len(hub.repositories["model", NAME].pull_requests) == 1


# Races and lost answers


def test_lost_race(api: HfApi, hub: TestHub, folder: Path) -> None:
    hub.add("model", NAME, {"config.json": b"old"})
    hub.fail("race", within="/commit/")
    with pytest.raises(LostRaceError, match=r"somebody else moved main .* Remedy: .*--retry-on-race"):
        push(api, folder)
    assert hub.repositories["model", NAME].files() == {"config.json": b"old", "theirs.txt": b"theirs"}
    assert commits(hub)[-1] == "theirs"


def test_race_retried_when_asked(api: HfApi, hub: TestHub, folder: Path) -> None:
    hub.add("model", NAME, {"config.json": b"old"})
    plans: list[CommitPlan] = []
    hub.fail("race", times=2, within="/commit/")
    assert push(api, folder, lambda plan: not plans.append(plan), retry_on_race=True).changed
    assert [plan.removed for plan in plans] == [(), ("theirs.txt",), ("theirs.txt",)], "every plan must be confirmed"
    assert hub.repositories["model", NAME].files() == FILES
    hub.add("model", NAME, {"config.json": b"old"})
    hub.fail("race", times=1000, within="/commit/")
    with pytest.raises(LostRaceError):
        push(api, folder, retry_on_race=True)


def test_a_race_with_the_same_files_is_not_lost(api: HfApi, hub: TestHub, folder: Path) -> None:
    """After a 412 answer the branch is compared: somebody else's commit with the same files counts as success."""
    hub.add("model", NAME, {"config.json": b"old"})
    attributes = hub.repositories["model", NAME].resolve("main").files[".gitattributes"]
    hub.race = lambda: hub.repositories["model", NAME].add_commit(  # type: ignore[method-assign]
        "main",
        {path: File(content, path.endswith(("pt", "tensors"))) for path, content in FILES.items()}
        | {".gitattributes": attributes},
        "theirs",
    )
    hub.fail("race", within="/commit/")
    try:
        assert push(api, folder).commit == hub.repositories["model", NAME].branches["main"]
    finally:
        del hub.race
    assert commits(hub)[-1] == "theirs"


def test_files_that_the_hub_ignores(api: HfApi, hub: TestHub, folder: Path) -> None:
    hub.add("model", NAME, {".gitignore": b"*.txt\n"})
    (folder / ".gitignore").write_bytes(b"*.txt\n")
    with pytest.raises(HubError, match=r"does not have the files that were sent. Remedy: .*\.gitignore"):
        push(api, folder)


# Waits and retries


def test_retry_after(api: HfApi, hub: TestHub, folder: Path) -> None:
    hub.fail("429", within="/commit/", times=3)
    hub.retry_after = 7
    push(api, folder)
    assert [nap for nap in hub.naps if nap >= 7] == [7, 7, 7]
    hub.reset()
    hub.fail("429", first=4)
    hub.retry_after = 3600
    with pytest.raises(HubError, match=r"asks to wait 3600 seconds. Remedy: run again after that time"):
        push(api, folder)
    hub.reset()
    hub.fail("429", within="/upload/")  # a request that the client itself repeats
    hub.retry_after = 3600
    with pytest.raises(HubError, match="asks to wait 3600 seconds"):
        push(api, folder)
    assert max(hub.naps, default=0) < 60


def test_retries_are_limited(api: HfApi, hub: TestHub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.fail("500", times=1000)
    with pytest.raises(HubError, match=r"auth-check/write, tried 5 times: the Hub answers 500. Remedy: "):
        push(api, folder)
    assert len(hub.requests) == 5 and len(hub.naps) == 4 and 10 < sum(hub.naps) < 20
    monkeypatch.setattr(hub_module, "TIMEOUT", dict.fromkeys(hub_module.TIMEOUT, 0.05))
    hub.fail("silence", times=1000)
    with pytest.raises(HubError, match=r"no answer in time \(ReadTimeout\). Remedy: check the network"):
        push(api, folder)
    assert len(hub.requests) == 5


def test_nobody_listens(api: HfApi, folder: Path) -> None:
    api.endpoint = "http://127.0.0.1:9"
    with pytest.raises(HubError, match=r"connection failed \(ConnectError\). Remedy: .*HF_ENDPOINT"):
        push(api, folder)


# Refusals


@pytest.mark.parametrize(
    ("status", "message", "code", "words"),
    [
        (401, "Invalid credentials in Authorization header", "", r"does not accept the token .* hf auth login"),
        (
            403,
            "no write permission",
            "",
            r"the token may not do this \(no write permission\). Remedy: use a token with",
        ),
        (403, "Private repository storage limit reached", "", r"quota is used up .* Remedy: free storage"),
        (402, "pay", "", "quota is used up"),
        (413, "too large", "", "quota is used up"),
        (507, "no space", "", "quota is used up"),
        (403, "ask first", "GatedRepo", "gated .* Remedy: ask for access"),
        (404, "no such revision", "RevisionNotFound", "Remedy: check --revision"),
        (404, "nothing here", "", "does not know /api/models/you/model/.* Remedy: check the id and HF_ENDPOINT"),
        (400, "bad word", "", r"refused with 400 \(bad word\). Remedy"),
        (501, "never", "", r"refused with 501 \(never\). Remedy"),
    ],
)
def test_refusals_end_with_the_remedy(
    api: HfApi, hub: TestHub, folder: Path, status: int, message: str, code: str, words: str
) -> None:
    hub.refuse_all = RefusalError(status, message, code)
    with pytest.raises(HubError, match=words) as refused:
        push(api, folder)
    assert WRITER not in str(refused.value) and not hub.repositories
    assert not hub.naps, "a refusal is final"


def test_tokens(api: HfApi, hub: TestHub, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_TOKEN", READER)
    with pytest.raises(HubError, match=r"does not exist, and this token may only read. Remedy: use a token with write"):
        push(api, folder)
    assert not hub.repositories and not any(request.startswith("POST") for request in hub.requests)
    hub.add("model", NAME, {"config.json": b"old"})
    with pytest.raises(HubError, match=r"the token may not do this .* Remedy: .* --create-pr"):
        push(api, folder)
    assert push(api, folder, create_pr=True).url.endswith("/discussions/1"), "a reader's token may propose a commit"
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ReleaseError, match=r"there is no token. Remedy: run hf auth login, or set HF_TOKEN"):
        push(api, folder)
    (tmp_path / "home").mkdir(exist_ok=True)
    (tmp_path / "home" / "token").write_text(WRITER)  # as stored by hf auth login
    assert push(api, folder).changed
    for owner in ("others", "readers"):
        with pytest.raises(
            HubError, match=r"may write to you, team. Remedy: name it you/model, or use a token of that"
        ):
            plan_files(api, Destination(f"{owner}/model"), package_files(folder))
    assert plan_files(api, Destination("Team/model"), package_files(folder)).parent is None
    hub.add("model", "others/model", {"config.json": b"old"})
    with pytest.raises(HubError, match="the token may not do this"):
        plan_files(api, Destination("others/model"), package_files(folder))


def test_wrong_use(api: HfApi, hub: TestHub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "not a name",
        "model",
        "you/a--b",
        "you/" + "m" * 97,
        "you/../model",
        "you/model/more",
        "you/m.git",
        "",
    ):
        with pytest.raises(ReleaseError, match=r"is not a repository name. .* Remedy: name it as user/name"):
            Destination(name)
    for reference in ("", "-v", "v 1", "a..b", "a//b", "v1.", "dev/", "dev.lock", "a~1", "v:1"):
        with pytest.raises(ReleaseError, match=r"is not a branch or tag name. Remedy: use letters"):
            Destination(NAME, revision=reference)
    with pytest.raises(ReleaseError, match="Remedy: name it as user/name"):
        pull(api, "not a name", folder.parent / "pulled")
    (folder / "README.md").write_bytes(b"---\n[]: {\n---\n")
    with pytest.raises(HubError, match="refused with 400"):
        push(api, folder)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match=r"HF_HUB_OFFLINE is set. Remedy: unset it"):
        plan_files(api, Destination(NAME), {})


def test_a_failing_xet_upload(api: HfApi, hub: TestHub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This Hub has no Xet, and the client does not fall back to LFS."""
    pytest.importorskip("hf_xet")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    with pytest.raises(HubError, match=r"the upload failed .* Remedy: .* HF_HUB_DISABLE_XET=1 uploads without Xet"):
        push(api, folder)
    assert hub.repositories["model", NAME].files() == {} and not any("/commit/" in path for path in hub.requests)
    assert set(hub.complaints) == {"unknown: GET /api/models/you/model/xet-write-token/main"}
    hub.complaints.clear()


# Pull


def test_pull_gives_back_what_was_pushed(api: HfApi, hub: TestHub, folder: Path, tmp_path: Path) -> None:
    pushed = push(api, folder)
    target = tmp_path / "pulled"
    target.mkdir()
    assert pull(api, NAME, target) == pushed.commit
    assert {path.relative_to(target).as_posix(): path.read_bytes() for path in target.rglob("*") if path.is_file()} == {
        **FILES
    }
    assert not (target / ".cache").exists() and not list(tmp_path.glob(".pull-*"))
    with pytest.raises(ReleaseError, match="pulled already exists"):
        pull(api, NAME, target)
    with pytest.raises(HubError, match="check --revision"):
        pull(api, NAME, tmp_path / "other", "v9")
    with pytest.raises(HubError, match="may not see it"):
        pull(api, "you/nothing", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_compiled_code_is_not_pulled(api: HfApi, hub: TestHub, folder: Path, tmp_path: Path) -> None:
    """Python would run it in place of ``infer.py``."""
    files = {name: path.read_bytes() for name, path in package_files(folder).items()}
    hub.add("model", NAME, {**files, "__pycache__/infer.cpython-311.pyc": b"evil"})
    pull(api, NAME, tmp_path / "pulled")
    assert {name: path.read_bytes() for name, path in package_files(tmp_path / "pulled").items()} == files
    assert not (tmp_path / "pulled" / "__pycache__").exists()


@pytest.mark.parametrize("name", ["../outside.txt", "/absolute.txt", "a/../../b", ".git/hooks/x", "C:\\x", "a\\..\\b"])
def test_pull_refuses_names_that_leave_the_folder(api: HfApi, hub: TestHub, tmp_path: Path, name: str) -> None:
    hub.add("model", NAME, {"config.json": b"{}", name: b"outside"})
    with pytest.raises(HubError, match="Remedy: do not use this repository"):
        pull(api, NAME, tmp_path / "deep" / "pulled")
    assert list((tmp_path / "deep").rglob("*")) == []
    assert not any("/resolve/" in request for request in hub.requests)


def test_pull_refuses_other_bytes_than_the_hub_lists(api: HfApi, hub: TestHub, folder: Path, tmp_path: Path) -> None:
    push(api, folder)
    for sha256, content in hub.objects.items():
        hub.objects[sha256] = content[::-1]
    with pytest.raises(HubError, match=r"head_weights.pt, lora/adapter.safetensors: not what the Hub lists"):
        pull(api, NAME, tmp_path / "pulled")
    assert not (tmp_path / "pulled").exists()


@pytest.mark.parametrize("fault", ["503 page", "reset"])
def test_every_request_of_a_pull_may_fail(api: HfApi, hub: TestHub, folder: Path, tmp_path: Path, fault: str) -> None:
    push(api, folder)
    hub.count_from_here()
    pull(api, NAME, tmp_path / "whole")
    for at in range(1, len(hub.requests) + 1):
        hub.fail(fault, at)
        pull(api, NAME, tmp_path / f"pulled-{at}")
    hub.fail(fault, 6, times=1000)
    with pytest.raises(HubError, match="Remedy"):
        pull(api, NAME, tmp_path / "half")
    assert not (tmp_path / "half").exists() and not list(tmp_path.glob(".pull-*"))


def test_passwords_in_addresses_are_not_repeated() -> None:
    for text in (
        "https://ada:s3cret@hub/x",
        "see http://ada:s3c@ret@hub",
        "HTTP error for url 'https://:s3cret@hub/?a=s3cret'",
    ):
        assert "s3c" not in redact(text) and "hub" in redact(text)
    assert redact("https://hub/you/model@main is at ada@hub") == "https://hub/you/model@main is at ada@hub"
