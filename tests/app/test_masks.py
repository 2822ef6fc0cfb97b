"""Masks and pairs of the Dataset screen without a browser: painting, automatic masks, folders, what the recipe gets."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from gradio_app import companions, masking
from gradio_app.holdings import Library
from gradio_app.studio import Studio
from gradio_app.tabs import dataset
from tests.app.helpers import until
from tests.app.test_dataset import own
from tuner import recipe


def drawn(studio: Studio, size: tuple[int, int] = (32, 32), white: tuple[int, int, int, int] = (0, 0, 16, 32)) -> str:
    """An upload of the page: a mask, white in a box."""
    image = Image.new("L", size, 0)
    image.paste(255, white)
    path = studio.workspace.uploads / "mask.png"
    image.save(path)
    return str(path)


def items(studio: Studio) -> dict[str, dict]:
    return {item["id"]: item for item in dataset.view(studio)["items"]}


def final(studio: Studio) -> dict:
    return studio.project.final(studio.project.draft())


def test_a_painted_mask_has_the_size_of_its_picture_and_trains(studio: Studio, tmp_path: Path) -> None:
    name = own(studio, tmp_path, {"a": "x", "b": "y"})
    assert not final(studio)["data"][0].get("mask")
    assert dataset._maskpaint(studio, {"id": "a.png", "path": drawn(studio)})["note"] == "Mask of a.png saved."
    place = Path(final(studio)["data"][0]["mask"])
    with Image.open(place / "a.png") as mask:
        assert (mask.size, mask.mode, mask.getpixel((10, 30)), mask.getpixel((50, 30))) == ((64, 64), "L", 255, 0)
    assert not place.is_relative_to(studio.workspace.datasets.folder(name)), "the data set's folder is not written to"
    assert {"kind": "masked_loss"} in final(studio)["extensions"]
    recipe.parse(final(studio), "")
    assert items(studio)["a.png"]["mask"]["by"] == "you" and items(studio)["b.png"]["mask"] is None
    assert "1 with masks" in dataset.plan_line(studio)
    assert "2 pictures" not in dataset._maskrest(studio, {})["note"]
    assert items(studio)["b.png"]["mask"]["by"] == "whole"
    dataset._maskuse(studio, {"use": False})
    assert not final(studio)["data"][0].get("mask") and not final(studio)["extensions"]
    dataset._maskuse(studio, {"use": True})
    dataset._maskdrop(studio, {})
    assert not final(studio)["data"][0].get("mask") and not list(place.iterdir())
    dataset._maskpaint(studio, {"id": "b.png", "path": drawn(studio)})
    newer = (place / "b.png").read_bytes()
    assert dataset.view(studio)["masks"]["deleted"] == 1, "b.png has another since"
    assert dataset._maskback(studio, {}) == {"note": "1 mask is back."}
    assert items(studio)["a.png"]["mask"]["by"] == "you" and (place / "b.png").read_bytes() == newer


def test_what_is_no_mask_is_refused(studio: Studio, tmp_path: Path) -> None:
    own(studio, tmp_path, {"a": "x"})
    black = drawn(studio, white=(0, 0, 0, 0))
    assert "Nothing of the picture would count" in dataset._maskpaint(studio, {"id": "a.png", "path": black})["note"]
    outside = tmp_path / "elsewhere.png"
    Image.new("L", (8, 8), 255).save(outside)
    assert "could not be read" in dataset._maskpaint(studio, {"id": "a.png", "path": str(outside)})["note"]
    assert outside.exists(), "what lies elsewhere is not touched"
    for hostile in ("../a.png", "/etc/passwd", "", "b.png"):
        with pytest.raises(FileNotFoundError):
            dataset._maskpaint(studio, {"id": hostile, "path": drawn(studio)})
    assert items(studio)["a.png"]["mask"] is None


def test_people_are_found_by_a_job_that_leaves_painted_masks_alone(studio: Studio, tmp_path: Path) -> None:
    name = own(studio, tmp_path, {"a": "", "b": "", "c": "", "d": ""})
    dataset._maskpaint(studio, {"id": "b.png", "path": drawn(studio)})
    assert dataset._automask(studio, {}) == {"note": ""}
    until(lambda: masking.state(studio, name).get("state") == "finished")
    assert masking.state(studio, name)["text"].endswith("No person was found in 1 (first: d.png); no mask was made "
                                                        "for these.")  # fmt: skip
    made = {key: (item["mask"] or {}).get("by") for key, item in items(studio).items()}
    assert made == {"a.png": "auto", "b.png": "you", "c.png": "auto", "d.png": None}
    dataset._maskdrop(studio, {"ids": ["a.png"]})
    assert dataset._automask(studio, {"ids": ["a.png", "nothing.png"]}) == {"note": ""}
    until(lambda: masking.state(studio, name).get("state") == "finished")
    assert items(studio)["a.png"]["mask"]["by"] == "auto"
    assert "any more" in dataset._automask(studio, {"ids": ["nothing.png"]})["note"]


def test_a_mask_job_stops(studio: Studio, tmp_path: Path) -> None:
    name = own(studio, tmp_path, {f"p{i:03}": "" for i in range(150)})
    dataset._automask(studio, {})
    until(lambda: masking.state(studio, name).get("done", 0) > 1)
    assert "already" in dataset._automask(studio, {})["note"]
    dataset._maskstop(studio, {})
    until(lambda: masking.state(studio, name)["state"] == "stopped")
    assert 1 < sum(bool(item["mask"]) for item in items(studio).values()) < 150


def test_the_loss_sees_the_mask_cut_and_averaged(studio: Studio, tmp_path: Path) -> None:
    own(studio, tmp_path, {"a": "x"})
    dataset._maskpaint(studio, {"id": "a.png", "path": drawn(studio, (64, 64), (0, 0, 36, 64))})
    draft = studio.project.draft()
    studio.checker.now(studio.project.yaml(draft), studio.project.stamp(draft))
    cells = dataset._look(studio, {"id": "a.png"})["look"]["cells"]
    # the fake check scales to 128 x 64 and cuts 32..96 of it; white reaches to 36 * 2 = 72 there, the middle of a cell
    with Image.open(cells["file"]) as seen:
        assert seen.size == (8, 8)
        row = [seen.getpixel((x, 3)) for x in range(8)]
    assert row == [255] * 5 + [0] * 3, row
    assert cells["share"] == round(100 * 5 / 8)
    assert dataset._look(studio, {"id": "../../etc/passwd"})["look"] == {"id": "../../etc/passwd"}


def test_a_mask_goes_and_comes_with_its_picture_and_its_data_set(studio: Studio, tmp_path: Path) -> None:
    name = own(studio, tmp_path, {"a": "x", "b": "y"})
    dataset._maskpaint(studio, {"id": "a.png", "path": drawn(studio)})
    dataset._remove(studio, {"ids": ["a.png"]})
    assert not companions.there(studio.workspace.datasets, name, "mask")
    dataset._undo(studio, {"ids": ["a.png"]})
    assert items(studio)["a.png"]["mask"]["by"] == "you"
    library = Library(studio.workspace)
    library.delete("dataset", name)
    assert not (studio.workspace.datasets.root / ".companions" / name).exists()
    again = own(studio, tmp_path, {"a": "x"})
    assert again == name and items(studio)["a.png"]["mask"] is None, "no stale masks for a new data set of that name"
    library.delete("dataset", again)
    for binned in library.binned():
        library.restore("dataset", binned["name"])
    assert {n: len(companions.there(studio.workspace.datasets, n, "mask")) for n in ("mine", "mine-2")} == {
        "mine": 1, "mine-2": 0,
    }  # fmt: skip


def test_pairs_are_taken_shown_and_handed_to_the_recipe(studio: Studio, tmp_path: Path) -> None:
    own(studio, tmp_path, {"a": "x", "b": "y"})
    other = tmp_path / "edges"
    other.mkdir()
    for stem in ("a", "stray"):
        Image.new("RGB", (64, 64), "white").save(other / f"{stem}.jpg")
    before = sorted(other.iterdir())
    note = dataset.take_folder(studio, str(other), "control")
    assert note == ("1 control picture added. The chosen recipe does not read them; one that trains a ControlNet does. "
                    "Left out: stray.jpg: there is no picture of that name.")  # fmt: skip
    assert sorted(other.iterdir()) == before
    shown = items(studio)
    assert shown["a.png"]["pair"]["control"] and shown["b.png"]["lacks"] == ["control picture"]
    assert dataset.view(studio)["counts"]["lone"] == 1
    assert not final(studio)["data"][0].get("control"), "a recipe that does not read them is not given them"
    studio.project.update({"adapter": {"kind": "controlnet"}})
    assert Path(final(studio)["data"][0]["control"]).joinpath("a.jpg").is_file()
    studio.project.update({"task": "edit"})
    assert dataset.view(studio)["items"][0]["lacks"] == ["reference picture"]
    dataset.take_folder(studio, str(other), "reference")
    assert Path(final(studio)["data"][0]["reference"]).is_dir()


def test_a_saved_recipe_takes_no_masks_to_another_data_set(studio: Studio, tmp_path: Path) -> None:
    own(studio, tmp_path, {"a": "x"})
    dataset._maskpaint(studio, {"id": "a.png", "path": drawn(studio)})
    saved = studio.project.save_as("with masks")
    assert "masked_loss" in saved.read_text()
    studio.project.choose(f"own:{saved.name}")
    other = studio.workspace.datasets.create("other")
    studio.project.select(other)
    assert final(studio)["data"][0]["mask"] is None
