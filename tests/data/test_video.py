"""Videos: the right frames at the right times, in the right shape and colours, from any place of any file."""

from __future__ import annotations

import itertools
import tracemalloc
from functools import cache

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tuner.data import video
from tuner.data.facts import Look, Unusable
from tuner.data.video import Clip, clips, frame_count

from .clips import film, grey, level, sine

FULL = (0.0, 0.0, 32.0, 24.0)

FILES = [
    ("mp4", "libx264"), ("mov", "libx265"), ("matroska", "libx264"), ("webm", "libvpx-vp9"), ("avi", "mpeg4"),
    ("mpegts", "libx264"), ("mpeg", "mpeg2video"), ("flv", "libx264"),
]  # fmt: skip


@cache
def made(kind: str = "mp4", codec: str = "libx264", frames: int = 50) -> bytes:
    return film(frames, 25, kind, codec)


def levels(frames: np.ndarray) -> np.ndarray:
    """[F] grey of each."""
    return np.median(frames.reshape(len(frames), -1), 1)


def assert_numbers(frames: np.ndarray, numbers) -> None:
    """Each frame has the grey of its number, to a third of a step."""
    assert np.abs(levels(frames) - [level(n) for n in numbers]).max() <= 1.4


@given(st.integers(-5, 500), st.integers(1, 16), st.integers(1, 9))
def test_frame_count_obeys_the_rule(count, step, first):
    found = frame_count(count, step, first)
    assert found >= first
    assert (found - first) % step == 0
    assert found <= max(count, first) < found + step


@given(
    seconds=st.floats(0.01, 500), fps=st.floats(0.5, 120), frames=st.integers(1, 400), step=st.sampled_from([1, 4, 8]),
    number=st.integers(0, 12), first=st.sampled_from([1, 5]),
)  # fmt: skip
def test_clips_lie_inside_and_obey_the_rule(seconds, fps, frames, step, number, first):
    look = Look(kind="video", seconds=seconds)
    there = int(seconds * fps + 1e-6)
    if there < first:
        with pytest.raises(Unusable, match="is too short"):
            clips(look, frames=frames, fps=fps, step=step, clips=number, first=first)
        return
    plan = clips(look, frames=frames, fps=fps, step=step, clips=number, first=first)
    assert plan
    length = frame_count(min(frames, there), step, first)
    starts = [clip.start_seconds for clip in plan]
    assert starts == sorted(set(starts))
    for clip in plan:
        assert clip.frames == length
        assert clip.start_seconds >= 0
        assert clip.start_seconds + clip.frames / fps <= seconds + 1e-5
    if number == 1:
        [one] = plan
        before, after = one.start_seconds, seconds - one.start_seconds - length / fps
        assert abs(before - after) <= 2 / fps
    if number == 0:
        assert len(plan) == there // length
        assert all(b - a >= length / fps - 1e-6 for a, b in itertools.pairwise(starts))
    elif there - length >= 2 * number:
        assert len(plan) == number


def test_plan_by_hand():
    look = Look(kind="video", seconds=4.0)
    take = lambda **kw: clips(look, **(dict(frames=17, fps=24, step=8, clips=1) | kw))  # noqa: E731
    assert take() == [Clip(39 / 24, 17)]  # 96 frames: 39 before, 40 behind
    assert take(frames=20) == [Clip(39 / 24, 17)]
    assert take(frames=400) == [Clip(3 / 24, 89)]
    assert take(clips=2) == [Clip(15 / 24, 17), Clip(64 / 24, 17)]
    assert len(take(clips=0)) == 5
    with pytest.raises(Unusable, match="needs 97"):
        take(first=97)


@pytest.mark.parametrize(("kind", "codec"), FILES)
def test_every_frame_and_the_facts(kind, codec):
    data = made(kind, codec)
    look = video.look(data)
    assert not look.error
    assert (look.kind, look.width, look.height, look.frames, look.rate) == ("video", 32, 24, 50, 0)
    assert look.fps == pytest.approx(25, rel=0.01)
    assert look.seconds == pytest.approx(2, rel=0.01)
    assert not look.notes
    [clip] = clips(look, frames=50, fps=25, step=1, clips=1)
    assert_numbers(video.read(data, clip, 25, FULL, (32, 24)), range(50))
    quick = video.look(data, whole=False)
    assert (quick.frames, quick.seconds) == (look.frames, look.seconds)


@pytest.mark.parametrize(("kind", "codec"), FILES)
@settings(max_examples=12, deadline=None)
@given(start=st.integers(0, 45), count=st.integers(1, 5))
def test_any_place_of_any_file(kind, codec, start, count):
    """Seeking into the middle, on and between key frames, gives the very frames that decoding the whole gives."""
    frames = video.read(made(kind, codec), Clip(start / 25, count), 25, FULL, (32, 24))
    assert frames.shape == (count, 24, 32, 3)
    assert_numbers(frames, range(start, start + count))


@settings(max_examples=25, deadline=None)
@given(
    steps=st.lists(st.integers(5, 200), min_size=4, max_size=40),
    data=st.data(),
    fps=st.sampled_from([8, 16, 23.976, 30]),
)
def test_nearest_frame_in_time(steps, data, fps):
    """Variable frame rate, with frames that lean on later ones, and a seek: the frame nearest in time is taken."""
    times = np.concatenate([[0], np.cumsum(steps)]) / 1000
    source = film(len(times), 25, "mp4", times=times)
    look = video.look(source)
    assert look.frames == len(times)
    assert look.seconds == pytest.approx(times[-1] * len(times) / (len(times) - 1), abs=0.002)
    there = int(look.seconds * fps)
    if not there:
        return
    first = data.draw(st.integers(0, there - 1))
    frames = video.read(source, Clip(first / fps, there - first), fps, FULL, (32, 24))
    asked = np.arange(first, there) / fps
    away = np.abs(times[None] - asked[:, None])
    for frame, row in zip(levels(frames), away, strict=True):
        near = np.flatnonzero(row <= row.min() + 2e-6)
        assert min(abs(frame - level(n)) for n in near) <= 1.4


def test_slower_and_faster_sources_keep_their_speed():
    data = made()
    assert_numbers(video.read(data, Clip(0.4, 4), 12.5, FULL, (32, 24)), [10, 12, 14, 16])
    assert_numbers(video.read(data, Clip(0.4, 6), 50, FULL, (32, 24)), [10, 10, 11, 11, 12, 12])
    assert_numbers(video.read(data, Clip(1.92, 5), 25, FULL, (32, 24)), [48, 49, 49, 49, 49])


def test_open_groups_of_pictures():
    """After a seek to a key frame, frames before it lean on what was not decoded: they are taken from further back."""
    data = _open_gop()
    for start in range(46):
        assert_numbers(video.read(data, Clip(start / 25, 2), 25, FULL, (32, 24)), [start, start + 1])


def _open_gop() -> bytes:
    from . import clips as made_by

    usual = made_by.OPTIONS["libx264"]
    made_by.OPTIONS["libx264"] = {"crf": "4", "bf": "3", "g": "12", "x264-params": "open-gop=1:scenecut=0:b-adapt=0"}
    try:
        return film(48)
    finally:
        made_by.OPTIONS["libx264"] = usual


def test_frames_are_cut_and_scaled_as_pictures_are():
    rng = np.random.default_rng(0)
    source = [np.asarray(Image.fromarray(rng.integers(0, 255, (6, 8, 3), np.uint8)).resize((64, 48))) for _ in range(5)]
    data = film(source, 25, "matroska", "ffv1", pixels="bgr0")
    box, size = (3.5, 2.25, 51.5, 40.0), (24, 16)
    frames = video.read(data, Clip(0.04, 3), 25, box, size)
    expected = [np.asarray(Image.fromarray(s).resize(size, Image.Resampling.LANCZOS, box)) for s in source[1:4]]
    assert np.array_equal(frames, expected)


def corners() -> np.ndarray:
    """Red, green, blue and white quarters, wider than high."""
    image = np.zeros((32, 48, 3), np.uint8)
    image[:16, :24], image[:16, 24:], image[16:, :24], image[16:, 24:] = (
        (255, 0, 0), (0, 255, 0), (0, 0, 255), (255,) * 3,
    )  # fmt: skip
    return image


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("turn", [0, 90, 180, 270])
def test_turned_and_mirrored(turn, mirror):
    """A display matrix: PyAV makes one that turns counterclockwise, and mirrors what came out."""
    data = film([corners()] * 3, turn=turn, mirror=mirror)
    expected = Image.fromarray(corners()).rotate(turn, expand=True)
    expected = np.asarray(expected.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirror else expected)
    look = video.look(data)
    assert (look.height, look.width) == expected.shape[:2]
    size = (look.width, look.height)
    [frame] = video.read(data, Clip(0.04, 1), 25, (0, 0, *map(float, size)), size)
    for y, x in ((4, 4), (4, -5), (-5, 4), (-5, -5)):
        assert np.abs(frame[y, x].astype(int) - expected[y, x]).max() < 12
    [still] = video.stills(data, 1)
    assert still.size == size
    right = video.read(data, Clip(0.04, 1), 25, (size[0] / 2, 0.0, *map(float, size)), (8, 8))[0]
    assert np.abs(right[1, 4].astype(int) - expected[4, -5]).max() < 12


def test_portrait_of_a_phone():
    """The matrix that phones write into videos held upright: the sensor's picture is to be turned clockwise."""
    look = video.look(film([corners()] * 3, matrix=(0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)))
    assert (look.width, look.height) == (32, 48)
    [still] = video.stills(film([corners()] * 3, matrix=(0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)), 1)
    assert np.abs(np.array(still.getpixel((28, 4))) - (255, 0, 0)).max() < 12
    assert np.abs(np.array(still.getpixel((4, 4))) - (0, 0, 255)).max() < 12


def coded(colour: tuple[int, int, int], kr: float, kb: float, full: bool) -> tuple[int, int, int]:
    """An independent RGB → Y'CbCr by the definition (ITU-R BT.601, BT.709, BT.2020)."""
    r, g, b = (c / 255 for c in colour)
    y = kr * r + (1 - kr - kb) * g + kb * b
    u, v = (b - y) / (2 * (1 - kb)), (r - y) / (2 * (1 - kr))
    values = (y * 255, u * 255 + 128, v * 255 + 128) if full else (16 + y * 219, 128 + u * 224, 128 + v * 224)
    return tuple(round(v) for v in values)


COLOURS = {
    "bt601 limited": ((64, 48), 5, 1, (0.299, 0.114), False),
    "bt601 full": ((64, 48), 5, 2, (0.299, 0.114), True),
    "bt709 limited": ((64, 48), 1, 1, (0.2126, 0.0722), False),
    "bt709 full": ((64, 48), 1, 2, (0.2126, 0.0722), True),
    "bt2020 limited": ((64, 48), 9, 1, (0.2627, 0.0593), False),
    "unsaid, small": ((64, 48), 2, 0, (0.299, 0.114), False),
    "unsaid, large": ((1280, 720), 2, 0, (0.2126, 0.0722), False),
}


@pytest.mark.parametrize("name", COLOURS)
def test_matrix_and_range(name):
    import io
    from fractions import Fraction

    size, matrix, span, weights, full = COLOURS[name]
    colours = [(200, 40, 60), (20, 180, 90), (70, 60, 220), (255, 255, 255), (0, 0, 0), (128, 128, 128)]
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as held:
        stream = held.add_stream("libx264", 25, {"qp": "0", "preset": "ultrafast"})
        stream.width, stream.height = size
        stream.pix_fmt, stream.colorspace, stream.color_range = "yuv420p", matrix, span
        for number, colour in enumerate(colours):
            y, u, v = coded(colour, *weights, full)
            planes = np.full((size[1] * 3 // 2, size[0]), y, np.uint8)
            planes[size[1] : size[1] * 5 // 4], planes[size[1] * 5 // 4 :] = u, v
            frame = av.VideoFrame.from_ndarray(planes, "yuv420p")
            frame.pts, frame.time_base, frame.colorspace, frame.color_range = number, Fraction(1, 25), matrix, span
            held.mux(stream.encode(frame))
        held.mux(stream.encode(None))
    frames = video.read(buffer.getvalue(), Clip(0, len(colours)), 25, (0, 0, *map(float, size)), (16, 16))
    assert np.abs(frames[:, 8, 8].astype(int) - colours).max() <= 2


def test_notes():
    assert [kind for kind, _ in video.look(film(12, times=[*np.arange(11) / 25, 2])).notes] == ["variable"]
    wide = video.look(film(5, sample_aspect_ratio=2))
    assert (wide.width, wide.height) == (64, 24)
    assert wide.notes == (("pixel shape", "2:1"),)
    hdr = video.look(film(5, color_trc=16, color_primaries=9, colorspace=9))
    assert hdr.notes == (("hdr", "PQ"),)


def test_hdr_is_brought_to_ordinary_brightness():
    """PQ codes 203 nits, the white of ordinary video in HDR, as 58% grey: shown unconverted it would look dull."""
    bright = [np.full((24, 32, 3), 148, np.uint8)] * 3
    plain = video.read(film(bright), Clip(0, 1), 25, FULL, (32, 24)).mean()
    pq = film(bright, color_trc=16, color_primaries=9, colorspace=9)
    assert plain == pytest.approx(148, abs=3)
    assert video.read(pq, Clip(0, 1), 25, FULL, (32, 24)).mean() > 195


def test_one_frame_and_one_pixel():
    one = video.look(film(1))
    assert (one.frames, one.fps, one.seconds) == (1, 25, 0.04)
    assert video.read(film(1), Clip(0, 2), 25, FULL, (32, 24)).shape == (2, 24, 32, 3)
    dot = film([np.full((1, 1, 3), 200, np.uint8)] * 3, 25, "matroska", "ffv1", pixels="bgr0")
    assert (video.look(dot).width, video.look(dot).height) == (1, 1)
    assert video.read(dot, Clip(0, 2), 25, (0, 0, 1, 1), (8, 8)).min() == 200


def test_transparent_gif_on_paper():
    import io

    buffer = io.BytesIO()
    first = Image.new("P", (32, 24), 0)
    first.putpalette([0, 0, 0, 200, 100, 0])
    first.paste(1, (0, 0, 16, 24))
    first.save(buffer, "GIF", save_all=True, append_images=[first.transpose(Image.Transpose.ROTATE_180)] * 2,
               transparency=0, duration=100, disposal=2)  # fmt: skip
    look = video.look(buffer.getvalue())
    assert not look.error
    assert "transparent" in dict(look.notes)
    [frame] = video.read(buffer.getvalue(), Clip(0, 1), 10, FULL, (32, 24), "#00ff00")
    assert frame[12, 4].tolist() == [200, 100, 0]
    assert frame[12, 28].tolist() == [0, 255, 0]


def test_stills():
    images = video.stills(made(), 5)
    assert [image.size for image in images] == [(32, 24)] * 5
    assert_numbers(np.stack([np.asarray(i) for i in images]), [5, 15, 25, 35, 45])


@pytest.mark.parametrize("kind", ["mp4", "matroska", "mpegts"])
def test_sound_of_a_clip(kind):
    """The right part of the track, at the right time: a tone from a track whose phase is known."""
    data = film(75, 25, kind, tone=440, tone_rate=48_000)
    look = video.look(data)
    assert (look.rate, look.channels) == (48_000, 2)
    part = video.sound(data, 1.2, 0.7, 16_000, 1)
    assert part.shape == (1, 11_200)
    assert part.dtype == np.float32
    expected = sine(440, 3, 16_000)[19_200:30_400]
    lag = [np.abs(part[0, 100:-100] - np.roll(expected, k)[100:-100]).max() for k in range(-18, 19)]
    shift = int(np.argmin(lag)) - 18
    assert min(lag) < 0.05
    # MPEG-TS has no place to say by how much AAC is late: 1024 samples of 48 kHz, less than a frame
    assert abs(shift) <= (1 if kind != "mpegts" else 18)


def test_silence_only_if_asked():
    with pytest.raises(Unusable, match="has no sound"):
        video.sound(made(), 0, 1, 16_000, 2)
    silent = video.sound(made(), 0, 0.5, 16_000, 2, silence=True)
    assert silent.shape == (2, 8_000)
    assert not silent.any()


@pytest.mark.parametrize("rate", [48_000, 22_050, 7_777])
def test_written_video(tmp_path, rate):
    frames = np.stack([grey(i, (33, 23)) for i in range(30)])
    tone = np.stack([sine(300, 1.2, rate)] * 2)
    path = tmp_path / "sample.mp4"
    video.write(path, frames, 24, tone, rate)
    assert [p.name for p in tmp_path.iterdir()] == ["sample.mp4"]
    look = video.look(path)
    assert not look.error
    assert not look.notes
    assert (look.width, look.height, look.frames, look.channels) == (34, 24, 30, 2)
    assert look.fps == pytest.approx(24)
    read = video.read(path, Clip(0, 30), 24, FULL, (32, 24))
    assert_numbers(read, range(30))
    heard = video.sound(path, 0, 1.2, 16_000, 2)
    assert np.abs(heard[:, 500:-500] - sine(300, 1.2, 16_000)[500:-500]).max() < 0.06
    with av.open(str(path)) as held:
        stream = held.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt, stream.codec_context.colorspace) == ("h264", "yuv420p", 1)


def test_nothing_is_left_of_a_video_that_failed(tmp_path):
    with pytest.raises(Exception):  # noqa: B017
        video.write(tmp_path / "a.mp4", np.zeros((3, 24, 32, 4), np.uint8), 24)
    assert not list(tmp_path.iterdir())


def test_memory_does_not_grow_with_the_file(tmp_path):
    """Peak memory of Python and numpy, for a clip of a short and of a ten times longer file, and for a look."""

    def peak(work) -> int:
        tracemalloc.start()
        work()
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    rng = np.random.default_rng(0)
    noise = list(rng.integers(0, 255, (60, 96, 128, 3), np.uint8))
    short, long = tmp_path / "short.mp4", tmp_path / "long.mp4"
    short.write_bytes(film(noise))
    long.write_bytes(film(noise * 10))
    assert short.stat().st_size > 500_000
    box = (0.0, 0.0, 128.0, 96.0)
    for work in (lambda d: video.read(d, Clip(1, 25), 25, box, (128, 96)), video.look):
        work(short)
        assert peak(lambda: work(long)) < peak(lambda: work(short)) + 30_000  # noqa: B023


def test_frames_too_large_to_hold_are_refused(monkeypatch):
    monkeypatch.setattr(video, "LIMIT", 32 * 24 - 1)
    assert video.look(film(2)).error.startswith("says that it has 32x24 pixels, more than can be decoded; ")
