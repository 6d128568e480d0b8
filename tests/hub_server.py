"""The Hugging Face Hub as far as data sets need it, on loopback, failing on demand; its `endpoint` is HF_ENDPOINT.

    with HubServer() as hub:
        sha = hub.commit("org/name", {"data/train-00000-of-00001.parquet": some_bytes})

Answers what huggingface_hub and datasets ask: repo info and revisions, trees (in pages), paths-info, files with HEAD,
GET and ranges (large ones as a signed redirect to another host), and creating, preupload, LFS and commits.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import socket
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

import yaml

from loopback import LoopbackServer

READER, WRITER = (f"hf_{who}OfTheTestsThatNobodyMayEverSee" for who in ("reader", "writer"))
"""Tokens that the server knows: both see private repositories, and gated ones where `granted` holds them."""
_LFS = (".parquet", ".arrow", ".tar", ".zip", ".png", ".jpg", ".bin", ".gz", ".zst")
_MODIFIED = "2026-01-02T03:04:05.000Z"
_REPO = re.compile(
    r"/api/(datasets|models)/([^/]+(?:/[^/]+)??)(?:/(revision|tree|paths-info|preupload|commit)/([^/]+)(?:/(.*))?)?"
)
_FILE = re.compile(r"/(?:(datasets)/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
_BATCH = re.compile(r"/(?:(datasets)/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch")
FAULTS = ("drop", "cut", "slow", "hang", "500", "503", "429", "401", "403", "pass")


class RefusedError(Exception):
    """An answer with an error status and the Hub's own headers about it."""

    def __init__(self, status: int, code: str, message: str, **more: str) -> None:
        super().__init__(message)
        self.status, self.code, self.more = status, code, more


@dataclass
class Repo:
    """A repository: its commits, whole trees by sha, and the commit of each branch or tag."""

    private: bool = False
    gated: bool = False
    granted: set[str] = field(default_factory=set)
    """Tokens that may read a gated one."""
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)


class HubServer(LoopbackServer):
    """Serves `repos`; each request takes the next fault of the queue, if there is one.

    Faults: `drop` (closed before an answer), `cut` (half of the answer's body), `slow` (the answer takes 3 s), `hang`
    (never answered), a status (429 with `Retry-After: 1`), `pass` (none). `only` names the methods they are for,
    `where` what the URL must hold.
    """

    def __init__(self, page_size: int = 1000) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.blobs: dict[str, bytes] = {}
        """Content of large files, by SHA-256."""
        self.page_size = page_size
        self.faults: deque[str] = deque()
        self.only = {"GET", "HEAD", "POST", "PUT"}
        self.where = ""
        self.requests: list[tuple[str, str, str]] = []
        """(method, path, fault)."""
        self.tokens_seen: set[str] = set()
        server = self

        class Handler(_Handler):
            hub = server

        super().__init__(Handler)

    def environment(self, **more: str) -> dict[str, str]:
        """For a process that is to talk to it: nothing of the machine's own tokens and settings counts."""
        return {
            "HF_ENDPOINT": self.endpoint, "HF_HUB_OFFLINE": "0", "HF_TOKEN": "", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1", "HF_TOKEN_PATH": "/nonexistent", **more,
        }  # fmt: skip

    def repo(self, name: str, *, kind: str = "datasets", **settings: Any) -> Repo:
        """The repository of that name, made where it is not there; `settings` are fields of Repo."""
        repo = self.repos.get((kind, name))
        if repo is None:
            repo = self.repos[kind, name] = Repo()
            self._add(repo, {".gitattributes": b""}, "main", "initial commit")
        for setting, value in settings.items():
            setattr(repo, setting, value)
        return repo

    def commit(
        self, name: str, files: Mapping[str, bytes | str | None], *, branch: str = "main", kind: str = "datasets",
        message: str = "a commit",
    ) -> str:  # fmt: skip
        """Adds, replaces or (None) deletes files on a branch; returns the sha of the commit."""
        return self._add(self.repo(name, kind=kind), files, branch, message)

    def _add(self, repo: Repo, files: Mapping[str, bytes | str | None], branch: str, message: str) -> str:
        head = repo.commits.get(repo.refs.get(branch, repo.refs.get("main", "")), {})
        new = {path: data.encode() if isinstance(data, str) else data for path, data in files.items()}
        tree = {path: data for path, data in {**head, **new}.items() if data is not None}
        listing = repr([*repo.commits, *((path, _oid(data)) for path, data in sorted(tree.items()))])
        sha = hashlib.sha1(listing.encode()).hexdigest()
        self.blobs |= {hashlib.sha256(data).hexdigest(): data for path, data in tree.items() if _is_lfs(path)}
        repo.commits[sha], repo.refs[branch] = tree, sha
        repo.messages.append(message)
        return sha


def _is_lfs(path: str) -> bool:
    return path.endswith(_LFS)


def _oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _front_matter(card: bytes) -> Any:
    block = re.match(r"---\n(.*?)\n---", card.decode(errors="replace"), re.DOTALL)
    with contextlib.suppress(yaml.YAMLError):
        return yaml.safe_load(block[1]) if block else None


def _entry(path: str, data: bytes) -> dict[str, Any]:
    """A file as trees and paths-info list it."""
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": _oid(data)}
    if _is_lfs(path):
        entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
    return entry


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    """Headers and body are two packets, and the second would wait 40 ms for a word about the first."""

    def log_message(self, *args: Any) -> None:
        pass

    def answer(self) -> None:
        hub = self.hub
        meant = hub.faults and self.command in hub.only and hub.where in self.path
        fault = hub.faults.popleft() if meant else "pass"
        assert fault in FAULTS, fault
        hub.requests.append((self.command, self.path, fault))
        self.token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        hub.tokens_seen.add(self.token)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if fault == "drop":
            self.hang_up()
            return
        if fault == "hang":
            self.rfile.read(1)  # Until the client gives up.
            return
        if fault == "slow":
            time.sleep(3)
        if fault.isdigit():
            more = {"Retry-After": "1"} if fault == "429" else {}
            self.send(int(fault), b"asked for by a test", {**more, "Content-Type": "text/plain"})
            return
        try:
            status, body, headers = self.route()
        except RefusedError as error:
            headers = {"X-Error-Code": error.code, "X-Error-Message": str(error)}
            status, body = error.status, json.dumps({"error": str(error), **error.more}).encode()
        self.send(status, body, headers, cut=fault == "cut")

    do_GET = do_HEAD = do_POST = do_PUT = answer  # noqa: N815

    def send(self, status: int, body: bytes, headers: Mapping[str, str], *, cut: bool = False) -> None:
        self.send_response(status)
        for pair in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(*pair)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if cut else body)
        self.wfile.flush()
        if cut:
            self.hang_up()

    def hang_up(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def route(self) -> tuple[int, bytes, dict[str, str]]:
        """(status, body, headers) of this request."""
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        if self.token and self.token not in (READER, WRITER):
            raise RefusedError(401, "", "Invalid credentials in Authorization header")
        if url.path == "/api/whoami-v2":
            if not self.token:
                raise RefusedError(401, "", "Invalid username or password.")
            return 200, json.dumps({"type": "user", "name": self.token, "orgs": []}).encode(), {}
        if url.path.startswith("/cdn/"):
            return self.stored(url.path.removeprefix("/cdn/"), query)
        if url.path == "/api/validate-yaml":
            licence = re.search(r"^license: (.+)$", json.loads(self.body)["content"], re.MULTILINE)
            if licence and licence[1] not in ("unknown", "other", "mit", "cc-by-4.0", "cc0-1.0"):
                return 400, b'{"errors": [{"message": ""license" must be one of [apache-2.0, \xe2\x80\xa6]"}]}', {}
            return 200, b'{"errors": [], "warnings": []}', {}
        if url.path == "/api/repos/create":
            return self.create(json.loads(self.body))
        if found := _BATCH.fullmatch(url.path):
            return self.lfs_batch(self.find(found[1] or "models", found[2], write=True))
        if found := _FILE.fullmatch(url.path):
            return self.file(found[1] or "models", found[2], unquote(found[3]), unquote(found[4]))
        if found := _REPO.fullmatch(url.path):
            kind, name, what, revision, path = found.groups()
            repo = self.find(kind, name, write=what in ("preupload", "commit"))
            if what == "preupload":
                return self.preupload()
            if what == "commit":
                return self.take_commit(kind, name, unquote(revision))
            sha, tree = self.tree(repo, unquote(revision or "main"))
            if what == "tree":
                return self.list_tree(url.path, tree, unquote(path or ""), query)
            if what == "paths-info":
                wanted = parse_qs(self.body.decode()).get("paths", [])
                return 200, json.dumps([_entry(item, tree[item]) for item in wanted if item in tree]).encode(), {}
            info = {
                "id": name, "sha": sha, "private": repo.private, "gated": "auto" if repo.gated else False,
                "disabled": False, "lastModified": _MODIFIED, "createdAt": _MODIFIED, "tags": [], "downloads": 0,
                "likes": 0, "siblings": [{"rfilename": item} for item in sorted(tree)],
                "cardData": _front_matter(tree.get("README.md", b"")),
            }  # fmt: skip
            return 200, json.dumps(info).encode(), {}
        raise RefusedError(404, "", f"Sorry, we can't find {url.path}")

    def find(self, kind: str, name: str, *, write: bool = False) -> Repo:
        """The repository, if this request's token may see it: what is private looks like what is not there."""
        repo = self.hub.repos.get((kind, name))
        if repo is None or (repo.private and not self.token):
            raise RefusedError(404 if self.token else 401, "RepoNotFound", "Repository not found")
        if write and self.token != WRITER:
            raise RefusedError(403 if self.token else 401, "", "You don't have the rights to write here")
        return repo

    def tree(self, repo: Repo, revision: str) -> tuple[str, dict[str, bytes]]:
        sha = repo.refs.get(revision, revision)
        if sha not in repo.commits:
            raise RefusedError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return sha, repo.commits[sha]

    def list_tree(self, path: str, tree: Mapping[str, bytes], below: str, query: Mapping[str, str]) -> Any:
        inside = {item: data for item, data in tree.items() if not below or item.startswith(f"{below}/")}
        if not inside and below:
            raise RefusedError(404, "EntryNotFound", f"{below} does not exist")
        entries: dict[str, dict[str, Any]] = {}
        for item, data in inside.items():
            parts = item.split("/")
            depth = below.count("/") + 1 if below else 0
            for stop in range(depth + 1, len(parts)):
                folder = "/".join(parts[:stop])
                oid = hashlib.sha1(folder.encode()).hexdigest()
                entries[folder] = {"type": "directory", "path": folder, "size": 0, "oid": oid}
            entries[item] = _entry(item, data)
        if query.get("recursive") != "true":
            prefix = f"{below}/" if below else ""
            entries = {item: entry for item, entry in entries.items() if "/" not in item.removeprefix(prefix)}
        listed, start = [entries[item] for item in sorted(entries)], int(query.get("cursor", 0))
        stop = start + self.hub.page_size
        headers = {}
        if stop < len(listed):
            rest = "&".join(f"{name}={quote(value)}" for name, value in query.items() if name != "cursor")
            headers["Link"] = f'<{self.hub.endpoint}{path}?{rest}&cursor={stop}>; rel="next"'
        return 200, json.dumps(listed[start:stop]).encode(), headers

    def file(self, kind: str, name: str, revision: str, path: str) -> tuple[int, bytes, dict[str, str]]:
        repo = self.find(kind, name)
        if repo.gated and self.token not in repo.granted:
            said = f"Access to dataset {name} is restricted." + ("" if self.token else " You must be authenticated.")
            raise RefusedError(403 if self.token else 401, "GatedRepo", said)
        sha, tree = self.tree(repo, revision)
        if path not in tree:
            raise RefusedError(404, "EntryNotFound", "Entry not found")
        data, headers = tree[path], {"X-Repo-Commit": sha}
        if not _is_lfs(path):
            return self.content(data, {**headers, "ETag": f'"{_oid(data)}"'})
        oid = hashlib.sha256(data).hexdigest()
        # Another host than the endpoint's: a token must not go along.
        headers |= {
            "Location": f"http://localhost:{self.hub.port}/cdn/{oid}?Signature=signedsecret",
            "X-Linked-Size": str(len(data)), "X-Linked-Etag": f'"{oid}"',
        }  # fmt: skip
        return 302, b"", headers

    def stored(self, oid: str, query: Mapping[str, str]) -> tuple[int, bytes, dict[str, str]]:
        """A large file of the CDN, read or (PUT) written."""
        if self.headers.get("Authorization") or "Signature" not in query:
            raise RefusedError(400, "", "a signed URL, and nothing beside it")
        if self.command == "PUT":
            if hashlib.sha256(self.body).hexdigest() != oid:
                raise RefusedError(400, "", "other bytes than were announced")
            self.hub.blobs[oid] = self.body
            return 200, b"", {}
        return self.content(self.hub.blobs[oid], {"ETag": f'"{oid}"'})

    def content(self, data: bytes, headers: dict[str, str]) -> tuple[int, bytes, dict[str, str]]:
        headers |= {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes"}
        if not (found := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")):
            return 200, data, headers
        start = int(found[1])
        stop = min(int(found[2]) + 1 if found[2] else len(data), len(data))
        if start >= len(data):
            return 416, b"", {**headers, "Content-Range": f"bytes */{len(data)}"}
        return 206, data[start:stop], {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}

    def create(self, asked: Mapping[str, Any]) -> tuple[int, bytes, dict[str, str]]:
        if self.token != WRITER:
            raise RefusedError(403 if self.token else 401, "", "You don't have the rights to create a repository here")
        kind = f"{asked.get('type', 'model')}s"
        name = f"{asked.get('organization') or self.token}/{asked['name']}"
        url = f"{self.hub.endpoint}/{kind}/{name}"
        if (kind, name) in self.hub.repos:
            raise RefusedError(409, "", "You already created this repo", url=url)
        self.hub.repo(name, kind=kind, private=bool(asked.get("private")) or asked.get("visibility") == "private")
        return 200, json.dumps({"url": url, "name": name}).encode(), {}

    def preupload(self) -> tuple[int, bytes, dict[str, str]]:
        files = [
            {"path": item["path"], "uploadMode": "lfs" if _is_lfs(item["path"]) else "regular", "shouldIgnore": False}
            for item in json.loads(self.body)["files"]
        ]
        return 200, json.dumps({"files": files}).encode(), {}

    def lfs_batch(self, repo: Repo) -> tuple[int, bytes, dict[str, str]]:
        objects = []
        for item in json.loads(self.body)["objects"]:
            href = f"http://localhost:{self.hub.port}/cdn/{item['oid']}?Signature=signedsecret"
            there = item["oid"] in self.hub.blobs
            objects.append({**item, **({} if there else {"actions": {"upload": {"href": href, "header": {}}}})})
        return 200, json.dumps({"transfer": "basic", "objects": objects}).encode(), {}

    def take_commit(self, kind: str, name: str, branch: str) -> tuple[int, bytes, dict[str, str]]:
        files: dict[str, bytes | str | None] = {}
        message = ""
        for line in self.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                message = value["summary"]
            elif item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                if value["oid"] not in self.hub.blobs:
                    raise RefusedError(400, "", f"no upload of {value['path']}")
                files[value["path"]] = self.hub.blobs[value["oid"]]
            elif item["key"] == "deletedFile":
                files[value["path"]] = None
        sha = self.hub.commit(name, files, branch=branch, kind=kind, message=message)
        url = f"{self.hub.endpoint}/{kind}/{name}/commit/{sha}"
        return 200, json.dumps({"success": True, "commitOid": sha, "commitUrl": url}).encode(), {}
