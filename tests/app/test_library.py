"""The library: lists, notes, the bin; and that nothing outside the workspace is ever touched."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from gradio_app.holdings import Library
from gradio_app.studio import Studio
from gradio_app.tabs import library as screen
from tests.app.fake_hub import GOOD, environment, hub
from tests.app.helpers import until
from tests.app.test_publish import finished_run
from tuner import events


@pytest.fixture
def filled(studio: Studio, tmp_path: Path) -> Studio:
    """One finished run, one data set."""
    finished_run(studio.workspace.runs / "2026-11-28-cat", tmp_path / "secret-pictures")
    name = studio.workspace.datasets.create("cats")
    Image.new("RGB", (64, 64)).save(studio.workspace.datasets.folder(name) / "one.png")
    studio.workspace.datasets.set_meta(name, {"trigger": "sks"})
    return studio


def test_runs_and_data_sets_are_listed(filled: Studio) -> None:
    found = {item["name"]: item for item in Library(filled.workspace).items()}
    assert set(found) == {"2026-11-28-cat", "cats"}
    run = found["2026-11-28-cat"]
    assert (run["family"], run["state"], run["adapter"]) == ("sd1", "finished", True) and run["size"] > 100
    assert run["thumb"].endswith("step-000040-0.png") and found["cats"]["about"] == "1 picture"


def test_names_tags_and_notes_leave_the_run_as_it_is(filled: Studio) -> None:
    run = filled.workspace.runs / "2026-11-28-cat"
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    library = Library(filled.workspace)
    library.write("run", run.name, {"title": "<b>Best</b>", "tags": "cat, good", "note": "rank 8"})
    item = next(i for i in library.items() if i["kind"] == "run")
    assert (item["title"], item["tags"], item["note"]) == ("<b>Best</b>", "cat, good", "rank 8")
    assert before == {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}


def test_the_bin_gives_back(filled: Studio) -> None:
    library = Library(filled.workspace)
    assert "in the bin" in library.delete("dataset", "cats") and "in the bin" in library.delete("run", "2026-11-28-cat")
    assert library.items() == [] and len(library.binned()) == 2
    library.restore("dataset", "cats")
    library.restore("run", "2026-11-28-cat")
    assert len(library.items()) == 2 and filled.workspace.datasets.meta("cats") == {"trigger": "sks"}
    library.delete("dataset", "cats")
    assert "1 deleted for good" in library.empty() and library.binned() == []


def test_a_running_run_and_its_data_stay(filled: Studio) -> None:
    folder = filled.workspace.new_run("live")
    data = filled.workspace.datasets.folder("cats")
    (folder / "recipe.yaml").write_text(f"family: sd1\ndata: [{{path: '{data}'}}]\n")
    pid = os.getpid()
    events.Journal(folder / "events.jsonl")("started", pid=pid, born=events.birth(pid), from_step=0, steps=9)
    library = Library(filled.workspace)
    assert "is training now" in library.delete("run", folder.name) and folder.is_dir()
    assert "is training on cats" in library.delete("dataset", "cats") and data.is_dir()


@pytest.mark.parametrize("name", ["..", "../../outside", "/etc", "", ".", ".removed", "a/b", "linked"])
def test_nothing_outside_is_touched(filled: Studio, tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "mine.txt").write_text("mine")
    (filled.workspace.runs / "linked").symlink_to(outside)
    library = Library(filled.workspace)
    for kind in ("run", "dataset", "other"):
        library.delete(kind, name)
        library.restore(kind, name)
    inner = filled.workspace.runs / "2026-11-28-cat" / "link"
    inner.symlink_to(outside)
    library.delete("run", "2026-11-28-cat")
    library.empty()
    assert (outside / "mine.txt").read_text() == "mine"


def test_publishing_from_the_app(filled: Studio, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with hub() as fake:
        for key, value in environment(fake, "", str(tmp_path / "hf")).items():
            monkeypatch.setenv(key, value)
        sent = {"name": "2026-11-28-cat", "repo": "me/cat"}
        page = screen.preview(filled, sent)
        assert page["login"] is False and fake.asked == []
        assert next(f["name"] for f in page["parcel"]["files"]) == "README.md"
        folder = screen.start(filled, {**sent, "token": GOOD})
        assert folder is not None
        until(lambda: not (screen.progress(filled, folder.name) or {"live": True})["live"], 40)
        done = screen.progress(filled, folder.name)
        assert done is not None and (done["stage"], done["url"]) == ("done", f"{fake.url}/me/cat")
        assert fake.private["me/cat"] is True
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or GOOD.encode() not in path.read_bytes(), path


def test_a_bad_name_is_a_sentence(filled: Studio) -> None:
    page = screen.preview(filled, {"name": "2026-11-28-cat", "repo": "no owner"})
    assert page["parcel"] is None and "owner/name" in page["trouble"]
