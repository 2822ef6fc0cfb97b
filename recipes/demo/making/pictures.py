"""Stage 1: choose emoji subjects, render them in three styles, and write them as picture and caption files."""

import io
import json
import random
import re
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import resvg_py
from PIL import Image

SIZE = 64
SUPERSAMPLE = 8
STYLES = {"noto": "noto", "fluent-emoji-flat": "fluent", "fxemoji": "fx"}
CONTRAST = "fluent-emoji-high-contrast"
CONTRAST_STYLE = "high contrast"
DEMO_STYLE = "fluent"
PACKAGE_VERSIONS = {"noto": "1.2.9", "fluent-emoji-flat": "1.2.6", "fxemoji": "1.2.2", CONTRAST: "1.2.6"}

CATEGORIES = (
    "Activities",
    "Animals & Nature",
    "Food & Drink",
    "Objects",
    "Smileys & Emotion",
    "Travel & Places",
)
FROM_PEOPLE = [
    "anatomical-heart",
    "backhand-index-pointing-up",
    "bone",
    "brain",
    "clapping-hands",
    "crossed-fingers",
    "ear",
    "eye",
    "eyes",
    "flexed-biceps",
    "foot",
    "footprints",
    "genie",
    "handshake",
    "leg",
    "lungs",
    "mechanical-arm",
    "mermaid",
    "mouth",
    "nose",
    "ok-hand",
    "santa-claus",
    "snowboarder",
    "thumbs-down",
    "thumbs-up",
    "tongue",
    "tooth",
    "vampire",
    "victory-hand",
    "waving-hand",
]
FROM_SYMBOLS = [
    "biohazard",
    "check-mark",
    "cross-mark",
    "no-entry",
    "radioactive",
    "recycling-symbol",
    "red-question-mark",
    "warning",
    "yin-yang",
]
CLUTTER = re.compile(
    r"oclock|-thirty$|-suit$|speaker-|^locked-|^chart-|-banknote|mailbox|envelope|bell-with|moon-face|^sun-behind|"
    r"^oncoming-|-small|musical-notes|notebook-with|kissing-face-|grinning-face-|^dashing|dotted-line|speech|"
    r"thought|anger|zzz|button|^new-moon|page-|card-index-|computer-disk|house-|-chick$|-arrow$|symbols|"
    r"-with-sweat|yen$|head-shaking"
)
FX_NAMES = {
    "aubergine": "eggplant",
    "bouquetofflowers": "bouquet",
    "bunny": "rabbit-face",
    "bunnyside": "rabbit",
    "catside": "cat",
    "cat": "cat-face",
    "chilipepper": "hot-pepper",
    "beachumbrella": "beach-with-umbrella",
    "billiards": "pool-8-ball",
    "bolt": "high-voltage",
    "clap": "clapping-hands",
    "curryandrice": "curry-rice",
    "daggerknife": "dagger",
    "darksunglasses": "sunglasses",
    "directhit": "bullseye",
    "dogside": "dog",
    "dog": "dog-face",
    "doveofpeace": "dove",
    "dragonhead": "dragon-face",
    "dragonside": "dragon",
    "earofmaize": "ear-of-corn",
    "earofrice": "sheaf-of-rice",
    "electrictorch": "flashlight",
    "europeancastle": "castle",
    "evergreen": "evergreen-tree",
    "fallingleaf": "fallen-leaf",
    "fatherchristmas": "santa-claus",
    "fishcakeswirl": "fish-cake-with-swirl",
    "fishingpoleandfish": "fishing-pole",
    "flexbicep": "flexed-biceps",
    "forkknife": "fork-and-knife",
    "gem": "gem-stone",
    "hampster": "hamster",
    "heartblue": "blue-heart",
    "heartgreen": "green-heart",
    "heartpurple": "purple-heart",
    "heartyellow": "yellow-heart",
    "heels": "high-heeled-shoe",
    "hocho": "kitchen-knife",
    "hourglass": "hourglass-done",
    "housebuilding": "house",
    "izakayalantern": "red-paper-lantern",
    "leopardside": "leopard",
    "lips": "mouth",
    "lock": "locked",
    "medicalmask": "face-with-medical-mask",
    "minidisc": "computer-disk",
    "moyai": "moai",
    "mouseside": "mouse",
    "mouse": "mouse-face",
    "openlock": "unlocked",
    "pandaface": "panda",
    "pigside": "pig",
    "pig": "pig-face",
    "pigsnout": "pig-nose",
    "pistol": "water-pistol",
    "poo": "pile-of-poo",
    "present": "wrapped-gift",
    "racecar": "racing-car",
    "rowboat": "canoe",
    "sakebottleandcup": "sake",
    "schoolsatchel": "backpack",
    "sheep": "ewe",
    "sliceofpizza": "pizza",
    "snowmountains": "snow-capped-mountain",
    "steamlocomotive": "locomotive",
    "studiomic": "studio-microphone",
    "tennisball": "tennis",
    "tie": "necktie",
    "tigerside": "tiger",
    "tiger": "tiger-face",
    "toykotower": "tokyo-tower",
    "wolfface": "wolf",
}
DUPLICATE_DISTANCE = 2.2
DEMO_SUBJECTS = [
    "airplane",
    "anchor",
    "banana",
    "bicycle",
    "bomb",
    "butterfly",
    "cactus",
    "camera",
    "castle",
    "crown",
    "fish",
    "guitar",
    "hammer",
    "key",
    "light-bulb",
    "mushroom",
    "octopus",
    "red-apple",
    "rocket",
    "sailboat",
    "snowman",
    "spider",
    "sunglasses",
    "umbrella",
]
DEMO_SIZE = 128
HELD_OUT_COUNT = 200
HELD_OUT_SEED = 11
HELD_OUT_ALWAYS = ["balloon", "dolphin", "snail", "violin"]
HELD_OUT_ACROSS = 20
UNCLEAR = re.compile(
    r"(^|-)(arts|blossom|book|bookmark|box|bridge|button|cabinet|cat|chart|cityscape|clapping|collision|construction|"
    r"cookie|custard|desert|dizzy|eyes|face|fireworks|flag|foggy|folder|footprints|frames|glasses|globe|heart|hearts|"
    r"hole|hotel|index|label|ledger|light-rail|milky|monkey|moon|notebook|notepad|oden|office|package|pager|park|"
    r"projector|railway|sake|score|seat|shower|slider|spaghetti|sparkles|station|store|sunrise|thumbs|ticket|tickets|"
    r"tray|way|wedding|white|window)(-|$)|smil|-with-"
)


@dataclass(frozen=True)
class IconSet:
    """One unpacked icon package: its drawings and the categories of their names."""

    icons: dict[str, Any]
    width: int
    height: int
    categories: dict[str, list[str]]

    def picture(self, name: str, size: int) -> Image.Image:
        """Draw one icon on white, centred in a square, smooth at its edges."""
        icon = self.icons[name]
        left, top = icon.get("left", 0), icon.get("top", 0)
        width, height = icon.get("width", self.width), icon.get("height", self.height)
        side = max(width, height)
        box = f"{left - (side - width) / 2} {top - (side - height) / 2} {side} {side}"
        large = size * SUPERSAMPLE
        svg = (
            f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'width="{large}" height="{large}" viewBox="{box}">{icon["body"]}</svg>'
        )
        drawn = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg)))).convert("RGBA")
        white = Image.new("RGBA", drawn.size, "white")
        return Image.alpha_composite(white, drawn).convert("RGB").resize((size, size), Image.Resampling.BOX)


def fetch_icons(folder: Path) -> None:
    """Download the four icon packages from the npm registry with `npm pack` and unpack them under `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, version in PACKAGE_VERSIONS.items():
        target = folder / f"iconify-json-{name}"
        if (target / "package" / "icons.json").exists():
            continue
        subprocess.run(["npm", "pack", f"@iconify-json/{name}@{version}"], cwd=folder, check=True)
        with tarfile.open(folder / f"iconify-json-{name}-{version}.tgz") as archive:
            archive.extractall(target, filter="data")


def load_set(folder: Path, name: str) -> IconSet:
    """Read one unpacked package `@iconify-json/NAME` from `folder`."""
    package = folder / f"iconify-json-{name}" / "package"
    data = json.loads((package / "icons.json").read_text(encoding="utf-8"))
    categories = json.loads((package / "metadata.json").read_text(encoding="utf-8"))["categories"]
    icons = {key: icon for key, icon in data["icons"].items() if not icon.get("hidden")}
    return IconSet(icons, data["width"], data["height"], categories)


def choose_subjects(noto: IconSet) -> list[str]:
    """List the subjects worth drawing: clear things, without flags, people, clocks and look-alike signs."""
    wanted = {name for category in CATEGORIES for name in noto.categories[category] if not CLUTTER.search(name)}
    wanted.update(FROM_PEOPLE, FROM_SYMBOLS)
    return sorted(wanted & noto.icons.keys())


def icon_names(style_set: str, icons: IconSet, subjects: list[str]) -> Iterator[tuple[str, str]]:
    """Yield (subject, icon name) for every subject that a set draws."""
    if style_set != "fxemoji":
        yield from ((subject, subject) for subject in subjects if subject in icons.icons)
        return
    mashed = {subject.replace("-", ""): subject for subject in subjects}
    for name in sorted(icons.icons):
        subject = FX_NAMES.get(name, mashed.get(name.replace("-", "")))
        if subject in subjects:
            yield subject, name


def features(picture: Image.Image) -> np.ndarray:
    """Average 4 x 4 pixel blocks: the simple space in which pictures are compared."""
    pixels = np.asarray(picture, dtype=np.float32) / 255
    return pixels.reshape(16, 4, 16, 4, 3).mean(axis=(1, 3)).reshape(-1)


def words(subject: str) -> str:
    """Turn an icon name into the words of a caption."""
    return subject.replace("-", " ")


def stem(subject: str, style: str) -> str:
    """Name the files of one subject in one style."""
    return f"{subject}-{style.replace(' ', '-')}"


def write_style(folder: Path, style: str, icons: IconSet, names: Iterator[tuple[str, str]]) -> int:
    """Draw one style into `folder`, leaving out pictures that look like one already drawn; return how many."""
    kept: list[np.ndarray] = []
    done: set[str] = set()
    for subject, name in names:
        picture = icons.picture(name, SIZE)
        feature = features(picture)
        if subject in done or (kept and np.linalg.norm(np.stack(kept) - feature, axis=1).min() < DUPLICATE_DISTANCE):
            continue
        kept.append(feature)
        done.add(subject)
        path = folder / stem(subject, style)
        picture.save(path.with_suffix(".png"))
        path.with_suffix(".txt").write_text(f"{words(subject)}, {style} style\n", encoding="utf-8")
    return len(kept)


def write_demo_set(folder: Path, contrast: IconSet) -> None:
    """Write the 24 pictures of the LoRA demo with their captions."""
    folder.mkdir(parents=True, exist_ok=True)
    for subject in DEMO_SUBJECTS:
        contrast.picture(subject, DEMO_SIZE).convert("L").save(folder / f"{subject}.png", optimize=True)
        # the base's own word for the designs of this family: the LoRA teaches another way of drawing them
        caption = f"{words(subject)}, {DEMO_STYLE} style\n"
        (folder / f"{subject}.txt").write_text(caption, encoding="utf-8")


def render(work: Path, icons_folder: Path | None, demo_folder: Path) -> None:
    """Write WORK/pictures (three styles), WORK/contrast (for the autoencoder alone) and the demo data set."""
    folder = icons_folder or work / "icons"
    if icons_folder is None:
        fetch_icons(folder)
    subjects = choose_subjects(load_set(folder, "noto"))
    pictures, extra = work / "pictures", work / "contrast"
    for target in (pictures, extra):
        target.mkdir(parents=True, exist_ok=True)
        for old in target.glob("*.*"):
            old.unlink()
    for set_name, style in STYLES.items():
        icons = load_set(folder, set_name)
        count = write_style(pictures, style, icons, icon_names(set_name, icons, subjects))
        print(f"{count} pictures in {style} style")
    contrast = load_set(folder, CONTRAST)
    count = write_style(extra, CONTRAST_STYLE, contrast, icon_names(CONTRAST, contrast, subjects))
    print(f"{count} pictures in {CONTRAST_STYLE} style (autoencoder only)")
    write_demo_set(demo_folder, contrast)


def held_out_candidates(work: Path) -> list[str]:
    """List clear subjects that the base knows in all its styles and that no demo picture shows in a like form."""
    shown = {subject.rsplit("-", 1)[-1] for subject in DEMO_SUBJECTS}
    found = []
    for path in sorted((work / "contrast").glob("*.png")):
        subject = path.stem.removesuffix(stem("", CONTRAST_STYLE))
        known = all((work / "pictures" / f"{stem(subject, style)}.png").exists() for style in STYLES.values())
        if known and not UNCLEAR.search(subject) and shown.isdisjoint(subject.split("-")):
            found.append(subject)
    return found


def write_held_out(work: Path, folder: Path) -> None:
    """Write held-out.png, a sheet of real pictures in the demo's style, and held-out.json, their names in its order."""
    candidates = held_out_candidates(work)
    drawn = random.Random(HELD_OUT_SEED).sample(candidates, len(candidates))
    chosen = sorted([*HELD_OUT_ALWAYS, *(s for s in drawn if s not in HELD_OUT_ALWAYS)][:HELD_OUT_COUNT])
    sheet = Image.new("L", (HELD_OUT_ACROSS * SIZE, -(-HELD_OUT_COUNT // HELD_OUT_ACROSS) * SIZE), "white")
    for index, subject in enumerate(chosen):
        row, column = divmod(index, HELD_OUT_ACROSS)
        with Image.open(work / "contrast" / f"{stem(subject, CONTRAST_STYLE)}.png") as picture:
            sheet.paste(picture.convert("L"), (column * SIZE, row * SIZE))
    sheet.save(folder / "held-out.png", optimize=True)
    names = json.dumps([words(subject) for subject in chosen], indent=1)
    (folder / "held-out.json").write_text(names + "\n", encoding="utf-8")
    print(f"{len(chosen)} of {len(candidates)} held-out pictures")


def load_folder(folder: Path) -> tuple[np.ndarray, list[str]]:
    """Read every picture of a folder as uint8 [N, 64, 64, 3], with its captions in the same order."""
    paths = sorted(folder.glob("*.png"))
    pictures = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])
    captions = [path.with_suffix(".txt").read_text(encoding="utf-8").strip() for path in paths]
    return pictures, captions
