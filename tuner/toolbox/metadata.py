"""What a file's header says, and what of it should not leave the house."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal

from ..formats.layers import Layer

Mode = Literal["full", "share", "minimal"]
PRIVATE = {
    "ss_dataset_dirs": "folder names", "ss_reg_dataset_dirs": "folder names", "ss_datasets": "folder names",
    "ss_tag_frequency": "captions", "ss_training_comment": "a comment", "ss_output_name": "a file name",
    "ot_config": "the whole training configuration", "ot_concepts": "folder names and captions",
    "training_config": "the whole training configuration", "config": "the whole training configuration",
}  # fmt: skip
"""Keys known to hold what only the trainer's owner should know."""
PATHS = re.compile(r"(?:^|[\"'\s=])(?:/(?:home|Users|mnt|media|root|data|workspace|content)/|~/|[A-Za-z]:\\|\\\\)")
MINIMUM = (
    "format", "ss_v2", "ss_base_model_version", "ss_network_module", "ss_network_args", "modelspec.sai_model_spec",
    "modelspec.architecture", "modelspec.implementation", "modelspec.title", "modelspec.prediction_type",
    "modelspec.resolution", "modelspec.trigger_phrase",
)  # fmt: skip
"""What programs need to know what a file is for."""
STALE = ("ss_network_dim", "ss_network_alpha", "sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256")
"""What is true of the old tensors only."""
OWN = ("lora_adapter_metadata", "dora_norm", "format")
"""What the writer of a dialect states itself."""


def leaks(metadata: Mapping[str, str]) -> dict[str, str]:
    """Key → what it gives away: folder names, captions, paths of a machine."""
    found = {k: PRIVATE[k] for k in metadata if k in PRIVATE and metadata[k] not in ("", "{}", "[]", "None")}
    return found | {k: "a path" for k, v in metadata.items() if k not in found and PATHS.search(v)}


def kept(metadata: Mapping[str, str], mode: Mode, layers: Sequence[Layer]) -> dict[str, str]:
    """The header of a file made from one with `metadata`. full: all that is still true; share: without what gives the
    trainer's folders and captions away; minimal: what programs need to know what the file is for."""
    told = {k: v for k, v in metadata.items() if k not in (*STALE, *OWN)}
    if mode != "full":
        private = leaks(told)
        told = {k: v for k, v in told.items() if k not in private}
    if mode == "minimal":
        told = {k: v for k, v in told.items() if k in MINIMUM}
    ranks, alphas = {layer.rank for layer in layers}, {layer.alpha for layer in layers}
    if len(ranks) == 1 and (rank := ranks.pop()) is not None and any(k.startswith("ss_") for k in metadata):
        alpha = alphas.pop() if len(alphas) == 1 else None
        told |= {"ss_network_dim": str(rank), "ss_network_alpha": str(alpha if alpha is not None else float(rank))}
    return told
