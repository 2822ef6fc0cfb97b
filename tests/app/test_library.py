"""The library: lists, notes, the bin; and that nothing outside the workspace is ever touched."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest
from PIL import Image

from gradio_app.holdings import KINDS, Library
from gradio_app.studio import Studio
from gradio_app.tabs import library as screen
from gradio_app.tabs import system
from tests.app.fake_hub import GOOD, environment, hub
from tests.app.helpers import until
from tests.app.test_compare_tab import foreign_file
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
    assert Path(run["thumb"]).parent == filled.workspace.datasets.thumbs and found["cats"]["about"] == "1 picture"


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
    assert "is at work on cats" in library.delete("dataset", "cats") and data.is_dir()


def jobs_and_comparison(studio: Studio) -> list[tuple[str, str]]:
    """One job of each kind that has ended, and a comparison; what they are called."""
    root = studio.workspace.root / "jobs"
    folders = [studio.workspace.new_comparison(), studio.workspace.new_job("publish-cat")]
    (folders[0] / "request.yaml").write_text("{contenders: [a, b], prompts: [x], family: sd1}")
    (folders[1] / "asked.json").write_text('{"repo": "me/cat"}')
    for kind in ("captions", "masks"):
        folders.append(root / kind / f"000001-{kind}-cats")
        folders[-1].mkdir(parents=True)
        (folders[-1] / "request.json").write_text('{"dataset": "cats"}')
    for folder in folders:
        journal = events.Journal(folder / "events.jsonl")
        journal("started", pid=1, born=0.0, from_step=0, steps=0)
        journal("finished", seconds=1.0)
        journal.close()
    return [("compare", folders[0].name), *(("job", folder.name) for folder in folders[1:])]


def test_comparisons_and_past_jobs_are_listed_thrown_away_and_brought_back(filled: Studio) -> None:
    library, things = Library(filled.workspace), jobs_and_comparison(filled)
    found = {(i["kind"], i["name"]): i["about"] for i in library.items()}
    assert [found[key] for key in things] == [
        "2 contenders · 1 prompt", "upload to me/cat", "captions for cats", "masks for cats"
    ]  # fmt: skip
    files = marks(filled.workspace.root)
    for kind, name in things:
        library.delete(kind, name)
    assert not {(i["kind"], i["name"]) for i in library.items()} & set(things) and len(library.binned()) == 4
    for kind, name in things:
        assert library.restore(kind, name) == f"{name} is back."
    assert marks(filled.workspace.root) == files
    assert "3 past jobs" in library.clear_jobs() and {i["kind"] for i in library.items()} == {
        "run",
        "dataset",
        "compare",
    }


def marks(root: Path) -> dict[str, bytes]:
    """All files but the thumbnails."""
    return {str(p): p.read_bytes() for p in root.rglob("*") if p.is_file() and "cache" not in p.parts}


def test_a_job_at_work_stays_and_so_does_its_data(filled: Studio) -> None:
    folder = filled.workspace.root / "jobs" / "masks" / "000001-masks-cats"
    folder.mkdir(parents=True)
    pid = os.getpid()
    events.Journal(folder / "events.jsonl")("started", pid=pid, born=events.birth(pid), from_step=0, steps=0)
    library = Library(filled.workspace)
    assert "is at work now" in library.delete("job", folder.name) and "no past jobs" in library.clear_jobs()
    assert "is at work on cats" in library.delete("dataset", "cats") and folder.is_dir()


def test_what_belongs_to_a_thing_goes_and_comes_with_it(filled: Studio) -> None:
    """Left-out pictures and notes; a new thing of the same name gets none of them."""
    sets, library = filled.workspace.datasets, Library(filled.workspace)
    sets.remove("cats", "one.png")
    library.write("dataset", "cats", {"note": "mine"})
    said, undo = screen.act(filled, {"do": "delete", "kind": "dataset", "name": "cats"})
    assert said == "cats is in the bin." and undo == {"kind": "dataset", "name": "cats"}
    assert sets.create("cats") == "cats" and sets.left_out("cats") == []
    assert next(i["note"] for i in library.items() if i["name"] == "cats") == ""
    assert screen.act(filled, {"do": "restore", **undo})[0] == "cats-2 is back."
    assert sets.left_out("cats-2") == ["one.png"] and sets.meta("cats-2") == {"trigger": "sks"}
    assert next(i["note"] for i in library.items() if i["name"] == "cats-2") == "mine"
    library.delete("dataset", "cats-2")
    library.empty()
    assert not [key for key in library.notes() if "cats-2" in key] and not list(library.bin.glob("*/*"))


def test_disk_use_counts_links_once_and_minds_no_missing_folder(filled: Studio) -> None:
    runs = filled.workspace.runs
    (runs / "2026-11-28-cat" / "model.bin").write_bytes(bytes(100_000))
    other = filled.workspace.new_run("other")
    (other / "recipe.yaml").write_text("family: sd1\n")
    os.link(runs / "2026-11-28-cat" / "model.bin", other / "model.bin")
    (other / "elsewhere").symlink_to(runs / "2026-11-28-cat")
    sizes = {i["name"]: i["size"] for i in Library(filled.workspace).items()}
    assert sizes["2026-11-28-cat"] > 100_000 and 100_000 < sizes[other.name] < 101_000
    assert (
        screen.view(filled)["total"].startswith("10") and dict(system.view(filled)["workspace"])["In all"][:2] == "10"
    )
    for folder in (runs, filled.workspace.exports, filled.workspace.compare, filled.workspace.adapters):
        shutil.rmtree(folder)
    assert {i["kind"] for i in screen.view(filled)["items"]} == {"dataset"} and system.view(filled)["kept"][0][1] == 0


def test_three_hundred_things_are_quick(studio: Studio, tmp_path: Path) -> None:
    """The first look reads all journals, later ones only what changed; both stay below what a person notices."""
    for number in range(300):
        finished_run(studio.workspace.runs / f"2026-11-28-cat-{number:03d}", tmp_path / "secret-pictures")
    spent = []
    for _ in range(3):
        began = time.process_time()
        assert len(Library(studio.workspace).items()) == 300
        spent.append(time.process_time() - began)
    print(f"300 runs: first {spent[0]:.2f} s, then {spent[2]:.2f} s of CPU")
    assert spent[0] < 3.0 and spent[2] < 0.5


def test_a_file_put_there_by_hand_is_looked_at(studio: Studio, tmp_path: Path) -> None:
    foreign_file(studio.workspace.adapters / "found.safetensors")
    until(lambda: screen.view(studio)["items"][0]["family"] == "sd1")


def test_addresses_open_the_page_that_they_name(filled: Studio) -> None:
    (filled.workspace.runs / "2026-11-28-cat" / "checkpoints").mkdir()
    for link in ("export:2026-11-28-cat", "publish:2026-11-28-cat"):
        page = screen.linked(filled, link)
        assert page is not None and page["link"] == link
    for link in ("", "export:", "publish:..", "written:../x", "upload:../../x", "upload:captions", "none:x"):
        assert screen.linked(filled, link) is None


@pytest.mark.parametrize("name", ["..", "../../outside", "/etc", "", ".", ".removed", "a/b", "linked"])
def test_nothing_outside_is_touched(filled: Studio, tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "mine.txt").write_text("mine")
    (filled.workspace.runs / "linked").symlink_to(outside)
    library = Library(filled.workspace)
    for kind in (*KINDS, "other"):
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
