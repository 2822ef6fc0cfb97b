"""What the header of an adapter file says of its training, for galleries, web UIs and people: `ss_*` and modelspec."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Literal

from safetensors.torch import save
from torch import Tensor

from ..native import Names
from .layers import Layer

Choice = Literal["full", "share", "minimal"]
MINIMUM = frozenset(
    {"ss_v2", "ss_base_model_version", "ss_network_module", "ss_network_dim", "ss_network_alpha", "ss_network_args"}
)
"""Without these, converters and web UIs do not know what a file is."""
PRIVATE = frozenset(
    {
        "ss_dataset_dirs", "ss_datasets", "ss_reg_dataset_dirs", "ss_tag_frequency", "ss_training_comment",
        "ss_sd_model_name", "ss_session_id", "ss_training_started_at", "ss_training_finished_at",
        "modelspec.description",
    }
)  # fmt: skip
"""What names folders, quotes captions or comments, or tells when someone worked: left out of files made to share."""


SIZE = re.compile(r"\d+x\d+")
CODEBASES = {
    "diffusers": "diffusers",
    "comfyui": "https://github.com/comfyanonymous/ComfyUI",
    "kohya": "https://github.com/kohya-ss/sd-scripts",
    "lycoris": "https://github.com/KohakuBlueleaf/LyCORIS",
}
"""Format → whose names the keys are: `modelspec.implementation`."""


def header(
    tensors: Mapping[str, Tensor], layers: Sequence[Layer], names: Names, facts: Mapping[str, str], choice: Choice,
    format: str,
) -> dict[str, str]:  # fmt: skip
    """The header's lines. facts: what is known of the training (`ss_*`, `modelspec.*`), as text. format: whose keys.

    Every `ss_*` value is Python's own text of it ("True", not "true"), since web UIs compare with that.
    """
    said = {**facts, **network(layers, names)}
    if choice == "minimal":
        return {k: v for k, v in said.items() if k in MINIMUM}
    hashed = hashes(tensors)
    said |= {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{names.architecture}/lora",
        "modelspec.implementation": CODEBASES[format],
        "modelspec.date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "modelspec.hash_sha256": f"0x{hashed['sshs_model_hash']}",
        "modelspec.title": facts.get("modelspec.title") or facts.get("ss_output_name") or "adapter",
        **hashed,
    }
    if not SIZE.fullmatch(said.get("modelspec.resolution", "")):  # adapters may leave it out, and sounds have none
        said.pop("modelspec.resolution", None)
    return {k: v for k, v in said.items() if choice == "full" or k not in PRIVATE}


def network(layers: Sequence[Layer], names: Names) -> dict[str, str]:
    """Kind, rank and alpha as kohya's tools state them; "Dynamic" where layers differ."""
    kinds = Counter(layer.kind for layer in layers)
    plain = set(kinds) <= {"lora"} and not any("magnitude" in layer.tensors for layer in layers)
    ranks = {layer.rank for layer in layers if layer.rank is not None}
    alphas = {layer.scale * layer.rank for layer in layers if layer.rank is not None}
    common = kinds.most_common(1)[0][0] if kinds else "lora"
    args = {} if plain else {"algo": {"lora": "locon", "diff": "full"}.get(common, common)}
    if any({"magnitude", "base_magnitude"} & set(layer.tensors) for layer in layers):
        args["dora_wd"] = "True"
    return {
        "ss_network_module": "networks.lora" if plain else "lycoris.kohya",
        "ss_network_dim": _one(ranks),
        "ss_network_alpha": _one(alphas),
        "ss_network_args": _json(args),
        "ss_base_model_version": names.version,
        "ss_v2": str(names.version.startswith("sd_v2")),
    }


def _one(values: set[int] | set[float]) -> str:
    return str(next(iter(values))) if len(values) == 1 else "Dynamic" if values else "None"


def _json(values: Mapping[str, str]) -> str:
    inner = ", ".join(f'"{k}": "{v}"' for k, v in values.items())
    return f"{{{inner}}}"


def hashes(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """sha256 of the tensors without the header, and the older hash of 64 KiB behind the first MiB."""
    whole = save(dict(tensors))
    start = 8 + int.from_bytes(whole[:8], "little")
    return {
        "sshs_model_hash": hashlib.sha256(memoryview(whole)[start:]).hexdigest(),
        "sshs_legacy_hash": hashlib.sha256(memoryview(whole)[0x100000 : 0x100000 + 0x10000]).hexdigest()[:8],
    }
