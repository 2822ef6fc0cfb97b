"""The page as it is served: no torch, no look-ups, only its own files, only its own hosts."""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from gradio_app import api
from gradio_app.door import Place, door
from gradio_app.main import build, serving
from gradio_app.studio import Studio
from tests.app.helpers import ROOT, served


def test_the_app_never_imports_torch_and_asks_no_name_server(tmp_path: Path) -> None:
    code = """
import socket, sys
asked = []
real = socket.getaddrinfo
socket.getaddrinfo = lambda host, *a, **k: (asked.append(host), real(host, *a, **k))[1]
from gradio_app.main import build, serving
from gradio_app.door import Place
from gradio_app.studio import open_studio
studio = open_studio()
page = build(studio)
page.launch(prevent_thread_lock=True, **serving(studio, Place()))
page.close()
loaded = {name.split('.')[0] for name in sys.modules}
print(sorted(loaded & {'torch', 'diffusers', 'transformers', 'accelerate', 'peft', 'torchvision'}))
print(sorted(set(map(str, asked)) - {'127.0.0.1', 'localhost', 'None', '0.0.0.0'}))
"""
    environment = {**os.environ, "TUNER_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip().splitlines()[-2:] == ["[]", "[]"], done.stdout + done.stderr


def test_only_the_workspace_is_served_and_only_to_this_machine(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "secret.png").write_bytes(b"secret")
    with served(tmp_path / "home") as address:
        picture = next((ROOT / "recipes" / "demo" / "images").glob("*.png"))
        assert _status(f"{address}gradio_api/file={picture}") == 200
        assert _status(f"{address}gradio_api/file={tmp_path / 'secret.png'}") == 403
        assert _status(f"{address}gradio_api/file={ROOT / 'app.py'}") == 403
        assert _status(f"{address}gradio_api/file={tmp_path / 'home' / 'draft.json'}") == 403
        assert _status(address, {"Host": "evil.example"}) == 400
        assert oct((tmp_path / "home" / "cache" / "uploads").stat().st_mode)[-3:] == "700"


def _status(address: str, headers: dict[str, str] | None = None) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers or {}), timeout=10) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_every_handler_of_the_page_is_private(studio: Studio) -> None:
    page = build(studio)
    shown = {str(fn.api_name) for fn in page.fns.values() if fn.api_visibility != "private"}
    assert shown == set(api.ENDPOINTS)
    assert serving(studio, Place())["run_history"] is False


def test_others_need_a_password(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "app.py"), "--host", "0.0.0.0", "--password", "short"]
    environment = {**os.environ, "TUNER_HOME": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "at least 12 characters" in done.stderr


def test_guessing_the_password_is_slow() -> None:
    opens = door("right password")
    before = time.monotonic()

    async def guess() -> None:
        assert not await opens("tuner", "wrong") and not await opens("other", "right password")
        assert time.monotonic() - before > 1.0
        assert await opens("tuner", "right password")
        assert not any(await asyncio.gather(*(opens("tuner", str(i)) for i in range(3))))

    asyncio.run(guess())


@pytest.mark.parametrize("name", ["GRADIO_ANALYTICS_ENABLED", "GRADIO_RUN_HISTORY"])
def test_privacy_is_set_before_gradio_loads(name: str) -> None:
    assert os.environ[name] == "False"


def homes(sheet: str) -> set[str]:
    """Classes that a style sheet lays out everywhere: those that stand alone before a rule outside `@media`."""
    found, depth, start = set(), 0, 0
    bare = re.sub(r"/\*.*?\*/", "", sheet, flags=re.DOTALL)
    for i, sign in enumerate(bare):
        if sign == "{":
            if depth == 0:
                alone = (re.fullmatch(r"\.([\w-]+)(?:[:\[].*)?", one.strip()) for one in bare[start:i].split(","))
                found |= {one[1] for one in alone if one}
            depth += 1
        elif sign == "}":
            depth, start = depth - 1, i + 1
    return found


def test_a_class_has_one_meaning() -> None:
    """All sheets go to one page: a class that two of them lay out would change what the other one draws."""
    sheets = {path.name: homes(path.read_text(encoding="utf-8")) for path in (ROOT / "gradio_app/parts").glob("*.css")}
    assert "t-card" in sheets["grid.css"]
    shared = {(a, b): both for a, b in itertools.combinations(sorted(sheets), 2) if (both := sheets[a] & sheets[b])}
    assert shared == {}
