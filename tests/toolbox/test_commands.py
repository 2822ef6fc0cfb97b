"""`python -m tuner lora ...` as a user meets it: files in all dialects, reports, refusals."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.toolbox import made
from tests.toolbox.test_models import adapter, draw, hashes
from tuner.__main__ import main
from tuner.errors import UserError
from tuner.formats.layers import Layer
from tuner.source import Source
from tuner.toolbox import model as models
from tuner.toolbox.write import Order
from tuner.toolbox.write import adapter as write

Run = Any


@pytest.fixture
def tool(capsys: pytest.CaptureFixture[str]) -> Run:
    """tool(*words) → (exit code, report or None, stderr) of `python -m tuner lora words`."""

    def call(*words: Any) -> tuple[int, Any, str]:
        capsys.readouterr()
        code = main(["lora", *map(str, words)])
        said = capsys.readouterr()
        return code, json.loads(said.out) if said.out else None, said.err

    return call


@pytest.fixture
def file(tiny, tmp_path: Path):
    """file(family, to="diffusers", layers=None) → (adapter file, its layers, model folder)."""

    def make(
        family: str, to: str = "diffusers", layers: list[Layer] | None = None, name: str = "a"
    ) -> tuple[Path, list[Layer], Path]:
        folder = tiny(family)
        model = models.choose(family, str(folder))
        if layers is None:
            layers = [
                one for one in adapter(model.source, model.family.denoiser) if family != "sdxl" or "attn" in one.module
            ]
        path = tmp_path / f"{name}.safetensors"
        write(layers, model, path, Order(to, "fp32"), {})
        return path, layers, folder

    return make


def deltas(path: Path, family: str, folder: Path) -> dict[tuple[str, str], torch.Tensor]:
    """What a file changes."""
    model = models.choose(family, str(folder))
    contents = model.read(path)
    assert contents.leftover == []
    return {(one.part, one.module): one.delta(model.base(one)) for one in contents.layers}


def same(a: dict[Any, torch.Tensor], b: dict[Any, torch.Tensor], tolerance: float = 1e-5) -> None:
    """Equal changes of the same modules."""
    assert a.keys() == b.keys()
    for key in a:
        made.close(a[key], b[key], tolerance)


@pytest.mark.parametrize("family", ["flux1", "sd1", "sdxl"])
def test_there_and_back_through_every_dialect_changes_nothing(tool, file, tmp_path: Path, family: str) -> None:
    path, layers, folder = file(family)
    before = {(one.part, one.module): one.delta() for one in layers}
    for to in ("comfyui", "kohya", "lycoris", "diffusers"):
        there, back = tmp_path / f"{to}.safetensors", tmp_path / f"{to}-back.safetensors"
        code, report, err = tool("convert", path, there, "--to", to, "--family", family, "--model", folder)
        assert (code, err) == (0, ""), err
        assert report["dialect"] == to
        assert report["made"]["error"] < 1e-6
        same(deltas(there, family, folder), before)
        assert tool("convert", there, back, "--to", "diffusers", "--family", family, "--model", folder)[0] == 0
        same(deltas(back, family, folder), before)


def test_precision_is_stated_and_its_error_told(tool, file, tmp_path: Path) -> None:
    path, _, folder = file("flux1")
    out = tmp_path / "half.safetensors"
    code, report, _ = tool("convert", path, out, "--to", "comfyui", "--precision", "bf16", "--model", folder)
    assert code == 0
    assert 1e-4 < report["made"]["error"] < 1e-2
    assert {v.dtype for k, v in load_file(out).items() if not k.endswith("alpha")} == {torch.bfloat16}


def test_metadata_is_shared_only_as_far_as_asked(tool, file, tmp_path: Path) -> None:
    path, _, folder = file("flux1")
    said = {
        "ss_dataset_dirs": '{"4_emma": {}}', "ss_tag_frequency": '{"4_emma": {"emma at home": 3}}',
        "ss_base_model_version": "flux1", "my_notes": "from /home/emma/pictures", "ss_network_dim": "99",
        "modelspec.title": "A style",
    }  # fmt: skip
    with safe_open(path, "pt") as opened:
        save_file(load_file(path), path, {**opened.metadata(), **said})
    code, report, _ = tool("inspect", path, "--family", "flux1", "--model", folder)
    assert code == 0
    assert set(report["metadata"]["private"]) == {"ss_dataset_dirs", "ss_tag_frequency", "my_notes"}
    assert any("folder names (ss_dataset_dirs)" in w for w in report["warnings"])
    kept = {}
    for mode in ("full", "share", "minimal"):
        out = tmp_path / f"{mode}.safetensors"
        words = ("convert", path, out, "--to", "comfyui", "--metadata", mode, "--family", "flux1", "--model", folder)
        assert tool(*words)[0] == 0
        with safe_open(out, "pt") as opened:
            kept[mode] = opened.metadata()
    assert kept["full"]["my_notes"] == said["my_notes"]
    assert not any("emma" in v.lower() for mode in ("share", "minimal") for v in kept[mode].values())
    assert all(kept[mode]["ss_base_model_version"] == "flux1" for mode in kept)
    assert all(kept[mode]["ss_network_dim"] == "2" for mode in kept)
    assert kept["share"]["modelspec.title"] == "A style"
    assert "modelspec.title" not in kept["minimal"]


def test_inspect_tells_what_is_in_a_file(tool, file, tmp_path: Path) -> None:
    path, layers, folder = file("flux1")
    tensors = load_file(path)
    zeros = [k for k in tensors if k.endswith("lora_B.weight")][:12]
    for key in zeros:
        tensors[key] = torch.zeros_like(tensors[key])
    with safe_open(path, "pt") as opened:
        save_file({**tensors, "something.else": torch.ones(2)}, path, opened.metadata())
    code, alone, _ = tool("inspect", path)
    assert code == 0
    _, with_model, _ = tool("inspect", path, "--family", "flux1", "--model", folder)
    count = len(layers)
    for report in (alone, with_model):
        assert report["dialect"] == "diffusers"
        assert report["kinds"] == {"lora": count}
        assert report["ranks"] == {"2": count}
        assert report["scales"] == {"2": count}
        assert report["dtypes"] == {"float32": 2 * count + 1}
        assert report["leftover"] == ["something.else"]
        assert f"12 of {count} layers are zero: they were never trained." in report["warnings"]
        zero = set(report["zero"])
        size = sum(o.delta().double().square().sum() for o in layers if f"{o.part}.{o.module}" not in zero) ** 0.5
        assert report["norm"] == pytest.approx(size.item(), rel=1e-5)
        assert report["spectrum"]["share"]["2"] == pytest.approx(1.0)
        assert 0.5 < report["spectrum"]["share"]["1"] < 1
        assert 1 < report["spectrum"]["effective_rank"]["mean"] <= 2
        assert "transformer.transformer_blocks.0" in [b["block"] for b in report["blocks"]]
        assert sum(b["layers"] for b in report["blocks"]) == count
    assert with_model["families"] == ["flux1"]
    assert "flux1" in alone["families"]


@pytest.mark.parametrize(
    ("family", "to", "sure"),
    [("sd1", "kohya", False), ("wan", "comfyui", True), ("qwen_image", "comfyui", True), ("z_image", "comfyui", False)],
)
def test_a_file_tells_its_family(tool, tmp_path: Path, family: str, to: str, sure: bool, checkpoints) -> None:
    folder = checkpoints(family)
    model = models.choose(family, str(folder))
    names = models.families.get(family).targets["default"]
    layers = [one for one in adapter(model.source, model.family.denoiser) if re.fullmatch(names, one.module)]
    path = tmp_path / "a.safetensors"
    write(layers, model, path, Order(to, "fp32"), {})
    _, report, _ = tool("inspect", path)
    assert family in report["families"]
    if sure:
        assert report["families"] == [family]
    back = tmp_path / "back.safetensors"
    assert tool("convert", path, back, "--to", "diffusers", "--family", family, "--model", folder)[0] == 0
    same(deltas(back, family, folder), {(one.part, one.module): one.delta() for one in layers})


def test_rslora_is_part_of_the_scale(tool, file) -> None:
    path, _, _ = file("flux1")
    with safe_open(path, "pt") as opened:
        stated = json.loads(opened.metadata()["lora_adapter_metadata"])
    stated |= {"transformer.use_rslora": True, "transformer.lora_alpha": 4, "transformer.alpha_pattern": {}}
    save_file(load_file(path), path, {"lora_adapter_metadata": json.dumps(stated)})
    _, report, _ = tool("inspect", path)
    assert report["scales"] == {f"{4 / 2**0.5:g}": report["layers"]}


def test_merge_and_resize_on_the_command_line(tool, file, tmp_path: Path) -> None:
    a, first, folder = file("flux1")
    half = [Layer(o.part, o.module, "lora", {k: v * 0.5 for k, v in o.tensors.items()}, 1.0) for o in first[::2]]
    b, second, _ = file("flux1", "comfyui", half, "b")
    out, model = tmp_path / "merged.safetensors", ("--family", "flux1", "--model", folder)
    code, report, err = tool("merge", f"{a}:0.7", f"{b}:-2", out, *model)
    assert code == 0, err
    assert report["adapters"] == [[str(a), 0.7], [str(b), -2.0]]
    wanted = {(o.part, o.module): 0.7 * o.delta() for o in first}
    for o in second:
        wanted[o.part, o.module] = wanted[o.part, o.module] - 2 * o.delta()
    same(deltas(out, "flux1", folder), wanted)
    assert report["made"]["error"] < 1e-6
    small = tmp_path / "small.safetensors"
    code, report, _ = tool("resize", out, small, "--rank", "1", *model)
    assert code == 0
    got = deltas(small, "flux1", folder)
    missing = sum((got[k] - wanted[k]).double().square().sum() for k in wanted) ** 0.5
    size = sum(w.double().square().sum() for w in wanted.values()) ** 0.5
    assert report["made"]["error"] == pytest.approx((missing / size).item(), rel=1e-4)
    assert report["made"]["ranks"] == [1, 1]
    svd = tmp_path / "svd.safetensors"
    assert tool("merge", f"{a}:0.7", f"{b}:-2", svd, "--method", "svd", "--energy", "0.9", *model)[0] == 0
    dense = tmp_path / "dense.safetensors"
    assert tool("merge", f"{a}:0.7", f"{b}:-2", dense, "--method", "dense", "--to", "comfyui", *model)[0] == 0
    same(deltas(dense, "flux1", folder), wanted)


def test_other_kinds_become_a_lora(tool, file, tmp_path: Path) -> None:
    name = "transformer_blocks.0.attn.to_q"
    layers = [made.lokr(name, (32, 32)), made.loha("transformer_blocks.1.attn.to_k", (32, 32), 2)]
    path, _, folder = file("flux1", "lycoris", layers)
    out = tmp_path / "plain.safetensors"
    code, report, err = tool(
        "convert", path, out, "--as-lora", 6, "--to", "diffusers", "--family", "flux1", "--model", folder
    )
    assert code == 0, err
    got, wanted = deltas(out, "flux1", folder), {(o.part, o.module): o.delta() for o in layers}
    missing = sum((got[k] - wanted[k]).double().square().sum() for k in wanted) ** 0.5
    size = sum(w.double().square().sum() for w in wanted.values()) ** 0.5
    assert report["made"]["error"] == pytest.approx((missing / size).item(), rel=1e-4)
    assert 0 < report["made"]["error"] < 1
    code, _, err = tool("convert", path, tmp_path / "no.safetensors", "--to", "diffusers", "--model", folder)
    assert code == 1
    assert "diffusers loads LoRA alone" in err


def test_extract_and_bake_on_the_command_line(tool, file, tiny, tmp_path: Path) -> None:
    path, layers, folder = file("sd1")
    before = hashes(folder)
    code, report, err = tool("bake", f"{path}:0.5", folder, tmp_path / "baked", "--family", "sd1")
    assert code == 0, err
    assert report["parts"]["unet"]["tensors"] == len(layers)
    out = tmp_path / "difference.safetensors"
    code, report, err = tool("extract", tmp_path / "baked", folder, out, "--rank", 2, "--family", "sd1")
    assert code == 0, err
    same(deltas(out, "sd1", folder), {(o.part, o.module): 0.5 * o.delta() for o in layers})
    assert report["made"]["error"] < 1e-5
    assert report["left"] == []
    assert hashes(folder) == before
    words = ("extract", tiny("sd1", seed=1), folder)
    how = ("--energy", 0.5, "--max-rank", 4, "--family", "sd1")
    code, report, err = tool(*words, tmp_path / "some.safetensors", *how)
    assert code == 0, err
    assert report["made"]["ranks"][1] <= 4
    assert "are left out" in report["warnings"][0]
    assert any(one["name"].endswith("norm1.weight") for one in report["left"])
    code, report, err = tool(*words, tmp_path / "all.safetensors", *how, "--all", "--to", "comfyui")
    assert code == 0, err
    assert report["left"] == []
    old, new = (Source(str(f), {}).load("unet", torch.float32).state_dict() for f in (folder, tiny("sd1", seed=1)))
    name = "down_blocks.0.attentions.0.transformer_blocks.0.norm1"
    got = deltas(tmp_path / "all.safetensors", "sd1", folder)["unet", name]
    made.close(got, new[f"{name}.weight"] - old[f"{name}.weight"])


@pytest.mark.parametrize("family", ["sd1", "flux1"])
def test_baked_is_what_the_official_loader_shows(tool, file, tmp_path: Path, family: str) -> None:
    path, _, folder = file(family)
    pipe = DiffusionPipeline.from_pretrained(folder)
    base = draw(pipe)
    pipe.load_lora_weights(str(path.parent), weight_name=path.name)
    wanted = draw(pipe)
    assert tool("bake", path, folder, tmp_path / "baked", "--family", family)[0] == 0
    got = draw(DiffusionPipeline.from_pretrained(tmp_path / "baked"))
    assert np.abs(wanted - base).max() > 2 / 255
    assert np.abs(got - wanted).max() <= 1 / 255


def test_reports_are_text_on_a_terminal(tool, file, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    path, _, folder = file("flux1")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert main(["lora", "inspect", str(path)]) == 0
    said = capsys.readouterr().out
    assert "Ranks    2" in said
    assert "Energy by rank  1: " in said
    words = ["--family", "flux1", "--model", str(folder), "--rank", "1"]
    assert main(["lora", "resize", str(path), str(tmp_path / "b.safetensors"), *words]) == 0
    assert "% of the change in all" in capsys.readouterr().out
    assert main(["lora", "bake", str(path), str(folder), str(tmp_path / "m"), "--family", "flux1"]) == 0
    assert "their order does not matter" in capsys.readouterr().out


PROJ = "lora_unet_double_blocks_0_img_attn_proj"
SPOILT: dict[str, Callable[[dict[str, torch.Tensor], str], dict[str, torch.Tensor]]] = {
    "misshapen": lambda t, first: {**t, first: torch.ones(3, 5)},
    "rank 0": lambda t, _: {k: v[:0] if "lora_A" in k else v[:, :0] for k, v in t.items()},
    "alpha 0": lambda *_: {
        f"{PROJ}.lora_down.weight": torch.ones(2, 32),
        f"{PROJ}.lora_up.weight": torch.ones(32, 2),
        f"{PROJ}.alpha": torch.tensor(0.0),
    },
    "broken": lambda t, first: {**t, first: t[first] * float("nan")},
    "nobody's": lambda t, _: {f"nowhere.{k}": v for k, v in t.items()},
}


def damaged(kind: str, path: Path) -> Path:
    """A bad copy of a good file."""
    bad, tensors = path.with_name(f"{kind}.safetensors"), load_file(path)
    if kind in SPOILT:
        save_file(SPOILT[kind](tensors, next(iter(tensors))), bad)
    elif kind == "truncated":
        bad.write_bytes(path.read_bytes()[:-50])
    elif kind == "foreign":
        bad.write_bytes(b"GIF89a" + bytes(100))
    elif kind.startswith("pickle"):
        bad = path.with_name("a.pt") if kind == "pickle name" else bad
        torch.save(tensors, bad)
    elif kind == "oversized":
        bad.write_bytes(path.read_bytes())
        with bad.open("r+b") as opened:
            opened.truncate(40_000_000_000)  # a hole, which takes no space
    return bad


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("truncated", "damaged or was not copied whole"),
        ("foreign", "no safetensors file by its content"),
        ("pickled", "can hold programs and are not opened"),
        ("pickle name", "can hold programs and are not opened"),
        ("oversized", "are not opened: it is a whole model"),
        ("misshapen", "do not agree|changes a weight of shape"),
        ("rank 0", "has rank 0"),
        ("alpha 0", "states alpha 0"),
        ("broken", "values that are no numbers"),
        ("nobody's", "does not fit FLUX.1"),
        ("missing", "does not exist; check the path"),
    ],
)
def test_bad_files_get_one_sentence_and_leave_nothing(tool, file, tmp_path: Path, kind: str, says: str) -> None:
    path, _, folder = file("flux1")
    bad = damaged(kind, path)
    before = sorted(p.name for p in tmp_path.iterdir())
    model = ("--family", "flux1", "--model", folder)
    for words in (
        ("convert", bad, tmp_path / "out.safetensors", "--to", "comfyui", *model),
        ("resize", bad, tmp_path / "out.safetensors", "--rank", 1, *model),
        ("merge", path, bad, tmp_path / "out.safetensors", *model),
        ("bake", bad, folder, tmp_path / "out", "--family", "flux1"),
        ("inspect", bad, *model),
    ):
        code, report, err = tool(*words)
        assert (code, report) == (1, None), words
        assert re.search(says, err), err
        assert err.count("\n") == 1
        assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_bad_words_get_one_sentence(tool, file, tiny, tmp_path: Path) -> None:
    path, _, folder = file("flux1")
    model, out = ("--family", "flux1", "--model", folder), tmp_path / "out.safetensors"
    other = tiny("sd1")
    for words, says in (
        (("resize", path, out, "--rank", 0, *model), "--rank is 0; it must be at least 1"),
        (("resize", path, out, *model), "either --rank or --energy"),
        (("resize", path, path, "--rank", 1, *model), "is there already and is not overwritten"),
        (("resize", path, tmp_path / "out.pt", "--rank", 1, *model), "must end in .safetensors"),
        (("resize", path, tmp_path / "no" / "out.safetensors", "--rank", 1, *model), "make it first"),
        (("convert", path, out, "--to", "diffusers", "--as-lora", 0, *model), "--rank is 0"),
        (("convert", path, out, "--to", "comfyui", "--family", "sd1", "--model", other), "does not fit Stable"),
        (("convert", path, out, "--to", "comfyui", "--family", "sd1", "--model", folder), "but family sd1 needs"),
        (("convert", path, out, "--to", "comfyui", "--family", "sd9"), "family is 'sd9', which is not one of"),
        (("merge", path, *model), "needs at least one adapter"),
        (("merge", f"{path}:nan", out, *model), "The strength of"),
        (("merge", path, out, "--rank", 2, *model), "belong to --method svd"),
        (("bake", path, folder), "needs adapters, the model and the new folder"),
        (("bake", path, other, tmp_path / "m", "--family", "sd1"), "does not fit Stable Diffusion"),
        (("bake", path, folder, folder, "--family", "flux1"), "lies in the model|already"),
        (("extract", folder, folder, out, "--rank", 2, "--family", "flux1"), "there is nothing to extract"),
        (("extract", folder, other, out, "--rank", 2, "--family", "sd1"), "both must be models of one architecture"),
    ):  # fmt: skip
        code, report, err = tool(*words)
        assert (code, report) == (1, None), (words, err)
        assert re.search(says, err), err
    assert not out.exists()


def test_a_file_that_would_not_be_read_back_is_not_written(
    tool, file, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _, folder = file("flux1")
    from tuner.formats import verify

    monkeypatch.setattr(verify, "check", lambda *_: ["3 keys were not understood, such as x"])
    code, report, err = tool(
        "convert", path, tmp_path / "b.safetensors", "--to", "comfyui", "--family", "flux1", "--model", folder
    )
    assert (code, report) == (2, None)
    assert "3 keys were not understood" in err
    assert sorted(p.name for p in tmp_path.iterdir()) == [path.name]
    shutil.rmtree(tmp_path)


def test_a_file_for_peft_comes_with_its_configuration_or_not_at_all(
    checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = models.choose("pixart_sigma", str(checkpoints("pixart_sigma")))
    layers, path = adapter(model.source, "transformer")[:2], tmp_path / "adapter_model.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr("tuner.formats.verify.check", lambda *_: ["it is wrong"])
        with pytest.raises(AssertionError, match="it is wrong"):
            write(layers, model, path, Order("diffusers", "fp32"), {})
    assert list(tmp_path.iterdir()) == []
    write(layers, model, path, Order("diffusers", "fp32"), {})
    assert {p.name for p in tmp_path.iterdir()} == {path.name, "adapter_config.json"}
    path.unlink()
    with pytest.raises(UserError, match=r"adapter_config\.json is there already"):
        write(layers, model, path, Order("diffusers", "fp32"), {})
    assert not path.exists()
