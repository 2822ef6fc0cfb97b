"""Adapter files of every dialect read into layers; what was not understood is listed, never dropped."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from ..native import Names
from . import file as opened
from . import fuse
from .fitting import checked, fits, fractions, weight_shape
from .layers import Contents, Kind, Layer
from .places import Place, Places, Shapes

NAME = r"(?:\.(?!weight$|bias$)[^.]+)?"
"""PEFT puts the adapter's name into its keys when a whole state was saved."""
SUFFIXES: tuple[tuple[re.Pattern[str], str, str], ...] = tuple(
    (re.compile(pattern + "$"), kind, slot)
    for pattern, kind, slot in (
        (rf"(?:\.lora_down|[._]lora\.down|\.lora_linear_layer\.down|\.lora_A{NAME})\.weight", "lora", "down"),
        (rf"(?:\.lora_up|[._]lora\.up|\.lora_linear_layer\.up|\.lora_B{NAME})\.weight", "lora", "up"),
        (rf"(?:\.lora_up|\.lora_B{NAME})\.bias", "lora", "bias"),
        (r"\.lora_mid\.weight", "lora", "mid"),
        (rf"\.lora_magnitude_vector{NAME}(?:\.weight)?", "", "rows"),
        (r"\.dora_scale", "", "magnitude"),
        (r"\.alpha", "", "alpha"),
        (rf"\.hada_(w[12]_[ab]|t[12]){NAME}", "loha", ""),
        (rf"\.lokr_(w[12](?:_[ab])?|t2){NAME}", "lokr", ""),
        (r"\.oft_blocks", "oft", "blocks"),
        (r"\.oft_diag", "oft", "rotations"),
        (rf"\.oft_R{NAME}\.weight", "oft_in", "halves"),
        (r"\.set_weight", "set", "weight"),
        (r"\.rescale", "oft", "rescale"),
        (r"\.(a1|a2|b1|b2|bm)\.weight", "glora", ""),
        (rf"\.ia3_l{NAME}", "ia3", "weight"),
        (r"\.on_input", "ia3", "on_input"),
        (r"\.(?:diff|w_norm)", "diff", "weight"),
        (r"\.(?:diff_b|b_norm)", "diff", "bias"),
    )
)
"""Ending of a key, the kind of adapter that it belongs to ("" for all), and what it holds (else the name it has)."""
NEEDED = {
    "lora": ({"down", "up"},),
    "loha": ({"w1_a", "w1_b", "w2_a", "w2_b"},),
    "lokr": ({"w1", "w2"}, {"w1", "w2_a", "w2_b"}, {"w1_a", "w1_b", "w2"}, {"w1_a", "w1_b", "w2_a", "w2_b"}),
    "oft": ({"blocks"}, {"rotations"}),
    "oft_in": ({"halves"},),
    "set": ({"weight"},),
    "glora": ({"a1", "a2", "b1", "b2"},),
    "ia3": ({"weight"},),
    "diff": ({"weight"}, {"bias"}),
}
"""The sets of tensors of which a layer of each kind must have one whole."""
UNREAD: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), reason)
    for pattern, reason in (
        (r"\.oft_R\b", "OFT of the inputs is read of linear layers, with the settings of peft 0.18 or newer in its "
         "header or adapter_config.json: no key states the length of the series that it turns by"),
        (r"\.set_weight$", "it replaces a weight that has no place here"),
        (r"\.reshape_weight$", "it widens a layer, which makes another network of the base"),
        (r"\.(hra_u|miss_block|vera_lambda_[bd]|randlora_\w+|lora_embedding_[AB])\b",
         "no program but peft reads this kind"),
        (r"(modulation|scale_shift_table|_table|pos_embed|_token)\.(diff|w_norm)$",
         "it changes a parameter that belongs to no layer"),
        (r"\.processor\.(qkv|proj)_lora[12]?\.", "XLabs' own layout for FLUX.1; diffusers converts it"),
        (r"^oft_unet_", "sd-scripts' own OFT counts its limit and its blocks in another way than all others"),
        (r"\.bias_(indices|values|size)$", "LyCORIS' sparse biases are no longer written by anything"),
        (r"^bundle_emb\.", "it is a learned word (textual inversion) and changes no layer"),
    )
)  # fmt: skip
"""Keys of adapters that are known and still not read, and why."""
PEFT_MARK = re.compile(r"\.lora_[AB]\b|\.ia3_l|\.lora_magnitude_vector")
Metadata = Mapping[str, Any]


@dataclass
class Entry:
    """All keys of one module in a file. tensors: kind → what it holds; `common` beside them, for all kinds."""

    tensors: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    common: dict[str, Tensor] = field(default_factory=dict)
    keys: dict[str, list[str]] = field(default_factory=dict)


def read(path: Path, names: Names, networks: Mapping[str, Shapes]) -> Contents:
    """The layers of an adapter file in any dialect, by diffusers' module names.

    names: the family's. networks: part → its modules with their shapes (`places.shapes` of the live or an empty
    network), the denoiser first; parts that are not given are not understood.

    Raises `UserError` for a file that is no sound adapter, or of another model. Keys without a place are `leftover`.
    """
    return understood(opened.read(path), Places(names, networks))


def understood(file: opened.File, places: Places, as_comfyui: bool = False) -> Contents:
    """See `read`. as_comfyui: take `dora_scale` as ComfyUI does (see `layers.Layer`), not as everyone else."""
    if opened.STATED in file.metadata:  # its scales stand in its settings, not beside its tensors
        raise UserError(
            f"{file.path} is a checkpoint of a LyCORIS run, which only such a run reads; write it as an adapter file "
            "with `python -m tuner export`, and take that."
        )
    entries, leftover = grouped(file.tensors)
    as_comfyui = as_comfyui or file.metadata.get(DORA_NORM) == "base"
    stated = opened.settings(file)
    contents, written = Contents([], file.metadata, leftover), Counter[str]()
    for name, entry in entries.items():
        found, dialect = places.candidates(name)
        layers = list(layers_of(name, entry, file.path, stated)) if found else []
        if not layers:
            contents.leftover += [k for keys in entry.keys.values() for k in keys]
            continue
        used = {k for layer in layers for k in entry.keys[_family_kind(layer.kind)]}
        contents.leftover += [k for kind, keys in entry.keys.items() if kind for k in keys if k not in used]
        peft = any(PEFT_MARK.search(k) for k in used)
        written[_dialect(dialect, peft)] += 1
        for layer in layers:
            place = _fitting(layer, found, file.path)
            if not _turns(layer, place):
                contents.leftover += entry.keys[layer.kind]
                continue
            try:
                own = fuse.apart(layer, place)
            except ValueError as error:
                raise UserError(f"{file.path}: {name}: {error}; use it where it was made for.") from None
            if stated and layer.alpha is None:
                own = [_scaled(o, stated) for o in own]
            contents.layers += [_as_comfyui(o) if as_comfyui else o for o in own]
    contents.dialect = written.most_common(1)[0][0] if written else ""
    contents.leftover.sort()
    return contents


DORA_NORM = "dora_norm"
"""Header of our ComfyUI files: their `dora_scale` is over the base's lengths, as ComfyUI takes it."""


def _dialect(found: str, peft: bool) -> str:
    return "diffusers, old keys" if found == "diffusers" and not peft else found


def grouped(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Entry], list[str]]:
    """The keys of a file by the module that they speak of, as it is called there; and those that end in nothing known.

    This needs no model: it is also what can be said of a file alone.
    """
    entries: dict[str, Entry] = {}
    leftover: list[str] = []
    on_input = {k.removesuffix(".on_input") for k in tensors if k.endswith(".on_input")}
    for key, value in tensors.items():
        if key.removesuffix(".weight") in on_input:  # LyCORIS' IA3 calls its vector just `weight`
            module, kind, slot = key.removesuffix(".weight"), "ia3", "weight"
        else:
            module, kind, slot = _ending(key)
        if not slot:
            leftover.append(key)
            continue
        entry = entries.setdefault(module, Entry())
        own = entry.tensors.setdefault(kind, {}) if kind else entry.common
        if slot in own:  # said twice, in two dialects
            leftover.append(key)
            continue
        own[slot] = value
        entry.keys.setdefault(kind, []).append(key)
    return entries, leftover


def _ending(key: str) -> tuple[str, str, str]:
    for pattern, kind, slot in SUFFIXES:
        if match := pattern.search(key):
            return key[: match.start()], kind, slot or match.group(1)
    return key, "", ""


def _family_kind(kind: str) -> str:
    return "oft" if kind == "boft" else kind


def layers_of(name: str, entry: Entry, path: Path, stated: Metadata) -> Iterator[Layer]:
    """One layer per kind that is whole (a LoRA and the difference of a bias may stand together)."""
    alpha = entry.common.get("alpha")
    for kind, tensors in entry.tensors.items():
        if not any(needed <= set(tensors) for needed in NEEDED[kind]):
            continue
        if any(0 in t.shape for t in tensors.values()):
            raise UserError(f"{path}: {name} has rank 0, so it holds nothing; train it with a rank of 1 or more.")
        fractions(tensors, f"{path}: {name}")
        if alpha is not None and (alpha.numel() != 1 or alpha.is_complex()):
            raise UserError(f"{path}: the alpha of {name} is no single number; the file is broken, fetch it again.")
        scale = None if alpha is None or kind == "diff" else float(alpha)
        own = {**tensors, **(_magnitude(entry) if kind in ("lora", "loha", "lokr") else {})}
        if "halves" in own and not (own := _turned_inputs(own["halves"], stated)):
            continue
        if kind == "oft" and "rotations" in own:
            own["blocks"], scale = _halves(own.pop("rotations"), name, path), None
        shown: Kind = "boft" if kind == "oft" and own["blocks"].ndim == 4 else kind  # type: ignore[assignment]
        if kind == "ia3" and "on_input" not in own:  # PEFT keeps the factor itself, LyCORIS what it has over 1
            own = _over_one(own["weight"], name, stated)
        layer = checked(Layer("", name, shown, own, scale), f"{path}: {name}")
        _alpha(layer, path)
        yield layer


def _magnitude(entry: Entry) -> dict[str, Tensor]:
    if "rows" in entry.common:
        return {"magnitude": entry.common["rows"].flatten()}
    return {"magnitude": entry.common["magnitude"]} if "magnitude" in entry.common else {}


def _halves(rotations: Tensor, name: str, path: Path) -> Tensor:
    """The blocks B with R = (I + Q)(I - Q)^-1, Q = B - B^T, of rotations R: LyCORIS wrote these as `oft_diag` until
    2024. Raises `UserError` for what is no rotation."""
    r = rotations.double()
    one = torch.eye(r.shape[-1], dtype=r.dtype)
    if r.ndim != 3 or r.shape[1] != r.shape[2] or (r @ r.transpose(1, 2) - one).abs().max() > 0.05:
        raise UserError(
            f"{path}: {name}.oft_diag holds no plain rotations (they were rescaled, or made by the first trials of "
            "LyCORIS, and nothing in the file tells which); use it with the program that made it."
        )
    q = torch.linalg.solve(r + one, r - one)
    return ((q - q.transpose(1, 2)) / 4).to(torch.float32)


def _turned_inputs(vectors: Tensor, stated: Metadata) -> dict[str, Tensor]:
    """The rotations [n, b, b] of peft's OFT (n = 1 holds for all blocks) from their halves above the diagonal [n, ...].

    {} where the settings do not say how they are made.
    """
    size = (math.isqrt(8 * vectors.shape[-1] + 1) + 1) // 2 if vectors.ndim == 2 else 0
    if size * (size - 1) != 2 * vectors.shape[-1]:  # of b (b - 1) / 2 entries
        return {}
    version = [int(n) for n in re.findall(r"\d+", str(stated.get("peft_version", "")))[:2]]
    if "use_cayley_neumann" not in stated or (stated["use_cayley_neumann"] and version < [0, 18]):
        return {}
    q = vectors.new_zeros(len(vectors), size, size, dtype=torch.float32)
    rows, columns = torch.triu_indices(size, size, 1)
    q[:, rows, columns] = vectors.float()
    q = q - q.transpose(1, 2)
    if stated.get("coft"):
        most = float(stated.get("eps", 6e-5)) / math.sqrt(len(q))  # type: ignore[arg-type]
        norm = q.flatten(1).norm(dim=1).reshape(-1, 1, 1)
        q = torch.where(norm <= most, q, q * (most / norm))
    one = torch.eye(size).expand_as(q)
    if not stated["use_cayley_neumann"]:
        return {"rotations": torch.linalg.solve(one + q, one - q, left=False)}
    terms, power, total = int(stated.get("num_cayley_neumann_terms", 5)), one, one.clone()  # type: ignore[call-overload]
    for i in range(1, terms):  # I + 2 Q + 2 Q^2 ... + Q^(terms - 1)
        power = power @ q
        total = total + (1 if i == terms - 1 and i > 1 else 2) * power
    return {"rotations": total}


def _turns(layer: Layer, place: Place) -> bool:
    """Whether what turns inputs fits those of a weight: a linear layer's, or a 1x1 kernel's."""
    if layer.kind != "oft_in":
        return True
    count, size = layer.tensors["rotations"].shape[:2]
    flat = all(k == 1 for k in place.columns[1:])
    return bool(place.columns) and flat and place.columns[0] % size == 0 and count in (1, place.columns[0] // size)


def _over_one(factor: Tensor, name: str, stated: Metadata) -> dict[str, Tensor]:
    """PEFT's IA3: [1, in] where it scales what comes in, [out, 1] where it scales the answer and so the bias too.

    For convolutions, which have [1, n, 1, 1] in both cases, its settings name the layers of the first sort.
    """
    over_input = factor.ndim > 1 and factor.shape[0] == 1
    if factor.ndim > 2:
        named = [v for k, v in stated.items() if k.rpartition(".")[2] == "feedforward_modules"]
        over_input = any(f".{name}".endswith(f".{end}") for ends in named for end in ends or ())
    own = {"weight": factor.flatten() - 1, "on_input": factor.new_tensor(float(over_input))}
    return own if over_input else {**own, "biased": factor.new_tensor(1.0)}


def _alpha(layer: Layer, path: Path) -> None:
    """Raise `UserError` for an alpha by which nothing is left, or more than numbers can hold."""
    scaled = layer.kind in ("lora", "loha", "lokr", "glora") and layer.rank is not None
    if scaled and layer.alpha == 0:
        raise UserError(f"{path}: {layer.module} states alpha 0, so the adapter does nothing; set alpha to its rank.")
    if scaled and layer.alpha is not None and not abs(layer.alpha) < opened.MOST:
        raise UserError(f"{path}: {layer.module} states alpha {layer.alpha:g}; the file is broken, fetch it again.")


def _fitting(layer: Layer, found: list[Place], path: Path) -> Place:
    """The first place whose weight has the layer's shape (a 1x1 kernel may be written as a matrix)."""
    shape = weight_shape(layer)
    for place in found:
        if _same(shape, place.shape) if shape else fits(layer, place.shape):
            return place
    what = f"changes a weight of shape {list(shape)}" if shape else f"({layer.kind}) changes a weight of another shape"
    raise UserError(f"{path}: {layer.module} {what}; {_other(found[0])}")


def _same(given: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    total = [1, 1]
    for i, shape in enumerate((given, wanted)):
        for size in shape:
            total[i] *= size
    return given[0] == wanted[0] and total[0] == total[1]


def _other(place: Place) -> str:
    shape = list(place.shape)
    return f"here it has {shape}, so the adapter was made for another model; choose an adapter of this family."


def _as_comfyui(layer: Layer) -> Layer:
    magnitude = layer.tensors.get("magnitude")
    if magnitude is None or (magnitude.ndim > 1 and magnitude.shape[0] == 1):
        return layer
    kept = {k: v for k, v in layer.tensors.items() if k != "magnitude"}
    return replace(layer, tensors={**kept, "base_magnitude": magnitude})


def _scaled(layer: Layer, stated: Metadata) -> Layer:
    """The layer with the alpha that PEFT's settings give it.

    PEFT scales a LoKr of two whole factors as well, by alpha and the rank that it was asked for; all others do not.
    """
    if layer.kind == "lokr" and layer.rank is None:
        asked = int(stated.get(f"{layer.part}.r", stated.get("r")) or 0)
        alpha = alpha_of(stated, layer.part, layer.module, asked) if asked else None
        if alpha is None:
            return layer
        return replace(layer, tensors={**layer.tensors, "w1": layer.tensors["w1"] * (alpha / asked)})
    return replace(layer, alpha=alpha_of(stated, layer.part, layer.module, layer.rank))


def alpha_of(stated: Metadata, part: str, module: str, rank: int | None) -> float | None:
    """The alpha that PEFT's settings give a module; with rsLoRA what gives the same scale as alpha / rank.

    stated: the settings, each name behind `part.` or bare. A pattern holds for modules that end in it.
    """
    if rank is None:
        return None
    own = {k.removeprefix(f"{part}."): v for k, v in stated.items() if k.startswith(f"{part}.")}
    settings: Metadata = own or {k: v for k, v in stated.items() if "." not in k}
    alpha = settings.get("lora_alpha", settings.get("alpha"))
    for pattern, value in (settings.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            alpha = value
            break
    if alpha is None:
        return None
    return float(alpha) * (rank**0.5 if settings.get("use_rslora") else 1.0)


def matched(contents: Contents, path: Path, family: str) -> Contents:
    """The same. Raises `UserError` when not one key has a place in this model."""
    if not contents.layers:
        first = contents.leftover[0] if contents.leftover else "no key"
        raise UserError(
            f"{path} does not fit {family}: none of its {len(contents.leftover)} keys has a place there ({first} ...)"
            f"{''.join(f'; {r}' for r in reasons(contents.leftover))}; choose an adapter of this family."
        )
    return contents


def told(contents: Contents, path: Path) -> str:
    """A sentence about keys that were not understood, "" without any."""
    if not contents.leftover:
        return ""
    count, shown = len(contents.leftover), ", ".join(contents.leftover[:4])
    more = " ..." if count > 4 else ""
    verb = "key has" if count == 1 else "keys have"
    return (
        f"{count} {verb} no place in this model and {'is' if count == 1 else 'are'} left out of {path}: {shown}{more}"
        f"{''.join(f'; {r}' for r in reasons(contents.leftover))}"
    )


def reasons(leftover: Iterable[str]) -> list[str]:
    """Why keys were not understood, each reason once with how many keys it is of; none for names that are unknown."""
    counted = Counter(next((r for pattern, r in UNREAD if pattern.search(key)), "") for key in leftover)
    return [f"{n} of them: {reason}" for reason, n in counted.items() if reason]


Reader = Callable[[Path], Contents]
