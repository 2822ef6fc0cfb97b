"""Files of Hugging Face data sets, each at one commit: hf://owner/name@COMMIT/path."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from .refs import Unreadable

_REF = re.compile(r"hf://(?:datasets/)?(?P<repo>[\w.-]+/[\w.-]+?)(?:@(?P<revision>[^/]+))?(?:/(?P<path>.*))?")


def facts(ref: str) -> tuple[str, int]:
    """(commit, -1): a file at a commit never changes, and its size is not asked for."""
    return parts(ref)[1], -1


def parts(ref: str) -> tuple[str, str, str]:
    """(owner/name, revision or "", path). Raises `Unreadable`."""
    found = _REF.fullmatch(ref)
    if not found:
        raise Unreadable(ref, "names no data set; write it as hf://owner/name")
    return found["repo"], found["revision"] or "", (found["path"] or "").strip("/")


def files(ref: str) -> list[str]:
    """References of all files of a data set (below a folder of it, if given), at its newest or the given commit."""
    import huggingface_hub as hf  # noqa: PLC0415  (only Hub data sets need it)

    repo, revision, below = parts(ref)
    try:
        info = hf.HfApi().dataset_info(repo, revision=revision or None)
    except _failures() as error:
        raise Unreadable(ref, _why(error)) from None
    names = sorted(s.rfilename for s in info.siblings or ())
    return [f"hf://{repo}@{info.sha}/{n}" for n in names if not below or n.startswith(f"{below}/")]


def fetch(ref: str, commit: str, size: int, target: Path) -> None:
    """Write a file of a data set to `target`. Raises `Unreadable`."""
    import huggingface_hub as hf  # noqa: PLC0415

    repo, _, path = parts(ref)
    with tempfile.TemporaryDirectory(dir=target.parent.parent, prefix="hub-") as folder:
        try:
            got = hf.hf_hub_download(repo, path, repo_type="dataset", revision=commit, local_dir=folder)
        except _failures() as error:
            raise Unreadable(ref, _why(error)) from None
        Path(got).replace(target)


def _failures() -> tuple[type[Exception], ...]:
    import httpx  # noqa: PLC0415  (huggingface_hub speaks through it)
    from huggingface_hub.errors import EntryNotFoundError, RevisionResolutionError  # noqa: PLC0415

    return OSError, ValueError, httpx.HTTPError, EntryNotFoundError, RevisionResolutionError


def _why(error: Exception) -> str:
    short = (str(error).splitlines() or [""])[0].rstrip(". ") or type(error).__name__
    return (
        f"could not be fetched from the Hub ({type(error).__name__}: {short}); check the name, your network, "
        "and for gated data sets that you accepted the terms and ran `hf auth login`"
    )
