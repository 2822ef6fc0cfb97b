"""On a Hugging Face Space only its owner comes in, for it is the owner's GPU; others are told how to have their own."""

from __future__ import annotations

import html
import os
import time
from pathlib import Path

from starlette.responses import HTMLResponse, PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from .door import Place
from .strangers import page

# Spaces show the app in a frame of theirs, through their own proxy.
PLACE = Place(names=("*",), frames="", strict=False)
DATA = Path("/data")
OPEN = ("/login/huggingface", "/login/callback", "/logout", "/gradio_api/startup-events")
VANISH = (
    "This Space has no storage: data sets, runs and adapters vanish when it restarts. Download what you want to keep, "
    "or mount a storage bucket at /data in the settings of the Space."
)


def space_id() -> str:
    """OWNER/NAME of the Space this runs in; empty elsewhere."""
    return os.environ.get("SPACE_ID", "")


def notice() -> str:
    """What the owner has to know at the top of the page."""
    return "" if not space_id() or _writable(DATA) else VANISH


def storage() -> Path | None:
    """The workspace of a Space that has storage."""
    return DATA / "tuner" if space_id() and _writable(DATA) else None


def owners() -> set[str]:
    """Who may come in: the account that owns the Space, and those named in TUNER_OWNERS (an organisation's members)."""
    named = os.environ.get("TUNER_OWNERS", "").replace(",", " ").split()
    return {name.lower() for name in (space_id().split("/")[0], *named) if name}


class OwnersOnly:
    """Middleware inside Gradio's own session: everything but the log-in is for the owner."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, show the door, or refuse."""
        if scope["type"] not in ("http", "websocket") or scope["path"] in OPEN or _user(scope).lower() in owners():
            await self.app(scope, receive, send)
            return
        if scope["type"] == "http" and scope["path"] == "/" and scope["method"] in ("GET", "HEAD"):
            answer = HTMLResponse(_page(_user(scope)))
        else:
            answer = PlainTextResponse("Only the owner of this Space may use it: sign in, or duplicate the Space.", 401)
        await answer(scope, receive, send)


def _user(scope: Scope) -> str:
    """The name of who signed in; empty for strangers, and once a log-in has run out."""
    info = (scope.get("session") or {}).get("oauth_info") or {}
    if float(info.get("expires_at") or 0) < time.time():
        return ""
    return str((info.get("userinfo") or {}).get("preferred_username") or "")


def _page(user: str) -> str:
    space = html.escape(space_id(), quote=True)
    owner = html.escape(space_id().split("/")[0])
    hello = f"You are signed in as {html.escape(user)}. " if user else ""
    return page(
        f"<p>{hello}This Space trains on the hardware of {owner}, so only {owner} can use it. "
        "Duplicate it to train on your own.</p>"
        f"<p><a class=first target=_blank rel=noopener href='https://huggingface.co/spaces/{space}?duplicate=true'>"
        "Duplicate to use</a><a target=_blank href='/login/huggingface'>I am the owner: sign in</a></p>"
    )


def _writable(folder: Path) -> bool:
    return folder.is_dir() and os.access(folder, os.W_OK)
