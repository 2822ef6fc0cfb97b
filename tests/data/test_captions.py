"""Captions: the trigger word, prefix and suffix, orders of tags, file names and encodings."""

from __future__ import annotations

import codecs
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.data.captions import NoTrigger, final, from_name, join, lengths, read_text, with_trigger
from tuner.recipe import DataSet

from .conftest import Fake


def spec(**settings) -> DataSet:
    return DataSet.model_validate({"path": "/x", **settings})


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a cat", "sks, a cat"),
        ("photo of sks on grass", "photo of sks on grass"),
        ("she asks a question", "sks, she asks a question"),
        ("sks's cat", "sks's cat"),
        ("a [trigger] cat, [trigger]", "a sks cat, sks"),
        ("", "sks"),
    ],
)
def test_trigger(caption, expected):
    assert with_trigger(caption, "sks") == expected
    assert with_trigger(caption, None) == caption


def test_trigger_may_hold_signs_of_regular_expressions():
    assert with_trigger("drawn in c++ style", "c++") == "drawn in c++ style"
    assert with_trigger("a cat", "(x)") == "(x), a cat"


@pytest.mark.parametrize(
    ("settings", "texts", "expected"),
    [
        ({}, ["  a cat \n"], ("a cat",)),
        ({}, ["a cat", "", " a dog", "a cat "], ("a cat", "a dog")),
        ({}, [], ()),
        ({}, ["", "  "], ()),
        ({"trigger": "sks"}, [], ("sks",)),
        ({"trigger": "sks", "prefix": "photo of "}, [""], ("sks, photo of",)),
        ({"prefix": "a photo of", "suffix": ", 1990"}, ["a cat"], ("a photo of a cat, 1990",)),
        ({"prefix": "a photo of ", "suffix": " outside"}, ["a cat"], ("a photo of a cat outside",)),
        ({"prefix": "a photo of [trigger],", "trigger": "sks"}, ["a cat"], ("a photo of sks, a cat",)),
        ({"suffix": "by sks", "trigger": "sks"}, ["a cat"], ("a cat by sks",)),
        ({"trigger": "sks"}, ["a cat", "sks, a cat"], ("sks, a cat",)),
        ({"tags": {}}, ["a ,b,, c,"], ("a, b, c",)),
        ({"tags": {"separator": ";"}}, ["a ;b; c"], ("a; b; c",)),
    ],
)
def test_final(settings, texts, expected):
    assert final(texts, spec(**settings)) == expected


@pytest.mark.parametrize("settings", [{}, {"tags": {"shuffle": 2}}])
@pytest.mark.parametrize("where", ["text", "prefix", "suffix"])
def test_placeholder_without_a_trigger_is_an_error(settings, where):
    with pytest.raises(NoTrigger):
        final(["[trigger] x"], spec(**settings)) if where == "text" else final(
            ["x"], spec(**settings, **{where: "[trigger]"})
        )


def test_join_keeps_what_the_user_wrote():
    assert join("a photo of", "cat") == "a photo of cat"
    assert join("a photo of ", "cat") == "a photo of cat"
    assert join("cat", ", red") == "cat, red"
    assert join("photo,", "cat") == "photo, cat"
    assert join("(", "cat") == "(cat"
    assert join("", "cat") == join("cat", "") == "cat"


TAGS = st.lists(st.text("abcdefgh ", min_size=1, max_size=4).filter(str.strip), min_size=1, max_size=9)


@given(TAGS, st.integers(1, 8), st.integers(0, 4))
def test_orders_of_tags_keep_every_tag_and_the_first_ones(tags, shuffle, keep):
    own = [t.strip() for t in tags]
    found = final([", ".join(own)], spec(tags={"shuffle": shuffle, "keep": keep}))
    assert 1 <= len(found) <= shuffle and len(set(found)) == len(found)
    for caption in found:
        parts = caption.split(", ")
        assert sorted(parts) == sorted(own)
        assert parts[:keep] == own[:keep]
    assert found == final([", ".join(own)], spec(tags={"shuffle": shuffle, "keep": keep}))


LONG = "a, b, c, d, e, f, g, h"


def test_orders_differ_between_variants_and_captions_but_not_between_processes():
    found = final([LONG], spec(tags={"shuffle": 6}))
    assert len(found) == 6
    assert final([LONG], spec(tags={"shuffle": 3})) == found[:3]  # more orders add to those that are cached
    places = [[caption.split(", ").index("a") for caption in final([f"{LONG}, {n}"], spec(tags={"shuffle": 1}))]
              for n in range(40)]  # fmt: skip
    assert len({p for (p,) in places}) > 4  # not one fixed permutation
    code = f"from tuner.data.captions import *; print(final([{LONG!r}], DataSet(path='x', tags={{'shuffle': 6}})))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert other.strip() == str(found)


@pytest.mark.parametrize(
    ("text", "keep", "front"),
    [
        (f"sks, {LONG}", 0, ["sks"]),
        (f"[trigger], {LONG}", 0, ["sks"]),
        (f"sks, {LONG}", 2, ["sks", "a"]),
        (LONG, 0, ["sks"]),
        (LONG, 1, ["sks"]),
        (LONG, 3, ["sks", "a", "b"]),
        (f"a, b, sks, {LONG}", 2, ["a", "b"]),
    ],
)
def test_the_trigger_in_front_is_a_kept_tag(text, keep, front):
    found = [c.split(", ") for c in final([text], spec(trigger="sks", tags={"shuffle": 8, "keep": keep}))]
    assert all(parts[: len(front)] == front for parts in found)
    assert len({parts[len(front)] for parts in found}) > 1  # and no further one


def test_prefix_and_suffix_stay_outside_the_orders():
    found = final([LONG], spec(prefix="photo,", suffix=", 1990", tags={"shuffle": 8}))
    assert len(found) == 8
    assert all(c.startswith("photo, ") and c.endswith(", 1990") for c in found)


def test_several_captions_have_each_their_orders():
    found = final(["a, b, c, d", "one two"], spec(tags={"shuffle": 3}))
    assert found[-1] == "one two" and 2 <= len(found) <= 4


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cats/a_red-cat (2).png", "a red cat"),
        ("a__red--cat_001.jpg", "a red cat"),
        ("cat 12 (3).png", "cat"),
        ("r2d2.png", "r2d2"),
        ("dog1.png", "dog1"),
        ("2 dogs.png", "2 dogs"),
        ("0001.png", ""),
        ("2023-01-05.png", ""),
        ("v1.5 of it.png", "v1.5 of it"),
        ("a\\b_c.png", "b c"),
        ("Straße_im_Regen.webp", "Straße im Regen"),
    ],
)
def test_caption_from_a_file_name(name, expected):
    assert from_name(name) == expected


@pytest.mark.parametrize(
    "data",
    [
        "  Ärger, 猫\nzwei\n".encode(),
        "Ärger, 猫\nzwei".encode("utf-8-sig"),
        codecs.BOM_UTF16_LE + "Ärger, 猫\nzwei".encode("utf-16-le"),
        codecs.BOM_UTF16_BE + "Ärger, 猫\nzwei ".encode("utf-16-be"),
    ],
)
def test_encodings(data):
    assert read_text(data) == "Ärger, 猫\nzwei"


@pytest.mark.parametrize("data", ["Ärger".encode("latin-1"), "cat".encode("utf-16-le"), "cat".encode("utf-32"), b"\0"])
def test_what_is_no_text_is_said(data):
    with pytest.raises(ValueError, match="UTF-8"):
        read_text(data)


def test_lengths_counts_each_caption_once():
    class Counting(Fake):
        seen: list[str] = []

        def token_counts(self, tokenizers, caption):
            self.seen.append(caption)
            return super().token_counts(tokenizers, caption)

    family = Counting()
    found = lengths(["a b c d", "a b c d e", "x", "a b c d e"], family, {})
    assert found == {"a b c d e": [("tokenizer", 5, 4)]}
    assert len(family.seen) == 3
