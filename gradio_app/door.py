"""Who may come in, and from where: the password, the names this app answers to, and what a browser may do with it."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import shutil
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .strangers import sign_in

USER = "tuner"
LONGEST = 5.0
MOST_WAITING = 16
HERE = ("127.0.0.1", "localhost", "::1")
UPLOAD_AT_ONCE = 4 << 30
ROOM_LEFT = 2 << 30
BODY_AT_ONCE = 64 << 20
STRANGERS_BODY = 64 << 10
_PARTS = ("proxy=", "vibe", "undo-vibe", "process_recording", "component_server", "custom_component", "stream/",
          "deep_link", "dev/", "run-history", "runs", "profiling")  # fmt: skip
UNUSED = (*(f"/gradio_api/{part}" for part in _PARTS), "/monitoring")
"""Parts of Gradio that this app does not use: proxies, recorders, editors and statistics are closed to all."""
OPEN = ("/login", "/login/", "/favicon.ico", "/gradio_api/startup-events")
"""What strangers may ask for where a password is set; nothing else, whatever Gradio itself would answer."""


def door(password: str) -> Any:
    """A check for Gradio's log-in. One guess at a time; each wrong one makes the next wait longer, up to five seconds.

    It waits without holding up the app. When many guesses wait already, further ones are refused unseen.
    """
    wrong = waiting = 0
    turn = asyncio.Lock()

    async def opens(user: str, given: str) -> bool:
        nonlocal wrong, waiting
        if waiting >= MOST_WAITING:
            return False
        waiting += 1
        try:
            async with turn:
                right = hmac.compare_digest(given.encode(), password.encode()) and user == USER
                wrong = 0 if right else wrong + 1
                await asyncio.sleep(0.0 if right else min(LONGEST, 0.2 * 2**wrong))
                return right
        finally:
            waiting -= 1

    return opens


@dataclass(frozen=True)
class Place:
    """Where the app runs, as far as browsers are concerned.

    names: the hosts it answers to (`*.example` and `*` allowed); addresses: any plain IP address too, which a
    web site that points its own name at this machine (DNS rebinding) cannot use; frames: who may show it in a frame
    (empty: not restricted); strict: nothing but this app's own files may be loaded by its pages.
    """

    names: tuple[str, ...] = HERE
    addresses: bool = False
    frames: str = "'self'"
    strict: bool = True

    def answers_to(self, host: str) -> bool:
        """Whether a Host header names this app."""
        name = _bare(host)
        if self.addresses and _is_address(name):
            return True
        return any(n in ("*", name) or (n.startswith("*.") and name.endswith(n[1:])) for n in self.names)

    def headers(self) -> dict[str, str]:
        """What every answer says to the browser."""
        policy = [POLICY] if self.strict else []
        policy += [f"frame-ancestors {self.frames}"] if self.frames else []
        said = {
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "same-origin",
            "Cross-Origin-Resource-Policy": "same-origin",  # other sites cannot show or probe for the user's pictures
        }
        if policy:
            said["Content-Security-Policy"] = "; ".join(policy)
        if self.frames == "'self'":
            said["X-Frame-Options"] = "SAMEORIGIN"
        return said


# Gradio needs inline scripts and `new Function`; what matters here is that nothing goes to or comes from elsewhere.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'"
)


def lan(names: list[str], share: bool) -> Place:
    """A place that others reach over the network: by address, by this machine's names and by those given."""
    own = socket.gethostname().lower()
    shared = ("*.gradio.live",) if share else ()
    return Place(names=(*HERE, own, f"{own}.local", *shared, *(n.lower() for n in names)), addresses=True)


class Guard:
    """Middleware: refuses foreign names, strangers where there is a password, requests that another web site makes,
    and bodies that are too large."""

    def __init__(self, app: ASGIApp, place: Place, uploads: Path) -> None:
        self.app, self.place, self.uploads = app, place, uploads
        self.said = place.headers()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a refusal, or pass on and add the headers."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self.said)
            await send(message)

        inner = self._answer(scope, Headers(scope=scope)) or self.app
        await inner(scope, receive, sending)

    def _answer(self, scope: Scope, headers: Headers) -> Response | None:
        """What is answered in the app's place; nothing for what may pass."""
        status, sentence = self._refusal(scope, headers)
        if sentence:
            return PlainTextResponse(sentence, status)
        if not stranger(scope, headers) or scope["path"] in OPEN:
            return None
        if scope["path"] == "/" and scope.get("method") in ("GET", "HEAD"):
            return HTMLResponse(
                sign_in(USER, headers.get("accept-language", "")), headers={"Cache-Control": "no-store"}
            )
        return PlainTextResponse("Sign in first: open the app in a browser, or give gradio_client its auth.", 401)

    def _refusal(self, scope: Scope, headers: Headers) -> tuple[int, str]:
        host = headers.get("host", "")
        if not self.place.answers_to(host):
            name = _bare(host)[:80]
            return 400, f"This app does not answer to the name {name!r}. Start it with --name {name} if that is yours."
        if scope["path"].startswith(UNUSED):
            return 404, "There is nothing here."
        if scope["type"] == "websocket" or scope["method"] not in ("GET", "HEAD", "OPTIONS"):
            if _foreign(headers, host):
                return 403, "Another web site asked for this; open the app itself."
            return self._size(scope, headers)
        return 0, ""

    def _size(self, scope: Scope, headers: Headers) -> tuple[int, str]:
        """Uploads go to the disk, everything else into memory."""
        size, upload = headers.get("content-length", "0"), scope["path"].rstrip("/").endswith("/upload")
        if "transfer-encoding" in headers or not size.isdigit() or (upload and "content-length" not in headers):
            return 411, "An upload must say how large it is."
        if not upload and int(size) > (STRANGERS_BODY if stranger(scope, headers) else BODY_AT_ONCE):
            return 413, "This is too much for one request; send files as uploads."
        return self._upload(int(size)) if upload else (0, "")

    def _upload(self, size: int) -> tuple[int, str]:
        if size > UPLOAD_AT_ONCE:
            return 413, f"Send at most {UPLOAD_AT_ONCE >> 30} GB at once."
        left = shutil.disk_usage(self.uploads).free - size
        if left < ROOM_LEFT:
            return (
                507,
                f"The disk is nearly full; make room so that {ROOM_LEFT >> 30} GB stay free.",
            )
        return 0, ""


def stranger(scope: Scope, headers: Headers) -> bool:
    """Whether a password is set and the one who asks has not given it: Gradio's own test, but for every address."""
    app: Any = scope.get("app")
    if getattr(app, "auth", None) is None:
        return False
    held = cookie_parser(headers.get("cookie", ""))
    names = (f"access-token-{app.cookie_id}", f"access-token-unsecure-{app.cookie_id}")
    return not any(held.get(name) in app.tokens for name in names)


def _foreign(headers: Headers, host: str) -> bool:
    """Whether a browser says that another site's page makes this request. Scripts say nothing and may pass."""
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site not in ("same-origin", "none")
    origin = headers.get("origin")
    return origin is not None and urlsplit(origin).netloc.lower() != host.lower()


def _bare(host: str) -> str:
    """A Host header without its port and brackets, in small letters."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
