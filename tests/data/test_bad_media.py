"""Every kind of bad or odd picture, video and sound: one plain sentence or the right use, no noise, no crash."""

from __future__ import annotations

import io
import os
import re
import struct
import subprocess
import sys
from functools import cache
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tuner.data import audio, media, video
from tuner.data.facts import Look, Unusable
from tuner.data.video import Clip
from tuner.errors import UserError

from .clips import film, index_first, sine, sound_film, wave

BOX = (0.0, 0.0, 32.0, 24.0)


@pytest.fixture(autouse=True)
def quiet(capfd):
    """Decoders write nothing to the terminal, whatever they meet."""
    yield
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")


@cache
def noise(frames: int = 25, size: tuple[int, int] = (64, 48)) -> tuple[np.ndarray, ...]:
    return tuple(np.random.default_rng(0).integers(0, 255, (frames, size[1], size[0], 3), np.uint8))


@cache
def noisy(kind: str = "mp4", codec: str = "libx264") -> bytes:
    return film(noise(), 25, kind, codec)


def still(kind: str, mode: str = "RGB", **options) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def animated(kind: str) -> bytes:
    buffer = io.BytesIO()
    frames = [Image.new("RGB", (32, 24), (i * 60, 0, 0)) for i in range(4)]
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:], duration=100)
    return buffer.getvalue()


def heic(image: Image.Image | None = None, **options) -> bytes:
    pillow_heif = pytest.importorskip("pillow_heif")
    buffer = io.BytesIO()
    image = image or Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    pillow_heif.from_pillow(image).save(buffer, quality=95, **options)
    return buffer.getvalue()


def with_damage(data: bytes, share: float, length: int) -> bytes:
    """Some bytes in the middle of a file overwritten by others."""
    place = int(len(data) * share)
    rubbish = np.random.default_rng(1).integers(0, 255, length, np.uint8).tobytes()
    return data[:place] + rubbish + data[place + length :]


def with_number(data: bytes, box: bytes, offset: int, value: bytes) -> bytes:
    """Bytes of an mp4 box overwritten, `offset` behind its name."""
    place = data.index(box) + 4 + offset
    return data[:place] + value + data[place + len(value) :]


def huge_avi() -> bytes:
    """Raw video whose header says 60000 x 60000."""
    data = film(5, 25, "avi", "rawvideo", pixels="bgr24")
    place = data.index(b"strf") + 8 + 4
    return data[:place] + struct.pack("<ii", 60000, 60000) + data[place + 8 :]


def nothing_encoded(kind: str = "mp4") -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=kind) as held:
        stream = held.add_stream("libx264", 25)
        stream.width, stream.height, stream.pix_fmt = 32, 24, "yuv420p"
        held.start_encoding()
    return buffer.getvalue()


def resized() -> bytes:
    """A transport stream whose size changes in the middle, as broadcasts do."""
    return film(25, 25, "mpegts") + film(25, 25, "mpegts", size=(64, 48), times=2 + np.arange(25) / 25)


TONE = sine(440, 1, 44_100)

BAD_VIDEO = {
    "zero bytes": (lambda: b"", "is empty (0 bytes)"),
    "text": (lambda: b"this is no video at all " * 99, "is no video or sound of a known kind"),
    "web page": (lambda: b"<!DOCTYPE html><html>404</html>", "is no video or sound of a known kind"),
    "zeros": (lambda: bytes(9999), "is no video or sound of a known kind"),
    "no moov": (lambda: noisy()[: len(noisy()) // 2], "is cut off: the index at its end is missing"),
    "cut mdat": (
        lambda: index_first(noisy())[: len(noisy()) // 2],
        r"(is cut off: \d+ of its 25 frames|is damaged after)",
    ),
    "no frames": (nothing_encoded, "(has no frames|has no moving pictures|is no video)"),
    "sound alone": (lambda: sound_film("mp4", "aac", TONE[None], 44_100), "has no moving pictures"),
    "wav": (lambda: wave(TONE), "has no moving pictures"),
    "huge header": (huge_avi, "(says that it has 60000x60000 pixels|has no frames that can be decoded)"),
    "damaged mpeg4": (lambda: with_damage(noisy(codec="mpeg4"), 0.5, 3000), r"is damaged after 0\.\d+ seconds"),
    "damaged avi": (lambda: with_damage(noisy("avi", "mpeg4"), 0.5, 3000), r"is damaged after 0\.\d+ seconds"),
    "damaged h264": (lambda: with_damage(noisy("mpegts"), 0.5, 6000), r"is damaged after 0\.\d+ seconds"),
    "cut ts": (lambda: noisy("mpegts")[: len(noisy("mpegts")) // 2], "is damaged after"),
    "changes size": (resized, "changes its size from 32x24 to 64x48 pixels at 1.92 seconds"),
    "playlist": (lambda: b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n", "is no video"),
    "script": (lambda: b"ffconcat version 1.0\nfile '/etc/passwd'\n", "is no video"),
    "animated webp": (lambda: animated("WEBP"), "is no video"),
    "picture": (lambda: still("PNG"), "is no video"),
}  # fmt: skip


def assert_sentence(look: Look, says: str) -> None:
    assert re.match(says.replace("(0", r"\(0").replace("bytes)", r"bytes\)"), look.error), look.error
    assert "; " in look.error
    assert "\n" not in look.error
    assert not re.search(r"Errno|Error|ffmpeg|avcodec|0x", look.error)
    assert look.digest == ""


@pytest.mark.parametrize("name", BAD_VIDEO)
def test_bad_video(name, tmp_path):
    make, says = BAD_VIDEO[name]
    data = make()
    path = tmp_path / "a.mp4"
    path.write_bytes(data)
    for look in (video.look(data), media.look(path, kind="video"), media.look_bytes(data, "video")):
        assert_sentence(look, says)
        assert look.kind == "video"
    assert path.read_bytes() == data


@pytest.mark.parametrize("name", [n for n in BAD_VIDEO if n not in {"cut mdat", "cut ts", "changes size"}])
def test_bad_video_is_not_read(name):
    data = BAD_VIDEO[name][0]()
    for work in (lambda: video.read(data, Clip(0, 25), 25, BOX, (32, 24)), lambda: video.stills(data, 3)):
        with pytest.raises(Unusable, match="; "):
            work()


ODD_VIDEO = {
    "cut matroska": (lambda: noisy("matroska")[: len(noisy("matroska")) // 2], 5, 20, None),
    "long in matroska": (
        lambda: with_number(film(25, 25, "matroska"), b"\x44\x89\x88", -1, struct.pack(">d", 36e6)), 25, 25,
        ("promise", "36,000 seconds, but there are 1.0"),
    ),
    "long in mp4": (
        lambda: with_number(film(), b"mvhd", 16, struct.pack(">I", 36_000_000)), 25, 25, None,
    ),
    "one frame": (lambda: film(1), 1, 1, None),
    "gif": (lambda: animated("GIF"), 4, 4, None),
    "apng": (lambda: animated("PNG"), 4, 4, None),
    "with a cover": (lambda: film(25, tone=300), 25, 25, None),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD_VIDEO)
def test_odd_video_is_used_and_said(name):
    make, least, most, note = ODD_VIDEO[name]
    data = make()
    look = video.look(data)
    assert not look.error
    assert least <= look.frames <= most
    assert look.seconds < 2
    if note:
        assert note in look.notes
    [clip] = video.clips(look, frames=3, fps=look.fps, step=1, clips=1)
    assert video.read(data, clip, look.fps, (0, 0, look.width, look.height), (8, 8)).shape == (clip.frames, 8, 8, 3)


def riff(size: int, rate: int = 44_100, channels: int = 1, data: bytes = b"") -> bytes:
    head = struct.pack("<HHIIHH", 1, channels, rate, rate * channels * 2 & 0xFFFFFFFF, channels * 2, 16)
    return b"RIFF" + struct.pack("<I", 36 + size & 0xFFFFFFFF) + b"WAVEfmt \x10\0\0\0" + head + b"data" + struct.pack(
        "<I", size
    ) + data  # fmt: skip


def spoilt(value: float) -> bytes:
    samples = TONE.copy()
    samples[20_000] = value
    return wave(samples, 44_100, subtype="FLOAT")


BAD_AUDIO = {
    "zero bytes": (lambda: b"", "is empty (0 bytes)"),
    "text": (lambda: b"RIFF is a word" * 99, "is no video or sound of a known kind"),
    "video alone": (lambda: film(5), "has no sound"),
    "cut wav": (lambda: wave(TONE)[:44144], r"is cut off: 50% of its sound"),
    "cut aiff": (lambda: wave(TONE, kind="AIFF")[:44144], r"is cut off: 50% of its sound"),
    "cut flac": (lambda: wave(TONE, kind="FLAC")[: len(wave(TONE, kind="FLAC")) // 2], "has damaged sound after"),
    "cut m4a": (lambda: sound_film("ipod", "aac", TONE[None], 44_100)[:8000], "is cut off: the index"),
    "nan": (lambda: spoilt(np.nan), "has samples that are no numbers"),
    "infinite": (lambda: spoilt(np.inf), "has samples that are no numbers"),
    "empty wav": (lambda: wave(np.zeros(0)), r"has no sound in it"),
    "fast": (lambda: riff(8, 2_000_000_000, data=bytes(8)), "says that it has 2,000,000,000 samples a second"),
    "slow": (lambda: riff(8, 1, data=bytes(8)), "says that it has 1 samples a second"),
    "64 channels": (lambda: riff(1280, channels=64, data=bytes(1280)), "has 64 channels"),
    "mp3 garbage": (lambda: b"ID3\x03\0\0\0\0\0\x0a" + bytes(range(256)) * 20, "is no video or sound"),
    "mp3 frames of nothing": (lambda: b"\xff\xfb\x90\x64" + bytes(9), "is no video or sound"),
    "damaged mp3": (lambda: with_damage(wave(TONE, kind="MP3"), 0.5, 1500), "has damaged sound after"),
    "damaged flac": (lambda: with_damage(wave(TONE, kind="FLAC"), 0.5, 3000), "has damaged sound after"),
    "picture": (lambda: still("JPEG"), "is no video or sound"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_AUDIO)
def test_bad_audio(name, tmp_path):
    make, says = BAD_AUDIO[name]
    data = make()
    path = tmp_path / "a.wav"
    path.write_bytes(data)
    for look in (audio.look(data), media.look(path, kind="audio"), media.look_bytes(data, "audio")):
        assert_sentence(look, says)
        assert look.kind == "audio"


def test_streamed_wav_is_used():
    """Programs that write into a pipe leave the length open."""
    for size in (0xFFFFFFFF, 0x7FFFFFFF):
        look = audio.look(riff(size, data=bytes(88_200)))
        assert not look.error
        assert look.seconds == pytest.approx(1)


SPOILT = "is damaged or cut off|is not a picture"

BAD_PICTURES = {
    "zero": (lambda: b"", r"is empty \(0 bytes\)"),
    "cut heic": (lambda: heic()[:600], SPOILT),
    "heic of rubbish": (lambda: with_damage(heic(), 0.02, 200), SPOILT),
    "cut avif": (lambda: still("AVIF")[:600], SPOILT),
    "avif of rubbish": (lambda: still("AVIF")[:40] + bytes(500), "is not a picture|is damaged"),
    "video": (lambda: film(3), "is not a picture"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_PICTURES)
def test_bad_picture(name):
    make, says = BAD_PICTURES[name]
    look = media.look_bytes(make())
    assert re.match(says, look.error), look.error
    assert "; " in look.error


def mpo() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 24), (200, 0, 0)).save(
        buffer, "MPO", save_all=True, append_images=[Image.new("RGB", (32, 24), (0, 0, 200))]
    )
    return buffer.getvalue()


def deep() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((24, 32), 200 * 257, np.uint16)).save(buffer, "PNG")
    return buffer.getvalue()


def flat(kind: str, colour=(200, 0, 0), mode: str = "RGB", **options) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (32, 24), colour).save(buffer, kind, **options)
    return buffer.getvalue()


GOOD_PICTURES = {
    "webp": (lambda: flat("WEBP", lossless=True), (200, 0, 0), []),
    "avif": (lambda: flat("AVIF", quality=100), (200, 0, 0), []),
    "transparent avif": (lambda: flat("AVIF", (0, 0, 0, 0), "RGBA"), (0, 255, 0), ["transparent"]),
    "transparent webp": (lambda: flat("WEBP", (0, 0, 0, 0), "RGBA"), (0, 255, 0), ["transparent"]),
    "heic": (lambda: heic(Image.new("RGB", (32, 24), (200, 0, 0))), (200, 0, 0), []),
    "transparent heic": (lambda: heic(Image.new("RGBA", (32, 24), (0, 0, 0, 0))), (0, 255, 0), ["transparent"]),
    "animated webp": (lambda: animated("WEBP"), (0, 0, 0), ["animation"]),
    "animated gif": (lambda: animated("GIF"), (0, 0, 0), ["animation"]),
    "animated png": (lambda: animated("PNG"), (0, 0, 0), ["animation"]),
    "16 bits": (deep, (200, 200, 200), ["deep"]),
    "cmyk": (lambda: flat("JPEG", (0, 255, 255, 0), "CMYK"), (254, 0, 0), ["colours"]),
    "palette": (lambda: flat("PNG", 0, "P", transparency=0), (0, 255, 0), ["transparent"]),
    "mpo": (mpo, (200, 0, 0), []),
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD_PICTURES)
def test_good_picture(name):
    make, colour, notes = GOOD_PICTURES[name]
    data = make()
    look = media.look_bytes(data, "image", "#00ff00")
    assert not look.error
    assert (look.kind, look.width, look.height) == ("image", 32, 24)
    assert [kind for kind, _ in look.notes] == notes
    image = media.load_bytes(data, look.digest, "#00ff00")
    assert image.mode == "RGB"
    assert np.abs(np.array(image.getpixel((9, 9))) - colour).max() <= 3
    with pytest.raises(Unusable, match="was changed"):
        media.load_bytes(data + b" ", look.digest)


@pytest.mark.parametrize("turn", range(1, 9))
def test_heic_upright(turn):
    """Phones write how they were held: into a HEIC twice, of which only one counts."""
    exif = Image.Exif()
    exif[0x0112] = turn
    pixels = np.zeros((32, 48, 3), np.uint8)
    pixels[:16, :24], pixels[:16, 24:], pixels[16:, :24] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    image = Image.fromarray(pixels)
    upright = image.transpose(media.TURNS[turn]) if turn > 1 else image
    found = media.decode(heic(image, exif=exif.tobytes())).image
    assert found.size == upright.size
    for place in ((4, 4), (found.width - 5, 4), (4, found.height - 5), (found.width - 5, found.height - 5)):
        assert np.abs(np.array(found.getpixel(place)) - upright.getpixel(place)).max() < 40


def test_heic_without_its_library(monkeypatch):
    data = heic()
    monkeypatch.setattr(media, "_knows_heif", lambda: False)
    assert "needs pillow-heif; run pip install pillow-heif" in media.look_bytes(data).error


def test_background():
    clear = flat("PNG", (0, 0, 0, 0), "RGBA")
    for paper, colour in (("white", (255,) * 3), ("#102030", (16, 32, 48)), ("navy", (0, 0, 128))):
        picture = media.decode(clear, paper)
        assert picture.image.getpixel((0, 0)) == colour
        assert picture.notes == (("transparent", paper),)
    for paper in ("", "whit", "#12345", "#gggggg"):
        with pytest.raises(UserError, match="is no colour"):
            media.decode(clear, paper)


def test_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "shut").mkdir()
    for name, says in (("missing", "cannot be read"), ("pipe", "is not a file"), ("shut", "is not a file")):
        for kind in ("image", "video", "audio"):
            assert says in media.look(tmp_path / name, kind=kind).error


def test_changed_while_looked_at(tmp_path, monkeypatch):
    path = tmp_path / "a.mp4"
    path.write_bytes(film(5))
    facts = video._facts

    def meanwhile(*args):
        path.write_bytes(film(6))
        return facts(*args)

    monkeypatch.setattr(video, "_facts", meanwhile)
    assert "was changed" in video.look(path).error


def test_names_that_are_no_text_or_look_like_addresses(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in (os.fsdecode(b"\xff\xfe.mp4"), "concat:a.mp4", "http:a.mp4", "日本.mp4", "-i.mp4", "a%03d.mp4"):
        Path(name).write_bytes(film(3))
        assert video.look(Path(name)).frames == 3


@cache
def fuzzed(kind: str) -> bytes:
    return {
        "mp4": lambda: index_first(film(12, tone=300)),
        "matroska": lambda: film(12, 25, "matroska", tone=300),
        "wav": lambda: wave(TONE[:4000]),
        "flac": lambda: wave(TONE[:4000], kind="FLAC"),
        "mp3": lambda: wave(TONE[:8000], kind="MP3"),
        "heic": heic,
        "avif": lambda: still("AVIF"),
    }[kind]()


@pytest.mark.parametrize("kind", ["mp4", "matroska", "wav", "flac", "mp3", "heic", "avif"])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_damage_gives_a_sentence_or_facts(kind, data):
    """Bytes changed or lost anywhere: `Unusable` or a result of the right shape, and no other way out."""
    whole = fuzzed(kind)
    place = data.draw(st.integers(0, len(whole) - 1))
    new = data.draw(st.binary(max_size=12))
    lost = data.draw(st.integers(0, 40))
    bad = whole[:place] + new + whole[place + lost :]
    if data.draw(st.booleans()):
        bad = bad[: data.draw(st.integers(0, len(bad)))]
    for which in ("image", "video", "audio"):
        look = media.look_bytes(bad, which)
        assert bool(look.error) != bool(look.digest)
    try:
        assert video.read(bad, Clip(0.1, 3), 25, BOX, (8, 8)).shape == (3, 8, 8, 3)
    except Unusable as reason:
        assert "; " in str(reason)
    try:
        assert audio.read(bad, 0.01, 0.05, 16_000, 2).shape == (2, 800)
    except Unusable as reason:
        assert "; " in str(reason)


def test_media_know_no_torch():
    code = "import sys, tuner.data.media; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
