"""The cache: by content, atomic, self-healing; and the tensors that go in."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest
import torch
from PIL import Image

from tuner.data.buckets import plan
from tuner.data.cache import Cache, Encoder, fill_media, fill_text, media_key, media_keys, text_key
from tuner.data.index import scan
from tuner.data.tensor import pixels
from tuner.errors import UserError
from tuner.family import Geometry
from tuner.recipe import DataSet

from .conftest import Fake, picture


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache")


def planned(folder, resolutions=(64,), **spec):
    index = scan([DataSet(path=str(folder), **spec)], 16)
    return plan(index.items, list(resolutions), Geometry(16, 8))[0]


def files(cache):
    return sorted(p for p in cache.root.rglob("*") if p.is_file())


def test_round_trip(cache):
    entry = {"a": torch.randn(3, 4), "b": torch.arange(4), "c": torch.randn(2, dtype=torch.bfloat16)}
    cache.put("ab12", entry)
    assert cache.has("ab12")
    got = cache.get("ab12")
    assert all(torch.equal(got[k], v) and got[k].dtype == v.dtype for k, v in entry.items())
    assert files(cache) == [cache.root / "ab" / "ab12.safetensors"]
    assert cache.missing(["ab12", "cd", "cd"]) == ["cd"]
    whole = torch.arange(12).reshape(3, 4)
    cache.put("views", {"row": whole[1], "again": whole[1], "column": whole[:, 1]})
    assert {k: v.tolist() for k, v in cache.get("views").items()} == {
        "row": [4, 5, 6, 7], "again": [4, 5, 6, 7], "column": [1, 5, 9],
    }  # fmt: skip


@pytest.mark.parametrize("keep", [0, 4, 8, 60, -1])
def test_torn_entry_is_made_again(cache, keep):
    cache.put("ab12", {"a": torch.randn(64)})
    path = cache.path("ab12")
    path.write_bytes(path.read_bytes()[:keep])
    assert not cache.has("ab12")
    assert not path.exists()
    path.write_bytes(b"\xff" * 40)
    with pytest.raises(UserError, match="made anew"):
        cache.get("ab12")
    assert not path.exists()


@pytest.mark.parametrize("number,says", [(errno.ENOSPC, "no space left"), (errno.EACCES, "cannot be written")])
def test_write_errors(cache, monkeypatch, number, says):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(UserError, match=says) as raised:
        cache.put("ab12", {"a": torch.zeros(1)})
    assert str(cache.root) in str(raised.value)
    assert "TUNER_HOME" in str(raised.value)
    assert files(cache) == []


def test_fill_media(cache, tmp_path, fake, parts):
    for number in range(5):
        picture(tmp_path / "p" / f"{number}.png", (64, 64), (number * 50, 0, 255))
    picture(tmp_path / "p" / "wide.png", (256, 64))
    plans = planned(tmp_path / "p")
    told = []
    encoder = Encoder(fake, parts, "weights")
    keys = fill_media(cache, plans, encoder, lambda *x: told.append(x), 2)
    assert fake.calls == [2, 2, 1, 1]
    assert told == [(2, 6), (4, 6), (5, 6), (6, 6)]
    assert len(files(cache)) == 6
    latents = cache.get(keys[1])["latents"]
    assert latents.shape == (3, 8, 8)
    assert latents.dtype == torch.float32
    assert torch.allclose(latents[0], torch.tensor(50 / 127.5 - 1))
    assert cache.get(keys[5])["latents"].shape == (3, 4, 16)

    assert fill_media(cache, plans, encoder) == keys
    assert fake.calls == [2, 2, 1, 1]
    cache.path(keys[2]).write_bytes(b"torn")
    fill_media(cache, plans, encoder)
    assert fake.calls == [2, 2, 1, 1, 1]


def test_batching_does_not_change_latents(tmp_path, parts):
    for number in range(4):
        Image.fromarray(np.random.default_rng(number).integers(0, 255, (70, 90, 3), np.uint8)).save(
            tmp_path / f"{number}.png"
        )
    plans = planned(tmp_path, caption="x")
    one, four = Cache(tmp_path / "one"), Cache(tmp_path / "four")
    keys = fill_media(one, plans, Encoder(Fake(), parts, "w"), batch=1)
    fill_media(four, plans, Encoder(Fake(), parts, "w"), batch=4)
    for key in keys:
        torch.testing.assert_close(one.get(key)["latents"], four.get(key)["latents"], rtol=1e-6, atol=1e-6)


def test_keys_follow_content_not_names(tmp_path, fake):
    picture(tmp_path / "a" / "x.png")
    picture(tmp_path / "b" / "y.png")
    picture(tmp_path / "c" / "x.png", colour=(0, 0, 0))
    a, b, c = (planned(tmp_path / n)[0] for n in "abc")
    assert media_key(a, fake, "w") == media_key(b, fake, "w") != media_key(c, fake, "w")
    assert media_key(a, fake, "w") != media_key(a, fake, "other weights")
    assert len(set(media_keys(planned(tmp_path / "a", (64, 128)), fake, "w"))) == 2
    assert text_key("x", fake, "w") != text_key("x", Fake(1), "w")
    assert text_key("x", fake, "w") != text_key("y", fake, "w")


def test_mask_goes_with_its_picture(cache, tmp_path, fake, parts):
    """The right half of a wide picture counts; the cut takes the middle of both."""
    picture(tmp_path / "p" / "a.png", (200, 40))
    mask = Image.new("L", (100, 20), 0)
    mask.paste(255, (50, 0, 100, 20))
    (tmp_path / "m").mkdir()
    mask.save(tmp_path / "m" / "a.png")
    [one] = planned(tmp_path / "p", mask=str(tmp_path / "m"))
    [key] = fill_media(cache, [one], Encoder(fake, parts, "w"))
    entry = cache.get(key)
    assert entry["mask"].shape == (1, *entry["latents"].shape[-2:])
    assert entry["mask"].dtype == torch.float32
    w = entry["mask"].shape[-1]
    assert entry["mask"][..., : w // 2].max() == 0
    assert entry["mask"][..., w // 2 :].min() == 1
    [bare] = planned(tmp_path / "p")
    assert media_key(bare, fake, "w") != key


def test_pixels_are_the_scaled_and_cut_picture(tmp_path):
    """Scaling only the box equals scaling the whole and cutting (within the rounding of 8 bits, off the edges)."""
    x = np.linspace(0, 255, 300)[None, :].repeat(90, 0)
    Image.fromarray(np.stack([x, x[:, ::-1], x], -1).astype(np.uint8)).save(tmp_path / "a.png")
    [one] = planned(tmp_path, caption="x")
    got = pixels(one)
    with Image.open(tmp_path / "a.png") as image:
        whole = np.array(image.resize(one.framing.scaled, Image.Resampling.LANCZOS), np.float32)
    (left, top), (w, h) = one.framing.corner, one.framing.size
    expected = torch.from_numpy(whole[top : top + h, left : left + w] / 127.5 - 1).permute(2, 0, 1)
    assert got.shape == (3, h, w)
    assert (got - expected)[..., 2:-2].abs().max() <= 2 / 127.5
    assert got.min() >= -1
    assert got.max() <= 1


def test_long_thin_picture_takes_little_memory(tmp_path):
    Image.new("RGB", (20000, 16)).save(tmp_path / "a.png")
    [one] = planned(tmp_path, (512,), caption="x")
    assert np.prod(one.framing.scaled) > 50_000_000
    assert pixels(one).shape == (3, *one.framing.size[::-1])


def test_file_changed_after_the_scan(cache, tmp_path, fake, parts):
    path = picture(tmp_path / "p" / "a.png")
    plans = planned(tmp_path / "p")
    picture(path, colour=(9, 9, 9))
    with pytest.raises(UserError, match="changed"):
        fill_media(cache, plans, Encoder(fake, parts, "w"))
    assert files(cache) == []


def test_fill_text(cache, fake, parts):
    told = []
    keys = fill_text(cache, ["a", "bb", "a", ""], Encoder(fake, parts, "w"), lambda *x: told.append(x), 2)
    assert list(keys) == ["a", "bb", ""]
    assert fake.calls == [2, 1]
    assert told == [(2, 3), (3, 3)]
    assert cache.get(keys["bb"])["text"].tolist() == [2.0] * 4
    fill_text(cache, ["bb", "a"], Encoder(fake, parts, "w"))
    assert fake.calls == [2, 1]
