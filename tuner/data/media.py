"""Open pictures of any kind as 8-bit sRGB, safely, and say what was done to them. Knows no torch."""

from __future__ import annotations

import hashlib
import importlib
import io
import re
import struct
import warnings
import zlib
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageColor

from ..errors import UserError
from . import audio, video
from .facts import CHANGED, SAYS, Kind, Look, Unusable, opened

__all__ = ["SAYS", "Kind", "Look", "Picture", "Unusable", "decode", "load", "load_bytes", "look", "look_bytes"]

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

HEIF = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
"""Brands of HEIC files."""


@dataclass(frozen=True)
class Picture:
    """A decoded picture, upright, in mode RGB, with (kind, detail) of what had to be done, see `SAYS`."""

    image: Image.Image
    notes: tuple[tuple[str, str], ...] = ()


@dataclass
class _Work:
    """A picture on its way to RGB, and the notes so far."""

    image: Image.Image
    notes: list[tuple[str, str]] = field(default_factory=list)


def look(path: Path, paper: str = "white", kind: Kind = "image") -> Look:
    """Read and decode a file once, wholly, and keep only the facts. Transparent pictures are put on `paper`."""
    if kind == "video":
        return video.look(path)
    if kind == "audio":
        return audio.look(path)
    try:
        return look_bytes(_read(path), kind, paper)
    except Unusable as reason:
        return Look(error=str(reason))


def look_bytes(data: bytes, kind: Kind = "image", paper: str = "white") -> Look:
    """`look` for callers that hold the bytes of a file."""
    if kind == "video":
        return video.look(data)
    if kind == "audio":
        return audio.look(data)
    try:
        picture = decode(data, paper)
    except Unusable as reason:
        return Look(error=str(reason))
    width, height = picture.image.size
    blank = picture.image.getextrema() == ((0, 0), (0, 0), (0, 0))
    return Look(hashlib.sha256(data).hexdigest(), width, height, picture.notes, blank=blank)


def load(path: Path, digest: str, paper: str = "white") -> Image.Image:
    """The picture as RGB, upright. Raises `Unusable`, also when the file is no longer the one with this sha256."""
    return load_bytes(_read(path), digest, paper)


def load_bytes(data: bytes, digest: str, paper: str = "white") -> Image.Image:
    """`load` for callers that hold the bytes of a file."""
    if hashlib.sha256(data).hexdigest() != digest:
        raise Unusable(CHANGED)
    return decode(data, paper).image


def _read(path: Path) -> bytes:
    with opened(path) as file:
        try:
            return file.read()
        except OSError as error:
            raise Unusable(f"cannot be read to its end ({error.strerror or error}); copy it again") from None


def decode(data: bytes, paper: str = "white") -> Picture:
    """Bytes of any picture file → RGB, upright; transparent parts show `paper`: #rrggbb or the name of a colour.

    Raises `Unusable` for the file and `UserError` for the colour.
    """
    try:
        ImageColor.getrgb(paper)
    except ValueError:
        raise UserError(f"{paper} is no colour; write it as #rrggbb, or as a name such as white or black") from None
    if not data:
        raise Unusable("is empty (0 bytes); put the file there again, or remove it")
    _prepare(data)
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


def _prepare(data: bytes) -> None:
    """Teach Pillow HEIC when the first such file comes; AVIF, of the same box format, it knows by itself."""
    brands = data[8 : min(int.from_bytes(data[:4]), 256)]
    if data[4:8] == b"ftyp" and b"avi" not in brands and any(b in brands for b in HEIF) and not _knows_heif():
        raise Unusable("is a HEIC picture, which needs pillow-heif; run pip install pillow-heif, or save it as JPEG")


@cache
def _knows_heif() -> bool:
    try:
        importlib.import_module("pillow_heif").register_heif_opener()
    except ImportError:
        return False
    return True


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
    if count > 1 and work.image.format not in {"MPO", "HEIF"}:  # a camera's further pictures are not meant to be seen
        work.notes.append(("pages" if work.image.format == "TIFF" else "animation", str(count)))
        work.image.seek(0)
    if any(";16" in str(tile) for tile in getattr(work.image, "tile", ())):
        work.notes.append(("deep", "16"))
    if work.image.info.get("bit_depth", 8) > 8:  # of HEIC
        work.notes.append(("deep", str(work.image.info["bit_depth"])))


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
