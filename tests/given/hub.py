"""A Hugging Face Hub on the loopback address: repositories in memory, as much of its interface as downloads need."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

import torch

from given.inputs import latent
from vae_core import AutoencoderKL

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "org/some-vae"


@dataclass
class SmallHub:
    """What the server has, and what it was asked.

    Attributes:
        address: for `HF_ENDPOINT`.
        repositories: `org/name` -> path in it -> content.
        gated, private: repositories that want the token "secret".
        cut: path in a repository -> how many answers with its content are to end half way.
        requests: (method, path, Range header) of every request, in their order.
        sent: bytes of bodies that were sent.
    """

    address: str = ""
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    revisions: set[str] = field(default_factory=lambda: {"main", COMMIT})
    gated: set[str] = field(default_factory=set)
    private: set[str] = field(default_factory=set)
    cut: dict[str, int] = field(default_factory=dict)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    sent: int = 0

    def downloads(self) -> list[str]:
        """The files whose content was sent, in their order."""
        return [path.split("/", 5)[-1] for method, path, _ in self.requests if method == "GET" and "/resolve/" in path]


@contextmanager
def running_hub() -> Iterator[SmallHub]:
    """A server in a thread, until the end of the `with` block."""
    hub = SmallHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: SmallHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.requests.append((self.command, self.path, self.headers.get("Range")))
        path = unquote(self.path.split("?")[0])
        if file := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(*file.groups())
        elif listed := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/[^/]+", path):
            self._list(listed[1])
        elif path == "/api/repos/create":
            name = "/".join(filter(None, (json.loads(body).get("organization") or "me", json.loads(body)["name"])))
            if self._allowed("writes"):
                self.hub.repositories.setdefault(name, {})
                self._json({"url": f"{self.hub.address}/{name}"})
        elif upload := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/([^/]+)", path):
            files = [{**file, "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]]
            self._json({"files": files}, upload[0])
        elif commit := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/([^/]+)", path):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.hub.repositories[commit[1]][line["value"]["path"]] = content
                elif line["key"] == "deletedFile":
                    del self.hub.repositories[commit[1]][line["value"]["path"]]
            url = f"{self.hub.address}/{commit[1]}/commit/{COMMIT}"
            self._json({"success": True, "commitOid": COMMIT, "commitUrl": url, "hookOutput": ""})
        else:
            self._refuse(404, "EntryNotFound")

    def _allowed(self, repo: str) -> bool:
        known = self.headers.get("Authorization") == "Bearer secret"
        if repo in self.hub.gated and not known:
            self._refuse(403, "GatedRepo")
        elif (repo in self.hub.private or repo == "writes") and not known:
            self._refuse(401, "RepoNotFound")
        else:
            return True
        return False

    def _file(self, repo: str, revision: str, file: str) -> None:
        if repo not in self.hub.repositories:
            return self._refuse(401, "RepoNotFound")
        if not self._allowed(repo):
            return None
        if revision not in self.hub.revisions:
            return self._refuse(404, "RevisionNotFound")
        content = self.hub.repositories[repo].get(file)
        if content is None:
            return self._refuse(404, "EntryNotFound")
        part, status, headers = content, 200, {"ETag": f'"{hashlib.sha1(content).hexdigest()}"'}
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            last = min(int(wanted[2] or len(content)), len(content) - 1)
            part, status = content[int(wanted[1]) : last + 1], 206
            headers["Content-Range"] = f"bytes {wanted[1]}-{last}/{len(content)}"
        headers |= {"Accept-Ranges": "bytes", "X-Repo-Commit": COMMIT}
        if self.command == "GET" and self.hub.cut.get(file, 0) > 0:
            self.hub.cut[file] -= 1
            self._send(status, part[: len(part) // 2], headers, len(part))
            self.close_connection = True
        else:
            self._send(status, part, headers)

    def _list(self, repo: str) -> None:
        if repo not in self.hub.repositories:
            return self._refuse(401, "RepoNotFound")
        if self._allowed(repo):
            files = self.hub.repositories[repo].items()
            self._json([{"type": "file", "path": name, "size": len(data), "oid": COMMIT} for name, data in files])

    def _json(self, content: Any, *unused: Any) -> None:
        self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code, "X-Repo-Commit": COMMIT})

    def _send(self, status: int, body: bytes, headers: dict[str, str], promised: int | None = None) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body) if promised is None else promised)}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
            self.hub.sent += len(body)


def same(loaded: AutoencoderKL, vae: AutoencoderKL) -> bool:
    z = latent()
    return loaded.config.block_out_channels == vae.config.block_out_channels and torch.equal(
        loaded.decode(z).sample, vae.decode(z).sample
    )
