"""Compare: contenders, the hint, files from elsewhere, the blind test."""

from __future__ import annotations

import json
import random
import re
import struct
import time
from pathlib import Path

import pytest
import yaml

from gradio_app import blind, shelf
from gradio_app.studio import Studio
from gradio_app.tabs import compare
from tests.app.helpers import until

EVIL = "<img src=x onerror=alert(1)>"


def foreign_file(path: Path) -> Path:
    """A small true .safetensors file."""
    header = json.dumps({"a.weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0\0\0\0")
    return path


def upload(studio: Studio, path: Path, name: str, slot: str = "adapters") -> str:
    """As the widget sends it: a file below the folder of uploads."""
    inside = studio.workspace.uploads / path.name
    inside.write_bytes(path.read_bytes())
    return compare.take(studio, {"slot": slot, "files": [{"path": str(inside), "name": name}]})


def drawn(studio: Studio, prompts: str = "cat\ndog", seed: str = "1, 2") -> Path:
    """A comparison of the base with itself, to its end."""
    compare.keep(studio, {"prompts": prompts, "seed": seed, "steps": "4"})
    asked, missing = compare.request(studio)
    assert not missing
    asked["contenders"] = [{"label": label, "adapter": None, "strength": 1.0} for label in ("one", EVIL)]
    folder = studio.workspace.new_comparison()
    compare.write_json(folder / "form.json", compare._saved(studio))
    studio.launcher.sample(folder, json.dumps(asked))
    until(lambda: compare.reader(folder).refresh().state == "finished")
    return folder


@pytest.mark.parametrize(
    ("losses", "step", "word"),
    [([0.5, 0.3, 0.4], 100, "by heart"), ([0.5, 0.4, 0.3], 150, "longer training"), ([0.5, 0.3, 0.3], 100, "hardly"),
     ([0.5, 0.301, 0.3], 100, "within 1 %"), ([0.5, None, None], None, "")],
)  # fmt: skip
def test_the_suggested_step_and_its_reason(losses: list, step: int | None, word: str) -> None:
    found, why = shelf.best([50, 100, 150], losses)
    assert found == step and word in why


@pytest.mark.parametrize(
    ("losses", "held_back", "step", "word"),
    [([0.5, 0.3], True, 100, "still falling"), ([0.5, 0.3], False, None, "nothing was held back"),
     ([None, None], True, None, "No loss was measured"), ([None, 0.3], True, None, "Only one"),
     ([0.3], True, None, "")],
)  # fmt: skip
def test_no_step_is_suggested_by_a_loss_that_cannot_tell(losses: list, held_back: bool, step: int, word: str) -> None:
    found, why = shelf.advice([50, 100][: len(losses)], losses, held_back)
    assert found == step and word in why and bool(why) == bool(word)


def test_a_checkpoint_has_the_loss_measured_before_it() -> None:
    assert shelf.points([50, 100, 150], [(60, 0.5), (100, 0.4), (200, 0.1)]) == [None, 0.4, 0.4]


def test_files_from_elsewhere(studio: Studio, tmp_path: Path) -> None:
    good = foreign_file(tmp_path / "x.safetensors")
    assert upload(studio, good, "../../My <b>style.safetensors") == ""
    foreign = shelf.Foreign(studio.workspace.adapters, studio.launcher)
    kept = foreign.files()
    assert [p.parent for p in kept] == [studio.workspace.adapters] and "<" not in kept[0].name
    until(lambda: "rank 4" in foreign.told(kept[0]))
    entry = compare.view(studio)["shelf"][-1]
    assert entry["id"] == f"file:{kept[0].name}" and entry["warnings"]
    compare.keep(studio, {"contenders": [{"id": entry["id"], "on": True, "strengths": [0.7, 0.2]}], "prompts": "cat"})
    asked, _ = compare.request(studio)
    column = {"label": entry["label"], "adapter": str(kept[0])}
    assert asked["contenders"][-2:] == [{**column, "strength": 0.2}, {**column, "strength": 0.7}]
    assert compare.plan_line(studio).startswith("3 pictures: 1 prompt, 3 contenders")


def test_what_is_no_safetensors_file_is_refused(studio: Studio, tmp_path: Path) -> None:
    short = tmp_path / "short.safetensors"
    short.write_bytes(foreign_file(tmp_path / "x.safetensors").read_bytes()[:-1])
    assert "no whole" in upload(studio, short, "short.safetensors")
    short.write_bytes(struct.pack("<Q", 1 << 60) + b"{}")
    assert "no whole" in upload(studio, short, "huge.safetensors")
    assert "only .safetensors" in upload(studio, tmp_path / "x.safetensors", "program.ckpt")
    outside = {"slot": "adapters", "files": [{"path": str(tmp_path / "x.safetensors"), "name": "x.safetensors"}]}
    compare.take(studio, outside)
    assert not list(studio.workspace.adapters.glob("*.safetensors"))


def test_seeds_are_rows_and_comparisons_are_kept(studio: Studio) -> None:
    first = drawn(studio)
    board = compare.view(studio)["board"]
    assert [row["seed"] for row in board["rows"]] == ["seed 1", "seed 2"] * 2
    assert all(cell for row in board["rows"] for cell in row["cells"])
    second = drawn(studio, "bird", "9")
    assert compare.shown(studio) == second
    compare.act(studio, {"do": "open", "id": first.name})
    shown = compare.view(studio)
    assert shown["shown"] == first.name and shown["form"]["prompts"] == "cat\ndog" and shown["form"]["seed"] == "1, 2"
    assert {kept["id"] for kept in shown["history"]} == {first.name, second.name}
    compare.act(studio, {"do": "open", "id": "../../etc"})
    assert compare.shown(studio) == first


def test_stop_keeps_what_was_drawn(studio: Studio) -> None:
    studio.launcher.command = (*studio.launcher.command[:-1], "0.3")
    compare.keep(studio, {"prompts": "cat", "seed": "1, 2, 3, 4, 5, 6, 7, 8"})
    folder = studio.workspace.new_comparison()
    studio.launcher.sample(folder, json.dumps(compare.request(studio)[0]))
    until(lambda: len(list(folder.glob("*.png"))) > 0)
    compare.act(studio, {"do": "stop"})
    until(lambda: compare.reader(folder).refresh().state == "stopped")
    assert "were drawn" in compare.view(studio)["sentence"]


def test_a_large_grid_stays_fast_and_can_be_stopped(studio: Studio) -> None:
    """Five contenders, eight prompts, three seeds: what a page is sent, how long it takes, and a stop in between."""
    folder = drawn(studio)
    asked = yaml.safe_load((folder / "request.yaml").read_text())
    asked |= {"prompts": [f"a rather long prompt, number {i}" for i in range(8)], "seeds": [1, 2, 3]}
    asked["contenders"] = [{"label": f"c{i}", "adapter": None, "strength": 1.0} for i in range(5)]
    asked["contenders"][3] |= {"label": "broken", "adapter": "/far/away/broken.safetensors"}
    large = studio.workspace.new_comparison()
    studio.launcher.sample(large, yaml.safe_dump(asked))
    until(lambda: compare.reader(large).refresh().state == "finished")
    begun = time.perf_counter()
    shown = compare.view(studio)
    took, size = time.perf_counter() - begun, len(json.dumps(shown))
    print(f"a board of 120 cells: {1000 * took:.0f} ms, {size / 1000:.0f} kB")
    board = shown["board"]
    assert len(board["rows"]) == 24 and size < 60_000 and took < 1.0
    assert [bool(c["refused"]) for c in board["columns"]] == [False, False, False, True, False]
    assert "away" not in board["columns"][3]["refused"] and "1 contender could not" in shown["sentence"]
    assert all([bool(cell) for cell in row["cells"]] == [True, True, True, False, True] for row in board["rows"])
    studio.launcher.command = (*studio.launcher.command[:-1], "0.1")
    again = studio.workspace.new_comparison()
    studio.launcher.sample(again, yaml.safe_dump(asked))
    until(lambda: len(list(again.glob("*.png"))) > 2)
    compare.act(studio, {"do": "stop"})
    until(lambda: compare.reader(again).refresh().state == "stopped")
    assert "were drawn" in compare.view(studio)["sentence"]


def test_pictures_for_tasks_that_need_them(studio: Studio, pictures: Path) -> None:
    base = {"task": "edit"}
    assert [slot["key"] for slot in compare._slots(studio, base)] == ["references"]
    assert upload(studio, pictures / "one.png", "one.png", "references") == ""
    picture = compare._slots(studio, base)[0]["pictures"][0]
    assert Path(picture["file"]).is_file()
    assert "not taken" in upload(studio, Path(__file__), "evil.png", "references")
    compare.act(studio, {"do": "unpick", "slot": "references", "name": picture["name"]})
    assert compare._slots(studio, base)[0]["pictures"] == []


def test_blind_counts_and_reveals(studio: Studio) -> None:
    folder = drawn(studio)
    assert "different" in compare.act(studio, {"do": "blind", "a": 0, "b": 0})
    assert compare.act(studio, {"do": "blind", "a": 0, "b": 1}) == ""
    seconds, names = {p.stat().st_ino for p in folder.glob("c1-*.png")}, set()
    for number in range(10):
        trial = compare.view(studio)["blind"]
        assert trial["number"] == number and "label" not in trial
        assert trial == compare.view(studio)["blind"], "the same pair keeps its names"
        names |= {trial["left"], trial["right"]}
        side = "left" if Path(trial["left"]).stat().st_ino in seconds else "right"
        compare.act(studio, {"do": "vote", "number": number, "side": side})
        compare.act(studio, {"do": "vote", "number": number, "side": side})
    result = compare.view(studio)["blind"]["result"]
    assert f"You chose {EVIL} 10 of 10" in result and "fairly sure" in result and "4 different pairs" in result
    assert len(names) == 20 and all(re.fullmatch(r"[0-9a-f]{24}\.png", Path(n).name) for n in names)
    compare.act(studio, {"do": "endblind"})
    assert not any(Path(n).exists() for n in names) and len(list(folder.glob("c*.png"))) == 8
    assert compare.view(studio)["blind"] is None and json.loads((folder / "blind-results.json").read_text())


def test_how_sure() -> None:
    assert blind.chance(5, 10) == 1.0 and blind.chance(10, 10) == pytest.approx(2 / 1024)
    assert blind.chance(8, 10) == pytest.approx(2 * 56 / 1024) and blind.chance(2, 10) == blind.chance(8, 10)
    test = {"votes": [0, 0, 1, 0, 0, 0, 1, 0, 0, 1], "rows": 12}
    assert "7 of 10" in blind.verdict(test, ["a", "b"]) and "may be chance" in blind.verdict(test, ["a", "b"])
    assert "no preference" in blind.verdict({"votes": [0, 1] * 5, "rows": 12}, ["a", "b"])


def test_every_row_comes_before_any_comes_again(tmp_path: Path) -> None:
    blind.start(tmp_path, (0, 1), list(range(7)), random.Random(1))
    dealt = blind.read(tmp_path)["dealt"]
    assert sorted(row for row, _ in dealt[:7]) == list(range(7)) and len(dealt) == 10
