"""A stand-in for the Hugging Face Hub's HTTP API, as far as an upload needs it: fake_hub.py PORT, or `hub()`."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from tests.app.helpers import free_port, until

GOOD = "hf_" + "g00dToken" * 4
READER = "hf_" + "readOnly" * 4


class FakeHub:
    """What arrived. `files`: repository → path → bytes."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.private: dict[str, bool] = {}
        self.files: dict[str, dict[str, bytes]] = {}
        self.large: dict[str, bytes] = {}
        self.messages: list[str] = []
        self.asked: list[str] = []
        self.full = False
        self.breaks: dict[str, tuple[str, int]] = {}
        """Repository → at which stage (create, preupload, batch, store, commit) it answers with which status; 0: the
        connection is cut in mid-answer."""

    def app(self) -> FastAPI:
        """The API."""
        app = FastAPI()
        app.middleware("http")(self._door)
        app.get("/api/whoami-v2")(lambda: {"type": "user", "name": "me", "orgs": []})
        app.post("/api/repos/create")(self.create)
        app.post("/api/validate-yaml")(lambda: {"errors": [], "warnings": []})
        app.post("/api/models/{owner}/{name}/preupload/main")(self.preupload)
        app.post("/{owner}/{name}.git/info/lfs/objects/batch")(self.batch)
        app.put("/store/{oid}")(self.store)
        app.post("/api/models/{owner}/{name}/commit/main")(self.commit)
        return app

    async def _door(self, request: Request, onward: Any) -> Response:
        self.asked.append(str(request.url))
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not request.url.path.startswith("/store/"):
            if token not in (GOOD, READER):
                return JSONResponse({"error": "Invalid credentials"}, 401)
            if token == READER and request.method == "POST":
                return JSONResponse({"error": "Forbidden"}, 403)
        broken = await self._broken(request)
        if broken is not None:
            return broken
        if self.full and request.url.path.endswith("/commit/main"):
            return JSONResponse({"error": "Too large"}, 413)
        return await onward(request)

    async def _broken(self, request: Request) -> Response | None:
        stage = next(
            (name for name in ("create", "preupload", "batch", "store", "commit") if name in request.url.path), ""
        )
        if stage == "create":
            repo = f"me/{(await request.json())['name']}"
        elif stage == "store":
            repo = request.url.query
        else:
            repo = "/".join(request.url.path.removeprefix("/api/models").split("/")[1:3]).removesuffix(".git")
        at, status = self.breaks.get(repo, ("", 0))
        if not at or at != stage:
            return None
        if status:
            return JSONResponse({"error": f"refused {request.headers.get('authorization')}"}, status)

        async def torn() -> AsyncIterator[bytes]:
            yield b"{"

        return StreamingResponse(torn(), headers={"content-length": "1000"})

    async def create(self, request: Request) -> Response:
        """A repository."""
        asked = await request.json()
        repo = f"{asked.get('organization') or 'me'}/{asked['name']}"
        if repo in self.files:
            return JSONResponse({"error": "exists", "url": f"{self.url}/{repo}"}, 409)
        self.files[repo] = {}
        self.private[repo] = asked.get("visibility") == "private" or bool(asked.get("private"))
        return JSONResponse({"url": f"{self.url}/{repo}", "name": repo, "id": repo})

    async def preupload(self, request: Request) -> dict[str, Any]:
        """Which files go by large-file storage."""
        asked = (await request.json())["files"]
        large = (".safetensors", ".png", ".mp4")
        return {
            "files": [
                {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(large) else "regular",
                 "shouldIgnore": False, "oid": None}
                for f in asked
            ]
        }  # fmt: skip

    async def batch(self, owner: str, name: str, request: Request) -> JSONResponse:
        """Where to put large files."""
        objects = (await request.json())["objects"]
        made = [
            {
                "oid": o["oid"],
                "size": o["size"],
                "actions": {"upload": {"href": f"{self.url}/store/{o['oid']}?{owner}/{name}"}},
            }
            for o in objects
        ]
        return JSONResponse({"transfer": "basic", "objects": made})

    async def store(self, oid: str, request: Request) -> Response:
        """Take a large file."""
        self.large[oid] = await request.body()
        return Response()

    async def commit(self, owner: str, name: str, request: Request) -> dict[str, Any]:
        """All files of one commit."""
        repo = self.files[f"{owner}/{name}"]
        for line in (await request.body()).splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                self.messages.append(value["summary"])
            elif entry["key"] == "file":
                repo[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                repo[value["path"]] = self.large[value["oid"]]
        return {"commitUrl": f"{self.url}/{owner}/{name}/commit/1", "commitOid": "1" * 40, "success": True}


@contextmanager
def hub() -> Iterator[FakeHub]:
    """A Hub that runs in a thread."""
    fake = FakeHub()
    server = uvicorn.Server(uvicorn.Config(fake.app(), port=fake.port, log_level="critical"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started)
    try:
        yield fake
    finally:
        server.should_exit = True
        thread.join(10)


def environment(fake: FakeHub, token: str, home: str) -> dict[str, str]:
    """What a process needs so that it asks the stand-in, and nobody else."""
    return {
        "HF_ENDPOINT": fake.url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HOME": home,
        "HF_TOKEN": token, "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1",
    }  # fmt: skip
