"""What is particular to Stable Cascade: two halves in two folders, and a picture encoder that diffusers lacks."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.families.case import Case, Rig, generator
from tests.families.cases import all_cases
from tests.families.test_runs import small
from tuner import families
from tuner import recipe as recipes
from tuner.__main__ import main
from tuner.errors import UserError
from tuner.families import stable_cascade
from tuner.objective import Cosine
from tuner.source import Source
from tuner.types import Media, Noised

Checkpoint = Callable[[Case], Path]


@pytest.fixture(scope="module")
def folder(checkpoint: Checkpoint) -> Path:
    return checkpoint(all_cases()["stable_cascade"])


def family_of(decoder: Path) -> Any:
    cls = families.get("stable_cascade")
    return cls(cls.Options(decoder=str(decoder)))


@pytest.mark.parametrize("scaler", [0.5, 1.0, 2.0])
def test_the_schedule_is_the_schedulers(scaler: float) -> None:
    """Noised latents are those of the official scheduler, for every way of bending t; the right answer is clean."""
    from diffusers import DDPMWuerstchenScheduler

    objective, scheduler = Cosine(scaler), DDPMWuerstchenScheduler(scaler=scaler)
    x, noise = (torch.randn(5, 4, 3, 3, generator=generator(i)) for i in range(2))
    t = torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0])
    noised = objective.noised(x, noise, t)
    torch.testing.assert_close(noised.x, scheduler.add_noise(x, noise, t), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(objective.clean(noised.target, noised), x, atol=1e-3, rtol=1e-3)


def test_snr_weights() -> None:
    x, t = torch.zeros(2, 1, 1, 1), torch.tensor([0.1, 0.9])
    snr = Cosine().alpha(t) / (1 - Cosine().alpha(t))
    weight = Cosine(snr_gamma=5.0).noised(x, x, t).weight
    assert weight is not None
    torch.testing.assert_close(weight, torch.minimum(snr, torch.tensor(5.0)) / snr)
    assert Cosine().noised(x, x, t).weight is None
    assert isinstance(Cosine().noised(x, x, t), Noised)


@pytest.mark.parametrize(
    ("per", "prior", "multiple"),
    [
        (42.67, {}, 128),
        (32, {}, 32),
        (10.67, {}, 32),
        (42.67, {"switch_level": [True]}, 256),
        (42.67, {"switch_level": None}, 256),
        (32, {"patch_size": 2}, 64),
    ],
)
def test_sizes_are_whole_cells(folder: Path, tmp_path: Path, per: float, prior: dict[str, Any], multiple: int) -> None:
    """At every multiple, the official pipeline's own rounding gives the same number of cells as ours."""
    (tmp_path / "prior").mkdir()
    index = json.loads((folder / "model_index.json").read_text())
    (tmp_path / "model_index.json").write_text(json.dumps({**index, "resolution_multiple": per}))
    config = json.loads((folder / "prior" / "config.json").read_text())
    (tmp_path / "prior" / "config.json").write_text(json.dumps({**config, **prior}))
    assert family_of(folder).geometry(Source(str(tmp_path), {})).multiple == multiple


def test_the_encoder_may_stand_in_either_folder(folder: Path, tmp_path: Path) -> None:
    """And what is cached depends on its bytes, wherever it is."""
    first, second = tmp_path / "first", tmp_path / "second"
    shutil.copytree(folder, first, ignore=shutil.ignore_patterns("second"))
    shutil.copytree(folder / "second", second, ignore=shutil.ignore_patterns("effnet*"))
    source, family = Source(str(first), {}), family_of(second)
    with pytest.raises(UserError, match=r"effnet_encoder\.safetensors"):
        family.load(source, ("effnet_encoder",), torch.float32)
    beside = family_of(folder / "second")
    pixels = Media(torch.rand(1, 3, 128, 128, generator=generator(0)))
    expected = beside.encode_media(beside.load(source, ("effnet_encoder",), torch.float32), pixels)
    before = beside.fingerprint(source)
    shutil.copy(folder / "second" / "effnet_encoder.safetensors", first)
    assert family.encode_media(family.load(source, ("effnet_encoder",), torch.bfloat16), pixels).equal(expected)
    assert family.fingerprint(source) == before
    (first / "effnet_encoder.safetensors").write_bytes(b"cut off")
    assert family.fingerprint(source) != before
    with pytest.raises(UserError, match="is not Stable Cascade's encoder"):
        family.load(source, ("effnet_encoder",), torch.float32)


def test_the_halves_are_told_apart(folder: Path) -> None:
    with pytest.raises(UserError, match="what is trained is stage C"):
        family_of(folder).accept(Source(str(folder / "second"), {}))


def test_a_missing_second_half_names_its_option(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape("options.decoder")):
        family_of(tmp_path / "nowhere").load(Source(str(folder), {}), ("decoder",), torch.float32)


def asked(source: str, prompts: list[str] | None) -> recipes.Recipe:
    drawn = {} if prompts is None else {"validate": {"prompts": prompts}}
    return recipes.Recipe(family="stable_cascade", source=source, data=[{"path": "own"}], **drawn)


def test_samples_of_a_local_model_want_a_second_half_that_is_named(folder: Path) -> None:
    """Said by `check`, before anything is fetched; the Hub's own model, and runs without samples, go on as they are."""
    unnamed, named = families.get("stable_cascade")(), family_of(folder / "second")
    said = unnamed.refuses(asked(str(folder), ["a red photo"]))
    assert said is not None
    assert "set options.decoder to their folder" in said
    assert named.refuses(asked(str(folder), ["a red photo"])) is None
    for source, prompts in (("stage-c", ["a red photo"]), (str(folder), []), (str(folder), None)):
        assert unnamed.refuses(asked(source, prompts)) is None


def test_check_says_that_the_second_half_is_not_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TUNER_HOME", str(tmp_path / "home"))
    file, settings = tmp_path / "r.yaml", small(all_cases()["stable_cascade"], tmp_path, folder)
    found = []
    for options in ({}, settings["options"]):
        file.write_text(yaml.safe_dump({**settings, "options": options}), encoding="utf-8")
        code = main(["check", str(file)])
        report = json.loads(capsys.readouterr().out)
        found.append((code, [p["text"] for p in report["problems"] if p["level"] == "error"]))
    assert found == [(1, [stable_cascade.MISSING]), (0, [])]


def test_another_schedule_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "x", ignore=shutil.ignore_patterns("second"))
    (tmp_path / "x" / "scheduler" / "scheduler_config.json").write_text('{"_class_name": "DDPMScheduler"}')
    with pytest.raises(UserError, match="DDPMWuerstchenScheduler"):
        family_of(folder).objective(Source(str(tmp_path / "x"), {}), None)


def test_both_halves_are_loaded_for_samples_only(folder: Path) -> None:
    """What a run loads when it draws; the picture encoder is not among it."""
    rig = Rig(all_cases()["stable_cascade"], folder)
    assert set(rig.family.sample_parts(rig.source)) == {"scheduler", "decoder", "vqgan", "decoder_scheduler"}
    only = rig.family.load(rig.source, ("prior",), torch.float32)
    assert set(only.components) == {"prior", "resolution_multiple"}
