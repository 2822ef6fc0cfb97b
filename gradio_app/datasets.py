"""Data sets of the workspace: pictures with captions beside them. The user's own files are only ever read."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .media import BROKEN, ENDINGS, still, unreadable
from .parts.names import safe_file, safe_stem, unused

EDGE = 320
DEMO = "demo"


@dataclass
class Added:
    """What became of an upload."""

    pictures: list[str] = field(default_factory=list)
    captions: int = 0
    left_out: list[str] = field(default_factory=list)


class DataSets:
    """Data sets by name. `demo` is the one that ships with the studio: read, never written."""

    def __init__(self, root: Path, thumbs: Path, demo: Path) -> None:
        self.root, self.thumbs, self.demo = root, thumbs, demo
        for folder in (root, thumbs):
            folder.mkdir(parents=True, exist_ok=True)

    def names(self) -> list[str]:
        """The demo first, then the user's own by name."""
        if not self.root.is_dir():  # somebody took it away while the app runs
            self.root.mkdir(parents=True)
        own = sorted(p.name for p in self.root.iterdir() if p.is_dir() and not p.name.startswith("."))
        return [DEMO, *own] if self.demo.is_dir() else own

    def exists(self, name: str) -> bool:
        """Whether there is such a data set."""
        return name in self.names()

    def folder(self, name: str) -> Path:
        """Where its pictures lie."""
        if name == DEMO:
            return self.demo
        folder = (self.root / name).resolve()
        if folder.parent != self.root.resolve() or not folder.is_dir():
            raise FileNotFoundError(f"There is no data set named {name!r}.")
        return folder

    def files(self, name: str) -> list[Path]:
        """Its pictures by name."""
        return sorted(p for p in self.folder(name).iterdir() if p.suffix.lower() in ENDINGS and p.is_file())

    def create(self, wish: str) -> str:
        """A new empty data set; the name it got."""
        name = unused(safe_stem(wish, "my-pictures").lower(), {DEMO, *self.names()})
        (self.root / name).mkdir()
        return name

    def writable(self, name: str) -> tuple[str, bool]:
        """A data set that may be changed: itself, or a copy of the demo. Says whether a copy was made."""
        if name != DEMO:
            return name, False
        copy = self.create("demo-copy")
        for path in self.demo.iterdir():
            if path.suffix.lower() in ENDINGS | {".txt"}:
                shutil.copyfile(path, self.root / copy / path.name)
        self.set_meta(copy, self.meta(DEMO))
        return copy, True

    def add(self, name: str, uploads: Iterable[tuple[Path, str]]) -> Added:
        """Copy uploaded files in. `.txt` files become captions of the pictures with the same stem."""
        folder, added, texts = self.folder(name), Added(), []
        stems: dict[str, str] = {}
        taken = {p.name for p in folder.iterdir()}
        for path, original in uploads:
            wish = safe_file(original)
            if wish.endswith(".txt"):
                texts.append((path, safe_file(original)))
                continue
            ending = Path(wish).suffix
            known = ending in ENDINGS
            problem = unreadable(path, ending) if known else "it is no picture, video or sound"
            if problem:
                added.left_out.append(f"{original}: {problem}")
                continue
            final = self._free(wish, taken)
            shutil.copyfile(path, folder / final)
            taken.add(final)
            stems[Path(wish).stem] = Path(final).stem
            added.pictures.append(final)
        for path, wish in texts:
            self._add_caption(folder, path, stems.get(Path(wish).stem, Path(wish).stem), added)
        return added

    def caption(self, picture: Path) -> str:
        """The text beside a picture, or nothing."""
        try:
            return picture.with_suffix(".txt").read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            return ""

    def set_caption(self, name: str, picture: str, text: str) -> None:
        """Write (or, when empty, remove) the caption of a picture in the workspace."""
        path = self.item(name, picture).with_suffix(".txt")
        text = " ".join(text.split())
        if not text:
            path.unlink(missing_ok=True)
            return
        fresh = path.with_name(f".{path.name}")
        fresh.write_text(text + "\n", encoding="utf-8")
        fresh.replace(path)

    def remove(self, name: str, picture: str) -> None:
        """Move a picture and its caption aside, from where `restore` brings them back."""
        path, aside = self.item(name, picture), self._aside(name)
        for file in (path, path.with_suffix(".txt")):
            if file.exists():
                file.replace(aside / file.name)
        for kind in self._kinds(name):
            for file in kind.glob("*.*"):
                if file.stem == path.stem:
                    (kind / ".removed").mkdir(exist_ok=True)
                    file.replace(kind / ".removed" / file.name)

    def left_out(self, name: str) -> list[str]:
        """What was moved aside and can come back."""
        return sorted(p.name for p in self._aside(name).iterdir() if p.suffix.lower() in ENDINGS)

    def restore(self, name: str, picture: str) -> None:
        """Undo `remove`."""
        folder, aside = self.folder(name), self._aside(name)
        for file in (aside / safe_file(picture), aside / Path(safe_file(picture)).with_suffix(".txt").name):
            if file.exists() and not (folder / file.name).exists():
                file.replace(folder / file.name)
        for kind in self._kinds(name):
            for file in (kind / ".removed").glob("*.*"):
                if file.stem == Path(safe_file(picture)).stem and not (kind / file.name).exists():
                    file.replace(kind / file.name)

    def meta(self, name: str) -> dict[str, Any]:
        """What we note about a data set beside its folder: title, trigger word."""
        try:
            return json.loads((self.root / f".{name}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    def set_meta(self, name: str, values: dict[str, Any]) -> None:
        """Add to those notes."""
        self.folder(name)
        text = json.dumps({**self.meta(name), **values}, ensure_ascii=False)
        (self.root / f".{name}.json").write_text(text, encoding="utf-8")

    def repeats(self, name: str) -> dict[str, int]:
        """How often single items are seen in an epoch, where that differs from the others."""
        noted = self.meta(name).get("repeats") or {}
        return {path.name: int(noted[path.name]) for path in self.files(name) if path.name in noted}

    def set_repeats(self, name: str, pictures: Iterable[str], times: int | None) -> int:
        """Note the repeats of some items, or take the note away; how many items there were."""
        there = [path.name for path in self.files(name) if path.name in set(pictures)]
        noted = self.meta(name).get("repeats") or {}
        kept = {one: n for one, n in noted.items() if one not in there}
        self.set_meta(name, {"repeats": {**kept, **dict.fromkeys(there, times)} if times else kept})
        return len(there)

    def thumb(self, picture: Path) -> Path | None:
        """A small copy for the grid, made once per content change; nothing when the file cannot be read."""
        if known := self.thumb_known(picture):
            return known
        key = _key(picture)
        try:
            shown = still(picture, EDGE)
            clear = "A" in shown.getbands() or "transparency" in shown.info
            small = self.thumbs / (f"{key}-clear.png" if clear else f"{key}.jpg")
            shown.convert("RGBA" if clear else "RGB").save(small, quality=88)
        except BROKEN:
            return None
        return small

    def thumb_known(self, picture: Path) -> Path | None:
        """The small copy, if it was made before."""
        key = _key(picture)
        return next((p for p in (self.thumbs / f"{key}.jpg", self.thumbs / f"{key}-clear.png") if p.exists()), None)

    def thumb_all(self, pictures: list[Path]) -> list[Path | None]:
        """Small copies of many, made side by side."""
        with ThreadPoolExecutor(max_workers=4) as pool:
            return list(pool.map(self.thumb, pictures))

    def _add_caption(self, folder: Path, path: Path, stem: str, added: Added) -> None:
        if not any((folder / f"{stem}{ending}").exists() for ending in ENDINGS):
            added.left_out.append(f"{stem}.txt: there is no picture of that name")
            return
        text = path.read_text(encoding="utf-8", errors="replace")
        (folder / f"{stem}.txt").write_text(" ".join(text.split()) + "\n", encoding="utf-8")
        added.captions += 1

    def item(self, name: str, picture: str) -> Path:
        """A picture of a data set that may be changed. Raises for any other name."""
        folder = self.folder(name)
        if name == DEMO:
            raise PermissionError("The demo pictures stay as they are; change a copy of them.")
        path = folder / picture
        if path.parent != folder or path.name != picture or not path.is_file():
            raise FileNotFoundError(f"There is no picture named {picture!r} in {name}.")
        return path

    def beside(self, name: str) -> dict[str, Path]:
        """What belongs to a data set and lies beside its folder, by the name that it has inside the bin."""
        places = {
            ".dataset.json": f".{name}.json",
            ".companions": f".companions/{name}",
            ".removed": f".removed/{name}",
        }
        return {inside: self.root / place for inside, place in places.items()}

    def _kinds(self, name: str) -> list[Path]:
        """The folders of masks, control and reference pictures; they go and come with their picture."""
        return [path for path in (self.root / ".companions" / self.folder(name).name).glob("*") if path.is_dir()]

    def _aside(self, name: str) -> Path:
        aside = self.root / ".removed" / self.folder(name).name
        aside.mkdir(parents=True, exist_ok=True)
        return aside

    def _free(self, wish: str, taken: set[str]) -> str:
        """An unused file name whose stem is unused too, because captions go by stem."""
        stems = {Path(t).stem for t in taken if not t.endswith(".txt")}
        stem = unused(Path(wish).stem.replace(".", "-"), stems)
        return f"{stem}{Path(wish).suffix}"


def _key(picture: Path) -> str:
    """The name of a picture's small copy: another one whenever the file changes."""
    stat = picture.stat()
    return hashlib.sha256(f"{picture}|{stat.st_mtime_ns}|{stat.st_size}".encode()).hexdigest()[:24]
