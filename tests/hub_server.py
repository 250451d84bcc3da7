"""A small Hub on 127.0.0.1, for tests: resolves files, takes pushes, and can be told to misbehave.

It speaks as much of the Hub's protocol as `hf_hub_download` and `HfApi.create_commit` use: HEAD and GET of
`/{user}/{repo}/resolve/{revision}/{file}` with branches, tags and commits; creation of repositories and
branches; preupload, the LFS batch with its upload and verify steps, and commits.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import socket
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

Files = dict[str, bytes]


@dataclass
class Repo:
    commits: dict[str, Files] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    private: bool = False

    def commit(self, files: Files, branch: str = "main") -> str:
        parent = self.refs.get(branch, "")
        tree = {**self.commits.get(parent, {}), **files}
        digest = hashlib.sha1(parent.encode())
        for name in sorted(tree):
            digest.update(name.encode() + b"\0" + tree[name])
        sha = digest.hexdigest()
        self.commits[sha] = tree
        self.refs[branch] = sha
        return sha

    def find(self, revision: str) -> str | None:
        return revision if revision in self.commits else self.refs.get(revision)


class LocalHub:
    """The server's state, and its switch. `with LocalHub() as hub: hub.url`."""

    TOKEN = "hf_writer"

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.lfs: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.corrupt: set[str] = set()  # files sent with one byte flipped
        self.truncate: set[str] = set()  # files whose connection breaks half way
        self.broken = False  # every answer is a 503
        self.connections: set[socket.socket] = set()
        self._server: ThreadingHTTPServer | None = None
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        hub = self

        class Handler(_Handler):
            state = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
            # Kept-alive connections would still be served.
            for connection in list(self.connections):
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> LocalHub:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def reset(self) -> None:
        """Back to an empty, well-behaved, running Hub at the same address."""
        self.repos.clear()
        self.lfs.clear()
        self.requests.clear()
        self.corrupt.clear()
        self.truncate.clear()
        self.broken = False
        if self._server is None:
            self.start()


class _Handler(BaseHTTPRequestHandler):
    state: LocalHub
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.state.connections.add(self.connection)

    def finish(self) -> None:
        self.state.connections.discard(self.connection)
        with contextlib.suppress(OSError):
            super().finish()

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._route()

    def do_GET(self) -> None:
        self._route()

    def do_PUT(self) -> None:
        self._route()

    def do_POST(self) -> None:
        self._route()

    # ---------------------------------------------------------------- answers

    def _send(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        headers = {"Content-Length": str(len(body)), **(headers or {})}
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, data: object, status: int = 200) -> None:
        self._send(status, json.dumps(data).encode(), {"Content-Type": "application/json"})

    def _error(self, status: int, code: str, message: str, **headers: str) -> None:
        extra = {"X-Error-Code": code, "X-Error-Message": message, **headers}
        self._send(status, json.dumps({"error": message}).encode(), extra)

    @property
    def _token(self) -> str:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ")

    # ---------------------------------------------------------------- routes

    def _route(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        # Split first: a branch's own slash arrives as %2F.
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        path = "/" + "/".join(parts)
        self.state.requests.append(f"{self.command} {path}")
        if self.state.broken:
            self._error(503, "", "Service Unavailable")
        elif parts[0] == "api":
            self._api(parts[1:], body)
        elif parts[0] == "lfs":
            self._lfs_object(parts[1], body)
        elif path.endswith(".git/info/lfs/objects/batch"):
            self._lfs_batch(json.loads(body))
        elif len(parts) >= 5 and parts[2] == "resolve":
            self._resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        else:
            self._error(404, "", "Not Found")

    def _repo(self, name: str) -> Repo | None:
        """The repository, or None once the refusal has been sent, in the words of the real Hub."""
        repo = self.state.repos.get(name)
        allowed = self._token == self.state.TOKEN
        if repo is None or (repo.private and not allowed):
            if allowed:
                self._error(404, "RepoNotFound", "Repository not found")
            else:
                self._error(401, "RepoNotFound", "Invalid username or password.")
            return None
        if repo.gated and not allowed:
            self._error(401, "GatedRepo", f"Access to model {name} is restricted.")
            return None
        return repo

    def _resolve(self, name: str, revision: str, file: str) -> None:
        repo = self._repo(name)
        if repo is None:
            return
        sha = repo.find(revision)
        if sha is None:
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return
        if file not in repo.commits[sha]:
            self._error(404, "EntryNotFound", "Entry not found", **{"X-Repo-Commit": sha})
            return
        content = repo.commits[sha][file]
        if file.endswith(".safetensors"):
            etag = hashlib.sha256(content).hexdigest()
        else:
            etag = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        if file.endswith(".safetensors"):
            headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(content))}
        if file in self.state.corrupt:
            content = content[:-1] + bytes([content[-1] ^ 1])
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").split("-")[0])
        status = 200
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            content, status = content[start:], 206
        if file in self.state.truncate and self.command == "GET":
            headers["Content-Length"] = str(len(content))
            content = b"" if start else content[: len(content) // 2]
            self.close_connection = True
        self._send(status, content, headers)

    def _api(self, parts: list[str], body: bytes) -> None:
        if parts == ["repos", "create"]:
            self._create(json.loads(body))
        elif parts == ["validate-yaml"]:
            self._json({"errors": [], "warnings": []})
        elif parts[0] == "models":
            repo = self._repo("/".join(parts[1:3]))
            if repo is not None:
                self._model("/".join(parts[1:3]), repo, parts[3:], body)
        else:
            self._error(404, "", "Not Found")

    def _create(self, data: dict[str, Any]) -> None:
        if self._token != self.state.TOKEN:
            self._error(401, "", "Invalid username or password.")
            return
        name = f"{data.get('organization')}/{data['name']}"
        if name in self.state.repos:
            self._json(
                {"error": "You already created this model repo", "url": f"{self.state.url}/{name}"}, 409
            )
            return
        private = bool(data.get("private")) or data.get("visibility") == "private"
        repo = self.state.repos[name] = Repo(private=private)
        repo.commit({".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"})
        self._json({"url": f"{self.state.url}/{name}", "name": name, "id": name})

    def _model(self, name: str, repo: Repo, parts: list[str], body: bytes) -> None:
        if not parts or parts[0] == "revision":
            sha = repo.find(parts[1] if parts else "main")
            if sha is None:
                self._error(404, "RevisionNotFound", f"Invalid rev id: {parts[1]}")
                return
            siblings = [{"rfilename": file} for file in repo.commits[sha]]
            self._json(
                {"id": name, "modelId": name, "sha": sha, "private": repo.private, "siblings": siblings}
            )
        elif self._token != self.state.TOKEN:
            self._error(403, "", "Forbidden: you must use a write token")
        elif parts[0] == "branch":
            branch = "/".join(parts[1:])
            if branch in repo.refs:
                self._error(409, "", "Reference already exists")
            else:
                repo.refs[branch] = repo.refs["main"]
                self._json({})
        elif repo.find("/".join(parts[1:])) is None:
            self._error(404, "RevisionNotFound", f"Invalid rev id: {parts[1]}")
        elif parts[0] == "preupload":
            files = [file["path"] for file in json.loads(body)["files"]]
            mode = {True: "lfs", False: "regular"}
            answers = [(file, mode[file.endswith(".safetensors")]) for file in files]
            self._json({"files": [{"path": f, "uploadMode": m, "shouldIgnore": False} for f, m in answers]})
        elif parts[0] == "commit":
            self._commit(name, repo, "/".join(parts[1:]), body)
        else:
            self._error(404, "", "Not Found")

    def _lfs_batch(self, data: dict[str, Any]) -> None:
        objects = []
        for wanted in data["objects"]:
            entry = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.state.lfs:
                href = f"{self.state.url}/lfs/{wanted['oid']}"
                entry["actions"] = {"upload": {"href": href}, "verify": {"href": href}}
            objects.append(entry)
        self._json({"transfer": "basic", "objects": objects})

    def _lfs_object(self, oid: str, body: bytes) -> None:
        if self.command == "PUT":
            if hashlib.sha256(body).hexdigest() != oid:
                self._error(400, "", "the content has another sha256")
                return
            self.state.lfs[oid] = body
            self._send(200)
        elif len(self.state.lfs.get(oid, b"")) == json.loads(body)["size"]:
            self._json({})
        else:
            self._error(404, "", "no such object")

    def _commit(self, name: str, repo: Repo, branch: str, body: bytes) -> None:
        files: Files = {}
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.state.lfs[value["oid"]]
        sha = repo.commit(files, branch)
        self._json({"success": True, "commitOid": sha, "commitUrl": f"{self.state.url}/{name}/commit/{sha}"})
