"""What belongs to the pictures of a data set: masks, control and reference pictures, each a folder of its own.

The folders lie beside the data set in the workspace, so that neither it nor the user's own files are written to. A
picture and its companion have the same name but for the ending, as the recipe's settings `mask`, `control` and
`reference` want it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from PIL import Image, ImageOps, PngImagePlugin

from .datasets import DataSets
from .media import BROKEN, PICTURES, kind, still, unreadable
from .parts.names import safe_file

KINDS = ("mask", "control", "reference")
WORDS = {"mask": "mask", "control": "control picture", "reference": "reference picture"}
LARGE = 100_000
"""Longer than any edge of a picture: `still` then scales nothing."""
AUTOMATIC, WHOLE = "tuner mask", "whole picture"
"""What the PNG header of a mask says that no person painted."""


def folder(sets: DataSets, name: str, what: str) -> Path:
    """Where the companions of one kind lie; the folder may not exist."""
    if what not in KINDS:
        raise ValueError(f"{what!r} is none of {', '.join(KINDS)}.")
    return sets.root / ".companions" / sets.folder(name).name / what


def there(sets: DataSets, name: str, what: str) -> dict[str, Path]:
    """The companions by the stem of their picture."""
    try:
        found = sorted(folder(sets, name, what).iterdir())
    except OSError:
        return {}
    return {p.stem: p for p in found if p.suffix.lower() in PICTURES and not p.name.startswith(".")}


def settings(sets: DataSets, name: str, reads: Iterable[str]) -> dict[str, str]:
    """Settings of the recipe's data set for those kinds that something in the recipe reads and that are there."""
    stems = {path.stem for path in sets.files(name)}
    return {what: str(folder(sets, name, what)) for what in reads if stems & there(sets, name, what).keys()}


def ours(sets: DataSets, path: str) -> bool:
    """Whether a setting names a folder of companions of this workspace."""
    return Path(path).is_relative_to(sets.root / ".companions")


def stamp(sets: DataSets, name: str) -> list[tuple[str, int]]:
    """Changes when a companion does."""
    return [(what, p.stat().st_mtime_ns) for what in KINDS for p in there(sets, name, what).values()]


def paint(sets: DataSets, name: str, item: str, drawn: Path) -> str:
    """Keep a painted mask, at the size of its picture; a sentence about what stands in the way, or nothing."""
    picture = sets.item(name, item)
    try:
        with Image.open(drawn) as image:
            if image.width * image.height > 50_000_000:
                return f"The mask of {item} is too large ({image.width} × {image.height} pixels); make it smaller."
            painted = _flat(image)
    except BROKEN:
        return f"The mask of {item} could not be read; paint it again."
    if painted.getextrema()[1] == 0:
        return "Nothing of the picture would count; paint white what is to be learned."
    _write(painted.resize(size(picture), Image.Resampling.BILINEAR), folder(sets, name, "mask"), picture.stem)
    return ""


def whole(sets: DataSets, name: str) -> int:
    """Give every picture without a mask one by which all of it counts; how many got one."""
    known = there(sets, name, "mask")
    lacking = [p for p in sets.files(name) if kind(p) != "audio" and p.stem not in known]
    for picture in lacking:
        _write(Image.new("L", size(picture), 255), folder(sets, name, "mask"), picture.stem, WHOLE)
    return len(lacking)


def add(sets: DataSets, name: str, what: str, files: Iterable[tuple[Path, str]]) -> tuple[int, list[str]]:
    """Copy pictures of the same names as the data set's; how many, and why others were left out."""
    stems = {path.stem: path for path in sets.files(name)}
    taken, left = 0, []
    for path, original in files:
        wish = safe_file(original)
        stem = next((s for s in (Path(wish).stem, Path(wish).stem.replace(".", "-")) if s in stems), "")
        if Path(wish).suffix not in PICTURES:
            left.append(f"{original}: it is no picture")
        elif not stem:
            left.append(f"{original}: there is no picture of that name")
        elif problem := unreadable(path, Path(wish).suffix):
            left.append(f"{original}: {problem}")
        elif what == "mask":
            with Image.open(path) as image:
                painted = _flat(ImageOps.exif_transpose(image))
            if painted.getextrema()[1] == 0:
                left.append(f"{original}: it is all black, so that nothing would count")
                continue
            _write(painted.resize(size(stems[stem]), Image.Resampling.BILINEAR), folder(sets, name, what), stem)
            taken += 1
        else:
            _copy(path, folder(sets, name, what), f"{stem}{Path(wish).suffix}")
            taken += 1
    return taken, left


def drop(sets: DataSets, name: str, what: str, stems: Iterable[str] | None = None) -> int:
    """Put companions aside, of all pictures or of these; how many there were. `back` brings them back."""
    known, place = there(sets, name, what), _aside(sets, name, what)
    gone = [path for stem, path in known.items() if stems is None or stem in set(stems)]
    place.mkdir(parents=True, exist_ok=True)
    for path in gone:
        path.replace(place / path.name)
    return len(gone)


def dropped(sets: DataSets, name: str, what: str) -> list[Path]:
    """What lies aside, but for pictures that have a new companion since."""
    known, place = there(sets, name, what), _aside(sets, name, what)
    return [path for path in sorted(place.glob("*")) if path.stem not in known] if place.is_dir() else []


def back(sets: DataSets, name: str, what: str) -> int:
    """Bring back what was put aside; how many came."""
    found = dropped(sets, name, what)
    for path in found:
        path.replace(folder(sets, name, what) / path.name)
    return len(found)


def _aside(sets: DataSets, name: str, what: str) -> Path:
    return sets.root / ".removed" / ".companions" / sets.folder(name).name / what


def maker(mask: Path) -> str:
    """Where a mask came from: auto, whole or you."""
    try:
        with Image.open(mask) as image:
            said = image.info.get("Software")
    except BROKEN:
        return "you"
    return {AUTOMATIC: "auto", WHOLE: "whole"}.get(str(said), "you")


def size(picture: Path) -> tuple[int, int]:
    """Width and height, upright."""
    if kind(picture) == "video":
        return still(picture, LARGE).size
    with Image.open(picture) as image:
        turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
        return (image.height, image.width) if turned else image.size


def cells(mask: Path, use: dict[str, list[int]], cell: int) -> Image.Image | None:
    """The mask as the loss sees it: cut like its picture and averaged over the cells of the latents."""
    if not use.get("crop") or not use.get("scaled") or not cell:
        return None
    (left, top, right, bottom), (wide, tall) = use["crop"], use["scaled"]
    with Image.open(mask) as image:
        flat = image.convert("L")
    x, y = flat.width / wide, flat.height / tall
    area = (left * x, top * y, min(right * x, flat.width), min(bottom * y, flat.height))
    cut = flat.resize((right - left, bottom - top), Image.Resampling.BOX, area)
    return cut.resize((max(1, cut.width // cell), max(1, cut.height // cell)), Image.Resampling.BOX)


def _flat(image: Image.Image) -> Image.Image:
    """White, black and between; what is transparent is black."""
    ground = Image.new("RGBA", image.size, "black")
    return Image.alpha_composite(ground, image.convert("RGBA")).convert("L")


def _write(mask: Image.Image, place: Path, stem: str, made: str = "") -> None:
    place.mkdir(parents=True, exist_ok=True)
    told = PngImagePlugin.PngInfo()
    if made:
        told.add_text("Software", made)
    fresh = place / f".{stem}.{os.getpid()}"
    mask.save(fresh, "PNG", pnginfo=told)
    _replace(fresh, place / f"{stem}.png")


def _copy(path: Path, place: Path, name: str) -> None:
    place.mkdir(parents=True, exist_ok=True)
    fresh = place / f".{name}.{os.getpid()}"
    shutil.copyfile(path, fresh)
    _replace(fresh, place / name)


def _replace(fresh: Path, path: Path) -> None:
    """The new file instead of any of that stem: of two, the engine could not know which counts."""
    for old in path.parent.glob(f"{_plain(path.stem)}.*"):
        if old.stem == path.stem and old != path:
            old.unlink()
    fresh.replace(path)


def _plain(stem: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in stem)
