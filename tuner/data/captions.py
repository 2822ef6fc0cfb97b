"""What an item is trained with: caption texts → trigger, prefix, suffix, orders of tags. Pure; knows no torch."""

from __future__ import annotations

import codecs
import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from ..recipe import DataSet, TagsSpec

if TYPE_CHECKING:
    from ..family import Family

PLACEHOLDER = "[trigger]"
BOMS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))


class NoTrigger(ValueError):
    """A text says [trigger], but the data set has no trigger word to put there."""


def final(texts: Sequence[str], spec: DataSet) -> tuple[str, ...]:
    """The captions that an item is trained with, from its own texts; equal ones only once, in order.

    Each text is stripped, its tags are put in their random orders, the prefix and suffix are joined on, and the
    trigger word is put in, in this order: tags that the data set adds to every caption are never shuffled. Empty texts
    are dropped; without any, what prefix, suffix and trigger make alone is left, or () where there are none of them.
    Raises `NoTrigger`.
    """
    own = [t for t in (text.strip() for text in texts) if t] or [""]
    done = [_whole(variant, spec) for text in own for variant in _variants(text, spec)]
    return tuple(dict.fromkeys(text for text in done if text))


def with_trigger(caption: str, trigger: str | None) -> str:
    """The caption with the trigger word in it: at its placeholder, else where it stands already, else in front."""
    if not trigger:
        return caption
    if PLACEHOLDER in caption:
        return caption.replace(PLACEHOLDER, trigger)
    if has_word(caption, trigger):
        return caption
    return f"{trigger}, {caption}" if caption else trigger


def has_word(caption: str, word: str) -> bool:
    """Whether `word` stands in the caption as a whole: "sks" does in "a sks, red", and does not in "asks"."""
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", caption) is not None


def join(left: str, right: str) -> str:
    """Two texts as they are, with one space between where they would run together.

    No space is added where there is one already, before , . ; : ! ? ) ] and behind an opening bracket or a hyphen.
    """
    if not left or not right or left[-1].isspace() or right[0].isspace():
        return left + right
    return left + right if right[0] in ",.;:!?)]" or left[-1] in "([-" else f"{left} {right}"


def from_name(name: str) -> str:
    """The caption that a file name is: "cats/a_red-cat (2).png" → "a red cat".

    The last part of the path without its ending; underscores, hyphens and spaces in a row become one space; numbers
    at the end that stand for themselves, with or without brackets, are dropped ("cat_001", not "r2d2"). A name of
    nothing but numbers gives "".
    """
    stem = PurePosixPath(name.replace("\\", "/")).stem
    text = re.sub(r"[\s_-]+", " ", stem).strip()
    return re.sub(r"(?:(?:^|\s)\(?\d+\)?)+$", "", text).strip()


def read_text(data: bytes) -> str:
    """The one caption that a text file holds, stripped; its lines stay lines (tables give several per item).

    UTF-8 with or without byte order mark, UTF-16 with one. Raises ValueError; its message follows the file's name.
    """
    mark, encoding = next(((m, e) for m, e in BOMS if data.startswith(m)), (b"", "utf-8"))
    try:
        text = data[len(mark) :].decode(encoding)
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:  # UTF-16 without a mark, UTF-32, or no text at all
        raise ValueError("is not text in UTF-8; save it in that encoding")
    return text.strip()


def lengths(
    captions: Iterable[str], family: Family, tokenizers: dict[str, Any]
) -> dict[str, list[tuple[str, int, int]]]:
    """Captions that would be cut → (tokenizer, tokens of the caption, tokens that it takes); each is counted once."""
    counts = {caption: family.token_counts(tokenizers, caption) for caption in dict.fromkeys(captions)}
    cut = {caption: [c for c in found if c[1] > c[2]] for caption, found in counts.items()}
    return {caption: found for caption, found in cut.items() if found}


# -- one text ----------------------------------------------------------------------------------------------------------


def _whole(text: str, spec: DataSet) -> str:
    joined = join(join(spec.prefix, text), spec.suffix).strip()
    if PLACEHOLDER in joined and not spec.trigger:
        raise NoTrigger(joined)
    return with_trigger(joined, spec.trigger)


def _variants(text: str, spec: DataSet) -> list[str]:
    """The random orders of a caption's tags, or the text alone where it is not made of tags."""
    if spec.tags is None or not text:
        return [text]
    tags = [tag for tag in (part.strip() for part in text.split(spec.tags.separator)) if tag]
    between = spec.tags.separator if spec.tags.separator[-1].isspace() else f"{spec.tags.separator} "
    if not spec.tags.shuffle:
        return [between.join(tags)]
    kept = _kept(text, tags, spec, spec.tags)
    orders = (_order(tags[kept:], text, variant) for variant in range(spec.tags.shuffle))
    return [between.join([*tags[:kept], *order]) for order in orders]


def _kept(text: str, tags: list[str], spec: DataSet, rules: TagsSpec) -> int:
    """How many of a caption's own tags stay in front. A trigger word in front stays, and is one of `tags.keep`."""
    if tags and tags[0] in (PLACEHOLDER, spec.trigger):
        return max(rules.keep, 1)
    whole = f"{spec.prefix} {text} {spec.suffix}"
    comes = spec.trigger and PLACEHOLDER not in whole and not has_word(whole, spec.trigger)
    return max(rules.keep - 1, 0) if comes else rules.keep


def _order(tags: list[str], text: str, variant: int) -> list[str]:
    """Tags in an order that depends on the caption and the number of the variant alone."""
    keys = [hashlib.sha256(f"{text}\0{variant}\0{place}".encode()).digest() for place in range(len(tags))]
    return [tags[place] for place in sorted(range(len(tags)), key=keys.__getitem__)]
