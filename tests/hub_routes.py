"""The answers of the Hub that tests push to, request by request."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.hub_store import Commit, File, RefusalError, Repository, validate_card

ROUTES: list[tuple[str, re.Pattern[str], Callable[..., Any]]] = []
_CREATED = "2026-01-01T00:00:00.000Z"


def route(method: str, pattern: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a handler; the handler gets ``{kind}`` and ``{repo}`` of the pattern as one repository."""
    pattern = pattern.replace("{api}", r"/api/(?P<kind>model|dataset|space)s/(?P<repo>[\w.-]+/[\w.-]+)")
    pattern = pattern.replace("{web}", r"/(?:(?P<kind>dataset|space)s/)?(?P<repo>[\w.-]+/[\w.-]+)")

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        ROUTES.append((method, re.compile(pattern), function))
        return function

    return register


# Accounts and repositories


@route("GET", "/api/agent-harnesses")
def _agent_harnesses(request: Any) -> Any:
    raise RefusalError(404, "Not Found")


@route("GET", "/api/whoami-v2")
def _whoami(request: Any) -> Any:
    user = request.user()
    if user is None:
        raise RefusalError(401, "Invalid username or password.")
    orgs = [{"name": "team", "roleInOrg": "write"}, {"name": "readers", "roleInOrg": "read"}]
    return {"type": "user", "name": user[0], "orgs": orgs, "auth": {"accessToken": {"role": user[1]}}}


@route("GET", "{api}/auth-check(?P<write>/write)?")
def _auth_check(request: Any, repo: Repository, write: str = "") -> Any:
    if write:
        request.require_write(repo.name)
    return {}


@route("POST", "/api/repos/create")
def _create(request: Any) -> Any:
    wanted = json.loads(request.body)
    name = f"{wanted['organization']}/{wanted['name']}"
    request.require_write(name)
    kind = wanted.get("type", "model")
    if kind == "space" and "sdk" not in wanted:
        raise RefusalError(400, "a Space needs an sdk")
    if (kind, name) in request.hub.repositories:
        url = f"{request.hub.url}/{request.hub.repositories[kind, name].url_path}"
        raise RefusalError(409, f"You already created this {kind} repo", url=url)
    repository = Repository(kind, name, wanted.get("visibility") == "private")
    request.hub.repositories[kind, name] = repository
    return {"url": f"{request.hub.url}/{repository.url_path}", "name": name}


@route("POST", "/api/validate-yaml")
def _validate_yaml(request: Any) -> Any:
    validate_card(json.loads(request.body)["content"])
    return {"errors": [], "warnings": []}


@route("GET", "{api}(?:/revision/(?P<revision>[^/]+))?")
def _info(request: Any, repo: Repository, revision: str = "main") -> Any:
    commit = repo.resolve(revision)
    siblings = [{"rfilename": path} for path in sorted(commit.files)]
    return {
        "_id": "0" * 24,
        "id": repo.name,
        "sha": commit.oid,
        "private": repo.private,
        "siblings": siblings,
        "tags": [],
        "downloads": 0,
        "likes": 0,
        "createdAt": _CREATED,
        "lastModified": _CREATED,
    }


# References


@route("GET", "{api}/refs")
def _refs(request: Any, repo: Repository) -> Any:
    def listed(kind: str, references: dict[str, str]) -> list[dict[str, str]]:
        return [{"name": n, "ref": f"refs/{kind}/{n}", "targetCommit": oid} for n, oid in references.items()]

    return {"branches": listed("heads", repo.branches), "tags": listed("tags", repo.tags), "converts": []}


@route("POST", "{api}/branch/(?P<branch>[^/]+)")
def _branch(request: Any, repo: Repository, branch: str) -> Any:
    request.require_write(repo.name)
    if branch in repo.branches:
        raise RefusalError(409, f"Reference already exists: {branch}")
    repo.branches[branch] = repo.resolve(json.loads(request.body).get("startingPoint", "main")).oid
    return {}


@route("POST", "{api}/tag/(?P<revision>[^/]+)")
def _tag(request: Any, repo: Repository, revision: str) -> Any:
    request.require_write(repo.name)
    tag = json.loads(request.body)["tag"]
    if tag in repo.tags:
        raise RefusalError(409, f"Tag reference exists already: {tag}")
    repo.tags[tag] = repo.resolve(revision).oid
    return {}


@route("GET", "{api}/discussions")
def _discussions(request: Any, repo: Repository) -> Any:
    found = [
        {
            "num": pull.number,
            "title": pull.title,
            "author": {"name": pull.author},
            "createdAt": _CREATED,
            "status": pull.status,
            "repo": {"name": repo.name, "type": repo.kind},
            "isPullRequest": True,
        }
        for pull in repo.pull_requests
    ]
    start = int(request.query.get("p", 0)) * request.hub.page
    return {"discussions": found[start : start + request.hub.page], "count": len(found), "start": start}


# Uploads


@route("POST", "{api}/preupload/(?P<revision>[^/]+)")
def _preupload(request: Any, repo: Repository, revision: str) -> Any:
    if "create_pr" not in request.query:
        request.require_write(repo.name)
    there = repo.resolve(revision).files
    answers = []
    for wanted in json.loads(request.body)["files"]:
        path, file = wanted["path"], there.get(wanted["path"])
        mode = "lfs" if repo.is_large(path, wanted["size"]) else "regular"
        known = {"oid": file.sha256 if file.is_lfs else file.oid} if file else {}
        answers.append({"path": path, "uploadMode": mode, "shouldIgnore": repo.is_ignored(path), **known})
    return {"files": answers}


@route("POST", r"{web}\.git/info/lfs/objects/batch")
def _batch(request: Any, repo: Repository) -> Any:
    wanted = json.loads(request.body)
    if request.user() is None:
        raise RefusalError(401, "Invalid username or password.")
    if wanted["operation"] != "upload" or wanted["hash_algo"] != "sha256" or "basic" not in wanted["transfers"]:
        raise RefusalError(400, "unknown transfer")
    objects = []
    for item in wanted["objects"]:
        answer = {"oid": item["oid"], "size": item["size"]}
        if item["oid"] not in request.hub.objects:
            put = f"{request.hub.storage_url}/upload/{item['oid']}?signature=secret"
            verify = f"{request.hub.url}/{repo.url_path}.git/info/lfs/objects/verify"
            answer["actions"] = {"upload": {"href": put}, "verify": {"href": verify}}
        objects.append(answer)
    return {"transfer": "basic", "objects": objects}


@route("PUT", "/upload/(?P<oid>[0-9a-f]{64})")
def _upload(request: Any, oid: str) -> Any:
    _refuse_token(request)
    if request.query.get("signature") != "secret":
        raise RefusalError(403, "SignatureDoesNotMatch")
    if hashlib.sha256(request.body).hexdigest() != oid:
        raise RefusalError(400, "BadDigest")
    request.hub.objects[oid] = request.body
    return {}


@route("POST", r"{web}\.git/info/lfs/objects/verify")
def _verify(request: Any, repo: Repository) -> Any:
    wanted = json.loads(request.body)
    if len(request.hub.objects.get(wanted["oid"], b"")) != wanted["size"]:
        raise RefusalError(404, "Object not found")
    return {}


@route("POST", "{api}/commit/(?P<branch>[^/]+)")
def _commit(request: Any, repo: Repository, branch: str) -> Any:
    if request.headers.get("Content-Type") != "application/x-ndjson":
        raise RefusalError(400, "a commit is newline-delimited JSON")
    author = None
    if "create_pr" in request.query:
        user = request.user()
        if user is None:
            raise RefusalError(401, "Invalid username or password.")
        author = user[0]
    else:
        request.require_write(repo.name)
    commit, pull = repo.take_commit(request.body, branch, request.hub.objects, author)
    answer = {
        "success": True,
        "commitOid": commit.oid,
        "commitUrl": f"{request.hub.url}/{repo.url_path}/commit/{commit.oid}",
    }
    if pull is not None:
        answer["pullRequestUrl"] = f"{request.hub.url}/{repo.url_path}/discussions/{pull.number}"
    return answer


# Downloads


def _entry(path: str, file: File) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "oid": file.oid, "size": len(file.content)}
    if file.is_lfs:
        entry["lfs"] = {"oid": file.sha256, "size": len(file.content), "pointerSize": len(file.pointer)}
    return entry


def _entries(commit: Commit, folder: str, recursive: bool) -> list[dict[str, Any]]:
    prefix = f"{folder}/" if folder else ""
    found: dict[str, dict[str, Any]] = {}
    for path, file in sorted(commit.files.items()):
        if not path.startswith(prefix):
            continue
        parts = path.removeprefix(prefix).split("/")
        for depth in range(1, len(parts)):
            inner = prefix + "/".join(parts[:depth])
            if recursive or depth == 1:
                found.setdefault(inner, {"type": "directory", "path": inner, "oid": "0" * 40, "size": 0})
        if recursive or len(parts) == 1:
            found[path] = _entry(path, file)
    if folder and not found:
        raise RefusalError(404, f"{folder} does not exist", "EntryNotFound")
    return list(found.values())


@route("GET", "{api}/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+))?")
def _tree(request: Any, repo: Repository, revision: str, folder: str = "") -> Any:
    entries = _entries(repo.resolve(revision), folder, request.query.get("recursive") in ("true", "True", "1"))
    start = int(request.query.get("cursor", 0))
    end = start + request.hub.page
    headers = {}
    if end < len(entries):
        recursive = request.query.get("recursive", "false")
        path = urlsplit(request.path).path
        headers["Link"] = f'<{request.hub.url}{path}?recursive={recursive}&cursor={end}>; rel="next"'
    return 200, entries[start:end], headers


@route("POST", "{api}/paths-info/(?P<revision>[^/]+)")
def _paths_info(request: Any, repo: Repository, revision: str) -> Any:
    paths = parse_qs(request.body.decode())["paths"]
    files = repo.resolve(revision).files
    entries = {entry["path"]: entry for entry in _entries(repo.resolve(revision), "", recursive=True)}
    return [_entry(path, files[path]) if path in files else entries[path] for path in paths if path in entries]


@route("GET", "{web}/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
def _resolve(request: Any, repo: Repository, revision: str, path: str) -> Any:
    commit = repo.resolve(revision)
    if path not in commit.files:
        body = {"error": "Entry not found"}
        return 404, body, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit.oid}
    file = commit.files[path]
    headers = {"X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes"}
    if not file.is_lfs:
        return _range(request, file.content, {**headers, "ETag": f'"{file.oid}"'})
    headers |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(len(file.content))}
    return 302, {}, {**headers, "Location": f"{request.hub.storage_url}/download/{file.sha256}"}


@route("GET", "/download/(?P<oid>[0-9a-f]{64})")
def _download(request: Any, oid: str) -> Any:
    _refuse_token(request)
    return _range(request, request.hub.objects[oid], {"ETag": f'"{oid}"', "Accept-Ranges": "bytes"})


def _range(request: Any, content: bytes, headers: dict[str, str]) -> tuple[int, bytes, dict[str, str]]:
    wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
    if wanted is None:
        return 200, content, headers
    start, end = int(wanted[1]), min(int(wanted[2] or len(content)), len(content) - 1)
    headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
    return 206, content[start : end + 1], headers


def _refuse_token(request: Any) -> None:
    if "Authorization" in request.headers:
        request.hub.complaints.append(f"the token was sent to the storage: {request.command} {request.path}")
        raise RefusalError(400, "Only one auth mechanism allowed")
