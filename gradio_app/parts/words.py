"""Times and counts as people say them."""

from __future__ import annotations

TECHNICAL = {"lr": "Learning rate", "snr": "SNR"}


def duration(seconds: float | None) -> str:
    """'about 12 min', '40 s', '2 h 10 min'; empty when unknown."""
    if seconds is None:
        return ""
    seconds = max(0.0, seconds)
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, rest = divmod(round(minutes / 5) * 5, 60)
    return f"{hours} h {rest} min" if rest else f"{hours} h"


def to_the_minute(seconds: float) -> str:
    """'12 min', '2 h 3 min'; below a minute and a half in seconds."""
    minutes = round(max(0.0, seconds) / 60)
    if minutes < 60 or seconds < 90:
        return duration(seconds)
    hours, rest = divmod(minutes, 60)
    return f"{hours} h {rest} min" if rest else f"{hours} h"


def count(number: int, one: str, many: str | None = None) -> str:
    """'1 picture', '24 pictures'."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def per_step(seconds: float | None) -> str:
    """'0.42 s per step'; milliseconds below a tenth."""
    if seconds is None:
        return ""
    return f"{seconds * 1000:.0f} ms per step" if seconds < 0.1 else f"{seconds:.2f} s per step"


def title(key: str) -> str:
    """A setting's name as a label: 'caption_dropout' -> 'Caption dropout'."""
    words = key.replace("_", " ").split()
    said = [TECHNICAL.get(word, word) for word in words]
    text = " ".join(said)
    return text[:1].upper() + text[1:]
