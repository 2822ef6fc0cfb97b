"""`tuner mask`: the network that comes with the studio finds a person, and the job keeps what people painted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tuner.__main__ import main

PORTRAIT = Path(__file__).with_name("astronaut.jpg")
"""Eileen Collins, NASA, 1999, in the public domain; made smaller."""


def journal(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def lay_out(folder: Path) -> None:
    folder.mkdir()
    with Image.open(PORTRAIT) as image:
        image.save(folder / "turned.jpg", exif=_turned(image))
        image.resize((300, 200)).save(folder / "person.png")
    Image.new("RGB", (80, 60), (90, 120, 160)).save(folder / "sky.png")
    (folder / "torn.png").write_bytes(b"\x89PNG")


def _turned(image: Image.Image) -> Image.Exif:
    exif = image.getexif()
    exif[0x0112] = 6
    return exif


def test_people_are_found_and_painted_masks_stay(tmp_path: Path) -> None:
    lay_out(tmp_path / "in")
    before = {p.name: p.read_bytes() for p in (tmp_path / "in").iterdir()}
    out, job = tmp_path / "masks", tmp_path / "job"
    assert main(["mask", str(tmp_path / "in"), "--out", str(out), "--job", str(job)]) == 0
    assert {p.name: p.read_bytes() for p in (tmp_path / "in").iterdir()} == before, "pictures are only read"
    assert sorted(p.name for p in out.iterdir()) == ["person.png", "turned.png"]
    with Image.open(out / "person.png") as mask:
        assert (mask.size, mask.mode) == ((300, 200), "L")
        seen = np.asarray(mask, np.float32) / 255
    # the face and the suit count, the flag at the left and the shuttle at the right top do not
    assert seen[30:60, 115:145].mean() > 0.98 and seen[110:150, 60:140].mean() > 0.98
    assert seen[5:60, 5:60].mean() < 0.02 and seen[5:40, 240:290].mean() < 0.02
    told = journal(job)
    assert [e["kind"] for e in told if e["kind"] in ("finished", "failed")] == ["finished"]
    assert any("No person was found in 1 (first: sky.png)" in e.get("text", "") for e in told)
    assert any("torn.png" in e.get("text", "") for e in told if e["kind"] == "warning")

    Image.new("L", (300, 200), 255).save(out / "person.png")
    (tmp_path / "some.txt").write_text("person.png\nturned.jpg")
    again = ["mask", str(tmp_path / "in"), "--out", str(out), "--overwrite-auto", "--only", str(tmp_path / "some.txt")]
    assert main([*again, "--job", str(tmp_path / "job2")]) == 0
    with Image.open(out / "person.png") as mask:
        assert mask.getextrema() == (255, 255), "a painted mask stays"
    assert [e["item"] for e in journal(tmp_path / "job2") if e["kind"] == "mask"] == ["turned.jpg"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere", "--out", "masks"], "is no folder"),
        (["in", "--out", "in"], "need a folder of their own"),
        (["empty", "--out", "masks"], "has no pictures or videos"),
        (["in", "--out", "masks", "--only", "wrong.txt"], "no such picture"),
    ],
)
def test_wrong_wishes_end_with_a_sentence(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    lay_out(tmp_path / "in")
    (tmp_path / "empty").mkdir()
    (tmp_path / "wrong.txt").write_text("../in/person.png")
    assert main(["mask", *arguments, "--job", "job"]) == 1
    assert said in capsys.readouterr().err
