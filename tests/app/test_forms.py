"""The form is the schema: every recipe goes in and comes out unchanged."""

from __future__ import annotations

from pathlib import Path

import pytest

from gradio_app import forms
from gradio_app.studio import Studio
from gradio_app.tabs import recipe as screen
from tuner import home, recipe
from tuner.recipe import Recipe

SHIPPED = sorted(p for p in home.package_recipes().glob("*/*.yaml") if not p.name.startswith("_"))
RICH = {
    "name": "rich",
    "family": "flux1",
    "source": "dev",
    "adapter": {"kind": "lora", "rank": 4, "alpha": 2.5, "targets": ["to_q"], "dropout": 0.1},
    "data": [{"path": "/a", "caption": "x: y"}, {"path": "/b", "role": "validation"}],
    "media": {"resolutions": [512, 768]},
    "train": {"lr": 1e-5, "timesteps": {"kind": "uniform", "low": 0.2}, "shift": 3.0, "optimizer_options": {"a": [1]}},
    "extensions": [{"kind": "ema", "decay": 0.99}],
    "validate": {"prompts": ["a, b", "c"], "size": [64, 32], "guidance": 0.0},
}


def through(values: dict) -> dict:
    """Into the form, out of the form."""
    found = forms.fields(values)
    shown = {f.key: forms.show(f, forms.get(values, f.key, f.default)) for f in found}
    kept = {key: values[key] for key in ("version", "family", "description")}
    if values.get("validate") is None:
        kept["validate"] = None
    return {**kept, **forms.collect(found, shown)}


@pytest.mark.parametrize("path", SHIPPED, ids=[f"{p.parent.name}/{p.stem}" for p in SHIPPED])
def test_every_shipped_recipe_goes_through_the_form(path: Path, tmp_path: Path) -> None:
    loaded = recipe.load(path, [f"data.0.path={tmp_path}"])
    values = loaded.model_dump(mode="json", by_alias=True)
    assert Recipe.model_validate(through(values)) == loaded


@pytest.mark.parametrize("change", [{}, {"adapter": {"kind": "full"}}, {"validate": None}])
def test_unusual_values_go_through_the_form(change: dict) -> None:
    loaded = Recipe.model_validate({**RICH, **change})
    values = loaded.model_dump(mode="json", by_alias=True)
    assert Recipe.model_validate(through(values)) == loaded


def test_every_setting_of_the_recipe_is_in_the_form_with_a_sentence() -> None:
    values = Recipe.model_validate(RICH).model_dump(mode="json", by_alias=True)
    found = {f.key: f for f in forms.fields(values)}
    schema = Recipe.model_json_schema(by_alias=True)
    groups = {
        "train": "TrainSpec",
        "save": "SaveSpec",
        "memory": "MemorySpec",
        "media": "MediaSpec",
        "validate": "ValidateSpec",
    }
    for group, model in groups.items():
        for name in schema["$defs"][model]["properties"]:
            key = f"{group}.{name}"
            assert key in found or f"{key}.kind" in found, key
    assert all(f.description for f in found.values())
    assert {f.level for f in found.values()} <= {"basic", "advanced", "expert"}


def test_a_choice_of_kind_changes_the_fields(studio: Studio) -> None:
    studio.project.draft()
    screen.change(studio, "train.timesteps.kind", "mode")
    keys = {f["key"] for g in screen.view(studio)["expert"] for f in g["fields"]}
    assert "train.timesteps.scale" in keys
    screen.change(studio, "train.timesteps.kind", "")
    assert studio.project.draft().raw["train"]["timesteps"] is None


def test_the_dial_scales_the_recipe(studio: Studio) -> None:
    own = studio.project.draft().raw["train"]["steps"]
    assert studio.project.turn_dial("fine").raw["train"]["steps"] == round(own * 2.5)
    assert studio.project.turn_dial("standard").raw["train"]["steps"] == own
    screen.change(studio, "train.steps", "33")
    assert screen.view(studio)["dial"] == ""


def test_trigger_word_and_pictures_reach_the_recipe(studio: Studio) -> None:
    screen.change(studio, "trigger", " sks ")
    final = studio.project.final(studio.project.draft())
    assert final["data"][0]["trigger"] == "sks"
    assert final["data"][0]["path"] == str(studio.workspace.demo_images)


def test_an_own_recipe_is_offered_after_saving(studio: Studio) -> None:
    studio.project.update({"train.steps": 12})
    studio.project.save_as("mine")
    card = next(c for c in studio.project.cards() if c.group == "own")
    assert card.steps == 12 and studio.project.choose(card.id).raw["train"]["steps"] == 12
