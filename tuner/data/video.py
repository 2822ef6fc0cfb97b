"""Videos: their facts, the plan of their clips, and exactly the frames and the sound of a clip. Knows no torch.

Times are counted from the first frame that is shown, whatever the file calls it. Motion keeps its true speed: the frame
at time t is the one of the file nearest to t, so a faster file loses frames, and a slower one has some repeated.
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Self

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from av.sidedata.sidedata import Type
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from PIL import Image

from . import audio, facts
from .container import LIMIT, TROUBLE, container, seconds_of, ticks
from .facts import Look, Source, Unusable

TIE = 1e-6
"""Seconds by which a later frame must be nearer to be taken: at a tie, the earlier is."""

BACK = (0.0, 1.0, 8.0)
"""Seconds before a time at which a place to start decoding is looked for, before all is decoded from the start."""

SLACK = 0.05
"""Share by which a file may promise more seconds than it has without a note."""

UPRIGHT = {
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
}
"""Signs of a display matrix (a, b, c, d), which moves (x, y) to (a x + c y, b x + d y) → what does the same."""

PRECISE = 0x0002 | 0x2000 | 0x40000
"""swscale: bilinear colour, at full width, accurate rounding: its default is off by a level or more on average."""

BT709, UNSPECIFIED, WIDE, HDR = 1, 2, {9, 11, 12}, {16: "PQ", 18: "HLG"}
"""FFmpeg's numbers: the colours of HD video, of none said, primaries wider than those, and transfers of HDR."""


@dataclass(frozen=True, slots=True)
class Clip:
    """A part of a video: where it starts, and its number of frames after resampling."""

    start_seconds: float
    frames: int


def frame_count(count: int, step: int, first: int = 1) -> int:
    """The largest number up to `count` of the form step*k + first (4k+1, 8k+1); at least `first`."""
    return max(0, count - first) // step * step + first


def clips(look: Look, *, frames: int, fps: float, step: int, clips: int, first: int = 1) -> list[Clip]:
    """The plan of a video: `clips` clips, spread evenly (1: the middle; 0: as many as fit without overlap).

    Each has `frames` frames at `fps`, or, of a shorter video, the largest number of the family's form
    step*k + first. Clips start on the grid of 1/fps. There are fewer where several would be the same.
    Raises `Unusable` for a video that is too short for any.
    """
    there = int(look.seconds * fps + 1e-6)
    if there < first:
        raise Unusable(
            f"is too short: its {look.seconds:.3g} seconds give {there} frames at {fps:g} a second, but this model "
            f"needs {first}; use a longer video, or a higher media.fps"
        )
    length = frame_count(min(frames, there), step, first)
    count = clips or there // length
    edge = max(0, there - count * length) // (2 * count)  # clips lie in the middles of equal parts, if they fit in them
    room = there - length - 2 * edge
    places = dict.fromkeys(edge + i * room // max(1, count - 1) for i in range(count))
    return [Clip(place / fps, length) for place in places]


def look(source: Source, whole: bool = True) -> Look:
    """The facts of a video, from decoding all of it; damage anywhere makes it unusable.

    whole=False reads all packets and decodes only the first frame, unless the numbers of the file disagree: some fifty
    times faster, but damage is found only by `read`. The sound is decoded by `sound` alone.
    """
    try:
        with facts.steady(source):
            digest = facts.digest(source)
            with Film(source) as film:
                return _facts(film, _all_frames(film) if whole else _packets(film) or _all_frames(film), digest)
    except Unusable as reason:
        return Look(kind="video", error=str(reason))


def read(
    source: Source,
    clip: Clip,
    fps: float,
    box: tuple[float, float, float, float],
    size: tuple[int, int],
    paper: str = "white",
) -> np.ndarray:
    """The frames of a clip → uint8 [F, h, w, 3], RGB, upright. Decodes from the key frame before the clip to its end.

    box: what is kept, (left, top, right, bottom) in the pixels of `Look`; it is brought to size = (w, h) as pictures
    are. Raises `Unusable`.
    """
    times = [clip.start_seconds + i / fps for i in range(clip.frames)]
    frames = np.empty((clip.frames, size[1], size[0], 3), np.uint8)
    with Film(source) as film:
        last = None
        for i, frame in enumerate(film.nearest(times)):
            if frame is last:
                frames[i] = frames[i - 1]
                continue
            image = film.upright(frame, paper)
            frames[i] = np.asarray(image.resize(size, Image.Resampling.LANCZOS, film.inside(box, image.size)))
            last = frame
    return frames


def stills(source: Source, count: int, paper: str = "white") -> list[Image.Image]:
    """`count` pictures in the middles of equal parts of a video, upright, as shown. Raises `Unusable`."""
    with Film(source) as film:
        seen = _packets(film) or _all_frames(film)
    images = []
    with Film(source) as film:
        for i in range(count):
            [frame] = film.nearest([(i + 0.5) * seen.seconds / count])
            image = film.upright(frame, paper)
            images.append(image if image.size == film.size else image.resize(film.size, Image.Resampling.LANCZOS))
    return images


def sound(
    source: Source, start_seconds: float, seconds: float, rate: int, channels: int, silence: bool = False
) -> np.ndarray:
    """The sound of a clip → float32 [channels, round(seconds * rate)] in -1..1; zeros where the track does not reach.

    silence: a video without sound gives zeros, instead of raising `Unusable`.
    """
    with Film(source) as film:
        if film.sound is None:
            if not silence:
                raise Unusable("has no sound; use a video with sound, or set media.sound=false")
            return np.zeros((channels, round(seconds * rate)), np.float32)
        origin = film.origin
    with container(source) as held:
        track = audio.first_track(held)
        assert track is not None, "the film has one"
        return audio.cut(audio.Track(held, track, origin), start_seconds, seconds, rate, channels)


def write(path: Path, frames: np.ndarray, fps: float, sound: np.ndarray | None = None, rate: int = 0) -> None:
    """uint8 [F, H, W, 3] and float32 [C, T] in -1..1 → mp4 (H.264, AAC). The name appears when all is written.

    An odd width or height, which the format does not have, is filled up by repeating the last column or row.
    """
    height, width = frames.shape[1:3]
    frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), "edge")
    with facts.written(path) as file, av.open(file, "w", format="mp4") as held:
        stream = held.add_stream("libx264", Fraction(fps).limit_denominator(1001), {"crf": "16", "preset": "fast"})
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        stream.colorspace = stream.color_primaries = stream.color_trc = BT709
        stream.color_range = 1
        track = audio.add_track(held, rate, len(sound)) if sound is not None else None
        for number, pixels in enumerate(frames):
            frame = VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "rgb24").reformat(
                format="yuv420p", dst_colorspace="itu709", interpolation=PRECISE
            )
            frame.pts, frame.time_base = number, 1 / stream.codec_context.framerate
            held.mux(stream.encode(frame))
        held.mux(stream.encode(None))
        if track is not None and sound is not None:
            _mux_sound(held, track, sound, rate)


def _mux_sound(held: OutputContainer, track: AudioStream, sound: np.ndarray, rate: int) -> None:
    for frame in audio.frames(sound, rate, track.rate):
        held.mux(track.encode(frame))
    held.mux(track.encode(None))


class Film:
    """An open video, whose frames come in order of time."""

    def __init__(self, source: Source) -> None:
        self._source, self._open = source, ExitStack()
        self.origin = 0.0

    def __enter__(self) -> Self:
        self._start()
        width, height = self.first.width, self.first.height
        if width * height > LIMIT:
            raise Unusable(_too_large(width, height))
        self.coded = width, height
        self.turn = _turn(self.first)
        shape = self.stream.sample_aspect_ratio or Fraction(1)
        self.pixel = shape if Fraction(1, 4) <= shape <= 4 else Fraction(1)
        width = max(1, round(width * self.pixel))
        sideways = self.turn is not None and _sideways(self.turn)
        self.size = (height, width) if sideways else (width, height)
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def _start(self) -> None:
        self._open.close()
        self.held = self._open.enter_context(container(self._source))
        self.stream, self.sound = _streams(self.held)
        self.packets = self.shown = 0
        self._frames = self._decode()
        first = next(self._frames, None)
        if first is None:
            raise Unusable("has no frames that can be decoded; download or convert it again, or remove it")
        self.first, self.origin = first, _time(first)
        self._frames = itertools.chain([first], self._frames)

    def time(self, frame: VideoFrame) -> float:
        """Seconds since the first frame."""
        return _time(frame) - self.origin

    def frames(self) -> Iterator[VideoFrame]:
        """All frames from the start; only before any other is asked for."""
        return self._frames

    def nearest(self, times: Iterable[float]) -> Iterator[VideoFrame]:
        """For each of these rising times, the frame nearest to it."""
        rising = list(times)
        frames = self._from(rising[0])
        before, after = None, next(frames, None)
        for wanted in rising:
            while after is not None and self.time(after) < wanted:
                before, after = after, next(frames, None)
            yield self._nearer(before, after, wanted)

    def _nearer(self, before: VideoFrame | None, after: VideoFrame | None, wanted: float) -> VideoFrame:
        if before is None or after is None:
            only = before or after
            assert only is not None, "there is a first frame"
            return only
        return after if self.time(after) - wanted < wanted - self.time(before) - TIE else before

    def _from(self, wanted: float) -> Iterator[VideoFrame]:
        """Frames in order, beginning with one at or before a time."""
        for back in BACK:
            if wanted - back <= 0:
                break
            try:
                start = ticks(self.stream, wanted - back + self.origin)
                self.held.seek(start, stream=self.stream, backward=True)
                frames = self._decode()
                # what precedes the first key frame may lean on frames that were never decoded
                first = next((frame for frame in frames if frame.key_frame), None)
            except (*TROUBLE, Unusable):
                break
            if first is not None and self.time(first) <= wanted:
                return itertools.chain([first], frames)
        self._start()
        return self._frames

    def upright(self, frame: VideoFrame, paper: str = "white") -> Image.Image:
        """A frame as RGB, turned as players show it, its pixels as wide as in the file. Raises `Unusable`."""
        if (frame.width, frame.height) != self.coded:
            raise Unusable(_changes_size(self, frame))
        try:
            image = _to_rgb(frame, paper)
        except TROUBLE:
            raise Unusable(f"has colours of a kind that cannot be read ({frame.format.name}); convert it") from None
        return image.transpose(self.turn) if self.turn is not None else image

    def inside(
        self, box: tuple[float, float, float, float], size: tuple[int, int]
    ) -> tuple[float, float, float, float]:
        """A box in pixels as shown → in those of an upright frame of this size: they differ if not square."""
        x, y = size[0] / self.size[0], size[1] / self.size[1]
        return box[0] * x, box[1] * y, min(box[2] * x, size[0]), min(box[3] * y, size[1])

    def _decode(self) -> Iterator[VideoFrame]:
        """Decode from where the file stands. What cannot be decoded before the first frame is passed over."""
        begun = 0.0, False
        try:
            for packet in self.held.demux(self.stream):
                self._count(packet)
                for frame in self._frames_of(packet, *begun):
                    begun = _time(frame), True
                    yield frame
        except TROUBLE:
            raise Unusable(_damaged(begun[0] - self.origin)) from None

    def _count(self, packet: Packet) -> None:
        if packet.size:
            self.packets += 1
            self.shown += not packet.is_discard

    def _frames_of(self, packet: Packet[VideoStream], last: float, begun: bool) -> list[VideoFrame]:
        try:
            frames = packet.decode()
        except TROUBLE:
            if not begun:
                return []
            raise
        if begun and any(frame.is_corrupt for frame in frames):
            raise Unusable(_damaged(last - self.origin))
        return [frame for frame in frames if begun or not frame.is_corrupt]


@dataclass
class _Seen:
    """Times of all frames in seconds, rising, and what was noticed of them."""

    times: array[float] = field(default_factory=lambda: array("d"))
    interlaced: bool = False
    usual: float = 0.0

    @property
    def fps(self) -> float:
        """Average frames per second."""
        span = self.times[-1] - self.times[0]
        return (len(self.times) - 1) / span if span else self.usual

    @property
    def seconds(self) -> float:
        return len(self.times) / self.fps


def _all_frames(film: Film) -> _Seen:
    """Decode a whole video. Raises `Unusable` at the first damage."""
    seen = _Seen(usual=_usual(film.stream))
    for frame in film.frames():
        now = film.time(frame)
        if seen.times and now < seen.times[-1]:
            raise Unusable(f"has times that run backwards at {seen.times[-1]:.2f} seconds; convert it to mp4 again")
        if (frame.width, frame.height) != film.coded:
            raise Unusable(_changes_size(film, frame))
        seen.times.append(now)
        seen.interlaced |= frame.interlaced_frame
    _check(film, seen)
    return seen


def _packets(film: Film) -> _Seen | None:
    """The same from packets alone, where their times and the file's own count leave no doubt; else None."""
    times, told = array("d"), film.stream.frames
    with container(film._source) as held:
        stream, _ = _streams(held)
        try:
            for packet in held.demux(stream):
                if packet.size and (packet.pts is None or packet.is_corrupt):
                    return None
                if packet.size and not packet.is_discard:
                    times.append(seconds_of(stream, packet.pts) - film.origin)
        except TROUBLE:
            return None
    times = array("d", sorted(times))
    if len(times) != told or len(set(times)) != told or abs(times[0]) > TIE:
        return None
    return _Seen(times, film.first.interlaced_frame, _usual(film.stream))


def _check(film: Film, seen: _Seen) -> None:
    """Refuse a video whose table of frames, which only mov and mp4 have, names frames that are not there."""
    told, count = film.stream.frames, len(seen.times)
    if "mp4" in film.held.format.name and film.packets < told:
        raise Unusable(f"is cut off: {count} of its {told} frames are there; download it again, or remove it")
    if count > 1 and seen.times[-1] == seen.times[0]:
        raise Unusable("has frames without times; convert it to mp4 again, or remove it")


def _facts(film: Film, seen: _Seen, digest: str) -> Look:
    rate, channels = (film.sound.rate, film.sound.channels) if film.sound else (0, 0)
    return Look(
        digest, *film.size, _notes(film, seen), kind="video", frames=len(seen.times), fps=seen.fps,
        seconds=seen.seconds, rate=rate, channels=channels,
    )  # fmt: skip


def _notes(film: Film, seen: _Seen) -> tuple[tuple[str, str], ...]:
    """What is done to the frames and not seen by looking at them, as (kind, detail)."""
    notes = []
    if colours := _wide(film.first):
        notes.append(("hdr", colours))
    if seen.interlaced:
        notes.append(("interlaced", ""))
    if film.pixel != 1:
        notes.append(("pixel shape", f"{film.pixel.numerator}:{film.pixel.denominator}"))
    if _has_alpha(film.first):
        notes.append(("transparent", "the background"))
    steps = np.diff(np.frombuffer(seen.times))
    if len(steps) and steps.max() > 1.5 * steps.min() + 2e-3:  # Matroska rounds times to milliseconds
        notes.append(("variable", f"{1 / steps.max():.3g} to {1 / max(steps.min(), 1e-3):.3g}"))
    told = max(seconds_of(film.stream, film.stream.duration), (film.held.duration or 0) / 1e6)
    if film.stream.frames > len(seen.times):
        notes.append(("promise", f"{film.stream.frames} frames, but there are {len(seen.times)}"))
    elif told > seen.seconds * (1 + SLACK) + 1:
        notes.append(("promise", f"{told:,.0f} seconds, but there are {seen.seconds:,.1f}"))
    return tuple(notes)


def _streams(held: InputContainer) -> tuple[VideoStream, AudioStream | None]:
    """The moving pictures (no cover), set up to decode in one thread: files are decoded side by side; and the sound."""
    moving = [s for s in held.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    if not moving:
        raise Unusable("has no moving pictures; put it into an audio data set, or remove it")
    stream = moving[0]
    try:
        stream.thread_count, stream.thread_type = 1, "NONE"
        width, height = stream.width, stream.height
    except TROUBLE:
        raise Unusable("is in a video format that cannot be decoded here; convert it to H.264 in mp4") from None
    if width * height > LIMIT:
        raise Unusable(_too_large(width, height))
    return stream, audio.first_track(held)


def _usual(stream: VideoStream) -> float:
    """The frame rate of a video of one frame, as far as its file says anything believable."""
    rate = float(stream.average_rate or stream.guessed_rate or 0)
    return rate if 1 <= rate <= 240 else 25.0


def _time(frame: VideoFrame) -> float:
    ticks = frame.pts if frame.pts is not None else frame.dts
    if ticks is None or frame.time_base is None:
        raise Unusable("has frames without times; convert it to mp4 again, or remove it")
    return float(ticks * frame.time_base)


def _turn(frame: VideoFrame) -> Image.Transpose | None:
    """What sets a frame upright, by its display matrix."""
    matrix = frame.side_data.get(Type.DISPLAYMATRIX)  # pyrefly: ignore[no-matching-overload]
    if matrix is None:
        return None
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist()
    small = max(map(abs, (a, b, c, d))) / 2
    a, b, c, d = ((value > small) - (value < -small) for value in (a, b, c, d))
    return UPRIGHT.get((a, b, c, d))


def _sideways(turn: Image.Transpose) -> bool:
    return turn in {
        Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_270, Image.Transpose.TRANSPOSE, Image.Transpose.TRANSVERSE,
    }  # fmt: skip


def _has_alpha(frame: VideoFrame) -> bool:
    return any(component.is_alpha for component in frame.format.components) or frame.format.has_palette


def _wide(frame: VideoFrame) -> str:
    """The name of colours that a screen of ordinary range does not have, or ""."""
    return HDR.get(frame.color_trc, "wide colours" if frame.color_primaries in WIDE else "")


def _to_rgb(frame: VideoFrame, paper: str) -> Image.Image:
    """By the matrix and range of the frame; where none is said, by those of its size, as players do."""
    large = frame.height > 576 or frame.width >= 1280
    alpha, ordinary = _has_alpha(frame), BT709 if _wide(frame) else None
    done = frame.reformat(
        format="rgba" if alpha else "rgb24",
        interpolation=PRECISE,
        src_colorspace="itu709" if frame.colorspace == UNSPECIFIED and large else None,
        dst_color_trc=ordinary,
        dst_color_primaries=ordinary,
    )
    image = Image.fromarray(done.to_ndarray())
    if not alpha:
        return image
    ground = Image.new("RGB", image.size, paper)
    ground.paste(image, mask=image.getchannel("A"))
    return ground


def _damaged(seconds: float) -> str:
    return f"is damaged after {max(0.0, seconds):.2f} seconds; download or convert it again, or remove it"


def _changes_size(film: Film, frame: VideoFrame) -> str:
    size = f"{film.coded[0]}x{film.coded[1]} to {frame.width}x{frame.height}"
    return f"changes its size from {size} pixels at {film.time(frame):.2f} seconds; cut it there into two files"


def _too_large(width: int, height: int) -> str:
    return f"says that it has {width}x{height} pixels, more than can be decoded; make it smaller, or remove it"
