"""Data sets, drafts and names: copies only, nothing of the user's is touched."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from gradio_app.datasets import unreadable
from gradio_app.parts.names import safe_file, safe_stem, unused
from gradio_app.studio import Studio
from gradio_app.tabs import dataset


def upload(studio: Studio, files: list[Path]) -> str:
    """What the page does: files first lie in the upload folder."""
    inbox = studio.workspace.uploads / "x"
    inbox.mkdir(exist_ok=True)
    sent = []
    for i, path in enumerate(files):
        there = inbox / f"{i}"
        there.write_bytes(path.read_bytes())
        sent.append((there, path.name))
    return dataset.receive(studio, sent, [])


def test_uploads_are_copied_under_safe_names_and_never_touched(studio: Studio, pictures: Path) -> None:
    before = {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in pictures.iterdir()}
    note = upload(studio, sorted(pictures.iterdir()))
    assert note == "5 pictures added."
    name = studio.project.draft().dataset
    assert name == "my-pictures"
    kept = {p.name for p in studio.workspace.datasets.files(name)}
    assert kept == {"one.png", "two-words.jpg", "b-three.png", "four.webp", "CON-file.png"}
    assert {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in pictures.iterdir()} == before


def test_the_same_name_twice_is_kept_twice_and_captions_find_their_picture(studio: Studio, tmp_path: Path) -> None:
    for colour, folder in (("red", "a"), ("blue", "b")):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (32, 32), colour).save(tmp_path / folder / "cat.png")
        (tmp_path / folder / "cat.txt").write_text(f"a {colour} cat\n")
        upload(studio, [tmp_path / folder / "cat.png", tmp_path / folder / "cat.txt"])
    sets, name = studio.workspace.datasets, studio.project.draft().dataset
    assert [(p.name, sets.caption(p)) for p in sets.files(name)] == [
        ("cat-2.png", "a blue cat"),
        ("cat.png", "a red cat"),
    ]


@pytest.mark.parametrize("kind", ["torn", "empty", "text", "dot"])
def test_what_is_no_picture_is_left_out_and_said(studio: Studio, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "bad.png"
    Image.effect_noise((200, 200), 50).save(path)
    data = path.read_bytes()
    contents = {"torn": data[: len(data) // 2], "empty": b"", "text": b"hello", "dot": data}
    path.write_bytes(contents[kind])
    if kind == "dot":
        Image.new("RGB", (1, 1)).save(path)
    note = upload(studio, [path])
    assert note.startswith("Left out: bad.png: it is")
    assert studio.workspace.datasets.files(studio.project.draft().dataset) == []


def test_a_decompression_bomb_is_refused(tmp_path: Path) -> None:
    Image.new("1", (16000, 16000)).save(tmp_path / "bomb.png")
    assert "too many pixels" in unreadable(tmp_path / "bomb.png")


def test_only_files_from_the_upload_folder_are_taken(studio: Studio, pictures: Path) -> None:
    assert dataset.receive(studio, [(pictures / "one.png", "one.png")], []) == ""
    assert (pictures / "one.png").exists()
    assert studio.project.draft().dataset == "demo"


def test_changing_the_demo_works_on_a_copy(studio: Studio) -> None:
    sets = studio.workspace.datasets
    before = {p.name: p.read_bytes() for p in studio.workspace.demo_images.iterdir()}
    name, copied = sets.writable("demo")
    first = sets.files(name)[0].name
    sets.set_caption(name, first, "something  else\n")
    assert copied and sets.caption(sets.folder(name) / first) == "something else"
    sets.remove(name, first)
    assert first not in [p.name for p in sets.files(name)]
    sets.restore(name, first)
    assert first in [p.name for p in sets.files(name)]
    assert sets.caption(sets.folder(name) / first) == "something else"
    assert {p.name: p.read_bytes() for p in studio.workspace.demo_images.iterdir()} == before
    with pytest.raises(PermissionError):
        sets.set_caption("demo", first, "no")


@pytest.mark.parametrize("name", ["../../etc", "..", "/etc", "a/../../b", ""])
def test_names_do_not_lead_out_of_the_workspace(studio: Studio, name: str) -> None:
    assert studio.workspace.run(name) is None
    if name not in ("",):
        with pytest.raises(FileNotFoundError):
            studio.workspace.datasets.folder(name)
    sets, own = studio.workspace.datasets, studio.workspace.datasets.create("mine")
    with pytest.raises(FileNotFoundError):
        sets.set_caption(own, f"{name}/x.png", "text")


@pytest.mark.parametrize(
    ("given", "safe"),
    [
        ("../../evil.PNG", "evil.png"),
        ("C:\\temp\\nice pic.jpeg", "nice-pic.jpeg"),
        (".hidden.png", "hidden.png"),
        ("<script>.png", "script.png"),
        ("été.png", "été.png"),
        ("nul.png", "nul-file.png"),
        ("a" * 300 + ".png", "a" * 80 + ".png"),
        ("???", "picture"),
    ],
)
def test_names_are_made_safe(given: str, safe: str) -> None:
    assert safe_file(given) == safe


def test_unused_names() -> None:
    assert unused("a.png", {"a.png", "a-2.png"}) == "a-3.png"
    assert safe_stem("  ", "x") == "x"


def test_the_draft_survives_a_restart_and_a_torn_file(studio: Studio) -> None:
    studio.project.update({"train.steps": 77})
    assert studio.project.draft().raw["train"]["steps"] == 77
    (studio.workspace.root / "draft.json").write_text('{"dataset": "gone", "raw":')
    assert studio.project.draft().dataset == "demo"


def test_html_in_captions_and_names_stays_text(studio: Studio, tmp_path: Path) -> None:
    shown = dataset.view(studio)
    plain = "id kind file thumb caption origin size warn badge mask pair lacks use repeats wait"
    for item in shown["items"]:
        assert set(item) == set(plain.split())
    for script in (Path(dataset.__file__).parents[1] / "parts").glob("*.js"):
        text = script.read_text()
        assert "innerHTML" not in text and "insertAdjacentHTML" not in text and "eval(" not in text
