"""As much of the hub's HTTP interface as pushing and pulling a model needs, on this machine."""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

TOKEN = "hf_stand_in"


class _Hub(BaseHTTPRequestHandler):
    def log_message(self, *arguments):
        pass

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def _answer(self, status, content=b"", headers=()):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in [("Content-Length", str(len(body))), *headers]:
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _body(self):
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def do_POST(self):
        repositories, body, path = self.server.repositories, self._body(), unquote(self.path)
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._answer(401, {"error": "Invalid username or password."})
        if path == "/api/repos/create":
            made = json.loads(body)
            name = f"{made['organization']}/{made['name']}" if made.get("organization") else made["name"]
            repositories.setdefault(name, {"private": made.get("visibility") == "private", "revisions": {"main": {}}})
            return self._answer(200, {"url": f"{self.address}/{name}", "name": name})
        if path == "/api/validate-yaml":
            return self._answer(200, {"errors": [], "warnings": []})
        name, action, revision = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(\w+)/(\S+)", path.partition("?")[0]).groups()
        revisions = repositories[name]["revisions"]
        if action == "branch":
            revisions.setdefault(revision, dict(revisions["main"]))
            return self._answer(200, {})
        if action == "preupload":
            files = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                     for f in json.loads(body)["files"]]  # fmt: skip
            return self._answer(200, {"files": files})
        for line in body.decode().splitlines():
            entry = json.loads(line)
            if entry["key"] == "deletedFile":
                del revisions[revision][entry["value"]["path"]]
            if entry["key"] == "file":
                revisions[revision][entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
        return self._answer(
            200, {"commitUrl": f"{self.address}/{name}/commit/{'1' * 40}", "commitOid": "1" * 40, "hookOutput": ""}
        )

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = unquote(self.path).partition("?")[0]
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/(.+)", path):
            repository = self._visible(match[1])
            if repository is None or match[2] not in repository["revisions"]:
                return self._answer(404, {"error": "Not found"}, [("X-Error-Code", "RepoNotFound")])
            files = repository["revisions"][match[2]]
            listed = [{"rfilename": name, "size": len(content)} for name, content in sorted(files.items())]
            about = {"tags": [], "private": False, "downloads": 0, "likes": 0}
            sha = self._sha(repository, match[2])
            return self._answer(200, {"id": match[1], "sha": sha, "siblings": listed, **about})
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/(.+)", path):
            repository = self._visible(match[1])
            revision = next(r for r in repository["revisions"] if match[2] in (r, self._sha(repository, r)))
            files = sorted(repository["revisions"][revision].items())
            tree = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in files
            ]
            return self._answer(200, tree)
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        repository = self._visible(match[1]) if match else None
        if repository is None:
            return self._answer(404, {"error": "Not found"}, [("X-Error-Code", "RepoNotFound")])
        revision = next(r for r in repository["revisions"] if match[2] in (r, self._sha(repository, r)))
        content = repository["revisions"][revision].get(match[3])
        if content is None:
            return self._answer(404, {"error": "Not found"}, [("X-Error-Code", "EntryNotFound")])
        tag = hashlib.sha256(content).hexdigest()
        return self._answer(200, content, [("ETag", f'"{tag}"'), ("X-Repo-Commit", self._sha(repository, revision))])

    def _visible(self, name):
        repository = self.server.repositories.get(name)
        hidden = repository and repository["private"] and self.headers.get("Authorization") != f"Bearer {TOKEN}"
        return None if hidden else repository

    @staticmethod
    def _sha(repository, revision):
        """Another one after every change, as a commit has."""
        return hashlib.sha1(repr((revision, sorted(repository["revisions"][revision].items()))).encode()).hexdigest()


@contextmanager
def hub_stand_in():
    """Gives the address and the repositories: name → private, revisions → files."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    server.repositories = {}
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", server.repositories
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
