"""Exports from the app: what can be had, what the engine is asked, what came of it; and what lies in the library."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from gradio_app import exports
from gradio_app.holdings import Library
from gradio_app.shelf import Foreign
from gradio_app.studio import Studio, open_studio
from gradio_app.tabs import compare
from gradio_app.tabs import library as screen
from gradio_app.workspace import Workspace
from tests.app.helpers import until
from tests.app.test_compare_tab import foreign_file, upload
from tests.app.test_publish import finished_run

RUN = "2026-11-28-cat"


def run_with_checkpoint(folder: Path, data: Path) -> None:
    """A finished run with a checkpoint at step 50."""
    run = finished_run(folder, data)
    (run / "checkpoints" / "step-000050").mkdir(parents=True)
    *lines, last = (run / "events.jsonl").read_text().splitlines()
    saved = {**json.loads(last), "kind": "checkpoint", "step": 50, "path": "checkpoints/step-000050"}
    (run / "events.jsonl").write_text("\n".join([*lines, json.dumps(saved), last]) + "\n")


@pytest.fixture
def made(studio: Studio, tmp_path: Path) -> Studio:
    """One finished run with a checkpoint, and what the engine offers."""
    run_with_checkpoint(studio.workspace.runs / RUN, tmp_path / "secret-pictures")
    family = {"name": "flux1", "title": "FLUX.1", "no_formats": {"kohya": "kohya-like tools do not know this family"}}
    studio.catalog._known = {"families": [family], "extensions": []}  # as the engine answers, without asking it
    return studio


def recipe(studio: Studio, **changes: object) -> None:
    """Change the run's recipe."""
    path = studio.workspace.runs / RUN / "recipe.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **changes}))


def written(studio: Studio, **sent: object) -> dict:
    """Export to the end."""
    folder = exports.start(studio, sent)
    assert folder is not None
    until(lambda: not (exports.page(studio, folder.name) or {"live": True})["live"])
    page = exports.page(studio, folder.name)
    assert page is not None
    return page


@pytest.mark.parametrize(
    "wanted", ["", "..", "../x", "file:../x", f"{RUN}@../../etc", f"{RUN}@51", "file:none", "base"]
)
def test_nothing_else_can_be_exported(made: Studio, wanted: str) -> None:
    assert exports.subject(made, wanted) is None and exports.start(made, {"id": wanted}) is None


def test_what_a_family_does_not_have_is_shown_with_the_reason(made: Studio) -> None:
    recipe(made, family="flux1")
    shown = screen.export_page(made, RUN)
    assert shown is not None
    assert {f["format"]: f["reason"] for f in shown["formats"]} == {
        "diffusers": "", "comfyui": "", "kohya": "Kohya-like tools do not know this family.",
    }  # fmt: skip
    assert shown["metadata"] == "share", "what is made to be passed on tells nothing private unless asked"


@pytest.mark.parametrize(
    ("adapter", "said"),
    [({"kind": "full"}, "whole model"), ({"kind": "controlnet"}, "ControlNet"),
     ({"kind": "peft", "algorithm": "ia3"}, "PEFT")],
)  # fmt: skip
def test_ways_of_training_with_files_of_their_own_offer_no_choice(made: Studio, adapter: dict, said: str) -> None:
    recipe(made, adapter=adapter)
    of = exports.subject(made, RUN)
    assert of is not None
    assert exports.form(made, of)["formats"] == [] and exports.form(made, of)["whole"] == said
    assert exports.options(made, of, {"precision": "bf16", "metadata": "share"}) == []


def test_a_checkpoint_is_written_and_its_files_have_badges(made: Studio) -> None:
    sent = {"formats": ["comfyui"], "precision": "bf16", "metadata": "share"}
    page = written(made, id=f"{RUN}@50", **sent)
    assert (page["stage"], page["label"], page["run"]) == ("done", "cat, step 50", RUN)
    [file] = page["files"]
    assert (file["title"], file["badge"], file["problems"]) == ("ComfyUI", "loads in ComfyUI", [])
    path = Path(file["parts"][0]["file"])
    assert path.parts[-2:] == ("comfyui", "step-000050.safetensors")
    assert any(path.is_relative_to(folder) for folder in made.workspace.served()), "the browser can fetch it"
    asked = path.read_bytes()
    assert b"--formats=comfyui --precision=bf16 --metadata=share" in asked and b"step-000050" in path.name.encode()
    assert made.workspace.runs / RUN not in path.parents, "the run's own files stay as they are"


def test_all_formats_leave_the_choice_to_the_engine(made: Studio) -> None:
    of = exports.subject(made, RUN)
    assert of is not None
    assert exports.options(made, of, {"formats": ["diffusers", "comfyui", "kohya"], "metadata": "full"}) == [
        "--metadata=full"
    ]
    assert exports.options(made, of, {"formats": ["x; rm"], "precision": "fp8", "metadata": ["?"]}) == []


def test_a_file_from_elsewhere_knows_its_family_and_the_projects_model(made: Studio, tmp_path: Path) -> None:
    assert upload(made, foreign_file(tmp_path / "x.safetensors"), "found.safetensors") == ""
    of = exports.subject(made, "file:found.safetensors")
    assert of is not None
    until(lambda: bool(exports.form(made, of)["families"] == []))
    project = made.project.draft().raw
    other = [] if project.get("family") == "sd1" else ["--family=sd1"]
    assert exports.options(made, of, {})[: len(other)] == other
    assert exports.options(made, of, {"family": "flux1"})[-1].startswith(("--family=flux1", "--model="))
    (made.workspace.adapters / ".inspected" / "found.safetensors.json").unlink()
    assert [f["name"] for f in exports.form(made, of)["families"]] == ["flux1"]


def test_what_is_wrong_is_told(made: Studio, tmp_path: Path) -> None:
    for name in ("bent", "broken"):
        upload(made, foreign_file(tmp_path / "x.safetensors"), f"{name}.safetensors")
    bent, broken = (written(made, id=f"file:{name}.safetensors") for name in ("bent", "broken"))
    assert bent["files"][0]["badge"] == "" and "not the trained one" in bent["files"][0]["problems"][0]
    assert broken["stage"] == "failed" and "is damaged" in broken["trouble"] and broken["files"] == []
    lines = {i["name"]: (i["state"], i["about"]) for i in Library(made.workspace).items() if i["kind"] == "export"}
    assert sorted(lines.values()) == [("", "diffusers, ComfyUI; NOT as it was trained"), ("failed", "")]


def test_an_export_goes_on_to_publish(made: Studio) -> None:
    page = written(made, id=f"{RUN}@50")
    sent = {"name": RUN, "export": page["job"], "repo": "me/cat"}
    shown = screen.preview(made, sent)
    names = [f["name"] for f in shown["parcel"]["files"]]
    assert "comfyui/step-000050.safetensors" in names and "| Steps | 50 |" in shown["parcel"]["card"]
    alone = screen.preview(made, {"name": "", "export": page["job"], "repo": "me/cat"})
    assert "cannot name base model" in alone["parcel"]["notes"][0]
    assert screen.preview(made, {**sent, "name": "", "export": "../runs"})["parcel"] is None


def test_the_one_to_export(made: Studio) -> None:
    def chosen() -> str:
        return compare.chosen(made, compare.contenders(made)[0])

    assert chosen() == RUN
    compare.act(made, {"do": "choose", "id": f"{RUN}@50"})
    assert chosen() == f"{RUN}@50"
    compare.act(made, {"do": "choose", "id": "base"})
    assert chosen() == RUN
    places = [
        made.workspace.runs / RUN,
        made.workspace.runs / RUN / "checkpoints" / "step-000050",
        made.workspace.adapters / "a.safetensors",
    ]
    assert [compare.identity(made, str(p)) for p in places] == [RUN, f"{RUN}@50", "file:a.safetensors"]


def test_the_library_holds_adapters_from_elsewhere(made: Studio, tmp_path: Path) -> None:
    upload(made, foreign_file(tmp_path / "x.safetensors"), "found.safetensors")
    library, name = Library(made.workspace), "found.safetensors"

    def item() -> dict:
        return next((i for i in screen.view(made)["items"] if i["name"] == name), {})

    until(lambda: item()["family"] == "sd1")
    assert "lora rank 4" in item()["about"] and item()["bytes"] > 8
    library.write("adapter", name, {"title": "Nice", "tags": "x", "note": "from a friend"})
    assert (item()["title"], item()["tags"], item()["note"]) == ("Nice", "x", "from a friend")
    assert "in the bin" in library.delete("adapter", name) and item() == {} and library.binned()[0]["size"] > 8
    assert "is back" in library.restore("adapter", name) and item()["title"] == "Nice"
    library.delete("adapter", name)
    assert "1 deleted for good" in library.empty()


def test_licences_of_sources_by_name(made: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    family = {
        "name": "flux1",
        "sources": {"dev": "black-forest-labs/FLUX.1-dev", "schnell": "black-forest-labs/FLUX.1-schnell"},
    }
    monkeypatch.setattr(made.catalog, "_known", {"families": [family]})
    family["licence"] = "[dev] Non-Commercial; [schnell] Apache-2.0"
    assert screen.licence(made, "flux1", "") == family["licence"], "a file does not tell which of them"
    assert screen.licence(made, "flux1", "schnell") == "apache-2.0"
    assert "non-commercial" in screen.licence(made, "flux1", "dev")
    assert screen.licence(made, "nothing", "x") == "" and screen.licence(made, "sdxl", "me/finetune") == "its own"
    assert json.dumps(screen.view(made)["items"])


@pytest.mark.slow
def test_the_real_engine_writes_what_the_app_asks_for(tmp_path: Path) -> None:
    """Two steps on the embedded model, then the result and a file from elsewhere, each in all formats of the family."""
    studio = open_studio(Workspace(tmp_path / "home"))
    folder, text = studio.workspace.new_run("cat"), studio.project.yaml(studio.project.draft())
    short = {**yaml.safe_load(text), "validate": None, "save": {"every": 2}}
    short["train"] = {**short["train"], "steps": 2}
    studio.launcher.run(folder, yaml.safe_dump({k: v for k, v in short.items() if v is not None}))
    until(lambda: (folder / "export").is_dir() and studio.launcher.process(folder) is None, 300)
    own = finished(studio, id=folder.name, metadata="share")
    assert own["stage"] == "done", own["trouble"]
    assert all(f["badge"].startswith("loads in") for f in own["files"]) and own["files"]
    Foreign(studio.workspace.adapters, studio.launcher).add(
        Path(own["files"][-1]["parts"][0]["file"]), "found.safetensors"
    )
    again = finished(studio, id="file:found.safetensors", family=short["family"])
    assert again["stage"] == "done", again["trouble"]
    assert [f["format"] for f in again["files"]] == [f["format"] for f in own["files"]]


def finished(studio: Studio, **sent: object) -> dict:
    """Export to the end, with patience for an engine that loads a model."""
    folder = exports.start(studio, sent)
    assert folder is not None
    until(lambda: not (exports.page(studio, folder.name) or {"live": True})["live"], 200)
    return exports.page(studio, folder.name) or {}
