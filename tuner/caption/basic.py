"""The captioner that needs no model: it says what the file is called and what can be measured, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from PIL import Image

from ..data.captions import from_name
from ..device import Device
from .captioner import Asked, Said, Subject

NO_NAMES = frozenset(
    re.findall(
        r"\w+",
        "img image images dsc dscn dscf pxl mvi vid video clip photo photos pic picture pictures scan screenshot file "
        "frame untitled unnamed unknown download new copy final output export whatsapp snapchat signal telegram "
        "track audio sound recording rec voice take sample wa at am pm of the a",
    )
)
"""Words that cameras, phones and programs write into file names."""

HUES = (
    (15, "red"), (42, "orange"), (68, "yellow"), (160, "green"), (195, "turquoise"), (255, "blue"), (290, "purple"),
    (345, "pink"), (361, "red"),
)  # fmt: skip
"""Degrees up to which a colour has this name."""

SHARE = 0.25
"""Least share of the pixels of a colour that is named."""


class Basic:
    """File name, main colours, brightness and shape of pictures; file name and tags of sounds. Invents nothing."""

    name = "basic"
    kinds = frozenset({"image", "video", "audio"})
    stills, rate, seconds = 1, 0, 0.0

    def load(self, where: Device, asked: Asked) -> list[str]:
        """See `Captioner`."""
        return [
            "The basic captioner looks at no content: it uses file names and tags, and measures colours, brightness "
            "and shape. Use --model qwen or florence for descriptions."
        ]

    def caption(self, subjects: Sequence[Subject], asked: Asked) -> list[Said]:
        """See `Captioner`. The limit counts words here."""
        return [self._one(subject, asked) for subject in subjects]

    def _one(self, subject: Subject, asked: Asked) -> Said:
        parts = [telling(from_name(subject.name))]
        if subject.kind == "audio":
            tags = {key: subject.tags.get(key, "").strip() for key in ("title", "genre", "comment")}
            title = "" if tags["title"].casefold() == parts[0].casefold() else telling(tags["title"])
            parts += [title, tags["genre"], tags["comment"]]
        elif subject.images and asked.purpose != "style":  # colours and light are what a style is made of
            parts += measured(subject.images[0])
        text = ", ".join(" ".join(part.split()) for part in parts if part)
        words = text.split(" ")
        return Said(" ".join(words[: asked.limit]).rstrip(","), len(words) <= asked.limit)


def telling(text: str) -> str:
    """A name where it says something, else "": "IMG 1234", "PXL 20240101", "a3f9c2d1" and "DSC-2" do not."""
    words = re.findall(r"[^\W\d_]+", text)
    if re.fullmatch(r"[0-9a-f]{6,}([ -]?[0-9a-f]{4,})*", text.lower()) and re.search(r"\d", text):
        return ""
    return text if any(len(w) > 2 and w.lower() not in NO_NAMES for w in words) else ""


def measured(image: Image.Image) -> list[str]:
    """Main colours, brightness and shape in words."""
    small = image.convert("RGB").resize((64, 64), Image.Resampling.BOX)
    names, counts = np.unique([colour(*rgb) for rgb in np.asarray(small).reshape(-1, 3).tolist()], return_counts=True)
    order = np.argsort(-counts, kind="stable")[:3]
    main = [str(names[n]) for n in order if counts[n] >= SHARE * 64 * 64]
    grey = bool((np.ptp(np.asarray(small, np.int16), axis=2) <= 12).all())
    light = float(np.asarray(small.convert("L")).mean())
    ratio = image.width / image.height
    return [
        "black and white" if grey else f"mostly {' and '.join(main)}" if main else "",
        "dark" if light < 50 else "bright" if light > 205 else "",
        "wide format" if ratio > 1.2 else "tall format" if ratio < 1 / 1.2 else "square format",
    ]


def colour(red: int, green: int, blue: int) -> str:
    """The everyday name of a colour, components 0..255."""
    high, low = max(red, green, blue), min(red, green, blue)
    if high < 50:
        return "black"
    if high - low < 0.15 * high or high - low < 20:
        return "white" if low > 200 else "grey"
    if high == red:
        hue = 60 * ((green - blue) / (high - low)) % 360
    elif high == green:
        hue = 60 * ((blue - red) / (high - low)) + 120
    else:
        hue = 60 * ((red - green) / (high - low)) + 240
    name = next(name for limit, name in HUES if hue < limit)
    return "brown" if name in ("orange", "red") and high < 150 and hue > 8 else name
