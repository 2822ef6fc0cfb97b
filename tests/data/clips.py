"""Small videos and sounds, made on the spot, whose frames say their own number."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import soundfile

STEP = 4
"""Grey levels between the frames of `film`: wide enough to survive a lossy codec."""

OPTIONS = {
    "libx264": {"preset": "ultrafast", "crf": "4", "bf": "2", "b-pyramid": "normal", "g": "12", "sc_threshold": "0"},
    "libx265": {"preset": "ultrafast", "crf": "4", "g": "12", "x265-params": "log-level=none"},
    "libvpx-vp9": {"crf": "4", "g": "12", "deadline": "realtime", "cpu-used": "8"},
    "mpeg4": {"b": "4M", "g": "12"},
    "mpeg2video": {"b": "4M", "g": "12"},
}


def level(number: int) -> int:
    """The grey of a frame: unlike that of any frame nearby."""
    return 20 + number * STEP % 216


def grey(number: int, size: tuple[int, int] = (32, 24)) -> np.ndarray:
    return np.full((size[1], size[0], 3), level(number), np.uint8)


def film(  # noqa: PLR0913 - a test names the one thing in which its video differs
    frames: int | Sequence[np.ndarray] = 25,
    fps: int = 25,
    kind: str = "mp4",
    codec: str = "libx264",
    *,
    size: tuple[int, int] = (32, 24),
    times: Sequence[float] | None = None,
    turn: float | None = None,
    mirror: bool = False,
    matrix: Sequence[int] | None = None,
    pixels: str = "yuv420p",
    tone: float = 0.0,
    tone_rate: int = 48_000,
    **extra: object,
) -> bytes:
    """A video of frames that are grey by their number, or given. times: seconds of each; tone: Hz of its sound."""
    pictures = [grey(i, size) for i in range(frames)] if isinstance(frames, int) else frames
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=kind) as held:
        stream = held.add_stream(codec, fps, dict(OPTIONS.get(codec, {})))
        stream.height, stream.width = pictures[0].shape[:2] if len(pictures) else size[::-1]
        stream.pix_fmt = pixels
        stream.codec_context.thread_count = 1
        for name, value in extra.items():
            setattr(stream, name, value)
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if turn is not None:
            stream.set_display_rotation(turn, hflip=mirror)
        if matrix is not None:
            stream.set_display_matrix(matrix)
        track = None
        if tone:
            track = held.add_stream("aac" if kind != "webm" else "libopus", tone_rate)
            track.layout = "stereo"
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format=pixels)
            frame.pts = number if times is None else round(times[number] * 1000)
            frame.time_base = Fraction(1, fps) if times is None else Fraction(1, 1000)
            held.mux(stream.encode(frame))
        held.mux(stream.encode(None))
        if track is not None:
            seconds = len(pictures) / fps if times is None else times[-1]
            wave = sine(tone, seconds, tone_rate)
            for first in range(0, len(wave), 960):
                part = np.ascontiguousarray(np.stack([wave[first : first + 960]] * 2), np.float32)
                sound = av.AudioFrame.from_ndarray(part, "fltp", "stereo")
                sound.sample_rate, sound.pts = tone_rate, first
                held.mux(track.encode(sound))
            held.mux(track.encode(None))
    return buffer.getvalue()


def index_first(data: bytes) -> bytes:
    """An mp4 with its index before its data, as made for the web."""
    with tempfile.TemporaryDirectory() as folder, av.open(io.BytesIO(data)) as given:
        path = f"{folder}/a.mp4"
        with av.open(path, "w", options={"movflags": "faststart"}) as held:
            copies = {s.index: held.add_stream_from_template(s) for s in given.streams}
            for packet in given.demux():
                if packet.dts is not None:
                    packet.stream = copies[packet.stream.index]
                    held.mux(packet)
        return Path(path).read_bytes()


def sine(hz: float, seconds: float = 1.0, rate: int = 48_000, peak: float = 0.5) -> np.ndarray:
    """float32 [T]"""
    return (peak * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def wave(samples: np.ndarray, rate: int = 44_100, kind: str = "WAV", subtype: str | None = None) -> bytes:
    """[T] or [T, C] as a sound file."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=kind, subtype=subtype)
    return buffer.getvalue()


def sound_film(kind: str, codec: str, samples: np.ndarray, rate: int, layout: str = "mono") -> bytes:
    """float32 [C, T] in a container that soundfile lacks."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=kind) as held:
        track = held.add_stream(codec, rate, {"b": "256k"})
        track.layout = layout
        for first in range(0, samples.shape[1], 1024):
            part = np.ascontiguousarray(samples[:, first : first + 1024], np.float32)
            if track.format.name == "s16":
                part = np.ascontiguousarray(np.rint(part * 32768).astype(np.int16).T.reshape(1, -1))
            frame = av.AudioFrame.from_ndarray(part, track.format.name, layout)
            frame.sample_rate, frame.pts = rate, first
            held.mux(track.encode(frame))
        held.mux(track.encode(None))
    return buffer.getvalue()
