"""The Dataset screen without a browser: what comes in, captions of many, automatic captions, the doctor."""

from __future__ import annotations

import wave
import zipfile
from pathlib import Path
from types import SimpleNamespace

import av
import gradio as gr
import numpy as np
import pytest
from PIL import Image

from gradio_app import captioning, captions
from gradio_app.studio import Studio
from gradio_app.tabs import dataset
from tests.app.helpers import until
from tests.app.test_workspace import upload


def clip(path: Path) -> Path:
    """A second of video."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(8):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 30 * i, np.uint8), format="rgb24")
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def tone(path: Path) -> Path:
    """Half a second of sound."""
    with wave.open(str(path), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(8000)
        out.writeframes((3000 * np.sin(np.arange(4000) / 5)).astype(np.int16).tobytes())
    return path


def own(studio: Studio, tmp_path: Path, texts: dict[str, str]) -> str:
    """A data set of small pictures with these captions; an empty text is none."""
    name = studio.workspace.datasets.create("mine")
    studio.project.select(name)
    for i, (stem, text) in enumerate(texts.items()):
        Image.new("RGB", (64, 64), (20 * i, 90, 40)).save(studio.workspace.datasets.folder(name) / f"{stem}.png")
        if text:
            (studio.workspace.datasets.folder(name) / f"{stem}.txt").write_text(text)
    return name


def texts(studio: Studio, name: str) -> dict[str, str]:
    sets = studio.workspace.datasets
    return {path.stem: sets.caption(path) for path in sets.files(name)}


def test_videos_and_sounds_have_a_poster_and_a_length_and_broken_ones_are_named(studio: Studio, tmp_path: Path) -> None:
    (tmp_path / "torn.mp4").write_bytes(b"no video at all")
    (tmp_path / "torn.wav").write_bytes(b"no sound")
    (tmp_path / "page.html").write_text("<script>")
    sent = [clip(tmp_path / "a.mp4"), tone(tmp_path / "b.wav"), *(tmp_path / n for n in ("torn.mp4", "torn.wav"))]
    note = upload(studio, [*sent, tmp_path / "page.html"])
    assert note.startswith("1 video, 1 sound added.")
    assert "torn.mp4: it is damaged or not a video" in note and "page.html: it is no picture" in note
    items = {i["id"]: i for i in dataset.view(studio)["items"]}
    assert items["a.mp4"]["kind"] == "video" and items["a.mp4"]["thumb"] and items["a.mp4"]["size"] == "1.0 s · 64 × 48"
    assert items["b.wav"]["kind"] == "audio" and not items["b.wav"]["warn"] and items["b.wav"]["size"] == "0.5 s"
    assert dataset.plan_line(studio).startswith("1 video, 1 sound. 2 have no caption")


def test_a_zip_is_unpacked_with_its_captions_and_leads_nowhere_else(studio: Studio, tmp_path: Path) -> None:
    Image.new("RGB", (32, 32), "red").save(tmp_path / "x.png")
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as out:
        out.write(tmp_path / "x.png", "all/cat.png")
        out.writestr("all/cat.txt", "a red cat")
        out.write(tmp_path / "x.png", "all/../../../escaped.png")
    note = upload(studio, [tmp_path / "all.zip"])
    assert "2 pictures added. 1 caption read." in note
    assert "a red cat" in texts(studio, studio.project.draft().dataset).values()
    assert {p.parent for p in tmp_path.rglob("escaped*")} == {studio.workspace.datasets.root / "my-pictures"}
    assert not list(studio.workspace.uploads.rglob("*.png")), "what was unpacked is cleaned away"
    (tmp_path / "bad.zip").write_bytes(b"PK no")
    assert "bad.zip: This zip is damaged" in upload(studio, [tmp_path / "bad.zip"])


def test_a_folder_is_copied_and_only_read(studio: Studio, pictures: Path, tmp_path: Path) -> None:
    (pictures / "sub").mkdir()
    (pictures / "one.png").rename(pictures / "sub" / "one.png")
    (pictures / "sub" / "one.txt").write_text("the first")
    before = {p: p.stat().st_mtime_ns for p in pictures.rglob("*")}
    assert dataset.take_folder(studio, str(pictures)) == "4 pictures added. 1 caption read.", "hidden ones stay"
    assert {p: p.stat().st_mtime_ns for p in pictures.rglob("*")} == before
    assert texts(studio, studio.project.draft().dataset)["sub-one"] == "the first"
    for path in ("", "pictures", "/nowhere/at/all"):
        assert dataset.take_folder(studio, path).startswith("There is no such folder")
    (tmp_path / "void").mkdir()
    assert dataset.take_folder(studio, str(tmp_path / "void")).startswith("There are no pictures")


@pytest.mark.parametrize(
    ("headers", "peer", "user", "here"),
    [
        ({"host": "127.0.0.1:7860"}, "127.0.0.1", None, True),
        ({"host": "localhost:7860"}, "::1", None, True),
        ({"host": "x.gradio.live"}, "127.0.0.1", None, False),
        ({"host": "127.0.0.1:7860", "x-forwarded-for": "1.2.3.4"}, "127.0.0.1", None, False),
        ({"host": "127.0.0.1:7860"}, "192.168.1.7", None, False),
        ({"host": "127.0.0.1:7860"}, "127.0.0.1", "tuner", False),
    ],
)
def test_folders_open_only_on_this_machine(headers: dict[str, str], peer: str, user: str | None, here: bool) -> None:
    request = SimpleNamespace(headers=headers, client=SimpleNamespace(host=peer), username=user)
    assert dataset.local(request) is here


def test_many_captions_change_after_a_preview_and_go_back(studio: Studio, tmp_path: Path) -> None:
    name = own(studio, tmp_path, {"a": "a red cat", "b": "Category red", "c": ""})
    asked = {"do": "replace", "find": "cat", "replace": r"d\og", "words": True}
    shown = dataset._bulk(studio, asked)["preview"]
    assert shown["rows"] == [["a.png", "a red cat", r"a red d\og"]]
    assert texts(studio, name)["a"] == "a red cat", "a preview changes nothing"
    dataset._bulk(studio, {**asked, "apply": True})
    assert texts(studio, name)["a"] == r"a red d\og"
    dataset._bulk(studio, {"do": "prefix", "prefix": "photo of", "apply": True})
    assert texts(studio, name) == {"a": r"photo of, a red d\og", "b": "photo of, Category red", "c": "photo of"}
    captions.write(studio.workspace.datasets, name, {"b.png": "mine"})
    assert dataset._unbulk(studio, {})["note"] == "2 captions as before. 1 was edited since and stay."
    assert texts(studio, name) == {"a": r"a red d\og", "b": "mine", "c": ""}
    assert "Write the text to look for" in dataset._bulk(studio, {"do": "replace"})["preview"]["text"]


def test_captions_come_from_the_captioner_and_a_persons_own_stay(studio: Studio, tmp_path: Path) -> None:
    name = own(studio, tmp_path, {"a": "came along", "b": "", "c": "", "d": ""})
    captions.write(studio.workspace.datasets, name, {"b.png": "my own"})
    studio.workspace.datasets.set_meta(name, {"trigger": "sks"})
    assert dataset._autocaption(studio, {"model": "basic", "purpose": "style"}) == {"note": ""}
    until(lambda: captioning.state(studio, name)["state"] == "finished")
    assert captioning.state(studio, name)["text"] == "2 captions written."
    assert texts(studio, name) == {"a": "came along", "b": "my own", "c": "sks, thing 1", "d": "sks, thing 2"}
    seen = {i["id"]: i["origin"] for i in dataset.view(studio)["items"]}
    assert seen == {"a.png": "imported", "b.png": "you", "c.png": "auto", "d.png": "auto"}
    captions.write(studio.workspace.datasets, name, {"c.png": "better"})
    assert {i["id"]: i["origin"] for i in dataset.view(studio)["items"]}["c.png"] == "you"


def test_a_selection_has_repeats_of_its_own(studio: Studio, tmp_path: Path) -> None:
    """Noted beside the data set, in the recipe that is trained, kept while left out, gone when as the others."""
    name = own(studio, tmp_path, {"a": "x", "b": "y", "c": "z"})
    said = dataset._repeats(studio, {"ids": ["a.png", "b.png", "../evil.png"], "times": 3})
    assert said["note"] == "2 items are now seen 3 × in each epoch."
    assert {i["id"]: i["repeats"] for i in dataset.view(studio)["items"]} == {"a.png": 3, "b.png": 3, "c.png": 0}
    final = studio.project.final(studio.project.draft())
    assert final["data"][0]["repeats_of"] == {"a.png": 3, "b.png": 3}
    assert not studio.project.mistakes(studio.project.draft())
    dataset._remove(studio, {"ids": ["b.png"]})
    assert studio.project.final(studio.project.draft())["data"][0]["repeats_of"] == {"a.png": 3}
    dataset._undo(studio, {"ids": ["b.png"]})
    dataset._repeats(studio, {"ids": ["a.png"], "times": 1})
    assert studio.workspace.datasets.repeats(name) == {"b.png": 3}
    for wrong in (0, -1, 1001, "many", None, [2]):
        assert "whole number" in dataset._repeats(studio, {"ids": ["a.png"], "times": wrong})["note"]
    assert studio.workspace.datasets.repeats(name) == {"b.png": 3}
    elsewhere, _ = studio.project.bring(studio.project.yaml(studio.project.draft()))
    assert elsewhere is not None and elsewhere.raw["data"][0]["repeats_of"] == {}, "they belong to these pictures"


def test_what_a_caption_job_still_has_to_do_is_marked(studio: Studio, tmp_path: Path) -> None:
    name = own(studio, tmp_path, {**{f"p{i:03}": "" for i in range(200)}, "z": "mine"})
    dataset._autocaption(studio, {"model": "basic", "purpose": "general"})
    until(lambda: captioning.state(studio, name).get("done", 0) > 1)
    waits = {i["id"]: (i["wait"], bool(i["caption"])) for i in dataset.view(studio)["items"]}
    assert waits["p199.png"] == ("caption", False) and waits["z.png"] == ("", True) and waits["p000.png"] == ("", True)
    dataset._captionstop(studio, {})
    until(lambda: captioning.state(studio, name)["state"] == "stopped")
    assert not any(i["wait"] for i in dataset.view(studio)["items"])


def test_a_caption_job_stops_and_wrong_wishes_start_none(studio: Studio, tmp_path: Path) -> None:
    name = own(studio, tmp_path, {f"p{i:03}": "" for i in range(200)})
    assert "lists" in dataset._autocaption(studio, {"model": "--out=/", "purpose": "style"})["note"]
    assert captioning.state(studio, name) == {}
    dataset._autocaption(studio, {"model": "basic", "purpose": "general"})
    until(lambda: captioning.state(studio, name).get("done", 0) > 1)
    assert "already" in dataset._autocaption(studio, {"model": "basic", "purpose": "general"})["note"]
    dataset._captionstop(studio, {})
    until(lambda: captioning.state(studio, name)["state"] == "stopped")
    assert 1 < sum(map(bool, texts(studio, name).values())) < 200


def test_the_doctors_findings_have_remedies_that_can_be_undone(studio: Studio, tmp_path: Path) -> None:
    name = own(studio, tmp_path, {"a": "x", "b": "y", "c": "z"})
    assert dataset.view(studio)["doctor"] == {}
    dataset._examine(studio, {})
    assert dataset.view(studio)["doctor"] == {"busy": True}
    until(lambda: "findings" in dataset.view(studio)["doctor"])
    copies, longer = dataset.view(studio)["doctor"]["findings"]
    assert copies["leave"] == ["b.png"] and copies["items"] == ["a.png", "b.png"]
    dataset._remedy(studio, {"remedy": {"source": "evil"}})
    assert studio.project.draft().raw["source"] != "evil", "only what a finding proposes is set"
    dataset._remedy(studio, {"remedy": longer["remedy"]})
    assert studio.project.draft().raw["train"]["steps"] == 321
    said = dataset._remove(studio, {"ids": copies["leave"]})
    assert set(texts(studio, name)) == {"a", "c"} and dataset.view(studio)["aside"] == ["b.png"]
    assert dataset.view(studio)["doctor"] == {"findings": [], "old": True}, "what was solved is gone, with no new look"
    dataset._undo(studio, {"ids": said["undo"]})
    assert texts(studio, name) == {"a": "x", "b": "y", "c": "z"}


def test_the_crop_and_the_plan_come_from_the_check(studio: Studio, tmp_path: Path) -> None:
    own(studio, tmp_path, {"a": "x"})
    draft = studio.project.draft()
    studio.checker.now(studio.project.yaml(draft), studio.project.stamp(draft))
    shown = dataset.view(studio)
    use = shown["items"][0]["use"]
    assert use["crop"] == [32, 0, 96, 64] and use["bucket"] == [64, 64]
    assert shown["plan"]["items"] == 1 and shown["plan"]["buckets"][0]["width"] == 64


def test_tokens_are_counted_by_the_model_and_else_said_to_be_estimated(studio: Studio, tmp_path: Path) -> None:
    own(studio, tmp_path, {"a": "a red cat on a mat"})
    asked = {"id": "a.png"}
    assert dataset._look(studio, asked)["look"]["tokens"] == {"has": 10, "takes": 0, "exact": False}
    draft = studio.project.draft()
    studio.checker.now(studio.project.yaml(draft), studio.project.stamp(draft))
    assert dataset._look(studio, asked)["look"]["tokens"] == {"has": 9, "takes": 77, "exact": True}
    dataset._caption(studio, {"id": "a.png", "text": "a red cat on a blue mat"})
    dataset.view(studio)
    stale = dataset._look(studio, asked)["look"]["tokens"]
    assert stale == {"has": 11, "takes": 77, "exact": False}, "another caption is not counted yet"


def test_what_is_done_to_a_selection_touches_nothing_else(studio: Studio, tmp_path: Path) -> None:
    name = own(studio, tmp_path, {"a": "one", "b": "two", "c": "", "d": ""})
    asked = {"do": "prefix", "prefix": "photo", "ids": ["a.png", "c.png"]}
    assert [row[0] for row in dataset._bulk(studio, asked)["preview"]["rows"]] == ["a.png", "c.png"]
    dataset._bulk(studio, {**asked, "apply": True})
    assert texts(studio, name) == {"a": "photo, one", "b": "two", "c": "photo", "d": ""}
    dataset._unbulk(studio, {})
    dataset._autocaption(studio, {"model": "basic", "purpose": "style", "ids": ["d.png"]})
    until(lambda: captioning.state(studio, name).get("state") == "finished")
    assert texts(studio, name) == {"a": "one", "b": "two", "c": "", "d": "thing 1"}
    assert "any more" in dataset._autocaption(studio, {"model": "basic", "purpose": "style", "ids": ["x"]})["note"]


def test_a_look_at_an_item_leaves_what_was_said(studio: Studio) -> None:
    """The details ask for more after every save; that answer must not wipe away "Saved."."""
    with gr.Blocks() as page:
        dataset.build(studio)
    handlers = {event: f.fn for f in page.fns.values() for _, event in f.targets}
    said = {"at": 7.0, "note": "Mask of airplane.png saved."}
    shown, _, _, kept = handlers["look"]({}, said, SimpleNamespace(_data={"id": "airplane.png"}))
    assert kept == shown["told"] == said and shown["look"]["id"] == "airplane.png"
    shown, _, _, kept = handlers["pick"]({}, said, SimpleNamespace(_data={"name": "demo"}))
    assert kept == shown["told"] and "note" not in kept, "another action does"
