"""The Recipe screen: cards, settings, reasons, problems, differences, import."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from gradio_app import forms
from gradio_app.parts import density, shelf, story
from gradio_app.studio import Studio
from gradio_app.tabs import recipe as screen
from tuner.recipe import Recipe

LAUGHS = "a0: &a0 x\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10))
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
    assert story.length(train, 0, None).startswith("There is nothing to learn from yet")
    assert story.length(train, 20, None, "video").startswith("Each clip is seen 40 times")


def _why(studio: Studio, files: float = 24, **changes: Any) -> str:
    """The sentences on the demo recipe with some values changed."""
    own = studio.project.draft().raw
    raw = {k: {**v, **changes.get(k, {})} if isinstance(v, dict) else v for k, v in own.items()}
    raw["adapter"] = changes.get("adapter", raw["adapter"])
    return " ".join(story.why(raw, own, {"title": "FLUX.1", "resolution": 1024, "modality": "image"}, files))


def test_why_is_true_of_the_recipe_at_hand(studio: Studio) -> None:
    """No rank or scale where the kind has none; what the user chose is not put down to the recipe."""
    said = _why(studio)
    assert "Learning rate 0.001 with adamw, as the recipe says." in said and "Rank 16" in said
    assert "each item is seen 100 times." in said and "seldom" not in said
    for adapter, rank, scale in [
        ({"kind": "peft", "algorithm": "ia3", "rank": 16}, False, ""),
        ({"kind": "peft", "algorithm": "hra", "rank": 8}, True, ""),
        ({"kind": "lycoris", "algorithm": "ia3"}, False, ""),
        ({"kind": "lycoris", "algorithm": "full"}, False, ""),
        ({"kind": "lycoris", "algorithm": "lokr", "full_matrix": True}, False, ""),
        ({"kind": "lycoris", "algorithm": "loha", "alpha": 8.0}, True, "0.5 (8 / 16), alpha over rank"),
        ({"kind": "controlnet", "form": "branch", "rank": 64}, False, ""),
        ({"kind": "controlnet", "form": None, "rank": 64}, False, ""),
        ({"kind": "controlnet", "form": "lora", "rank": 64}, True, "1 (64 / 64)"),
        ({"kind": "lora", "rank": 4, "rslora": True}, True, "2 (4 / √4), alpha over the square root of the rank"),
        ({"kind": "full"}, False, ""),
    ]:
        text = _why(studio, adapter=adapter)
        assert ("Rank " in text) is rank and (scale in text if scale else "scale of" not in text), adapter
    assert "Blocks of 16" in _why(studio, adapter={"kind": "lycoris", "algorithm": "boft"})
    said = _why(studio, train={"lr": 0.5})
    assert "Learning rate 0.5 with adamw is your choice; the recipe says 0.001 with adamw." in said
    assert "left to prodigy" in _why(studio, train={"lr": None, "optimizer": "prodigy"})
    assert "very often" in _why(studio, files=1) and "seldom" in _why(studio, files=2400)
    assert "750 steps instead of the recipe's 300: longer" in _why(studio, train={"steps": 750})
    assert "square of 512 pixels, in its own shape: as you chose." in _why(studio, media={"resolutions": [512]})
    assert "1024 pixels, in its own shape: the size that FLUX.1 was made" in _why(studio, media={"resolutions": None})
    assert "cut to 64 × 96 pixels" in _why(studio, media={"fit": "exact", "size": [64, 96]})
    assert "shorter edge is brought to 64" in _why(studio, media={"fit": "edge"})
    assert "8 bits, or 4" in _why(studio, memory={"quantise": "auto"})
    assert "nf4" in _why(studio, memory={"quantise": "nf4"}) and "held" not in _why(studio)


def test_repeats_of_single_items_count_in_how_often_the_others_are_seen(studio: Studio, tmp_path: Path) -> None:
    studio.project.select(studio.workspace.datasets.create("mine"))
    folder = studio.workspace.datasets.folder("mine")
    for i in range(4):
        Image.new("RGB", (64, 64), (60 * i, 0, 0)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text("x")
    studio.workspace.datasets.set_repeats("mine", ["0.png"], 5)
    facts = dict(screen.view(studio)["facts"])
    assert facts["Items"] == "4 in mine" and facts["Repeated"] == "1 of them"
    assert facts["Each is seen"] == "300 times", "300 steps of 8 over 3 items once and one five times"
    assert facts["Seen in all"] == "2,400"


def test_pictures_without_a_caption_are_told_in_words_of_the_app(studio: Studio, tmp_path: Path) -> None:
    problem = {
        "level": "error",
        "where": "data.0.caption",
        "text": "7 pictures have no caption (first: /a/b.png); write a .txt ...",
    }
    [shown] = screen._helped(studio, studio.project.draft(), [problem])
    assert shown["text"].startswith("7 pictures without a caption. Write one for each, or set a trigger word")
    assert shown["at"] == "trigger" and shown["go"] == "dataset"
    assert shown["remedies"] == [{"text": "Leave such files out", "values": {"data.0.on_problem": "skip"}}]
    long = {
        "level": "error",
        "where": "x",
        "text": "The caption of a.txt has 90 tokens, ...",
        "remedy": {"data.0.on_problem": "skip"},
    }
    assert (
        screen._helped(studio, studio.project.draft(), [long])[0]["remedies"][0]["text"] == "Cut off what is too long"
    )


def test_every_setting_says_what_it_does(studio: Studio) -> None:
    """A sentence for each; the recipe's own value for each that has one line."""
    shown = screen.view(studio)
    fields = [f for part in ("advanced", "expert") for g in shown[part] for f in g["fields"]]
    assert len(fields) > 60
    for one in fields:
        assert len(one["description"]) > 8, one["key"]
        if one["kind"] in ("choice", "bool") or (one["kind"] == "number" and not one["empty"]):
            assert one["usual"], one["key"]
    without = {f["key"] for f in fields if not f["cost"]}
    assert len(without) < len(fields) / 2, sorted(without)


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


def test_hostile_yaml_in_a_box_of_the_form_stays_text(studio: Studio) -> None:
    """It becomes a problem with a sentence, and neither hangs nor ends the screen."""
    for text in (LAUGHS, "[" * 5000, "&a [*a]", "!!python/object/apply:os.system [x]"):
        screen.change(studio, "extensions", text)
        shown = screen.view(studio)
        assert shown["problems"][0]["level"] == "error" and "extensions" in shown["problems"][0]["text"]
        assert len(shown["problems"][0]["text"]) < 1000
        screen.put_back(studio, "extensions")
    assert screen.view(studio)["changes"] == []


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
        ("!!python/object/apply:os.system ['touch /tmp/evil']", "not valid YAML"),
        (LAUGHS, "repeats itself"),
        ("family: sd1\nsource: x\ndata: &d [*d]", "repeats itself"),
        ("family: sd1\nsource: x\ntrain: &t {steps: 3, clip: *t}", "repeats itself"),
        ("family: sd1\nsource: x\ntrain: {steps: " + "[" * 3000 + "]" * 3000 + "}", "nested too deeply"),
        ("family: sd1\nsource: x\ntrain: {lr: .nan}", "train.lr"),
        ("- 1\n- 2", "has none"),
        ("\0", "not valid YAML"),
        ("family: [sd1]\nsource: {a: b}", "family"),
        ("family: <script>alert(1)</script>\nsource: x\ndata: [7]\ntrain: no", "train"),
        ("", "has none"),
        ("1: 2\nfamily: sd1", "1"),
    ],
)
def test_an_import_says_what_is_wrong_and_changes_nothing(studio: Studio, text: str, said: str) -> None:
    before = studio.project.draft()
    draft, wrong = studio.project.bring(text)
    assert draft is None and any(said in line for line in wrong), wrong
    assert studio.project.draft() == before and not list((studio.workspace.root / "recipes").iterdir())
