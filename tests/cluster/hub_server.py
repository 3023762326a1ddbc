"""A model hub on this machine: the part of its HTTP interface that huggingface_hub's client uses."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@dataclass
class Hub:
    """Repositories by name: revision to folder; and what was asked."""

    repos: dict[str, dict[str, Path]] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    error: int | None = None
    """Answer everything with this status."""
    gated: bool = False
    endpoint: str = ""

    def push(self, repo: str, folder: Path, *, branch: str = "main") -> str:
        """A commit; a branch points to it."""
        content = "".join(
            f"{name}{file.stat().st_size}{file.read_bytes()[:64]!r}" for name, file in _files(folder)
        )
        commit = hashlib.sha1(content.encode()).hexdigest()
        self.repos.setdefault(repo, {}).update({branch: folder, commit: folder})
        return commit

    def commit(self, repo: str, revision: str) -> str:
        """The commit that a revision means."""
        folder = self.repos[repo][revision]
        return next(name for name, at in self.repos[repo].items() if at == folder and len(name) == 40)

    def fetched(self) -> set[str]:
        """The files whose content was asked for."""
        asked = [request for request in self.requests if request.startswith("GET") and "/resolve/" in request]
        return {request.rsplit("/", 1)[1] for request in asked}


@contextmanager
def serve() -> Iterator[Hub]:
    """A hub at a port of its own."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, *_args: Any) -> None:
        """Tests read `Hub.requests` instead."""

    def _answer(self, *, body: bool) -> None:
        path = self.path.split("?")[0]
        self.hub.requests.append(f"{self.command} {path}")
        if self.hub.error is not None:
            self._send(self.hub.error, b"{}", {}, body)
        elif match := re.fullmatch(r"/api/models/(.+?)(?:/revision/([^/]+))?", path):
            if tree := re.fullmatch(r"(.+)/tree/([^/]+)", match[1]):
                self._tree(tree[1], tree[2], body)
            else:
                self._info(match[1], match[2] or "main", body)
        elif match := re.fullmatch(r"/(.+?)/resolve/([^/]+)/(.+)", path):
            self._file(match[1], match[2], match[3], body)
        else:
            self._send(404, b"{}", {}, body)

    def _known(self, repo: str, revision: str, body: bool) -> bool:
        if self.hub.gated:
            self._send(403, b"{}", {"X-Error-Code": "GatedRepo", "X-Error-Message": "gated"}, body)
        elif repo not in self.hub.repos:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body)
        elif revision not in self.hub.repos[repo]:
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, body)
        else:
            return True
        return False

    def _info(self, repo: str, revision: str, body: bool) -> None:
        if self._known(repo, revision, body):
            files = [{"rfilename": name} for name, _ in _files(self.hub.repos[repo][revision])]
            info = {"id": repo, "modelId": repo, "sha": self.hub.commit(repo, revision), "siblings": files}
            self._send(
                200, json.dumps({**info, "private": False, "tags": [], "downloads": 0}).encode(), {}, body
            )

    def _tree(self, repo: str, revision: str, body: bool) -> None:
        if self._known(repo, revision, body):
            files = [
                {"type": "file", "path": name, "size": file.stat().st_size, "oid": _etag(file)}
                for name, file in _files(self.hub.repos[repo][revision])
            ]
            self._send(200, json.dumps(files).encode(), {}, body)

    def _file(self, repo: str, revision: str, name: str, body: bool) -> None:
        if not self._known(repo, revision, body):
            return
        file = self.hub.repos[repo][revision] / name
        if not file.is_file():
            self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"}, body)
            return
        headers = {"ETag": f'"{_etag(file)}"', "X-Repo-Commit": self.hub.commit(repo, revision)}
        self._send(200, file.read_bytes(), {**headers, "Accept-Ranges": "bytes"}, body)

    def _send(self, status: int, content: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)


def _files(folder: Path) -> list[tuple[str, Path]]:
    """By path in the repository."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return [(file.relative_to(folder).as_posix(), file) for file in files]


def _etag(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()
