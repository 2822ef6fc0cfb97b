"""The Recipe screen: cards, settings, reasons, problems, differences, import."""

from __future__ import annotations

from pathlib import Path

import pytest

from gradio_app import forms
from gradio_app.parts import density, shelf, story
from gradio_app.studio import Studio
from gradio_app.tabs import recipe as screen
from tuner.recipe import Recipe

BASE = {"name": "r", "family": "sdxl", "source": "x", "data": [{"path": "/a"}]}
DISTRIBUTIONS = [
    {"kind": "logit_normal", "mean": -0.4, "std": 0.8},
    {"kind": "uniform", "low": 0.2, "high": 0.9},
    {"kind": "mode", "scale": 1.29},
    {"kind": "mode", "scale": -0.7},
    {"kind": "beta", "alpha": 2.0, "beta": 5.0},
    {"kind": "beta", "alpha": 0.6, "beta": 0.8},
]


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("spec", DISTRIBUTIONS, ids=lambda s: "-".join(str(v) for v in s.values()))
def test_the_plotted_density_is_what_the_engine_draws(spec: dict, shift: float) -> None:
    torch = pytest.importorskip("torch")
    timesteps = pytest.importorskip("tuner.timesteps")
    typed = Recipe.model_validate({**BASE, "train": {"timesteps": spec}}).train.timesteps
    count, bins = 200_000, 20
    u = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    drawn = timesteps.shifted(timesteps.quantile(typed, u), shift).clamp(0, 1 - 1e-9)
    histogram = torch.bincount((drawn * bins).long(), minlength=bins).double() * bins / count
    plotted = torch.tensor([y for _, y in density.curve(spec, shift, bins)], dtype=torch.float64)
    assert (plotted - histogram).abs().max() < 0.01


def _through(values: dict) -> dict:
    found = forms.fields(values)
    shown = {f.key: forms.show(f, forms.get(values, f.key, f.default)) for f in found}
    return {**{k: values[k] for k in ("version", "family", "description")}, **forms.collect(found, shown)}


@pytest.mark.parametrize(
    "change",
    [
        {"adapter": {"kind": "lora", "text": {"lr": 1e-5, "parts": ["text_encoder"]}, "ranks": {"a.*": 4}}},
        {"adapter": {"kind": "lycoris", "algorithm": "loha", "algorithms": {"*.ff.*": {"algorithm": "lokr"}}}},
        {"adapter": {"kind": "peft", "algorithm": "hra", "rank": 8}},
        {"adapter": {"kind": "controlnet", "form": "branch", "layers": [4, 10]}},
        {"assistants": [{"path": "/a"}, {"path": "/b", "sampling": 1.0}], "memory": {"quantise_skip": ["proj_out"]}},
        {"validate": {"sweep": [{"label": "x", "adapters": [{"path": "/c", "strength": 0.5}], "trained": 0.0}]}},
    ],
)
def test_every_kind_of_setting_goes_through_the_form(change: dict) -> None:
    loaded = Recipe.model_validate({"validate": {"controls": ["/p.png"]}, **BASE, **change})
    values = loaded.model_dump(mode="json", by_alias=True)
    assert Recipe.model_validate(_through(values)) == loaded
    assert all(f.description and f.label for f in forms.fields(values))


def test_lists_of_groups_know_what_a_new_member_needs() -> None:
    assert forms.fresh("assistants", 0) == {"path": ""}
    assert forms.fresh("validate.sweep", 1) == {"label": "sweep 2"}
    assert forms.fresh("validate.sweep.0.adapters", 0) == {"path": ""}


def test_a_family_s_own_settings_are_fields_when_its_schema_is_known(tmp_path: Path) -> None:
    schema = {"properties": {"max_tokens": {"type": "integer", "default": 512, "description": "Longest caption"}}}
    keys = {f.key for f in forms.fields({**BASE, "options": {"max_tokens": 9}}, options=schema)}
    assert "options.max_tokens" in keys and "options" not in keys
    strange = {f.key for f in forms.fields({**BASE, "options": {"other": 9}}, options=schema)}
    assert "options" in strange


def test_the_shelf_says_what_suits(studio: Studio) -> None:
    cards = {c.id: c for c in studio.project.cards()}
    song, video, first = (cards[f"{name}.yaml"] for name in ("ace_step/lora", "wan/generate", "wan/image_to_video"))
    assert shelf.goals(song, "audio") == ["sound"] and "motion" in shelf.goals(video, "video")
    assert shelf.goals(cards["flux1/kontext.yaml"], "image") == ["edit"]
    assert shelf.goals(cards["sd1/controlnet.yaml"], "image") == ["control"]
    assert "sounds" in shelf.unsuited(song, "audio", {"image"})
    assert shelf.unsuited(video, "video", {"image"}) == "" != shelf.unsuited(first, "video", {"image"})
    assert cards["flux1/lora.yaml"].gigabytes == 32 and cards["sd1/lora.yaml"].gigabytes == 6
    assert shelf.place(cards["flux1/lora.yaml"], "cuda", 24.0, "") == shelf.LARGER
    assert shelf.place(cards["sd1/lora.yaml"], "cuda", 24.0, "") == shelf.FITS
    assert shelf.place(cards["sd1/lora.yaml"], "cpu", None, "") == shelf.UNKNOWN
    assert all(shelf.goals(c, "video" if c.family in ("wan", "ltx") else "") for c in cards.values())


def test_sentences_say_the_numbers(studio: Studio) -> None:
    assert story.scale({"kind": "lora", "rank": 16, "alpha": 8.0, "rslora": True}) == "2 (8 / √16)"
    assert story.scale({"kind": "full"}) == ""
    train = {"steps": 400, "batch": 2, "accumulate": 1}
    assert story.length(train, 20, 2.0) == "Each picture is seen 40 times, about 13 min."
    assert "not known" in story.length(train, 20, None)
    draft = studio.project.draft()
    assert any("300 steps" in line for line in story.why(draft.raw, draft.raw, {}, 24))


def test_settings_are_changed_marked_and_put_back(studio: Studio) -> None:
    screen.change(studio, "assistants", "add")
    screen.change(studio, "assistants.0.path", "/turbo")
    screen.change(studio, "adapter.rank", "4")
    changed = {c["key"]: (c["was"], c["now"]) for c in screen.view(studio)["changes"]}
    assert changed["adapter.rank"] == ("16", "4") and changed["assistants"] == ("0 entries", "1 entry")
    screen.change(studio, "assistants", 0)
    screen.put_back(studio, "adapter.rank")
    assert screen.view(studio)["changes"] == []
    screen.change(studio, "adapter.kind", "lycoris")
    screen.change(studio, "adapter.algorithm", "loha")
    assert {f["key"] for g in screen.view(studio)["advanced"] for f in g["fields"]} >= {"adapter.conv_rank"}
    screen.put_back(studio, "adapter.kind")
    assert screen.view(studio)["changes"] == []


def test_a_mistake_offers_the_recipe_s_own_value(studio: Studio) -> None:
    screen.change(studio, "adapter.rank", "many")
    problem = screen.view(studio)["problems"][0]
    assert problem["at"] == "adapter.rank"
    assert problem["remedies"] == [{"text": "Back to the recipe's: rank 16", "values": {"adapter.rank": 16}}]
    studio.project.update(problem["remedies"][0]["values"])
    assert studio.project.mistakes(studio.project.draft()) == []


def test_a_kind_that_the_family_refuses_is_said_at_once(studio: Studio) -> None:
    table = {"kind": "controlnet", "refused": {"flux1": "no ControlNet here"}, "variants": []}
    studio.catalog._known = {"families": [], "extensions": [], "adapters": [table]}
    screen.change(studio, "adapter.kind", "controlnet")
    found = screen.view(studio)
    assert found["problems"][0]["text"] == "no ControlNet here"
    kind = next(f for g in found["advanced"] for f in g["fields"] if f["key"] == "adapter.kind")
    assert kind["reasons"] == {"controlnet": "no ControlNet here"}
    studio.project.update(found["problems"][0]["remedies"][0]["values"])
    assert studio.project.draft().raw["adapter"]["kind"] == "lora"


def test_the_plot_moves_with_its_settings(studio: Studio) -> None:
    screen.change(studio, "train.timesteps.kind", "beta")
    first = screen.view(studio)["density"]
    screen.change(studio, "train.shift", "3")
    second = screen.view(studio)["density"]
    assert first["points"] != second["points"] and "shift 3" in second["text"]
    screen.change(studio, "train.timesteps.alpha", "x")
    assert screen.view(studio)["density"] == {}


def test_what_was_exported_comes_back(studio: Studio) -> None:
    studio.project.update({"adapter.rank": 5, "train.steps": 77})
    text = screen.view(studio)["yaml"]
    studio.project.choose("sd1/lora.yaml")
    draft, wrong = studio.project.bring(text)
    assert wrong == [] and draft.recipe.startswith("own:")
    assert (draft.raw["adapter"]["rank"], draft.raw["train"]["steps"]) == (5, 77)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [", "not valid YAML in line"),
        ("just words", "has none"),
        ("extends: ../../etc/passwd", "extends another file"),
        ("family: sd1\nsource: x\ntrain: {stepps: 3}", "did you mean train.steps"),
        ("data: {a: 1}", "family is missing"),
        ("x: " + "a" * 300_000, "too large"),
    ],
)
def test_an_import_says_what_is_wrong_and_changes_nothing(studio: Studio, text: str, said: str) -> None:
    before = studio.project.draft()
    draft, wrong = studio.project.bring(text)
    assert draft is None and any(said in line for line in wrong), wrong
    assert studio.project.draft() == before and not list((studio.workspace.root / "recipes").iterdir())
