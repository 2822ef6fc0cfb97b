"""What a file's header says, and what of it should not leave the house."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ..formats.metadata import PRIVATE as HIDDEN
from ..formats.metadata import Choice

PRIVATE = {
    "ss_dataset_dirs": "folder names", "ss_reg_dataset_dirs": "folder names", "ss_datasets": "folder names",
    "ss_tag_frequency": "captions", "ss_training_comment": "a comment", "ss_output_name": "a file name",
    "ot_config": "the whole training configuration", "ot_concepts": "folder names and captions",
    "training_config": "the whole training configuration", "config": "the whole training configuration",
}  # fmt: skip
"""Keys known to hold what only the trainer's owner should know."""
PATHS = re.compile(r"(?:^|[\"'\s=])(?:/(?:home|Users|mnt|media|root|data|workspace|content)/|~/|[A-Za-z]:\\|\\\\)")
OWN = ("lora_adapter_metadata", "dora_norm", "format")
"""What the writer of a dialect states itself."""


def leaks(metadata: Mapping[str, str]) -> dict[str, str]:
    """Key → what it gives away: folder names, captions, paths of a machine."""
    known = {**dict.fromkeys(HIDDEN, "who worked, on what or when"), **PRIVATE}
    found = {k: known[k] for k in metadata if k in known and metadata[k] not in ("", "{}", "[]", "None")}
    return found | {k: "a path" for k, v in metadata.items() if k not in found and PATHS.search(v)}


def kept(metadata: Mapping[str, str], mode: Choice) -> dict[str, str]:
    """What of a file's header goes into one that is made from it, beside what the writer states of the new tensors.

    full: all of it; share and minimal: without what gives the trainer's folders and captions away.
    """
    told = {k: v for k, v in metadata.items() if k not in OWN}
    private = {} if mode == "full" else leaks(told)
    return {k: v for k, v in told.items() if k not in private}
