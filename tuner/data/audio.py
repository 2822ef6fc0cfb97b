"""Sound: facts, any part at any rate in one or two channels, tags, and writing. Knows no torch."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
import soundfile
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer

from . import facts
from .container import TROUBLE, container, seconds_of, ticks
from .facts import Look, Source, Unusable, opened

RATES = (2_000, 768_000)
"""Samples per second that are believed."""

MOST = 8
"""Most channels: above, there is no agreement what they are."""

FILTER = {"filter_size": "128", "filter_type": "kaiser", "kaiser_beta": "12", "cutoff": "0.96", "exact_rational": "1"}
"""swresample: measured flat to 7 kHz and below -130 dB from 8.5 kHz on when going from 44.1 to 16 kHz."""

MARGIN = 0.02
"""Seconds around a part that the filter sees too, so that a part is what it is in the whole."""

PREROLL = 0.5
"""Seconds decoded before a part: a decoder is right only after some."""

GAP = 0.05
"""Seconds by which the clock of a file may differ from the samples counted, before the clock is believed."""

PLAIN = (b"RIFF", b"RF64", b"riff", b"fLaC", b"OggS", b"FORM", b".snd", b"caff")
"""Starts of files that soundfile reads. MP3 is left to FFmpeg: its other reader writes to the terminal."""

SIDES = {"FL": (1, 0), "FR": (0, 1), "FC": (0.7071, 0.7071), "BC": (0.5, 0.5), "LFE": (0, 0), "LFE2": (0, 0)}
"""Channel → its share in left and right (ITU-R BS.775); others by their last letter."""

AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)

TAGS = ("title", "artist", "genre", "comment")

BLOCK = 1 << 17


class Voice(Protocol):
    """Open sound. names: of its channels, as FFmpeg calls them. promised: seconds that its header says, 0 for none."""

    rate: int
    names: tuple[str, ...]
    promised: float

    def samples(self, first: int, count: int) -> np.ndarray:
        """float32 [C, count] from this sample on; zeros before the start and after the end. Raises `Unusable`."""
        ...

    def blocks(self) -> Iterator[np.ndarray]:
        """All of it, float32 [C, n]; only before anything else is asked for. Raises `Unusable`."""
        ...


def look(source: Source) -> Look:
    """The facts of a sound file, or of the sound of a video, from decoding all of it."""
    try:
        with facts.steady(source):
            digest = facts.digest(source)
            with _open(source) as voice:
                return _facts(voice, digest)
    except Unusable as reason:
        return Look(kind="audio", error=str(reason))


def read(source: Source, start_seconds: float, seconds: float, rate: int, channels: int) -> np.ndarray:
    """A part of a file → float32 [channels, round(seconds * rate)] in -1..1; zeros after the end of the sound.

    One channel becomes two by copying, two become one by their mean, more are mixed down. Raises `Unusable`.
    """
    with _open(source) as voice:
        return cut(voice, start_seconds, seconds, rate, channels)


def tags(source: Source) -> dict[str, str]:
    """title, artist, genre and comment, as far as the file has them. Raises `Unusable`."""
    with container(source) as held:
        told = dict(held.metadata)
        for stream in held.streams.audio:
            told |= dict(stream.metadata)
    said = {key.lower(): value.strip() for key, value in told.items()}
    return {key: said[key] for key in TAGS if said.get(key)}


def write(path: Path, samples: np.ndarray, rate: int) -> None:
    """float32 [C, T] in -1..1 → 24-bit WAV, or FLAC by the ending. The name appears when all is written."""
    if not np.isfinite(samples).all():
        raise ValueError("sound to write has samples that are no numbers")
    scaled = np.clip(np.rint(samples.T.astype(np.float64) * (1 << 23)), -(1 << 23), (1 << 23) - 1)
    kind = "FLAC" if path.suffix.lower() == ".flac" else "WAV"
    with facts.written(path) as file:
        soundfile.write(file, scaled.astype(np.int32) << 8, rate, format=kind, subtype="PCM_24")


def cut(voice: Voice, start_seconds: float, seconds: float, rate: int, channels: int) -> np.ndarray:
    """A part of open sound, see `read`."""
    count = round(seconds * rate)
    if rate == voice.rate:
        part = _mix(voice.samples(round(start_seconds * rate), count), voice.names, channels)
    else:
        # begin at a moment that is a sample of both rates, so that all parts of a file lie on one grid
        grid = math.gcd(rate, voice.rate)
        begin = math.floor((start_seconds - MARGIN) * grid)
        length = seconds + start_seconds - begin / grid + MARGIN
        source = voice.samples(begin * voice.rate // grid, math.ceil(length * voice.rate))
        skip = round(start_seconds * rate) - begin * rate // grid
        part = resample(_mix(source, voice.names, channels), voice.rate, rate)[:, skip : skip + count]
    part = np.clip(part, -1, 1)
    return np.pad(part, ((0, 0), (0, count - part.shape[1])))


def resample(samples: np.ndarray, rate: int, new: int) -> np.ndarray:
    """float32 [C, T] → [C, about T * new / rate], C = 1 or 2, without what the new rate cannot hold."""
    if rate == new or not samples.shape[1]:
        return samples
    layout = "mono" if len(samples) == 1 else "stereo"
    worker = AudioResampler("fltp", layout, new, options=FILTER)
    frame = AudioFrame.from_ndarray(np.ascontiguousarray(samples, np.float32), "fltp", layout)
    frame.sample_rate = rate
    done = [part.to_ndarray() for given in (frame, None) for part in worker.resample(given)]
    return np.concatenate(done, 1)


def first_track(held: InputContainer) -> AudioStream | None:
    """The first sound that can be decoded: PyAV gives a stream of an unknown codec no facts."""
    return next((s for s in held.streams.audio if getattr(s, "rate", 0) and getattr(s, "channels", 0)), None)


def add_track(held: OutputContainer, rate: int, channels: int) -> AudioStream:
    """An AAC track for sound of this rate, or 48 kHz where AAC does not have it."""
    track = held.add_stream("aac", rate if rate in AAC_RATES else 48_000, {"b": "192k"})
    assert isinstance(track, AudioStream)
    track.layout = "mono" if channels == 1 else "stereo"
    return track


def frames(samples: np.ndarray, rate: int, new: int) -> Iterator[AudioFrame]:
    """float32 [C, T] in -1..1 as frames for an encoder."""
    samples = np.clip(resample(samples, rate, new), -1, 1)
    for first in range(0, samples.shape[1], 1024):
        part = np.ascontiguousarray(samples[:, first : first + 1024], np.float32)
        frame = AudioFrame.from_ndarray(part, "fltp", "mono" if len(part) == 1 else "stereo")
        frame.sample_rate, frame.pts = new, first
        yield frame


class Track:
    """Sound that FFmpeg decodes. origin: where time 0 is on the file's clock; None takes the first sample.

    A part from the middle is placed by the file's clock, right to a sample; Matroska's, to half a millisecond.
    """

    def __init__(self, held: InputContainer, stream: AudioStream, origin: float | None = None) -> None:
        self._held, self._stream, self._origin = held, stream, origin
        self._frames: Iterator[AudioFrame] = self._decode()
        first = next(self._frames, None)
        if first is None:
            raise Unusable("has no sound in it; record or convert it again, or remove it")
        self._first = first
        self._frames = itertools.chain([first], self._frames)
        if origin is None:
            self._origin = self._clock(first)
        self.rate, self.names = first.sample_rate, tuple(channel.name for channel in first.layout.channels)
        told = max(seconds_of(stream, stream.duration), 0 if held.streams.video else (held.duration or 0) / 1e6)
        self.promised = told if "mp3" not in held.format.name else 0.0  # of MP3 it is a guess

    def blocks(self) -> Iterator[np.ndarray]:
        for frame in self._frames:
            yield self._array(frame)

    def samples(self, first: int, count: int) -> np.ndarray:
        found = np.zeros((len(self.names), max(count, 0)), np.float32)
        place, begun = 0, False
        for frame in self._from(first / self.rate):
            array = self._array(frame)
            clock = round((self._clock(frame) - (self._origin or 0.0)) * self.rate) - first
            if not begun or abs(clock - place) > GAP * self.rate:
                place, begun = clock, True
            low, high = max(0, -place), min(array.shape[1], count - place)
            if low < high:
                found[:, place + low : place + high] = array[:, low:high]
            place += array.shape[1]
            if place >= count:
                break
        return found

    def _from(self, seconds: float) -> Iterator[AudioFrame]:
        """Frames from some time before this on. MP3 and bare AAC have no clock to seek by: all is decoded."""
        start = seconds - PREROLL + (self._origin or 0.0)
        if self._held.format.name in {"mp3", "aac", "amr"} or start <= self._clock(self._first):
            return self._frames
        try:
            self._held.seek(ticks(self._stream, start), stream=self._stream, backward=True)
        except TROUBLE:
            return self._frames
        return self._decode()

    def _decode(self) -> Iterator[AudioFrame]:
        place = 0.0
        try:
            for packet in self._held.demux(self._stream):
                if packet.is_corrupt:
                    raise Unusable(_damaged(place))
                for frame in packet.decode():
                    place = frame.time or place
                    yield frame
        except TROUBLE:
            raise Unusable(_damaged(place)) from None

    def _clock(self, frame: AudioFrame) -> float:
        return float(frame.pts * frame.time_base) if frame.pts is not None and frame.time_base else 0.0

    def _array(self, frame: AudioFrame) -> np.ndarray:
        """Samples of any kind → float32 [C, n]; integers scale exactly."""
        if frame.sample_rate != self.rate or len(frame.layout.channels) != len(self.names):
            raise Unusable("changes its rate or channels in the middle; convert it again, or cut it into two files")
        array = frame.to_ndarray()
        if not frame.format.is_planar:
            array = array.reshape(-1, len(self.names)).T
        if array.dtype == np.uint8:
            return (array.astype(np.float32) - 128) / 128
        if array.dtype.kind == "i":
            return (array / np.float64(2 ** (8 * array.dtype.itemsize - 1))).astype(np.float32)
        return array.astype(np.float32)


class Plain:
    """Sound that soundfile decodes, of one or two channels: any sample is reached at once."""

    names: tuple[str, ...]

    def __init__(self, file: soundfile.SoundFile) -> None:
        self._file, self.rate, self.promised = file, file.samplerate, 0.0
        self.names = ("FC",) if file.channels == 1 else ("FL", "FR")
        # libsndfile mends the header of a WAV that was cut off, and tells it only in its log
        for there, lost in re.findall(r"^ *(?:data|SSND) *: (\d+) \(should be (\d+)\)", file.extra_info, re.MULTILINE):
            if int(lost) < int(there) < 0x7FFFF000:  # above: written by a program that did not know the end
                raise Unusable(_cut_off(int(lost) / int(there)))

    def blocks(self) -> Iterator[np.ndarray]:
        while (block := self._read(BLOCK)).shape[1]:
            yield block

    def samples(self, first: int, count: int) -> np.ndarray:
        found = np.zeros((len(self.names), max(count, 0)), np.float32)
        low, high = max(first, 0), min(first + count, self._file.frames)
        if low < high:
            try:
                self._file.seek(low)
            except TROUBLE:
                raise Unusable(_damaged(low / self.rate)) from None
            found[:, low - first : high - first] = self._read(high - low)
        return found

    def _read(self, count: int) -> np.ndarray:
        place = self._file.tell()
        try:
            return self._file.read(count, "float32", always_2d=True).T
        except TROUBLE:
            raise Unusable(_damaged(place / self.rate)) from None


@contextmanager
def _open(source: Source) -> Iterator[Voice]:
    """By soundfile where it can, else by FFmpeg."""
    with opened(source) as file:
        plain = _plain(file)
        if plain is not None:
            with plain:
                _believable(plain.samplerate, plain.channels)
                yield Plain(plain)
            return
    with container(source) as held:
        if not held.streams.audio:
            raise Unusable("has no sound; put it into a video data set, or remove it")
        stream = first_track(held)
        if stream is None:
            raise Unusable("has sound of a kind that cannot be decoded here; convert it to WAV or FLAC")
        _believable(stream.rate, stream.channels)
        yield Track(held, stream)


def _plain(file: BinaryIO) -> soundfile.SoundFile | None:
    if file.read(4) not in PLAIN:
        return None
    file.seek(0)
    try:
        opened = soundfile.SoundFile(file)
    except (*TROUBLE, soundfile.SoundFileError):
        return None
    return opened if opened.channels <= 2 or opened.channels > MOST else None


def _believable(rate: int, channels: int) -> None:
    if not RATES[0] <= rate <= RATES[1]:
        raise Unusable(f"says that it has {rate:,} samples a second, which no sound has; convert it, or remove it")
    if not 1 <= channels <= MOST:
        raise Unusable(f"has {channels} channels, but at most {MOST} can be mixed; mix it to stereo, or remove it")


def _facts(voice: Voice, digest: str) -> Look:
    count, peak = 0, 0.0
    for block in voice.blocks():
        top = float(np.abs(block).max(initial=0))
        if not math.isfinite(top):
            raise Unusable("has samples that are no numbers (NaN or infinite); make it again, or remove it")
        count, peak = count + block.shape[1], max(peak, top)
    if not count:
        raise Unusable("has no sound in it (0 samples); record or convert it again, or remove it")
    seconds = count / voice.rate
    notes = []
    if len(voice.names) > 2:
        notes.append(("surround", str(len(voice.names))))
    if peak > 1.25:  # lossy files overshoot a little by nature
        notes.append(("loud", f"{peak:.3g} times"))
    if voice.promised > seconds * 1.05 + 1:
        notes.append(("promise", f"{voice.promised:,.0f} seconds, but there are {seconds:,.1f}"))
    return Look(
        digest, notes=tuple(notes), blank=peak == 0, kind="audio", seconds=seconds, rate=voice.rate,
        channels=len(voice.names),
    )  # fmt: skip


def _mix(samples: np.ndarray, names: tuple[str, ...], channels: int) -> np.ndarray:
    """[C, T] → [channels, T], channels = 1 or 2."""
    if channels not in {1, 2}:
        raise ValueError(f"channels is {channels}; sound is read in 1 or 2")
    if len(samples) > 2:
        sides = np.array([SIDES.get(name) or _side(name) for name in names], np.float32).T
        samples = sides / max(sides.sum(1).max(), 1) @ samples
    if len(samples) == channels:
        return samples
    return samples.mean(0, keepdims=True) if channels == 1 else samples.repeat(2, 0)


def _side(name: str) -> tuple[float, float]:
    return {"L": (0.7071, 0.0), "R": (0.0, 0.7071)}.get(name[-1:], (0.5, 0.5))


def _damaged(seconds: float) -> str:
    return f"has damaged sound after {max(0.0, seconds):.2f} seconds; download or convert it again, or remove it"


def _cut_off(share: float) -> str:
    return f"is cut off: {share:.0%} of its sound is there; download or record it again, or remove it"
