"""Runs that train text encoders beside the denoiser: what is told, optimised and kept, and what comes out."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.engine.test_data_runs import events
from tests.engine.test_exports import CALLS, plain
from tests.engine.test_runs import losses, pictures
from tuner import adapters, assemble, checkpoint, families, optimizers, prepare, run
from tuner.__main__ import main
from tuner.data.cache import Cache
from tuner.errors import UserError
from tuner.home import cache_folder
from tuner.recipe import TrainSpec, parse
from tuner.run import resume

FILE = "export/diffusers/pytorch_lora_weights.safetensors"


@pytest.fixture
def recipe(tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """recipe(family, text settings or None, **changes of groups) → raw recipe on a few pictures of two shapes."""
    monkeypatch.setenv("TUNER_HOME", str(tmp_path / "home"))
    folder = pictures(tmp_path / "pictures", 4)

    def make(family: str = "sdxl", text: dict | None = None, **groups: Any) -> dict[str, Any]:
        raw: dict[str, Any] = {
            "family": family, "source": str(tiny(family)), "data": [{"path": str(folder)}],
            "options": {"max_tokens": 24} if family == "flux1" else {}, "media": {"resolutions": [64]},
            "adapter": {"rank": 4, "alpha": 8, "text": text},
            "train": {"steps": 8, "batch": 2, "lr": 1e-2, "precision": "fp32"},
        }  # fmt: skip
        for group, change in groups.items():
            raw[group] = {**raw.get(group, {}), **change} if isinstance(change, dict) else change
        return raw

    return make


def built(raw: dict[str, Any]) -> assemble.Job:
    return assemble.build(prepare.prepare(parse(raw)), lambda *_, **__: None)


def trained(raw: dict[str, Any], steps: int = 5) -> tuple[list[dict[str, float]], assemble.Job]:
    """What each step said, and the job after it."""
    job = built(raw)
    batches = job.loader.steps(0)
    said = [job.trainer.step(next(batches)) for _ in range(steps)]
    batches.close()
    return said, job


def text_state(job: assemble.Job) -> dict[str, torch.Tensor]:
    return {k: v for k, v in job.trainer.adapter.state_dict().items() if k.startswith("text_encoder")}


def ran(tmp_path: Path, raw: dict[str, Any], name: str = "run") -> Path:
    """A finished run."""
    (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(raw))
    assert main(["run", str(tmp_path / f"{name}.yaml"), "--out", str(tmp_path / name)]) == 0
    return tmp_path / name


# -- what is told ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["sdxl", "flux1"])
def test_fresh_encoders_give_the_loss_of_cached_text(recipe, family: str) -> None:
    """The first loss is that without text training (the adapter adds 0; the last digit depends on how captions were
    batched when they were cached); later ones are not. So does a caption dropped, of several, or with a trigger."""
    data = [{**recipe()["data"][0], "trigger": "sks", "tags": {"separator": " ", "shuffle": 3}}]
    groups = {"data": data, "train": {"caption_dropout": 0.4, "batch": 4}}
    without, _ = trained(recipe(family, None, **groups))
    with_text, _ = trained(recipe(family, {"lr": 1e-2}, **groups))
    assert with_text[0]["loss"] == pytest.approx(without[0]["loss"], rel=1e-5)
    assert with_text[4]["loss"] != pytest.approx(without[4]["loss"], rel=1e-4)
    # a rate of next to nothing is a run without
    still, _ = trained(recipe(family, {"lr": 1e-12}, **groups))
    for a, b in zip(still, without, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)


def test_the_very_caption_that_the_sampler_chose(recipe) -> None:
    """Batches say the captions whose cached text they would hold: dropped, chosen among several orders, triggered."""
    data = [{**recipe()["data"][0], "trigger": "sks", "tags": {"separator": " ", "shuffle": 4}}]
    job = built(recipe("flux1", {}, data=data, train={"caption_dropout": 0.3, "batch": 4, "workers": 0}))
    seen = set()
    for k in range(12):
        for batch in job.loader.step(k):
            assert len(batch.captions) == len(batch.keys)
            for i, caption in enumerate(batch.captions):
                cached = job.loader.cache.get(
                    job.loader.keys.text(job.loader.keys.told(job.loader.keys.plan[0], caption))
                )
                assert cached["pooled"].equal(batch.cond["pooled"][i])
                seen.add(caption)
    assert "" in seen and len(seen) > 8 and all(c == "" or c.startswith("sks") for c in seen)


def test_nothing_is_cached_of_what_is_told_anew(recipe, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for family, said, more in (("sdxl", "nothing of them is cached", 0), ("flux1", "only what text_encoder does", 1)):
        raw = recipe(family, {})
        (tmp_path / "r.yaml").write_text(yaml.safe_dump(raw))
        assert main(["check", str(tmp_path / "r.yaml")]) == 0
        notes = [p["text"] for p in json.loads(capsys.readouterr().out)["problems"] if p["where"] == "adapter.text"]
        assert len(notes) == 1 and said in notes[0]
        job = built(raw)
        told = job.loader.keys.told(job.loader.keys.plan[0], "a fractal number 0")
        assert len(Cache(cache_folder()).missing([job.loader.keys.text(told)])) == 1 - more


# -- what is optimised -------------------------------------------------------------------------------------------------


def test_both_rates_are_told_and_act(recipe) -> None:
    said, job = trained(recipe("sdxl", {"lr": 2e-3}, train={"schedule": "linear", "steps": 10}))
    assert [s["lr"] for s in said] == pytest.approx([1e-2 * (1 - i / 10) for i in range(5)])
    assert [s["lr_text"] for s in said] == pytest.approx([2e-3 * (1 - i / 10) for i in range(5)])
    assert {k.split(".")[0] for k in text_state(job)} == {"text_encoder", "text_encoder_2"}
    # the first step of AdamW moves every entry that has a gradient by the rate
    _, one = trained(recipe("sdxl", {"lr": 2e-3}, train={"steps": 100}), 1)
    moved = [v.abs().max().item() for k, v in text_state(one).items() if ".lora_B." in k]
    assert max(moved) == pytest.approx(2e-3, rel=1e-2) and min(moved) > 0


def test_only_the_chosen_parts_train(recipe) -> None:
    _, job = trained(recipe("sdxl", {"parts": ["text_encoder_2"], "rank": 2, "alpha": 6.0}), 1)
    state = text_state(job)
    assert {k.split(".")[0] for k in state} == {"text_encoder_2"}
    assert all(v.shape[0 if "lora_A" in k else 1] == 2 for k, v in state.items())


@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit", "prodigy", "adafactor", "lion", "schedulefree"])
def test_every_rule_trains_the_encoders_and_stands_still_after_until(recipe, optimizer: str) -> None:
    rates = {} if optimizer == "prodigy" else {"lr": 1e-3}
    train = {"optimizer": optimizer, "lr": 1.0 if optimizer == "prodigy" else 2e-3, "steps": 8}
    job = built(recipe("sdxl", {**rates, "until": 0.5}, train=train))
    batches = job.loader.steps(0)
    kept = []
    for _ in range(8):
        said = job.trainer.step(next(batches))
        with optimizers.evaluation(job.trainer.optimizer):
            kept.append(text_state(job))
    batches.close()
    assert said["lr_text"] == 0.0
    assert all(not kept[0][k].equal(kept[3][k]) for k in kept[0] if ".lora_B." in k)
    assert all(kept[3][k].equal(kept[7][k]) for k in kept[0])


def test_checkpointing_the_encoders_changes_nothing(recipe) -> None:
    plain_run, saved = (trained(recipe("sdxl", {}, memory={"checkpointing": on})) for on in (False, True))
    assert [s["loss"] for s in saved[0]] == pytest.approx([s["loss"] for s in plain_run[0]], rel=1e-6)


def test_masks_and_regularisation_train_too(recipe, tmp_path: Path) -> None:
    raw = recipe("sd1", {"lr": 1e-3}, extensions=[{"kind": "masked_loss"}])
    masks = tmp_path / "masks"
    masks.mkdir()
    for i in range(4):
        Image.linear_gradient("L").resize((64, 64)).save(masks / f"{i}.png")
    others = pictures(tmp_path / "others", 2)
    raw["data"] = [{**raw["data"][0], "mask": str(masks)}, {"path": str(others), "role": "regularisation"}]
    said, job = trained(raw, 8)
    assert all(np.isfinite(s["loss"]) for s in said)
    assert all(v.abs().max() > 0 for k, v in text_state(job).items())


# -- what is kept, what comes out --------------------------------------------------------------------------------------


@pytest.mark.long
def test_a_stopped_run_goes_on_bit_for_bit(recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With dropout in both adapters, EMA, dropped captions and a stop of the encoders in the second half."""
    groups = {
        "train": {"caption_dropout": 0.3, "schedule": "cosine", "warmup": 2}, "extensions": [{"kind": "ema"}],
        "save": {"every": 3, "keep": 9},
        "validate": {"prompts": ["a fractal"], "every": 4, "steps": 2, "size": [64, 64]},
    }  # fmt: skip
    raw = recipe("sdxl", {"lr": 5e-3, "until": 0.8}, **groups)
    raw["adapter"]["dropout"] = 0.2
    straight = ran(tmp_path, raw, "straight")

    step, cut = run.Run.save, tmp_path / "cut"

    def torn(self: run.Run) -> None:
        step(self)
        if self.job.trainer.index == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(run.Run, "save", torn)
    (tmp_path / "cut.yaml").write_text(yaml.safe_dump(raw))
    assert main(["run", str(tmp_path / "cut.yaml"), "--out", str(cut)]) != 0
    monkeypatch.undo()
    monkeypatch.setenv("TUNER_HOME", str(tmp_path / "home"))
    torch.manual_seed(random.randrange(1 << 30))
    assert [checkpoint.step_of(f) for f in checkpoint.complete(cut)] == [3]
    assert resume(cut) == 0
    assert losses(cut) == losses(straight)
    ours, theirs = load_file(cut / FILE), load_file(straight / FILE)
    assert ours.keys() == theirs.keys() and all(v.equal(theirs[k]) for k, v in ours.items())
    for picture in (straight / "samples").iterdir():
        assert (cut / "samples" / picture.name).read_bytes() == picture.read_bytes()
    assert [e["loss"] for e in events(cut, "validation")] == [e["loss"] for e in events(straight, "validation")]


@pytest.mark.long
@pytest.mark.parametrize("family", [*(f for f in CALLS if f != "sd1"), pytest.param("sd1", marks=pytest.mark.slow)])
def test_the_export_draws_the_validation_sample_elsewhere(family: str, recipe, tmp_path: Path) -> None:
    """A plain pipeline with the exported file: at most 1/255 apart, and not so without the encoders' part of it."""
    prompt = "a fractal of many colours"
    raw = recipe(
        family, {"lr": 3e-2, "rank": 2, "alpha": 5.0},
        validate={"prompts": [prompt], "negative": "red", "steps": 4, "guidance": 3.0, "seed": 7, "size": [64, 96]},
    )  # fmt: skip
    raw["adapter"]["alpha"] = 10.0
    out = ran(tmp_path, raw)
    ours = np.asarray(Image.open(out / "samples" / "step-000008-00.png")).astype(int)
    call = {"prompt": prompt, "num_inference_steps": 4, "width": 64, "height": 96, **CALLS[family]}
    call |= {} if family == "flux1" else {"negative_prompt": "red"}
    source = raw["source"]
    loaded = plain(tmp_path, "loaded", call=call, seed=7, source=source, lora=str((out / FILE).parent))
    assert np.abs(loaded - ours).max() <= 1

    part = "transformer" if family == "flux1" else "unet"
    with safe_open(out / FILE, "pt") as file:
        stated, keys = json.loads(file.metadata()["lora_adapter_metadata"]), list(file.keys())
    assert (stated["text_encoder.r"], stated["text_encoder.lora_alpha"]) == (2, 5)
    assert (stated[f"{part}.r"], stated[f"{part}.lora_alpha"]) == (4, 10)
    assert any(k.startswith("text_encoder.text_model.encoder.layers.0.") for k in keys)
    # the same picture by `tuner sample`, from run and checkpoint; another one at half of the strength, or without the
    # encoders' part of the file
    bare = {k: v for k, v in load_file(out / FILE).items() if not k.startswith("text_encoder")}
    save_file(bare, tmp_path / "bare.safetensors", {"lora_adapter_metadata": json.dumps(stated)})
    places = [out, out / "checkpoints/step-000008", None, out, out, tmp_path / "bare.safetensors"]
    strengths = [1.0, 1.0, 1.0, 0.0, 0.5, 1.0]
    contenders = [
        {"label": str(i), "adapter": a and str(a), "strength": s}
        for i, (a, s) in enumerate(zip(places, strengths, strict=True))
    ]
    request = {
        "family": family, "source": source, "options": raw["options"], "prompts": [prompt], "negative": "red",
        "seeds": [7], "steps": 4, "guidance": 3.0, "size": [64, 96], "contenders": contenders,
    }  # fmt: skip
    (tmp_path / "request.yaml").write_text(yaml.safe_dump(request))
    assert main(["sample", str(tmp_path / "request.yaml"), "--out", str(tmp_path / "grid")]) == 0
    drawn = [
        np.asarray(Image.open(tmp_path / "grid" / e["file"])).astype(int) for e in events(tmp_path / "grid", "sample")
    ]
    apart = [int(np.abs(picture - ours).max()) for picture in drawn]
    assert apart[0] <= 1 and apart[1] <= 1 and min(apart[2:]) > 2
    assert np.abs(drawn[3] - drawn[2]).max() <= 1  # strength 0 is the base


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "text", "groups", "sentence"),
    [
        (
            "sdxl",
            {"parts": ["text_encoder_3"]},
            {},
            "adapter.text.parts has text_encoder_3, but sdxl can train text_en",
        ),
        ("flux1", {"parts": ["text_encoder_2"]}, {}, "flux1 can train text_encoder; choose of those."),
        ("sdxl", {"until": 0}, {}, "adapter.text.until is 0, but"),
        ("sdxl", {"rank": 0}, {}, "adapter.text.rank is 0, but"),
        ("sdxl", {"parts": []}, {}, "adapter.text.parts is [], but"),
        ("sdxl", {"learning_rate": 1}, {}, "adapter.text.learning_rate is not a setting"),
        (
            "sdxl",
            {},
            {"memory": {"quantise_text": "int8"}},
            "memory.quantise_text is int8, but this run changes the text encoders of sdxl",
        ),
        ("sdxl", {"lr": 0.5}, {"train": {"optimizer": "prodigy", "lr": 1.0}}, "prodigy has one step size for all"),
        (
            "sdxl",
            {},
            {
                "adapter": {
                    "kind": "full",
                }
            },
            "adapter.text is a setting of another adapter.kind",
        ),
    ],
)
def test_what_cannot_be_is_refused(recipe, family: str, text: dict, groups: dict, sentence: str) -> None:
    with pytest.raises(UserError) as refused:
        built(recipe(family, text, **groups))
    assert sentence in str(refused.value)


def test_families_without_trainable_encoders_say_why() -> None:
    can = {name for name in families.names() if ("lora", "text encoders") not in adapters.refused(families.get(name)())}
    assert can == {"sd1", "sd2", "sdxl", "sd3", "flux1"}
    said = adapters.refused(families.get("z_image")())["lora", "text encoders"]
    assert said.startswith("adapter.text is set, but z_image trains without its text encoders (Qwen3")
    assert "no other tool reads such adapters" in said


def test_groups_without_further_ones_are_as_before() -> None:
    own, other = [torch.nn.Parameter(torch.ones(2))], [torch.nn.Parameter(torch.ones(3))]
    rule, schedule = optimizers.build(TrainSpec(steps=4, warmup=2, lr=1.0), own)
    assert len(rule.param_groups) == len(schedule.get_last_lr()) == 1 and "name" not in rule.param_groups[0]
    rule, schedule = optimizers.build(
        TrainSpec(steps=4, warmup=2, lr=1.0), own, [optimizers.Group("text", other, 0.1, 3)]
    )
    seen = []
    for _ in range(4):
        seen.append(schedule.get_last_lr())
        rule.step()
        schedule.step()
    assert seen == [[0.5, 0.05], [1.0, 0.1], [1.0, 0.1], [1.0, 0.0]]
