"""A Hub on this machine: the two requests a pull makes, with the ways they can go wrong."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import re
import threading
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"
_API = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)(?:/revision/(?P<revision>.+))?")
_FILE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")


@dataclass
class FakeHub:
    """`repos` maps "owner/name" to its files. Files at or over `lfs_from` bytes are stored in LFS.

    `errors` maps a repo to (status, X-Error-Code) for its API, `gated` holds repos whose files are
    refused. `cut_after` ends each transfer of a file after that many bytes, as often as `cuts`
    says. `wrong_bytes` serves other bytes than were announced. `changes` are made to what the API
    says of a repo, `page` answers everything. `ranges` records what was asked.
    """

    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    errors: dict[str, tuple[int, str]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    revisions: set[str] = field(default_factory=lambda: {"main", COMMIT})
    lfs_from: int = 4096
    cut_after: int = 0
    cuts: int = 0
    wrong_bytes: bool = False
    changes: dict[str, object] = field(default_factory=dict)
    page: bytes | None = None
    url: str = ""
    ranges: list[tuple[str, str | None]] = field(default_factory=list)

    def add(self, repo: str, folder: Path) -> None:
        self.repos[repo] = {path.name: path.read_bytes() for path in folder.iterdir()}

    def fetched(self) -> list[str]:
        return [file for file, _ in self.ranges]


@contextlib.contextmanager
def serving(hub: FakeHub) -> Iterator[FakeHub]:
    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    hub: FakeHub

    def do_GET(self) -> None:
        path = urllib.parse.unquote(urllib.parse.urlparse(self.path).path)
        if self.hub.page is not None:
            self._answer(200, self.hub.page, "text/html")
        elif path.startswith("/cdn/"):
            self._content(*path.removeprefix("/cdn/").split("/", 2))
        elif match := _API.fullmatch(path):
            self._listing(match["repo"], match["revision"] or "main")
        elif match := _FILE.fullmatch(path):
            self._redirect(match["repo"], match["file"])
        else:
            self._answer(404)

    def log_message(self, *args: object) -> None:
        pass

    def _listing(self, repo: str, revision: str) -> None:
        if repo in self.hub.errors:
            status, code = self.hub.errors[repo]
            self._answer(status, code=code)
        elif repo not in self.hub.repos:
            self._answer(401, code="RepoNotFound")
        elif revision not in self.hub.revisions:
            self._answer(404, code="RevisionNotFound")
        else:
            siblings = [self._sibling(*item) for item in self.hub.repos[repo].items()]
            about = {
                "id": repo,
                "sha": COMMIT,
                "siblings": siblings,
                "cardData": {"license": "mit"},
                **self.hub.changes,
            }
            self._answer(200, json.dumps(about).encode())

    def _sibling(self, name: str, data: bytes) -> dict[str, object]:
        blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        about: dict[str, object] = {"rfilename": name, "size": len(data), "blobId": blob}
        if len(data) >= self.hub.lfs_from:
            sha256 = hashlib.sha256(data).hexdigest()
            about["lfs"] = {"size": len(data), "sha256": sha256, "pointerSize": 130}
        return about

    def _redirect(self, repo: str, file: str) -> None:
        if repo in self.hub.gated:
            self._answer(403, code="GatedRepo")
        elif file not in self.hub.repos[repo]:
            self._answer(404, code="EntryNotFound")
        else:
            self.send_response(302)
            self.send_header("Location", f"{self.hub.url}/cdn/{repo}/{file}")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def _content(self, owner: str, name: str, file: str) -> None:
        data = self.hub.repos[f"{owner}/{name}"][file]
        asked = self.headers.get("Range")
        self.hub.ranges.append((file, asked))
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        rest = bytes(len(data) - start) if self.hub.wrong_bytes else data[start:]
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(rest)))
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if self.hub.cuts and len(rest) > self.hub.cut_after:
            self.hub.cuts -= 1
            rest = rest[: self.hub.cut_after]
            self.close_connection = True
        self.wfile.write(rest)

    def _answer(
        self, status: int, body: bytes = b"", kind: str = "application/json", code: str = ""
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()
        self.wfile.write(body)
