"""Sound: the right samples from the right place at the right level, whatever the file is."""

from __future__ import annotations

import io

import av
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from tuner.data import audio
from tuner.data.facts import Unusable

from .clips import film, sine, sound_film, wave

DEEP = 1 << 30
RAMP = np.arange(-32768, 32768, dtype=np.int64)
"""Every value of 16 bits."""

EXACT = {
    "PCM_U8": (8, "WAV"), "PCM_16": (16, "WAV"), "PCM_24": (24, "WAV"), "PCM_S8": (8, "FLAC"), "flac16": (16, "FLAC"),
    "aiff": (16, "AIFF"),
}  # fmt: skip


@pytest.mark.parametrize("name", EXACT)
def test_integers_scale_exactly(name):
    bits, kind = EXACT[name]
    values = np.unique(RAMP >> (16 - bits)) if bits < 24 else RAMP * 256 + 3
    subtype = name if name.startswith("PCM") else "PCM_16"
    data = wave((values << (32 - bits)).astype(np.int32), 8_000, kind, subtype)
    read = audio.read(data, 0, len(values) / 8_000, 8_000, 1)
    assert np.array_equal(read[0], (values / 2 ** (bits - 1)).astype(np.float32))


@pytest.mark.parametrize(("codec", "bits"), [("pcm_s16le", 16), ("pcm_s24le", 24), ("pcm_u8", 8), ("alac", 16)])
def test_integers_scale_exactly_in_other_containers(codec, bits):
    """Through FFmpeg: a .mov or .m4a."""
    values = RAMP[::16] >> (16 - bits) if bits <= 16 else RAMP[::16] * 256
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mov") as held:
        track = held.add_stream(codec, 8_000)
        track.layout = "mono"
        name = track.format.name
        kind = {"u8": np.uint8, "s16": np.int16, "s16p": np.int16, "s32": np.int32, "s32p": np.int32}[name]
        shifted = values + 128 if kind == np.uint8 else values << (8 * kind(0).itemsize - bits)
        frame = av.AudioFrame.from_ndarray(shifted.astype(kind)[None], name, "mono")
        frame.sample_rate, frame.pts = 8_000, 0
        held.mux(track.encode(frame))
        held.mux(track.encode(None))
    read = audio.read(buffer.getvalue(), 0, len(values) / 8_000, 8_000, 1)
    assert np.array_equal(read[0], (values / 2 ** (bits - 1)).astype(np.float32))


FILES = {
    "wav": lambda x: wave(x.T, 44_100),
    "float wav": lambda x: wave(x.T, 44_100, subtype="FLOAT"),
    "flac": lambda x: wave(x.T, 44_100, "FLAC"),
    "ogg": lambda x: wave(x.T, 44_100, "OGG"),
    "mp3": lambda x: wave(x.T, 44_100, "MP3"),
    "m4a": lambda x: sound_film("ipod", "aac", x, 44_100, "stereo"),
    "mka": lambda x: sound_film("matroska", "flac", x, 44_100, "stereo"),
    "opus": lambda x: sound_film("ogg", "libopus", x[:, : x.shape[1] // 960 * 960], 48_000, "stereo"),
}


@pytest.mark.parametrize("name", FILES)
def test_every_kind(name):
    """Facts, level, and place in time, from the start and from the middle."""
    rate = 48_000 if name == "opus" else 44_100
    tone = np.stack([sine(440, 3, rate), sine(660, 3, rate)])
    data = FILES[name](tone)
    look = audio.look(data)
    assert not look.error
    assert (look.kind, look.rate, look.channels, look.blank, look.notes) == ("audio", rate, 2, False, ())
    assert look.seconds == pytest.approx(3, abs=0.06)
    loss = 0.03 if name in {"ogg", "mp3", "m4a", "opus"} else 2e-4
    for start in (0.0, 1.7):
        part = audio.read(data, start, 0.9, rate, 2)
        first = round(start * rate)
        late = range(-23, 24) if name == "mka" and start else [0]  # its clock counts milliseconds
        wanted = [tone[:, first + k : first + k + part.shape[1]] for k in late]
        assert min(np.abs(part - w)[:, 2000:-2000].max() for w in wanted) < loss


@settings(max_examples=60, deadline=None)
@given(
    rate=st.sampled_from([8_000, 16_000, 22_050, 44_100, 48_000]), new=st.integers(4_000, 96_000),
    start=st.floats(0, 1.2), seconds=st.floats(0.001, 1.5), channels=st.sampled_from([1, 2]),
)  # fmt: skip
def test_exactly_the_planned_shape(rate, new, start, seconds, channels):
    part = audio.read(wave(sine(200, 1, rate), rate), start, seconds, new, channels)
    assert part.shape == (channels, round(seconds * new))
    assert part.dtype == np.float32
    assert np.abs(part).max(initial=0) <= 1
    there = round(max(0, 1 - start) * new)
    assert not part[:, there + new // 50 + 1 :].any()  # zeros after the end


def tone_db(samples: np.ndarray, hz: float, rate: int) -> float:
    """Level of one frequency, 0 dB = full scale."""
    window = np.hanning(len(samples))
    turning = np.exp(-2j * np.pi * hz * np.arange(len(samples)) / rate)
    return 20 * np.log10(2 * abs((samples * window * turning).sum()) / window.sum() + 1e-12)


@pytest.mark.parametrize("rate", [22_050, 32_000, 44_100, 48_000, 96_000])
@pytest.mark.parametrize("new", [16_000, 24_000, 44_100, 48_000])
def test_a_sine_stays_a_sine(rate, new):
    part = audio.read(wave(sine(1000, 1.5, rate), rate, subtype="FLOAT"), 0.25, 1, new, 1)[0]
    expected = sine(1000, 1.5, new)[round(0.25 * new) :][: len(part)]
    assert np.abs(part - expected).max() < 1e-4
    assert tone_db(part, 1000, new) == pytest.approx(-6.02, abs=0.01)


def test_nothing_aliases():
    for rate in (44_100, 48_000):
        for hz, alias in ((15_000, 1_000), (9_000, 7_000), (8_500, 7_500)):
            part = audio.read(wave(sine(hz, 1.5, rate), rate, subtype="FLOAT"), 0.25, 1, 16_000, 1)[0]
            assert tone_db(part, alias, 16_000) < -90
            assert np.abs(part).max() < 1e-4
        part = audio.read(wave(sine(7_000, 1.5, rate), rate, subtype="FLOAT"), 0.25, 1, 16_000, 1)[0]
        assert tone_db(part, 7_000, 16_000) == pytest.approx(-6.02, abs=0.1)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 15_000),
    st.integers(1, 8_000),
    st.sampled_from([(44_100, 16_000), (48_000, 44_100), (16_000, 48_000)]),
)
def test_a_part_is_what_it_is_in_the_whole(first, count, rates):
    rate, new = rates
    noise = np.random.default_rng(0).normal(0, 0.1, rate).astype(np.float32)
    whole = audio.resample(noise[None], rate, new)
    data = wave(noise, rate, subtype="FLOAT")
    part = audio.read(data, first / new, count / new, new, 1)
    wanted = whole[:, first : first + count]
    assert (
        np.abs(part[:, : wanted.shape[1]] - wanted)[:, 0 if first > 400 else 400 : new - first - 400].max(initial=0)
        < 2e-4
    )


def test_mixing():
    left, right = sine(300, 0.2, 8_000), sine(500, 0.2, 8_000, 0.25)
    stereo = wave(np.stack([left, right], 1), 8_000, subtype="FLOAT")
    assert np.array_equal(audio.read(stereo, 0, 0.2, 8_000, 2), np.stack([left, right]))
    assert np.allclose(audio.read(stereo, 0, 0.2, 8_000, 1)[0], (left + right) / 2, atol=1e-7)
    mono = wave(left, 8_000, subtype="FLOAT")
    assert np.array_equal(audio.read(mono, 0, 0.2, 8_000, 2), np.stack([left, left]))


@pytest.mark.parametrize("kind", ["WAVEX", "FLAC", "OGG"])
def test_surround_is_mixed_by_what_channels_are(kind):
    """5.1: the centre goes to both sides, the rear left to the left, the bass to none; nothing can clip."""
    rate, share = 48_000, 1 / (1 + 2 * 0.7071)
    order = "LCRlrB" if kind == "OGG" else "LRCBlr"
    left, right = {"L": 1, "C": 0.7071, "l": 0.7071}, {"R": 1, "C": 0.7071, "r": 0.7071}
    for number, name in enumerate(order):
        samples = np.zeros((rate, 6), np.float32)
        samples[:, number] = sine(100, 1, rate)
        data = _with_layout(wave(samples, rate, kind, None if kind != "WAVEX" else "PCM_16"), kind)
        look = audio.look(data)
        assert look.channels == 6
        assert look.notes == (("surround", "6"),)
        part = audio.read(data, 0.2, 0.5, rate, 2)
        for side, table in zip(part, (left, right), strict=True):
            assert np.abs(side).max() == pytest.approx(0.5 * table.get(name, 0) * share, abs=0.01)


def _with_layout(data: bytes, kind: str) -> bytes:
    """libsndfile leaves the channel mask of a WAVE_FORMAT_EXTENSIBLE file empty; this is 5.1."""
    if kind != "WAVEX":
        return data
    place = data.index(b"fmt ") + 8 + 20
    return data[:place] + (0x3F).to_bytes(4, "little") + data[place + 4 :]


def test_loud_sound_is_cut_and_said():
    data = wave(sine(100, 0.5, 8_000, 2.0), 8_000, subtype="FLOAT")
    assert audio.look(data).notes == (("loud", "2 times"),)
    assert np.abs(audio.read(data, 0, 0.5, 8_000, 1)).max() == 1


def test_silence_is_noticed():
    assert audio.look(wave(np.zeros(800), 8_000)).blank
    assert not audio.look(wave(sine(100, 0.1, 8_000), 8_000)).blank


def test_sound_of_a_video():
    look = audio.look(film(50, tone=440))
    assert (look.rate, look.channels) == (48_000, 2)
    assert audio.read(film(50, tone=440), 0.5, 1, 16_000, 2).shape == (2, 16_000)


def test_tags(tmp_path):
    for kind in ("flac", "mp3", "ogg", "wav"):
        path = tmp_path / f"a.{kind}"
        with soundfile.SoundFile(path, "w", 44_100, 1) as file:
            file.title, file.artist, file.genre, file.comment = "Ä song", "One", "Jazz", "slow"
            file.write(sine(300, 0.3, 44_100))
        said = audio.tags(path)
        assert said["title"] == "Ä song"
        assert said["artist"] == "One"
        assert set(said) <= set(audio.TAGS)
    assert audio.tags(wave(sine(300, 0.3))) == {}


@pytest.mark.parametrize("ending", ["wav", "flac"])
def test_written(tmp_path, ending):
    values = np.array([-1, 1 - 2**-23, 0, 2**-23, -0.5, 0.3], np.float32)
    path = tmp_path / f"a.{ending}"
    audio.write(path, np.stack([values, -values]), 44_100)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    read = audio.read(path, 0, 6 / 44_100, 44_100, 2)
    assert np.abs(read - np.clip(np.stack([values, -values]), -1, 1 - 2**-23)).max() <= 2**-24
    assert soundfile.info(path).subtype == "PCM_24"


def test_nothing_is_left_of_sound_that_failed(tmp_path):
    with pytest.raises(ValueError, match="no numbers"):
        audio.write(tmp_path / "a.wav", np.full((1, 9), np.nan, np.float32), 8_000)
    with pytest.raises(soundfile.SoundFileError):
        audio.write(tmp_path / "a.flac", np.zeros((1, 9), np.float32), 5_000_000)
    assert not list(tmp_path.iterdir())


def test_mixing_to_more_channels_is_a_mistake():
    with pytest.raises(ValueError, match="1 or 2"):
        audio.read(wave(sine(100, 0.1)), 0, 0.1, 8_000, 6)
    with pytest.raises(Unusable, match="has no sound"):
        audio.read(film(5), 0, 0.1, 8_000, 1)
