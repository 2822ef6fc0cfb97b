"""The dataset doctor: what it finds, what it must not say, how fast it is, and that it changes nothing."""

from __future__ import annotations

import hashlib
import io
import json
import time
import wave
from pathlib import Path

import av
import gradio
import imagehash
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

from tuner import recipe
from tuner.data import doctor
from tuner.data.item import Item
from tuner.errors import Problem

DEMO = Path(__file__).resolve().parents[2] / "recipes" / "demo" / "images"
PHOTOS = [Path(gradio.__file__).parent / "media_assets" / "images" / name for name in ("tower.jpg", "cheetah1.jpg")]


def item(path: Path, **more) -> Item:
    data = path.read_bytes()
    kind = {".mp4": "video", ".wav": "audio"}.get(path.suffix, "image")
    width = height = 0
    if kind == "image":
        try:
            width, height = Image.open(io.BytesIO(data)).size
        except OSError:
            width, height = 64, 64
    return Item(**{
        "dataset": 0, "ref": str(path), "name": path.name, "kind": kind, "digest": hashlib.sha256(data).hexdigest(),
        "width": width, "height": height, "captions": (path.stem,), "caption_from": f"{path.stem}.txt", **more,
    })  # fmt: skip


def save(image: Image.Image, path: Path, **options) -> Path:
    image.save(path, **options)
    return path


def photo(number: int) -> Image.Image:
    return Image.open(PHOTOS[number]).convert("RGB")


def flagged(report: doctor.Report, kind: str) -> set[str]:
    """Names of the items that a kind of finding is about."""
    found = [f for f in report.findings if f.kind == kind]
    return {name for f in found for _, name in [*f.items, *(n for g in f.groups for n in g)]}


def wanted(**settings) -> recipe.Recipe:
    return recipe.parse({"family": "sdxl", "source": "x", "data": [{"path": "/x"}], **settings})


def test_the_demo_pictures_are_healthy():
    """Flat artwork with soft shading: not blurred, not flat, not alike."""
    report = doctor.examine([item(p) for p in sorted(DEMO.glob("*.png"))], [128])
    assert report.findings == []
    assert report.kinds == {"image": 24} and report.shapes == {"1:1": 24} and report.size == 128


def test_blur_is_found_and_sharpness_is_not(tmp_path):
    items = []
    for n in range(2):
        items.append(item(save(photo(n), tmp_path / f"sharp{n}.jpg", quality=90)))
        fog = ImageEnhance.Contrast(ImageEnhance.Brightness(photo(n)).enhance(0.6)).enhance(0.12)
        items.append(item(save(fog, tmp_path / f"fog{n}.png")))
        radius = max(photo(n).size) / 75
        items.append(item(save(photo(n).filter(ImageFilter.GaussianBlur(radius)), tmp_path / f"soft{n}.jpg")))
    large = photo(0).resize((1500, 2400), Image.Resampling.BICUBIC)  # soft pixel by pixel, sharp as a picture
    items.append(item(save(large, tmp_path / "large.jpg")))
    square = Image.new("RGB", (300, 300), "white")
    ImageDraw.Draw(square).rectangle((100, 100, 200, 200), "black")
    items.append(item(save(square, tmp_path / "square.png")))
    assert flagged(doctor.examine(items, []), "blurred") == {"soft0.jpg", "soft1.jpg"}


def test_dark_bright_and_flat(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    made = {
        "dark.png": pixels // 8, "bright.png": 255 - pixels // 8, "flat.png": pixels * 0 + 90, "fine.png": pixels,
        "night.png": np.where(np.arange(64)[:, None, None] < 4, pixels, pixels // 20),
    }  # fmt: skip
    report = doctor.examine(
        [item(save(Image.fromarray(v.astype(np.uint8)), tmp_path / k)) for k, v in made.items()], []
    )
    assert [flagged(report, k) for k in ("dark", "bright", "flat")] == [{"dark.png"}, {"bright.png"}, {"flat.png"}]
    assert not flagged(report, "blurred")


def test_copies_and_look_alikes(tmp_path):
    picture = photo(1)
    save(picture, tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes())
    save(picture, tmp_path / "c.jpg", quality=40)
    save(picture.resize((100, 100)), tmp_path / "d.png")
    save(ImageEnhance.Brightness(picture).enhance(1.1), tmp_path / "e.png")
    red, green, blue = picture.split()
    save(Image.merge("RGB", (blue.point(lambda v: v // 4), red, green)), tmp_path / "other-colours.png")
    save(photo(0), tmp_path / "other.png")
    for n, name in enumerate(("red", "blue")):  # one shape in two colours of like brightness
        heart = Image.new("RGB", (96, 96), "white")
        ImageDraw.Draw(heart).pieslice((8, 8, 88, 88), 20, 300, [(230, 30, 30), (60, 90, 255)][n])
        save(heart, tmp_path / f"{name}.png")
    items = [item(p) for p in sorted(tmp_path.iterdir())]
    again = item(tmp_path / "other.png", dataset=1)  # the same file in a second data set, for another size
    report = doctor.examine([*items, again], [])
    assert flagged(report, "copies") == {"a.png", "b.png"}
    assert flagged(report, "look_alikes") == {"a.png", "c.jpg", "d.png", "e.png"}
    assert imagehash.phash(Image.open(tmp_path / "red.png")) - imagehash.phash(Image.open(tmp_path / "blue.png")) <= 6


@pytest.mark.parametrize("block", [1, 50, 4_000_000])
def test_near_finds_exactly_the_pairs_that_a_full_comparison_finds(block):
    draw = np.random.default_rng(0)
    keys = draw.integers(0, 2**64, 300, np.uint64)
    for n in range(150, 300):  # relatives at every distance around the limit
        flips = draw.choice(64, draw.integers(0, 12), replace=False)
        keys[n] = keys[n - 150] ^ np.bitwise_or.reduce(np.uint64(1) << flips.astype(np.uint64), initial=0)
    near = {(a, b) for a in range(300) for b in range(a + 1, 300) if int(keys[a] ^ keys[b]).bit_count() <= doctor.NEAR}
    assert 60 < len(near) < 140
    assert {tuple(pair) for pair in doctor.near(keys, block).tolist()} == near


def test_look_alikes_of_100_000_pictures_take_seconds():
    draw = np.random.default_rng(0)
    keys, colours = draw.integers(0, 2**64, 100_000, np.uint64), draw.integers(0, 256, (100_000, 192), np.uint8)
    keys[50_000:50_100] = keys[:100] ^ np.uint64(1 << 63 | 1)
    colours[50_000:50_100] = colours[:100]
    keys[60_000:90_000], colours[60_000:90_000] = keys[0], colours[0]  # a video cut into equal frames
    began = time.process_time()
    groups = doctor.alike(keys, colours)
    seconds = time.process_time() - began
    print(f"100,000 hashes: {seconds:.1f} s")
    assert sorted(len(g) for g in groups) == [2] * 99 + [30_002]
    assert seconds < 20


def test_unreadable_files_are_named_and_the_rest_is_examined(tmp_path):
    good = save(photo(0), tmp_path / "good.jpg")
    cut, gone = tmp_path / "cut.jpg", save(photo(1), tmp_path / "gone.png")
    cut.write_bytes(good.read_bytes()[:2000])
    items = [item(good), item(cut), item(gone)]
    gone.unlink()
    report = doctor.examine(items, [])
    assert flagged(report, "unreadable") == {"cut.jpg", "gone.png"}
    assert [f.kind for f in report.findings] == ["unreadable"]


@pytest.mark.parametrize(
    ("media", "names", "level"),
    [
        ({"resolutions": [100]}, set(), ""),
        ({"resolutions": [128]}, {"wide.png"}, "note"),
        ({"resolutions": [100], "fit": "edge"}, {"wide.png"}, "note"),
        ({"resolutions": [128], "small": "leave_out"}, {"wide.png"}, "warning"),
        ({"size": [60, 160], "fit": "exact", "small": "enlarge"}, {"square.png", "wide.png"}, "warning"),
    ],
)
def test_too_small(tmp_path, media, names, level):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (400, 400, 3), np.uint8))
    items = [item(save(noise.crop((0, 0, *size)), tmp_path / f"{name}.png"))
             for name, size in (("square", (128, 128)), ("wide", (200, 60)))]  # fmt: skip
    found = doctor.report(items, [], wanted(media=media, train={"steps": 100}))
    small = [f for f in found["findings"] if f["kind"] == "small"]
    assert {i["name"] for f in small for i in f["items"]} == names
    assert {f["level"] for f in small} == ({level} if level else set())


def test_captions(tmp_path):
    paths = sorted(DEMO.glob("*.png"))[:7]
    told = [("a cat",), ("a cat",), (), ("sks",), ("sks",), ("one for all",), ("one for all",)]
    origins = ["a.txt", "b.txt", "", "data.0.trigger", "data.0.trigger", "data.0.caption", "data.0.caption"]
    items = [item(p, captions=c, caption_from=o) for p, c, o in zip(paths, told, origins, strict=True)]
    found = doctor.report(items, [], wanted(data=[{"path": "/x", "trigger": "sks"}], train={"steps": 100}))
    by_kind = {f["kind"]: f for f in found["findings"]}
    assert by_kind.keys() == {"no_caption", "same_caption", "only_trigger"}
    assert by_kind["no_caption"]["items"] == [{"dataset": 0, "name": paths[2].name}]
    assert by_kind["same_caption"]["groups"] == [[{"dataset": 0, "name": p.name} for p in paths[:2]]]
    assert by_kind["only_trigger"]["items"] == [{"dataset": 0, "name": p.name} for p in paths[3:5]]


def test_shares_views_and_remedies(tmp_path):
    paths = sorted(DEMO.glob("*.png"))
    items = [item(p, dataset=int(n >= 4), caption_from="data.0.caption") for n, p in enumerate(paths)]
    sets = [{"path": "/a"}, {"path": "/b", "weight": 2.0}]
    found = doctor.report(items, [], wanted(data=sets, train={"steps": 44, "batch": 2}))
    assert found["views"] == [
        {"dataset": 0, "items": 4, "share": 1 / 11, "views": 2.0},
        {"dataset": 1, "items": 20, "share": 10 / 11, "views": 4.0},
    ]
    assert [(f["kind"], f["remedy"]) for f in found["findings"]] == [("small_share", {"data.0.repeats": 10})]
    even = wanted(data=[{"path": "/a", "repeats": 10}, sets[1]], train={"steps": 44, "batch": 2})
    assert doctor.report(items, [], even)["findings"] == []
    single = {path.name: 10 for path in paths[:2]}
    some = wanted(data=[{"path": "/a", "repeats_of": single}, sets[1]], train={"steps": 31, "batch": 2})
    assert [v["share"] for v in doctor.report(items, [], some)["views"]] == [22 / 62, 40 / 62], "2 of 4 count tenfold"
    few = doctor.report(items[4:], [], wanted(data=sets, train={"steps": 7}))
    assert [(f["kind"], f["remedy"]) for f in few["findings"]] == [("few_views", {"train.steps": 20})]
    many = doctor.report(items[:4], [], wanted(data=sets, train={"steps": 4000}))
    assert [(f["kind"], f["remedy"]) for f in many["findings"]] == [("many_views", {"train.steps": 2000})]


def test_resolution_leaks_and_problems(tmp_path):
    paths = sorted(DEMO.glob("*.png"))[:4]
    items = [item(p, dataset=n // 3) for n, p in enumerate(paths)] + [item(paths[0], dataset=1)]
    sets = [{"path": "/a"}, {"path": "/b", "role": "validation"}]
    problems = [
        Problem("error", "/x/bad.png", "/x/bad.png is empty (0 bytes)."),
        Problem("note", "/x/odd.png", "odd.png is an animation."),
        Problem("error", "data.0.caption", "No caption."),
    ]
    found = doctor.report(items, problems, wanted(data=sets, train={"steps": 9}, media={"resolutions": [128, 512]}))
    by_kind = {f["kind"]: f for f in found["findings"]}
    assert by_kind.keys() == {"unusable", "leak", "resolution", "small"}
    assert by_kind["leak"]["items"] == [{"dataset": 1, "name": paths[0].name}]
    assert by_kind["resolution"]["remedy"] == {"media.resolutions": [128]}
    assert "1 file has a problem. First: /x/bad.png" in by_kind["unusable"]["text"]
    assert len(found["problems"]) == 3 and not found["ok"]


def clip(path: Path, moves: bool, fly: bool = False) -> Path:
    with av.open(str(path), "w") as container:
        picture = container.add_stream("mpeg4", 10)
        picture.width, picture.height, picture.pix_fmt, picture.bit_rate = 128, 96, "yuv420p", 2_000_000
        for n in range(20):
            shift = 4 * n if moves else 0
            image = photo(1).crop((shift, 0, shift + 128, 96))
            if fly:
                ImageDraw.Draw(image).ellipse((4 * n, 40, 4 * n + 7, 47), "black")
            container.mux(picture.encode(av.VideoFrame.from_image(image)))
        container.mux(picture.encode())
    return path


def tone(path: Path, level: float) -> Path:
    samples = (np.sin(np.arange(8000) / 10) * 32767 * level).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1), file.setsampwidth(2), file.setframerate(8000)
        file.writeframes(samples.tobytes())
    return path


def test_videos_and_sounds(tmp_path):
    moving, still = clip(tmp_path / "moving.mp4", True), clip(tmp_path / "still.mp4", False)
    fly = clip(tmp_path / "fly.mp4", False, fly=True)
    loud, silent = tone(tmp_path / "loud.wav", 0.1), tone(tmp_path / "silent.wav", 0.0002)
    items = [
        item(moving, width=128, height=96, frames=20, fps=10.0, seconds=2.0),
        item(still, width=128, height=96, frames=20, fps=10.0, seconds=2.0),
        item(fly, width=128, height=96, frames=20, fps=10.0, seconds=2.0),
        item(loud, seconds=1.0, rate=8000),
        item(silent, seconds=300.0, rate=8000),
    ]
    report = doctor.examine(items, [])
    assert flagged(report, "still") == {"still.mp4"} and flagged(report, "silent") == {"silent.wav"}
    assert report.lengths == {"1-2 s": 1, "2-4 s": 3, "256 s or more": 1}
    assert report.shapes == {"4:3": 3} and report.kinds == {"video": 3, "audio": 2}
    assert {f.kind for f in report.findings} <= {"still", "silent", "look_alikes"}


def test_report_is_json_and_reads_well_and_nothing_is_changed(tmp_path):
    for n in range(2):
        save(photo(n), tmp_path / f"{n}.jpg")
        save(photo(n).filter(ImageFilter.GaussianBlur(12)), tmp_path / f"soft{n}.jpg")
    (tmp_path / "cut.png").write_bytes((DEMO / "camera.png").read_bytes()[:300])
    clip(tmp_path / "x.mp4", True), tone(tmp_path / "y.wav", 0.3)

    def state():
        stats = ((p, p.stat()) for p in sorted(tmp_path.rglob("*")))
        return [(p.name, s.st_mtime_ns, s.st_size, hashlib.sha256(p.read_bytes()).hexdigest()) for p, s in stats]

    items = [item(p, seconds=1.5) for p in sorted(tmp_path.iterdir())]
    before, seen = state(), []
    found = doctor.report(items, [], wanted(train={"steps": 70}), progress=lambda done, of: seen.append((done, of)))
    assert state() == before
    assert seen == [(n, 7) for n in range(1, 8)]
    assert json.loads(json.dumps(found)) == found
    text = doctor.plain(found)
    assert "2 pictures are very blurred (first: soft0.jpg); blur is learnt" in text
    assert "1 picture cannot be read (cut.png): cut.png is damaged or cut off" in text
    assert "5 pictures, 1 video, 1 sound. Only looked at; no file was changed." in text
    assert "data.0: 7 items, 100% of the steps, each seen 10.0 times." in text


def test_no_items():
    found = doctor.report([], [], wanted())
    assert found["findings"] == [] and found["ok"] and "Nothing odd was found." in doctor.plain(found)
