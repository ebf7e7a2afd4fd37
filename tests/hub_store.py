"""The repositories of the Hub that tests push to: content-addressed commits in memory, with strict checks."""

from __future__ import annotations

import base64
import binascii
import fnmatch
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import yaml

LARGE = 10_000_000
"""Size in bytes from which the Hub accepts a file only through LFS."""
ATTRIBUTES = "".join(
    f"{pattern} filter=lfs diff=lfs merge=lfs -text\n"
    for pattern in ("*.bin", "*.gguf", "*.parquet", "*.pt", "*.safetensors", "*.zip")
).encode()


class RefusalError(Exception):
    """An error answer: status, message, and the Hub's error code."""

    def __init__(self, status: int, message: str, code: str = "", **body: object) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.body = status, message, code, body


@dataclass(frozen=True)
class File:
    content: bytes = field(repr=False)
    is_lfs: bool = False

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def oid(self) -> str:
        """Git's id of the blob, or of the pointer if the content is in LFS."""
        blob = self.pointer if self.is_lfs else self.content
        return hashlib.sha1(b"blob %d\0" % len(blob) + blob).hexdigest()

    @property
    def pointer(self) -> bytes:
        head = "version https://git-lfs.github.com/spec/v1"
        return f"{head}\noid sha256:{self.sha256}\nsize {len(self.content)}\n".encode()


@dataclass(frozen=True)
class Commit:
    oid: str
    parent: str | None
    title: str
    files: Mapping[str, File]


@dataclass
class PullRequest:
    number: int
    title: str
    author: str
    head: str
    status: str = "open"


class Repository:
    def __init__(self, kind: str, name: str, private: bool = False) -> None:
        self.kind, self.name, self.private = kind, name, private
        self.commits: dict[str, Commit] = {}
        self.branches: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self.pull_requests: list[PullRequest] = []
        self.add_commit("main", {".gitattributes": File(ATTRIBUTES)}, "initial commit")

    @property
    def url_path(self) -> str:
        return self.name if self.kind == "model" else f"{self.kind}s/{self.name}"

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """The files that a reader sees, without the Hub's own file."""
        there = self.resolve(revision).files
        return {path: file.content for path, file in sorted(there.items()) if path != ".gitattributes"}

    def resolve(self, revision: str) -> Commit:
        pulls = {f"refs/pr/{pull.number}": pull.head for pull in self.pull_requests}
        oid = {**self.tags, **self.branches, **pulls}.get(revision, revision)
        if oid not in self.commits:
            raise RefusalError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[oid]

    def add_commit(self, branch: str | None, files: Mapping[str, File], title: str, oid: str | None = None) -> Commit:
        """Put a commit on a branch (None: on no branch); its id is the hash of its whole content."""
        parent = self.branches.get(branch or "")
        tree = sorted((path, file.oid) for path, file in files.items())
        oid = oid or hashlib.sha1(json.dumps([parent, title, tree, len(self.commits)]).encode()).hexdigest()
        self.commits[oid] = Commit(oid, parent, title, dict(files))
        if branch is not None:
            self.branches[branch] = oid
        return self.commits[oid]

    def is_large(self, path: str, size: int) -> bool:
        attributes = self.resolve("main").files.get(".gitattributes", File(b"")).content.decode()
        patterns = [line.split()[0] for line in attributes.splitlines() if "filter=lfs" in line]
        return size > LARGE or any(fnmatch.fnmatch(path.rsplit("/", 1)[-1], pattern) for pattern in patterns)

    def is_ignored(self, path: str) -> bool:
        rules = self.resolve("main").files.get(".gitignore", File(b"")).content.decode().split()
        return any(fnmatch.fnmatch(path.rsplit("/", 1)[-1], rule) for rule in rules)

    def take_commit(
        self, body: bytes, branch: str, objects: Mapping[str, bytes], pull_request_of: str | None = None
    ) -> tuple[Commit, PullRequest | None]:
        """Accept a commit request (newline-delimited JSON) completely or not at all.

        Args:
            body: the request.
            branch: the target branch.
            objects: LFS objects that were uploaded, by SHA-256.
            pull_request_of: the author, to open a pull request instead of moving the branch.
        """
        lines = [json.loads(line) for line in body.decode().splitlines()]
        if not lines or lines[0]["key"] != "header" or not lines[0]["value"].get("summary"):
            raise RefusalError(400, "a commit starts with a header that has a summary")
        header = lines[0]["value"]
        head = self.resolve(branch)
        if branch not in self.branches:
            raise RefusalError(404, f"{branch} is not a branch", "RevisionNotFound")
        parent = header.get("parentCommit")
        if parent is not None and parent != head.oid:
            raise RefusalError(412, "A commit has happened since. Please refresh and try again.")
        files = dict(head.files)
        for line in lines[1:]:
            self._apply(line["key"], line["value"], files, objects)
        if pull_request_of is None:
            return self.add_commit(branch, files, header["summary"]), None
        commit = self.add_commit(None, files, header["summary"])
        pull = PullRequest(len(self.pull_requests) + 1, header["summary"], pull_request_of, commit.oid)
        self.pull_requests.append(pull)
        return commit, pull

    def _apply(self, key: str, value: dict[str, object], files: dict[str, File], objects: Mapping[str, bytes]) -> None:
        path = str(value["path"])
        if path.startswith("/") or {"", ".", "..", ".git"} & set(path.split("/")):
            raise RefusalError(400, f"invalid path {path}")
        if key == "file":
            if value.get("encoding") != "base64":
                raise RefusalError(400, f"{path}: unknown encoding")
            try:
                content = base64.b64decode(str(value["content"]), validate=True)
            except binascii.Error:
                raise RefusalError(400, f"{path}: not base64") from None
            if self.is_large(path, len(content)) and content:
                raise RefusalError(400, f"{path} must be an LFS file")
            if path == "README.md":
                validate_card(content.decode())
            files[path] = File(content)
        elif key == "lfsFile":
            uploaded = objects.get(str(value["oid"]))
            if value.get("algo") != "sha256" or uploaded is None or len(uploaded) != value["size"]:
                raise RefusalError(400, f"{path}: its LFS object was not uploaded")
            files[path] = File(uploaded, is_lfs=True)
        elif key == "deletedFile":
            if path not in files:
                raise RefusalError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
            del files[path]
        else:
            raise RefusalError(400, f"unknown operation {key}")


def validate_card(content: str) -> None:
    """The YAML block of a README.md must be a mapping."""
    if not content.startswith("---\n"):
        return
    try:
        metadata = yaml.safe_load(content.split("---\n")[1])
    except yaml.YAMLError as error:
        raise RefusalError(400, "Invalid metadata", errors=[{"message": str(error)}]) from None
    if not isinstance(metadata, dict):
        raise RefusalError(400, "Invalid metadata", errors=[{"message": "not a mapping"}])
