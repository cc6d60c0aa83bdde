"""A Hugging Face hub in memory, behind the HTTP client that huggingface_hub uses."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path

import httpx2
from huggingface_hub.utils._http import hf_request_event_hook

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub:
    """Repositories of files, and the paths that were ``asked`` for.

    When ``down``, it refuses every connection; when ``closed``, every upload.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.asked: list[str] = []
        self.down = False
        self.closed = False

    def add(self, name: str, folder: Path) -> None:
        """Put the files of a folder in a repository."""
        self.repositories[name] = {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file()
        }

    def client(self) -> httpx2.Client:
        """What ``huggingface_hub.set_client_factory`` is given."""
        return httpx2.Client(
            transport=httpx2.MockTransport(self._answer),
            event_hooks={"request": [hf_request_event_hook]},
            follow_redirects=True,
        )

    def _answer(self, request: httpx2.Request) -> httpx2.Response:
        if self.down:
            raise httpx2.ConnectError("Network is unreachable", request=request)
        path = request.url.path
        self.asked.append(path)
        if path.startswith("/api/"):
            return self._api(request, path)
        name, _, rest = path.strip("/").partition("/resolve/")
        revision, _, file = rest.partition("/")
        if name not in self.repositories:
            return httpx2.Response(401, headers={"X-Error-Code": "RepoNotFound"}, request=request)
        if revision not in ("main", "v1", COMMIT):
            headers = {"X-Error-Code": "RevisionNotFound"}
            return httpx2.Response(404, headers=headers, request=request)
        content = self.repositories[name].get(file)
        if content is None:
            headers = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}
            return httpx2.Response(404, headers=headers, request=request)
        headers = {
            "X-Repo-Commit": COMMIT,
            "ETag": f'"{hashlib.sha1(content).hexdigest()}"',
            "Content-Length": str(len(content)),
        }
        body = b"" if request.method == "HEAD" else content
        return httpx2.Response(200, headers=headers, content=body, request=request)

    def _api(self, request: httpx2.Request, path: str) -> httpx2.Response:
        if self.closed:
            return httpx2.Response(403, request=request)
        if path == "/api/repos/create":
            asked = json.loads(request.content)
            name = "/".join(part for part in (asked.get("organization"), asked["name"]) if part)
            self.repositories.setdefault(name, {})
            return httpx2.Response(
                200, json={"url": f"https://huggingface.co/{name}"}, request=request
            )
        parts = path.removeprefix("/api/models/").split("/")
        name, verb = "/".join(parts[:2]), parts[2] if len(parts) > 2 else ""
        if verb == "preupload":
            files = [
                {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                for one in json.loads(request.content)["files"]
            ]
            return httpx2.Response(200, json={"files": files}, request=request)
        if verb == "commit":
            for line in request.content.decode().splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    value = entry["value"]
                    content = base64.b64decode(value["content"])
                    self.repositories[name][value["path"]] = content
            answer = {
                "commitUrl": f"https://huggingface.co/{name}/commit/{COMMIT}",
                "commitOid": COMMIT,
            }
            return httpx2.Response(200, json=answer | {"success": True}, request=request)
        siblings = [{"rfilename": file} for file in self.repositories.get(name, {})]
        answer = {"id": name, "sha": COMMIT, "siblings": siblings, "private": False}
        return httpx2.Response(200, json=answer, request=request)
