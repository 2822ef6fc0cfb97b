"""Names outside of diffusers: complete, one to one, and what diffusers' own converters make of them.

The networks have their published sizes, without weights; what is converted are thin random tensors: the true number of
rows, few columns. So the numbers of rows that converters know by heart are met.
"""

from __future__ import annotations

import functools
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders import lora_conversion_utils as lora_utils
from diffusers.loaders import single_file_model
from diffusers.loaders import single_file_utils as checkpoints
from diffusers.utils import convert_unet_state_dict_to_peft
from torch import Tensor, nn

from tests.families.case import Case, show
from tests.families.cases import all_cases
from tuner import families
from tuner.native import Names, Native, renamed

WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
RANK = 2


@dataclass
class Network:
    """One network of published size: its layers [rows, columns] and whether they have a bias."""

    family: str
    kind: type[nn.Module]
    config: dict[str, Any]
    layers: dict[str, tuple[int, int, bool]]

    @functools.cached_property
    def names(self) -> Names:
        return families.get(self.family)().named(self.config)

    @functools.cached_property
    def reached(self) -> list[str]:
        """Every layer that any adapter preset reaches."""
        presets = families.get(self.family).targets.values()
        return [m for m in self.layers if any(re.fullmatch(p, m) for p in presets)]


def network(family: str, module: nn.Module) -> Network:
    layers = {n: m for n, m in module.named_modules() if isinstance(m, WEIGHTED)}
    sizes = {n: (m.weight.shape[0], m.weight.shape[1], m.bias is not None) for n, m in layers.items()}
    return Network(family, type(module), dict(module.config), sizes)


def distinct() -> dict[str, Case]:
    """One case for every network of published size."""
    found = {}
    for name, case in all_cases().items():
        if hasattr(case, "millions"):
            found.setdefault((case.family, type(case).real), name)
    return {name: all_cases()[name] for name in found.values()}


@functools.cache
def published(name: str) -> Network:
    with torch.device("meta"):
        return network(all_cases()[name].family, all_cases()[name].real())


NETWORKS = list(distinct())

# -- the table itself ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("way", ["original", "flattened"])
def test_every_layer_has_a_place_of_its_own(name: str, way: str) -> None:
    """There and back is the identity, rows of fused layers add up, flattened names stay distinct."""
    net = published(name)
    names = net.names
    if way == "flattened" and not names.kohya:
        return
    if way == "flattened" and names.kohya == "others":
        names = replace(names, native=names.others, others=())
    assert set(net.reached) <= set(net.layers)
    places: dict[str, dict[int, str]] = defaultdict(dict)
    for module in net.layers:
        native, place, row = (net.names.original if way == "original" else net.names.flattened)(module)
        assert place not in places[native], (module, places[native])
        assert row in names.native or row == Native(module, (module,))
        places[native][place] = module
    if way == "original" or names.kohya != "diffusers":
        for native, fused in places.items():
            check_row(net, names, native, [fused[i] for i in sorted(fused)])
    assert len({native.replace(".", "_") for native in places}) == len(places)


def check_row(net: Network, names: Names, native: str, fused: list[str]) -> None:
    modules, row = names.modules(native)
    assert list(modules) == fused
    columns = {net.layers[m][1] for m in fused}
    assert len(columns) == 1
    rows, width = [net.layers[m][0] for m in fused], columns.pop()
    assert list(row.shares(sum(rows), width)) == rows
    covered = sorted(i for places in row.places(sum(rows), width) for s in places for i in range(s.start, s.stop))
    assert covered == list(range(sum(rows)))


RENAMED = {
    "auraflow", "chroma", "cosmos2", "flux1", "hunyuan_video15", "longcat_image", "lumina2", "omnigen", "pixart_sigma",
    "sana", "sd1", "sd2", "sd3", "sdxl", "wan",
}  # fmt: skip
SAME = r"encoder_hid_proj|(all_)?[xt]_embedder.*|cap_embedder.*|patch_embedding|distilled_guidance_layer\.(in|out)_proj"


@pytest.mark.parametrize("name", [n for n in NETWORKS if all_cases()[n].family in RENAMED])
def test_no_layer_is_forgotten(name: str) -> None:
    """Where all blocks have other names, a layer without a row would go into files under a name that nobody reads."""
    net = published(name)
    rows = {id(row) for row in net.names.native}
    assert [m for m in net.layers if id(net.names.original(m)[2]) not in rows and not re.fullmatch(SAME, m)] == []


@pytest.mark.parametrize("name", NETWORKS)
def test_names_in_files_mean_one_thing(name: str) -> None:
    """Dotted or flattened, whoever wrote it: no name stands for two layers."""
    net = published(name)
    known = net.names.known(net.layers)
    meaning: dict[str, tuple[str, ...]] = {}
    for dotted, (modules, _) in known.items():
        assert meaning.setdefault(dotted.replace(".", "_"), modules) == modules
        assert net.names.modules(dotted)[0] == modules
    for module in net.layers:
        assert module in known
        assert net.names.original(module)[0] in known
        assert not net.names.kohya or net.names.flattened(module)[0] in known


def test_labels_tell_families_apart() -> None:
    """Text encoders are those that the family has; what stands in the metadata names one family."""
    labels: dict[str, set[str]] = defaultdict(set)
    for name in families.names():
        family = families.get(name)()
        names = family.names
        assert set(names.text) <= set(family.text_parts)
        assert set(names.text_aliases.values()) <= set(names.text)
        prefixes = [p for both in names.text.values() for p in both] + list(names.text_aliases)
        assert len(set(prefixes)) == len(prefixes)
        assert names.architecture
        assert names.version
        for label in {x.lower() for x in (names.architecture, *names.aliases)}:
            labels[label].add(name)
    assert [both for both in labels.values() if len(both) > 1] == [{"kandinsky5_image", "kandinsky5_video"}]


def test_lookups() -> None:
    table = (
        *renamed("a.{}.", "b.{}.", {"qkv": ("q", "k"), "o.0": "out.0", "same": ""}),
        Native("c.{}.{}.x", ("d.{}.{}.y",)),
        Native("last", ("end",), swapped=True),
    )
    names = Names(native=table, others=(Native("old.{}.q", ("b.{}.q",)),), kohya="others")
    assert names.original("b.12.k") == ("a.12.qkv", 1, table[0])
    assert names.original("b.3.out.0") == ("a.3.o.0", 0, table[1])
    assert names.original("b.3.same")[0] == "a.3.same"
    assert names.original("d.1.20.y")[0] == "c.1.20.x"
    assert names.original("b.3.out.1") == ("b.3.out.1", 0, Native("b.3.out.1", ("b.3.out.1",)))
    assert names.original("xb.3.q")[0] == "xb.3.q"
    assert names.original("b.3.q.z")[0] == "b.3.q.z"
    assert names.modules("a.7.qkv") == (("b.7.q", "b.7.k"), table[0])
    assert names.modules("old.7.q")[0] == ("b.7.q",)
    assert names.modules("a.x.qkv")[0] == ("a.x.qkv",)
    assert names.flattened("b.7.q")[0] == "old.7.q"
    assert names.flattened("b.7.k")[0] == "b.7.k"
    assert replace(names, kohya="native").flattened("b.7.k")[0] == "a.7.qkv"
    assert replace(names, kohya="diffusers").flattened("b.7.k") == ("b.7.k", 0, Native("b.7.k", ("b.7.k",)))
    with pytest.raises(ValueError, match="do not know"):
        replace(names, kohya="").flattened("b.7.k")


def test_rows() -> None:
    three = ("q", "k", "v")
    assert Native("n", three).shares(12, 7) == (4, 4, 4)
    assert Native("n", three, "square first").shares(10, 6) == (6, 2, 2)
    assert Native("n", (*three, "mlp"), "square first three").shares(21, 3) == (3, 3, 3, 12)
    assert Native("n", three).places(6, 9) == ((slice(0, 2),), (slice(2, 4),), (slice(4, 6),))
    swapped = Native("n", ("m",), swapped=True)
    assert swapped.places(8, 4) == ((slice(4, 8), slice(0, 4)),)
    assert swapped.places(24, 4) == ((slice(0, 24),),)
    for bad in (Native("n", three).shares, Native("n", three, "square first").shares):
        with pytest.raises(ValueError, match="do not divide"):
            bad(7, 7)
    with pytest.raises(ValueError, match="do not divide"):
        Native("n", (*three, "mlp"), "square first three").shares(9, 3)


# -- diffusers' own converters: weights ------------------------------------------------------------------------------


def thin(net: Network, modules: Iterator[str] | list[str], columns: int = RANK) -> dict[str, Tensor]:
    """Random weights [rows, columns] and biases [rows] of diffusers' layers."""
    made = torch.Generator().manual_seed(0)
    tensors = {}
    for m in modules:
        rows, _, bias = net.layers[m]
        tensors[f"{m}.weight"] = torch.randn(rows, columns, generator=made)
        if bias:
            tensors[f"{m}.bias"] = torch.randn(rows, generator=made)
    return tensors


def originals(net: Network, modules: list[str], find: Callable[[str], Any]) -> dict[str, list[str]]:
    """Original's module → diffusers' modules within it, in order. All of them must be asked for."""
    found: dict[str, dict[int, str]] = defaultdict(dict)
    for m in modules:
        native, place, row = find(m)
        found[native][place] = m
        assert len(row.modules) == 1 or all(find(m)[2] is row for m in found[native].values())
    return {native: [fused[i] for i in range(len(fused))] for native, fused in found.items()}


def fuse(net: Network, fused: list[str], tensors: list[Tensor], row: Native) -> Tensor:
    """The original's rows from those of its modules, as the table says."""
    rows, columns = sum(net.layers[m][0] for m in fused), net.layers[fused[0]][1]
    whole = torch.empty(rows, *tensors[0].shape[1:])
    for tensor, places in zip(tensors, row.places(rows, columns), strict=True):
        for part, s in zip(tensor.split([s.stop - s.start for s in places]), places, strict=True):
            whole[s] = part
    return whole


def weights(net: Network, ours: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same weights in the original's layout."""
    made = {}
    for native, fused in originals(net, list(net.layers), net.names.original).items():
        row = net.names.original(fused[0])[2]
        for kind in ("weight", "bias"):
            if f"{fused[0]}.{kind}" in ours:
                made[f"{native}.{kind}"] = fuse(net, fused, [ours[f"{m}.{kind}"] for m in fused], row)
    return made


class Whole(dict):
    """A checkpoint of layers alone: what a converter asks for beside them (norms, tables) is invented."""

    def pop(self, key: str, *default: Any) -> Any:
        return super().pop(key) if key in self else torch.zeros(RANK)


def behind(prefix: str, convert: Callable[..., Any]) -> Callable[..., Any]:
    """A converter that wants a prefix and the network's configuration."""
    return lambda state, config: convert({prefix + k: v for k, v in state.items()}, config=config)


def packed(state: dict[str, Tensor], config: Any) -> Any:
    """Stable Cascade's file before ComfyUI splits it: q, k and v in one tensor."""
    packed = {}
    for key in state:
        if ".attn.to_q." in key:
            parts = [state[key.replace("to_q", m)] for m in ("to_q", "to_k", "to_v")]
            packed[re.sub(r"to_q\.", "in_proj_", key)] = torch.cat(parts)
        elif not re.search(r"\.attn\.to_[kv]\.", key):
            packed[key] = state[key]
    return checkpoints.convert_stable_cascade_unet_single_file_to_diffusers(packed)


LOADABLE: dict[str, Any] = single_file_model.SINGLE_FILE_LOADABLE_CLASSES
WEIGHTS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(
        ("sd1", "sd2", "sdxl", "kolors"), behind("model.diffusion_model.", checkpoints.convert_ldm_unet_checkpoint)
    ),
    "auraflow": checkpoints.convert_auraflow_transformer_checkpoint_to_diffusers,
    "chroma": checkpoints.convert_chroma_transformer_checkpoint_to_diffusers,
    "cosmos2": behind("net.", checkpoints.convert_cosmos_transformer_checkpoint_to_diffusers),
    "flux1": checkpoints.convert_flux_transformer_checkpoint_to_diffusers,
    "flux2": checkpoints.convert_flux2_transformer_checkpoint_to_diffusers,
    "hidream": checkpoints.convert_hidream_transformer_to_diffusers,
    "ltx": checkpoints.convert_ltx_transformer_checkpoint_to_diffusers,
    "ltx2": checkpoints.convert_ltx2_transformer_to_diffusers,
    "lumina2": checkpoints.convert_lumina2_to_diffusers,
    "qwen_image": single_file_model.SINGLE_FILE_LOADABLE_CLASSES["QwenImageTransformer2DModel"][
        "checkpoint_mapping_fn"
    ],
    "sana": checkpoints.convert_sana_transformer_to_diffusers,
    "sd3": checkpoints.convert_sd3_transformer_checkpoint_to_diffusers,
    "stable_cascade": packed,
    "wan": checkpoints.convert_wan_transformer_to_diffusers,
    "z_image": checkpoints.convert_z_image_transformer_checkpoint_to_diffusers,
}
# Layers that the converter of checkpoints does not know; adapters' converters do, below.
UNKNOWN = {
    "ltx2": r"(audio_)?prompt_adaln\..*",  # of LTX-2.3
    "kolors": r"encoder_hid_proj",  # is none of the original UNet
}


def equal(state: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest difference; every expected tensor must be there."""
    missing = [k for k in expected if k not in state]
    assert not missing, missing[:5]
    assert [k for k, v in expected.items() if state[k].shape != v.shape] == []
    return max((state[k] - v).abs().max().item() for k, v in expected.items())


@pytest.mark.parametrize("name", [n for n in NETWORKS if all_cases()[n].family in WEIGHTS])
def test_diffusers_splits_checkpoints_as_we_do(name: str) -> None:
    net = published(name)
    ours = thin(net, list(net.layers))
    made = WEIGHTS[net.family](Whole(weights(net, ours)), config=net.config)
    unknown = UNKNOWN.get(net.family, r"$^")
    wrong = equal(made, {k: v for k, v in ours.items() if not re.fullmatch(unknown, k.rsplit(".", 1)[0])})
    show(f"{name}: checkpoint of {len(ours)} tensors, largest error {wrong:.1e}")
    assert wrong == 0


LAYOUTS = {
    "one layer, two blocks": {
        "layers_per_block": 1,
        "block_out_channels": (32, 64),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    },
    "three layers, deep": {
        "layers_per_block": 3,
        "block_out_channels": (32, 64, 64),
        "transformer_layers_per_block": (1, 2, 4),
        "down_block_types": ("CrossAttnDownBlock2D",) * 3,
        "up_block_types": ("CrossAttnUpBlock2D",) * 3,
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_unets_of_any_layout(layout: str) -> None:
    with torch.device("meta"):
        net = network("sd1", UNet2DConditionModel(cross_attention_dim=32, **LAYOUTS[layout]))
    ours = thin(net, list(net.layers))
    assert equal(WEIGHTS["sd1"](weights(net, ours), config=net.config), ours) == 0


@pytest.mark.parametrize(("name", "native"), [("sd1", "output_blocks.2.1.conv"), ("sdxl", "output_blocks.2.2.conv")])
def test_upsamplers_stand_behind_what_is_there(name: str, native: str) -> None:
    """Of the published files; the converter takes either place."""
    names = published(name).names
    assert names.original("up_blocks.0.upsamplers.0.conv")[0] == native
    assert names.original("up_blocks.1.upsamplers.0.conv")[0] == "output_blocks.5.2.conv"
    assert names.original("down_blocks.0.downsamplers.0.conv")[0] == "input_blocks.3.0.op"


# -- diffusers' own converters: adapters -----------------------------------------------------------------------------


@dataclass
class Reader:
    """One of diffusers' converters of adapters, and how its file is written.

    layout: comfy (prefix and the original's names), kohya (flattened). suffixes: of down and up. but: layers that it
    does not know, by the reason.
    """

    convert: Callable[..., Any]
    layout: str = "comfy"
    suffixes: tuple[str, str] = ("lora_A", "lora_B")
    but: str = r"$^"


KOHYA = ("lora_down", "lora_up")
# it takes input_blocks_10 for input_blocks_1, and looks for every upsampler behind an attention, which the first block
# upwards has not; the converter of checkpoints, above, does neither
TENTH = r"down_blocks\.3\..*|up_blocks\.3\.(resnets|attentions)\.[12]\..*|up_blocks\.0\.upsamplers\..*"


def unet(state: dict[str, Tensor], config: dict[str, Any]) -> dict[str, Tensor]:
    """What the loaders of SD and SDXL do, one after the other."""

    class Config:
        layers_per_block = config["layers_per_block"]

    mapped = lora_utils._maybe_map_sgm_blocks_to_diffusers(state, Config)
    return convert_unet_state_dict_to_peft(lora_utils._convert_non_diffusers_lora_to_diffusers(mapped)[0])


ADAPTERS: dict[str, list[Reader]] = {
    "sd1": [Reader(unet, "kohya", KOHYA), Reader(unet, "kohya native", KOHYA, TENTH)],
    "sd2": [Reader(unet, "kohya", KOHYA), Reader(unet, "kohya native", KOHYA, TENTH)],
    "sdxl": [Reader(unet, "kohya", KOHYA)],
    "kolors": [Reader(unet, "kohya", KOHYA), Reader(unet, "kohya native", KOHYA)],
    "flux1": [Reader(lora_utils._convert_kohya_flux_lora_to_diffusers, layout, KOHYA) for layout in ("kohya", "comfy")],
    "flux2": [
        Reader(lora_utils._convert_non_diffusers_flux2_lora_to_diffusers),
        Reader(lora_utils._convert_kohya_flux2_lora_to_diffusers, "kohya", KOHYA, r".*_modulation.*"),
    ],
    "lumina2": [Reader(lora_utils._convert_non_diffusers_lumina2_lora_to_diffusers)],
    "wan": [
        Reader(lora_utils._convert_non_diffusers_wan_lora_to_diffusers),
        # an alpha of a layer outside of the blocks is an error there
        Reader(lora_utils._convert_non_diffusers_wan_lora_to_diffusers, "comfy", KOHYA, r"condition_embedder\..*"),
        Reader(lora_utils._convert_musubi_wan_lora_to_diffusers, "kohya", KOHYA, r"condition_embedder\..*"),
    ],
    "hidream": [Reader(lora_utils._convert_non_diffusers_hidream_lora_to_diffusers)],
    # it strips the prefix alone, so that layers with another name than diffusers' are not found
    "ltx": [Reader(lora_utils._convert_non_diffusers_ltxv_lora_to_diffusers, but=r"time_embed\..*")],
    "ltx2": [Reader(lora_utils._convert_non_diffusers_ltx2_lora_to_diffusers)],
    "qwen_image": [
        Reader(lora_utils._convert_non_diffusers_qwen_lora_to_diffusers),
        Reader(lora_utils._convert_non_diffusers_qwen_lora_to_diffusers, "kohya", KOHYA),
    ],
    # it does not split a fused q, k and v that is not flattened: such an adapter would not load
    "z_image": [
        Reader(lora_utils._convert_non_diffusers_z_image_lora_to_diffusers, "kohya", KOHYA),
        Reader(lora_utils._convert_non_diffusers_z_image_lora_to_diffusers, "kohya native", KOHYA),
    ],
    "ace_step": [Reader(lora_utils._convert_non_diffusers_ace_step_lora_to_diffusers)],
}


def adapter(net: Network, reader: Reader, modules: list[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(a file for this converter, diffusers' tensors in it without a prefix)."""
    down, up = reader.suffixes
    names = replace(net.names, kohya="native") if reader.layout == "kohya native" else net.names
    find = names.original if reader.layout == "comfy" else names.flattened
    ups, file, ours = thin(net, modules), {}, {}
    for number, (native, fused) in enumerate(originals(net, modules, find).items()):
        shared = torch.randn(RANK, 3, generator=torch.Generator().manual_seed(number))
        key = names.prefix + native if reader.layout == "comfy" else "lora_unet_" + native.replace(".", "_")
        tensors = [ups[f"{m}.weight"] for m in fused]
        file |= {f"{key}.{down}.weight": shared, f"{key}.{up}.weight": fuse(net, fused, tensors, find(fused[0])[2])}
        if reader.suffixes == KOHYA:
            file[f"{key}.alpha"] = torch.tensor(float(RANK))
        for m, tensor in zip(fused, tensors, strict=True):
            ours |= {f"{m}.lora_A.weight": shared, f"{m}.lora_B.weight": tensor}
    return file, ours


@pytest.mark.parametrize("name", [n for n in NETWORKS if all_cases()[n].family in ADAPTERS])
def test_diffusers_splits_adapters_as_we_do(name: str) -> None:
    net = published(name)
    for reader in ADAPTERS[net.family]:
        modules = [m for m in net.reached if not re.fullmatch(reader.but, m)]
        file, ours = adapter(net, reader, modules)
        made = reader.convert(file, net.config) if reader.convert is unet else reader.convert(dict(file))
        part = "unet." if reader.convert is unet else "transformer."
        wrong = equal({k.removeprefix(part): v for k, v in made.items()}, ours)
        known = f"{len(modules)} of {len(net.reached)} layers"
        show(f"{name}: {reader.convert.__name__}, {reader.layout}, {known}, largest error {wrong:.1e}")
        assert wrong == 0
        assert len(made) == len(ours)


# Families that the pinned diffusers converts nothing of, and how it would name a converter.
WITHOUT = {
    "hunyuan_video15": r"hunyuan_?video_?1_?5",
    "kandinsky5_image": r"kandinsky",
    "kandinsky5_video": r"kandinsky",
    "longcat_image": r"longcat",
    "omnigen": r"omnigen",
    "pixart_sigma": r"pixart",
}


def test_every_family_has_an_oracle_where_there_is_one() -> None:
    """Where diffusers gets a converter for a family of the last list, this fails: put it to use above."""
    assert set(families.names()) == set(WEIGHTS) | set(ADAPTERS) | set(WITHOUT)
    assert not set(WITHOUT) & (set(WEIGHTS) | set(ADAPTERS))
    kinds = {published(n).family: published(n).kind for n in NETWORKS}
    loadable = single_file_model._get_single_file_loadable_mapping_class
    assert {f for f, kind in kinds.items() if loadable(kind)} == set(WEIGHTS)
    converters = [n for module in (lora_utils, checkpoints) for n in dir(module) if "convert" in n]
    for family, name in WITHOUT.items():
        assert [c for c in converters if re.search(name, c)] == [], family
