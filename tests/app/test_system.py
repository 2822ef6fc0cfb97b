"""System: the cache is cleared only when asked twice and never under a run; what is the user's stays."""

from __future__ import annotations

import importlib
import os
from pathlib import Path

import pytest

from gradio_app.studio import Studio, open_studio
from gradio_app.tabs import system
from gradio_app.workspace import Workspace
from tests.app.helpers import served
from tuner import events


def everything(root: Path) -> dict[str, bytes]:
    """All files of a workspace but those that the engine encoded, and the notes of asking it."""
    mine = [p for p in root.rglob("*") if p.is_file() and "entries" not in p.parts]
    return {str(p): p.read_bytes() for p in mine if not p.name.startswith("prune.")}


def filled(workspace: Workspace, real: bool = False) -> None:
    """Something of every kind, and 4 kB of cache; real: as the engine writes it."""
    for folder in (workspace.runs / "a", workspace.datasets.root / "b", workspace.adapters, workspace.uploads):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "mine.bin").write_bytes(b"mine")
    if real:
        torch, cache = importlib.import_module("torch"), importlib.import_module("tuner.data.cache")
        cache.Cache(workspace.root / "cache").write({"ab" * 32: {"latent": torch.zeros(1000)}})
    else:
        (workspace.root / "cache" / "entries").mkdir()
        (workspace.root / "cache" / "entries" / "a.safetensors").write_bytes(bytes(4100))


def shown(studio: Studio) -> dict[str, str]:
    return dict(system.view(studio)["cache"])


@pytest.mark.parametrize("real", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_clearing_touches_only_what_is_made_again(real: bool, studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    if real:
        studio = open_studio(studio.workspace)
    monkeypatch.setenv("TUNER_HOME", str(studio.workspace.root))
    filled(studio.workspace, real)
    before = everything(studio.workspace.root)
    assert system.view(studio)["clear"].startswith("4.")
    said = system.prune(studio)
    assert said.startswith("4.") and "were deleted" in said
    assert shown(studio)["Encoded for training"] == "0 bytes" and system.view(studio)["clear"] == ""
    assert everything(studio.workspace.root) == before


def test_a_run_keeps_the_cache(studio: Studio) -> None:
    filled(studio.workspace)
    folder = studio.workspace.new_run("live")
    (folder / "recipe.yaml").write_text("family: sd1\n")
    events.Journal(folder / "events.jsonl")("started", pid=os.getpid(), born=events.birth(os.getpid()), steps=9)
    assert "uses the cache" in system.prune(studio) and system.view(studio)["clear"]


@pytest.mark.long
@pytest.mark.browser
def test_it_asks_first(tmp_path: Path) -> None:
    browser = pytest.importorskip("tests.app.browser", reason="playwright or a browser is missing")
    workspace = Workspace(tmp_path / "home")
    filled(workspace)
    with browser.watched() as (window, _), served(workspace.root, "0.01") as address:
        page = window.new_page()
        page.goto(f"{address}?tab=system")
        page.locator("#s-clear").click()
        browser.expect(page.get_by_text("Your pictures, captions and runs stay.")).to_be_visible()
        browser.shot(page, "system-sure")
        page.get_by_role("button", name="Keep").click()
        assert shown(open_studio(workspace))["Encoded for training"].startswith("4.")
        page.locator("#s-clear").click()
        page.locator("#s-sure").click()
        browser.expect(page.get_by_text("were deleted.")).to_be_visible()
        browser.expect(page.locator("#s-clear")).to_be_disabled()
        browser.shot(page, "system")
