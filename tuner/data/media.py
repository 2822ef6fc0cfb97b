"""Open pictures of any kind as 8-bit sRGB, safely, and say what was done to them. Knows no torch."""

from __future__ import annotations

import hashlib
import io
import re
import struct
import warnings
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

LIMIT = 200_000_000
"""Most pixels that a picture may have; more is a mistake or an attack, and would take gigabytes to decode."""

Image.MAX_IMAGE_PIXELS = LIMIT
warnings.simplefilter("error", Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module="PIL")  # on damaged metadata; the pixels decide

BROKEN = (
    OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, AttributeError, EOFError, RuntimeError,
    OverflowError, MemoryError, struct.error, zlib.error,
)  # fmt: skip
"""What Pillow's decoders raise for damaged files, by experience."""

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation → what sets the picture upright."""

SAYS = {
    "animation": (
        "is an animation of {} frames; its first frame is used. "
        "Save the frame you want as a picture of its own if you want another.",
        "are animations; their first frames are used. "
        "Save the frames you want as pictures of their own if you want others.",
    ),
    "pages": (
        "has {} pages; its first page is used. Save the others as pictures of their own if you want them.",
        "have several pages; their first pages are used. Save the others as pictures of their own if you want them.",
    ),
    "transparent": (
        "is partly transparent; it is put on {}. Fill the background yourself if you want another.",
        "are partly transparent; they are put on {}. Fill the background yourself if you want another.",
    ),
    "colours": (
        "is in {} colours; they are converted to sRGB. Save it as an sRGB picture if they come out wrong.",
        "are in {} colours; they are converted to sRGB. Save them as sRGB pictures if they come out wrong.",
    ),
    "profile": (
        "has the colour profile {}; its colours are converted to sRGB.",
        "have the colour profile {}; their colours are converted to sRGB.",
    ),
    "bad profile": (
        "has a colour profile that cannot be applied; it is read as sRGB. Save it as sRGB if that looks wrong.",
        "have colour profiles that cannot be applied; they are read as sRGB. Save them as sRGB if that looks wrong.",
    ),
    "deep": (
        "has {} bits per colour; it is scaled to 8 bits.",
        "have {} bits per colour; they are scaled to 8 bits.",
    ),
}
"""Kind of note → its sentence for one picture and for several, after the name or number."""


class Unusable(Exception):
    """A file that cannot be trained on. The message follows the file's name: "is empty (0 bytes); replace it"."""


@dataclass(frozen=True)
class Picture:
    """A decoded picture, upright, in mode RGB, with (kind, detail) of what had to be done, see `SAYS`."""

    image: Image.Image
    notes: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Look:
    """What one full decode of a file told. error: why it cannot be used, "" when it can. blank: all black."""

    digest: str = ""
    width: int = 0
    height: int = 0
    notes: tuple[tuple[str, str], ...] = ()
    error: str = ""
    blank: bool = False


@dataclass
class _Work:
    """A picture on its way to RGB, and the notes so far."""

    image: Image.Image
    notes: list[tuple[str, str]] = field(default_factory=list)


def look(path: Path, paper: str = "white") -> Look:
    """Read and decode a file once, wholly, and keep only the facts."""
    try:
        data = _read(path)
        digest = hashlib.sha256(data).hexdigest()
        picture = decode(data, paper)
    except Unusable as reason:
        return Look(error=str(reason))
    width, height = picture.image.size
    return Look(digest, width, height, picture.notes, blank=picture.image.getextrema() == ((0, 0), (0, 0), (0, 0)))


def load(path: Path, digest: str, paper: str = "white") -> Image.Image:
    """The picture as RGB, upright. Raises `Unusable`, also when the file is no longer the one with this sha256."""
    data = _read(path)
    if hashlib.sha256(data).hexdigest() != digest:
        raise Unusable("was changed while it was in use; start again, so that it is read anew.")
    return decode(data, paper).image


def _read(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise Unusable(f"cannot be read ({error.strerror}); give yourself the right to read it, or remove it") from None
    if not data:
        raise Unusable("is empty (0 bytes); put the picture there again, or remove it")
    return data


def decode(data: bytes, paper: str = "white") -> Picture:
    """Bytes of any picture file → RGB, upright; transparent parts show `paper`. Raises `Unusable`."""
    try:
        image = Image.open(io.BytesIO(data))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as bomb:
        raise Unusable(_too_large(bomb)) from None
    except BROKEN:
        raise Unusable(
            "is not a picture, or damaged at its start; save it again as PNG or JPEG, or remove it"
        ) from None
    with image:
        if image.width * image.height > LIMIT:
            raise Unusable(_too_large(image.width * image.height))
        try:
            work = _Work(image)
            _frames(work)
            image.load()
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as bomb:
            raise Unusable(_too_large(bomb)) from None
        except BROKEN:
            raise Unusable("is damaged or cut off; download or save it again, or remove it") from None
        turn = TURNS.get(_orientation(image))
        try:
            _to_rgb(work, paper)
        except (*BROKEN, ImageCms.PyCMSError):
            raise Unusable(f"has colours of a kind that cannot be read ({image.mode}); save it as an RGB PNG") from None
    return Picture(work.image.transpose(turn) if turn is not None else work.image, tuple(work.notes))


def _too_large(found: int | Exception) -> str:
    """The sentence for a number of pixels, which Pillow says in its own exception."""
    number = re.search(r"\d+", str(found))
    size = f"{int(number.group()) // 1_000_000:,}" if number else "too many"
    return (
        f"has {size} million pixels, more than the {LIMIT // 1_000_000} million that are accepted; "
        "make it smaller, or remove it"
    )


def _orientation(image: Image.Image) -> int:
    """EXIF orientation; a damaged EXIF block counts as none, as in viewers."""
    try:
        return int(image.getexif().get(0x0112, 1))
    except BROKEN:
        return 1


def _frames(work: _Work) -> None:
    count = getattr(work.image, "n_frames", 1)
    if count > 1 and work.image.format != "MPO":  # the further pictures of a camera's MPO are not meant to be seen
        work.notes.append(("pages" if work.image.format == "TIFF" else "animation", str(count)))
        work.image.seek(0)
    if any(";16" in str(tile) for tile in getattr(work.image, "tile", ())):
        work.notes.append(("deep", "16"))


def _to_rgb(work: _Work, paper: str) -> None:
    """Bring `work.image` to RGB: depth, palette, transparency, colour space, in this order."""
    profile = work.image.info.get("icc_profile")
    if work.image.mode.startswith(("I", "F")):
        _to_8_bits(work)
    image = work.image
    clear = "transparency" in image.info
    if image.mode in {"PA", "RGBa", "1"} or (clear and image.mode in {"P", "RGB"}):
        image = image.convert("RGBA")
    elif image.mode == "La" or (clear and image.mode == "L"):
        image = image.convert("LA")
    elif image.mode == "P":
        image = image.convert("RGB")
    alpha = image.getchannel("A") if image.mode in {"RGBA", "LA"} else None
    work.image = image.convert(image.mode[:-1]) if alpha else image
    _to_srgb(work, profile)
    if alpha and alpha.getextrema() != (255, 255):
        work.notes.append(("transparent", paper))
        ground = Image.new("RGB", work.image.size, paper)
        ground.paste(work.image, mask=alpha)
        work.image = ground


def _to_8_bits(work: _Work) -> None:
    """Grey of 16 bits → L, scaled and not clipped (65535 → 255)."""
    values = np.asarray(work.image)
    if work.image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise ValueError("no 16-bit picture")
    if ("deep", "16") not in work.notes:
        work.notes.append(("deep", "16"))
    work.image = Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))


def _to_srgb(work: _Work, profile: bytes | None) -> None:
    """Colours → sRGB: by the embedded profile where there is one, else by the colour model alone."""
    mode = work.image.mode
    if mode not in {"1", "L", "RGB"}:
        work.notes.append(("colours", mode))
    if mode == "LAB":
        work.image = _transform(work.image, ImageCms.createProfile("LAB"))
        return
    if profile and mode in {"L", "RGB", "CMYK"}:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            name = ImageCms.getProfileDescription(source).strip()
            if name == "sRGB" or name.startswith(("sRGB IEC61966", "sRGB built-in")):
                work.image = work.image.convert("RGB")
                return
            work.image = _transform(work.image, source)
        except (*BROKEN, ImageCms.PyCMSError):
            work.notes.append(("bad profile", ""))
        else:
            if mode != "CMYK":
                work.notes.append(("profile", name or "without a name"))
            return
    work.image = work.image.convert("RGB")


def _transform(image: Image.Image, source: ImageCms.ImageCmsProfile | ImageCms.core.CmsProfile) -> Image.Image:
    done = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    assert done is not None
    return done
