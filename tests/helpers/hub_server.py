"""A small Hub on a local port: real HTTP, real git and LFS hashes, faults to order and a log of
what it saw.

It answers what huggingface_hub, transformers, peft and datasets ask for when they create, push,
read and stream a repo. Large files live on a second port under another host name, as on the Hub, so
that a test can see whether a token is sent to another origin. Nothing is random: the same calls
give the same commit ids.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import struct
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml
from helpers.hub_xet import find_file

LFS_SUFFIXES = (".safetensors", ".bin", ".parquet", ".png", ".pt", ".h5", ".arrow")
ROUTES = [  # name, method, pattern of the path
    ("whoami", "GET", r"/api/whoami-v2"),
    ("create", "POST", r"/api/repos/create"),
    ("validate", "POST", r"/api/validate-yaml"),
    ("preupload", "POST", r"/api/(?P<type>\w+)s/(?P<id>[^/]+/[^/]+)/preupload/(?P<rev>[^/]+)"),
    ("commit", "POST", r"/api/(?P<type>\w+)s/(?P<id>[^/]+/[^/]+)/commit/(?P<rev>[^/]+)"),
    ("branch", "POST", r"/api/(?P<type>\w+)s/(?P<id>[^/]+/[^/]+)/branch/(?P<rev>[^/]+)"),
    ("paths", "POST", r"/api/(?P<type>\w+)s/(?P<id>[^/]+/[^/]+)/paths-info/(?P<rev>[^/]+)"),
    (
        "tree",
        "GET",
        r"/api/(?P<type>\w+)s/(?P<id>[^/]+/[^/]+)/tree/(?P<rev>[^/]+)(?:/(?P<path>.+))?",
    ),
    ("refs", "GET", r"/api/(?P<type>\w+)s/(?P<id>[^/]+/[^/]+)/refs"),
    ("info", "GET", r"/api/(?P<type>\w+)s/(?P<id>[^/]+/[^/]+)(?:/revision/(?P<rev>[^/]+))?"),
    (
        "batch",
        "POST",
        r"/(?:(?P<type>dataset|space)s/)?(?P<id>[^/]+/[^/]+)\.git/info/lfs/objects/batch",
    ),
    ("verify", "POST", r"/lfs-verify"),
    ("xet-token", "GET", r"/api/(?P<type>\w+)s/(?P<id>[^/]+/[^/]+)/xet-write-token/(?P<rev>[^/]+)"),
    ("xorb", "POST", r"/v1/xorbs/(?P<prefix>\w+)/(?P<hash>[0-9a-f]{64})"),
    ("shard", "POST", r"(?:/v1)?/shards?"),
    ("dedup", "GET", r"/v1/chunks/(?P<prefix>[^/]+)/(?P<hash>[0-9a-f]{64})"),
    ("put", "PUT", r"/lfs/(?P<oid>[0-9a-f]{64})"),
    ("storage", "GET", r"/lfs/(?P<oid>[0-9a-f]{64})"),
    (
        "resolve",
        "GET",
        r"/(?:(?P<type>dataset|space)s/)?(?P<id>[^/]+/[^/]+)/resolve/(?P<rev>[^/]+)/(?P<path>.+)",
    ),
]


def git_oid(kind: str, data: bytes) -> str:
    return hashlib.sha1(f"{kind} {len(data)}\0".encode() + data).hexdigest()


def lfs_pointer(sha256: str, size: int) -> bytes:
    return (
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
    )


@dataclass(frozen=True)
class File:
    data: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def oid(self) -> str:
        return git_oid("blob", lfs_pointer(self.sha256, len(self.data)) if self.lfs else self.data)

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.oid

    def entry(self, path: str) -> dict[str, Any]:
        entry = {"type": "file", "oid": self.oid, "size": len(self.data), "path": path}
        if self.lfs:
            pointer = len(lfs_pointer(self.sha256, len(self.data)))
            entry["lfs"] = {"oid": self.sha256, "size": len(self.data), "pointerSize": pointer}
        return entry


@dataclass(frozen=True)
class Commit:
    oid: str
    parent: str | None
    message: str
    files: dict[str, File]


@dataclass
class Repo:
    type: str
    id: str
    private: bool = False
    gated: bool = False
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)

    def at(self, revision: str | None) -> Commit | None:
        revision = unquote(revision or "main")
        return self.commits.get(self.branches.get(revision, revision))

    def log(self, branch: str = "main") -> list[Commit]:
        """The commits of a branch, newest first."""
        commit, commits = self.at(branch), []
        while commit:
            commits.append(commit)
            commit = self.commits.get(commit.parent or "")
        return commits


@dataclass
class Fault:
    """What goes wrong the next `times` times that `route` is asked for.

    `kind` is a status, or: `reset` (the connection is reset, in the middle of the body where there
    is one), `lost` (the work is done and the answer never sent), `slow` (answered after `wait`
    seconds), `corrupt` (the bytes served are altered, their length and checksums are as announced).
    """

    route: str
    kind: int | str
    times: int = 1
    wait: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)
    body: str = '{"error": "ordered by a test"}'
    path: str = ""  # only where the path holds this


@dataclass
class Seen:
    route: str
    method: str
    path: str
    host: str  # the Host header: tells the two origins apart
    headers: dict[str, str]
    body: bytes
    status: int | str = 0
    at: float = 0.0

    @property
    def authorization(self) -> str | None:
        return self.headers.get("authorization")


class HubServer:
    """`with HubServer() as hub:` serves at `hub.url`; `hub.log`, `hub.repos` and `hub.faults` are
    there to be read.
    """

    def __init__(self, storage_host: str = "localhost") -> None:
        self.users = {"hf_" + "a" * 34: "alice", "hf_" + "b" * 34: "bob"}
        self.orgs: dict[str, list[str]] = {"alice": ["lab"]}
        self.repos: dict[tuple[str, str], Repo] = {}
        self.lfs: dict[str, bytes] = {}
        self.xorbs: dict[str, bytes] = {}  # by hash, as they came in
        self.xet = False  # whether it speaks xet
        self.log: list[Seen] = []
        self.faults: list[Fault] = []
        self.lock = threading.RLock()
        self._servers = [ThreadingHTTPServer(("127.0.0.1", 0), self._handler()) for _ in range(2)]
        self.url = f"http://127.0.0.1:{self._servers[0].server_address[1]}"
        self.storage = f"http://{storage_host}:{self._servers[1].server_address[1]}"

    def __enter__(self) -> HubServer:
        for server in self._servers:
            server.daemon_threads = True
            threading.Thread(
                target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
            ).start()
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        return type("Handler", (_Handler,), {"hub": self})

    # What a test does to the server

    def token(self, user: str = "alice") -> str:
        return next(token for token, name in self.users.items() if name == user)

    def order(self, route: str, kind: int | str, times: int = 1, **more: Any) -> None:
        self.faults.append(Fault(route, kind, times, **more))

    def seen(self, route: str | None = None, path: str = "") -> list[Seen]:
        return [s for s in self.log if (route is None or s.route == route) and path in s.path]

    def repo(self, id: str, type: str = "model") -> Repo:
        return self.repos[type, id]

    def create(
        self, id: str, type: str = "model", *, private: bool = False, gated: bool = False
    ) -> Repo:
        repo = self.repos[type, id] = Repo(type, id, private, gated)
        attributes = "".join(
            f"*{s} filter=lfs diff=lfs merge=lfs -text\n" for s in LFS_SUFFIXES
        ).encode()
        self.commit(repo, {".gitattributes": File(attributes, lfs=False)}, "initial commit")
        return repo

    def put(self, id: str, files: dict[str, bytes], type: str = "model", **more: Any) -> Repo:
        """A repo with these files, made from the server's side."""
        repo = self.repos.get((type, id)) or self.create(id, type, **more)
        made = {path: File(data, path.endswith(LFS_SUFFIXES)) for path, data in files.items()}
        self.lfs.update({file.sha256: file.data for file in made.values() if file.lfs})
        self.commit(repo, {**repo.commits[repo.branches["main"]].files, **made}, "seed")
        return repo

    def received(self) -> list[tuple[str, bytes]]:
        """Return (where it came in, bytes) of all that clients sent; base64 also decoded."""
        parts = []
        for seen in self.log:
            head = json.dumps(
                {k: v for k, v in seen.headers.items() if k not in ("authorization", "host")}
            )
            parts += [
                (f"{seen.route} headers", head.encode()),
                (f"{seen.route} {seen.path}", seen.body),
            ]
            if seen.route == "commit":
                for line in map(json.loads, seen.body.splitlines()):
                    if line["key"] == "file":
                        parts.append(
                            (line["value"]["path"], base64.b64decode(line["value"]["content"]))
                        )
            elif seen.route == "preupload" and seen.body:
                for file in json.loads(seen.body)["files"]:
                    parts.append((file["path"], base64.b64decode(file["sample"])))
        return parts

    # What it does for its clients

    def commit(
        self, repo: Repo, files: dict[str, File], message: str, branch: str = "main"
    ) -> Commit:
        parent = repo.branches.get(branch)
        stamp = f"hub <hub@example.org> {1_700_000_000 + len(repo.commits)} +0000"
        lines = [f"tree {_tree_oid(files)}", *([f"parent {parent}"] if parent else [])]
        body = "\n".join([*lines, f"author {stamp}", f"committer {stamp}", "", message, ""])
        commit = Commit(git_oid("commit", body.encode()), parent, message, files)
        repo.commits[commit.oid] = commit
        repo.branches[branch] = commit.oid
        return commit

    def fault(self, route: str, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                bodiless = method == "HEAD" and fault.kind == "corrupt"
                if fault.route == route and fault.times > 0 and fault.path in path and not bodiless:
                    fault.times -= 1
                    return fault
        return None

    def may_write(self, user: str | None, namespace: str) -> bool:
        return user is not None and namespace in [user, *self.orgs.get(user, [])]


def _tree_oid(files: dict[str, File]) -> str:
    entries: dict[str, tuple[str, str]] = {}
    folders: dict[str, dict[str, File]] = {}
    for path, file in files.items():
        top, _, rest = path.partition("/")
        if rest:
            folders.setdefault(top, {})[rest] = file
        else:
            entries[top] = ("100644", file.oid)
    for name, inside in folders.items():
        entries[name + "/"] = (
            "40000",
            _tree_oid(inside),
        )  # git sorts a folder as if its name ended in a slash
    data = b"".join(
        f"{mode} {name.rstrip('/')}\0".encode() + bytes.fromhex(oid)
        for name, (mode, oid) in sorted(entries.items(), key=lambda item: item[0].encode())
    )
    return git_oid("tree", data)


class _Answer(Exception):
    def __init__(self, status: int, body: Any = b"", headers: dict[str, str] | None = None) -> None:
        self.status, self.headers = status, dict(headers or {})
        self.body = body if isinstance(body, bytes) else json.dumps(body).encode()


def _missing(kind: str, status: int = 404, commit: Commit | None = None) -> _Answer:
    headers = {"X-Error-Code": kind, "X-Error-Message": kind} | (
        {"X-Repo-Commit": commit.oid} if commit else {}
    )
    return _Answer(status, {"error": kind}, headers)


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: Any) -> None:
        pass

    def _serve(self) -> None:
        url = urlsplit(self.path)
        method = "GET" if self.command == "HEAD" else self.command
        route, match = "unknown", None
        for name, verb, pattern in ROUTES:
            if verb == method and (match := re.fullmatch(pattern, url.path)):
                route = name
                break
        headers = {key.lower(): value for key, value in self.headers.items()}
        seen = Seen(
            route,
            self.command,
            self.path,
            headers.get("host", ""),
            headers,
            b"",
            at=time.monotonic(),
        )
        with self.hub.lock:
            self.hub.log.append(seen)
        fault = self.hub.fault(route, self.command, self.path)
        if fault and fault.kind == "reset":
            seen.body, seen.status = self._read(half=True), "reset"
            return self._reset()
        seen.body = self._read()
        try:
            if fault and isinstance(fault.kind, int):
                raise _Answer(fault.kind, fault.body.encode(), fault.headers)
            if fault and fault.kind == "slow":
                time.sleep(fault.wait)
            if match is None:
                raise _Answer(404, {"error": f"no such route: {self.command} {url.path}"})
            self.arguments = {
                key: unquote(value) for key, value in match.groupdict().items() if value is not None
            }
            self.query = {key: values[0] for key, values in parse_qs(url.query).items()}
            self.body = seen.body
            self.user = self._who(headers)
            with self.hub.lock:
                getattr(self, "_" + route.replace("-", "_"))()
        except _Answer as answer:
            if fault and fault.kind == "lost":
                seen.status = "lost"
                return self._reset()
            if fault and fault.kind == "corrupt" and answer.body:
                answer.body = bytes([answer.body[0] ^ 1]) + answer.body[1:]
            seen.status = answer.status
            self._send(answer)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def _read(self, half: bool = False) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            data = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                data += self.rfile.read(size)
                self.rfile.readline()
                if half:
                    return data
            self.rfile.readline()
            return data
        size = int(self.headers.get("Content-Length", 0))
        return self.rfile.read(size // 2 if half else size)

    def _reset(self) -> None:
        # Lingering for zero seconds makes close() send RST instead of FIN.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RD)
        self.rfile.close()
        self.connection.close()

    def _send(self, answer: _Answer) -> None:
        status, body = answer.status, answer.body
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if status == 200 and asked and "ETag" in answer.headers:
            start, end = int(asked[1]), min(int(asked[2] or len(body) - 1), len(body) - 1)
            answer.headers["Content-Range"] = f"bytes {start}-{end}/{len(body)}"
            status, body = 206, body[start : end + 1]
        self.send_response(status)
        answer.headers.setdefault("Content-Type", "application/json")
        for key, value in answer.headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    # Who asks, and for what

    def _who(self, headers: dict[str, str]) -> str | None:
        if headers.get("authorization", "Bearer xet-").startswith(
            "Bearer xet-"
        ):  # none, or one for the storage
            return None
        user = self.hub.users.get(headers["authorization"].removeprefix("Bearer "))
        if user is None:
            message = "Invalid credentials in Authorization header"
            raise _Answer(401, {"error": message}, {"X-Error-Message": message})
        return user

    def _repo(self, write: bool = False) -> Repo:
        id = self.arguments["id"]
        repo = self.hub.repos.get((self.arguments.get("type", "model"), id))
        mine = self.hub.may_write(self.user, id.split("/")[0])
        if repo is None or (repo.private and not mine):
            raise _missing("RepoNotFound", 404 if self.user else 401)
        if write and not mine:
            message = f"You don't have the rights to write to {id}"
            raise _Answer(
                403 if self.user else 401, {"error": message}, {"X-Error-Message": message}
            )
        return repo

    def _commit_of(self, repo: Repo) -> Commit:
        commit = repo.at(self.arguments.get("rev"))
        if commit is None:
            raise _missing("RevisionNotFound")
        return commit

    # Routes

    def _whoami(self) -> None:
        if self.user is None:
            raise _Answer(401, {"error": "Invalid username or password."})
        orgs = [{"name": name, "type": "org"} for name in self.hub.orgs.get(self.user, [])]
        auth = {"type": "access_token", "accessToken": {"role": "write"}}
        raise _Answer(200, {"type": "user", "name": self.user, "orgs": orgs, "auth": auth})

    def _create(self) -> None:
        asked = json.loads(self.body)
        if self.user is None:
            raise _Answer(401, {"error": "Invalid username or password."})
        namespace = asked.get("organization") or self.user
        id, type = f"{namespace}/{asked['name']}", asked.get("type") or "model"
        url = {"url": f"{self.hub.url}/{'' if type == 'model' else type + 's/'}{id}"}
        if not self.hub.may_write(self.user, namespace):
            message = (
                f'You don\'t have the rights to create a {type} under the namespace "{namespace}".'
            )
            raise _Answer(403, {"error": message}, {"X-Error-Message": message})
        if (type, id) in self.hub.repos:
            raise _Answer(409, {**url, "error": "You already created this model repo"})
        self.hub.create(
            id, type, private=asked.get("visibility") == "private" or bool(asked.get("private"))
        )
        raise _Answer(200, url)

    def _validate(self) -> None:
        front = re.match(r"---\n(.*?)\n---", json.loads(self.body)["content"], re.S)
        try:
            yaml.safe_load(front[1]) if front else None
        except yaml.YAMLError as error:
            raise _Answer(400, {"errors": [{"message": str(error)}], "warnings": []}) from None
        raise _Answer(200, {"errors": [], "warnings": []})

    def _preupload(self) -> None:
        commit = self._commit_of(self._repo(write=True))
        answers = []
        for file in json.loads(self.body)["files"]:
            binary = b"\0" in base64.b64decode(file["sample"])
            lfs = file["path"].endswith(LFS_SUFFIXES) or binary or file["size"] > 10_000_000
            answer = {
                "path": file["path"],
                "uploadMode": "lfs" if lfs else "regular",
                "shouldIgnore": False,
            }
            if file["path"] in commit.files:
                answer["oid"] = commit.files[file["path"]].etag
            answers.append(answer)
        raise _Answer(200, {"files": answers})

    def _batch(self) -> None:
        self._repo(write=True)
        objects = json.loads(self.body)["objects"]
        for wanted in objects:
            if wanted["oid"] not in self.hub.lfs:
                href = f"{self.hub.storage}/lfs/{wanted['oid']}"
                verify = {"href": f"{self.hub.url}/lfs-verify"}
                wanted["actions"] = {"upload": {"href": href}, "verify": verify}
        raise _Answer(200, {"transfer": "basic", "objects": objects})

    def _put(self) -> None:
        oid = self.arguments["oid"]
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise _Answer(400, {"error": "checksum mismatch"})
        self.hub.lfs[oid] = self.body
        raise _Answer(200, b"")

    def _xet_token(self) -> None:
        self._repo(write=True)
        if not self.hub.xet:
            raise _Answer(404, {"error": "no xet here"})
        token, expires = "xet-" + "x" * 20, 4_000_000_000
        headers = {
            "X-Xet-Cas-Url": self.hub.storage,
            "X-Xet-Access-Token": token,
            "X-Xet-Token-Expiration": str(expires),
        }
        raise _Answer(
            200, {"accessToken": token, "exp": expires, "casUrl": self.hub.storage}, headers
        )

    def _xorb(self) -> None:
        new = self.hub.xorbs.setdefault(self.arguments["hash"], self.body) is self.body
        raise _Answer(200, {"was_inserted": new})

    def _shard(self) -> None:
        raise _Answer(200, {"result": 1})

    def _dedup(self) -> None:
        raise _Answer(404)

    def _verify(self) -> None:
        asked = json.loads(self.body)
        stored = self.hub.lfs.get(asked["oid"])
        raise _Answer(200 if stored is not None and len(stored) == asked["size"] else 422, {})

    def _storage(self) -> None:
        oid = self.arguments["oid"]
        if oid not in self.hub.lfs:
            raise _Answer(404)
        headers = {
            "ETag": f'"{oid}"',
            "Accept-Ranges": "bytes",
            "Content-Type": "application/octet-stream",
        }
        raise _Answer(200, self.hub.lfs[oid], headers)

    def _commit(self) -> None:
        repo = self._repo(write=True)
        branch = self.arguments["rev"]
        head = self._commit_of(repo)
        files, message = dict(head.files), ""
        for line in map(json.loads, self.body.splitlines()):
            key, value = line["key"], line["value"]
            if key == "header":
                message = value["summary"] + (
                    "\n\n" + value["description"] if value.get("description") else ""
                )
                if value.get("parentCommit", head.oid) != head.oid:
                    error = "A commit has happened since. Please refresh and try again."
                    raise _Answer(412, {"error": error}, {"X-Error-Message": error})
            elif key == "file":
                files[value["path"]] = File(base64.b64decode(value["content"]), lfs=False)
            elif key == "lfsFile":
                if value["oid"] not in self.hub.lfs:
                    sent = find_file(list(self.hub.xorbs.values()), value["oid"])
                    if sent is not None:
                        self.hub.lfs[value["oid"]] = sent
                if value["oid"] not in self.hub.lfs:
                    raise _Answer(400, {"error": f"LFS object {value['oid']} was not uploaded"})
                files[value["path"]] = File(self.hub.lfs[value["oid"]], lfs=True)
            elif key == "deletedFile":
                files.pop(value["path"])
            elif key == "deletedFolder":
                files = {
                    k: v
                    for k, v in files.items()
                    if not k.startswith(value["path"].rstrip("/") + "/")
                }
        commit = self.hub.commit(repo, files, message, branch)
        raise _Answer(
            200,
            {"commitUrl": f"{self.hub.url}/{repo.id}/commit/{commit.oid}", "commitOid": commit.oid},
        )

    def _branch(self) -> None:
        repo, name = self._repo(write=True), self.arguments["rev"]
        if name in repo.branches:
            raise _Answer(409, {"error": "Reference already exists"})
        start = repo.at(json.loads(self.body or b"{}").get("startingPoint"))
        if start is None:
            raise _missing("RevisionNotFound")
        repo.branches[name] = start.oid
        raise _Answer(200, {})

    def _refs(self) -> None:
        branches = self._repo().branches.items()
        branches = [
            {"name": n, "ref": f"refs/heads/{n}", "targetCommit": oid} for n, oid in branches
        ]
        raise _Answer(200, {"branches": branches, "tags": [], "converts": []})

    def _info(self) -> None:
        repo = self._repo()
        commit = self._commit_of(repo)
        readme = commit.files.get("README.md", File(b"", False)).data.decode()
        front = re.match(r"---\n(.*?)\n---", readme, re.S)
        card = yaml.safe_load(front[1]) if front else {}
        siblings = [
            {"rfilename": path, "size": len(file.data)}
            for path, file in sorted(commit.files.items())
        ]
        info = {
            "_id": repo.id,
            "id": repo.id,
            "sha": commit.oid,
            "private": repo.private,
            "siblings": siblings,
        }
        info |= {
            "gated": "manual" if repo.gated else False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
        }
        info |= {"cardData": card, "tags": card.get("tags", []), "author": repo.id.split("/")[0]}
        if repo.type == "model":
            info |= {
                "modelId": repo.id,
                "pipeline_tag": card.get("pipeline_tag"),
                "library_name": card.get("library_name"),
            }
        raise _Answer(200, info)

    def _tree(self) -> None:
        commit = self._commit_of(self._repo())
        folder = self.arguments.get("path", "").strip("/")
        prefix = folder + "/" if folder else ""
        inside = {path: file for path, file in commit.files.items() if path.startswith(prefix)}
        if prefix and not inside:
            raise _missing("EntryNotFound", commit=commit)
        entries: dict[str, dict[str, Any]] = {}
        for path, file in sorted(inside.items()):
            parts = path.removeprefix(prefix).split("/")
            for depth in range(1, len(parts)):
                name = prefix + "/".join(parts[:depth])
                below = {
                    k.removeprefix(name + "/"): v
                    for k, v in inside.items()
                    if k.startswith(name + "/")
                }
                entries[name] = {
                    "type": "directory",
                    "oid": _tree_oid(below),
                    "size": 0,
                    "path": name,
                }
            entries[path] = file.entry(path)
        if self.query.get("recursive", "false").lower() not in ("true", "1"):
            entries = {
                path: entry
                for path, entry in entries.items()
                if "/" not in path.removeprefix(prefix)
            }
        raise _Answer(200, list(entries.values()))

    def _paths(self) -> None:
        commit = self._commit_of(self._repo())
        try:
            asked = json.loads(self.body)["paths"]
        except ValueError:
            asked = parse_qs(self.body.decode())["paths"]
        entries = [commit.files[path].entry(path) for path in asked if path in commit.files]
        for path in asked:
            below = {
                k[len(path) + 1 :]: v for k, v in commit.files.items() if k.startswith(path + "/")
            }
            if below:
                entries.append(
                    {"type": "directory", "oid": _tree_oid(below), "size": 0, "path": path}
                )
        raise _Answer(200, entries)

    def _resolve(self) -> None:
        repo = self._repo()
        if repo.gated and not self.hub.may_write(self.user, repo.id.split("/")[0]):
            raise _missing("GatedRepo", 403 if self.user else 401)
        commit = self._commit_of(repo)
        file = commit.files.get(self.arguments["path"])
        if file is None:
            raise _missing("EntryNotFound", commit=commit)
        headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{file.etag}"', "Accept-Ranges": "bytes"}
        if file.lfs:
            linked = {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(len(file.data))}
            raise _Answer(
                302, b"", {**headers, **linked, "Location": f"{self.hub.storage}/lfs/{file.sha256}"}
            )
        raise _Answer(200, file.data, {**headers, "Content-Type": "text/plain"})
