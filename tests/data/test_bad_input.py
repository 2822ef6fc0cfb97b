"""Every kind of bad or odd file: one plain sentence with the way out, right pixels, and nothing changed on disk."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from tuner.data import looks, media
from tuner.data.index import scan
from tuner.data.sources import listing
from tuner.errors import UserError, stop_on_errors
from tuner.recipe import DataSet

from .conftest import picture, texts


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noisy(size=(64, 64)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (*size[::-1], 3), np.uint8))


def state(folder: Path) -> dict[str, tuple[str, int]]:
    return {
        str(p.relative_to(folder)): (hashlib.sha256(p.read_bytes()).hexdigest(), p.stat().st_mtime_ns)
        for p in folder.rglob("*")
        if p.is_file()
    }


BAD = {
    "zero.png": (b"", "is empty (0 bytes)"),
    "text.jpg": (b"this is no picture at all", "is not a picture"),
    "page.png": (b"<html>404</html>", "is not a picture"),
    "cut.png": (encoded(noisy(), "PNG")[:2000], "is damaged or cut off"),
    "cut.jpg": (encoded(noisy(), "JPEG")[:1500], "is damaged or cut off"),
    "cut.webp": (encoded(noisy(), "WEBP", lossless=True)[:1500], "damaged"),
    "cut.bmp": (encoded(noisy(), "BMP")[:2000], "is damaged or cut off"),
    "cut.tif": (encoded(noisy(), "TIFF")[:2000], "damaged"),
    "cut.gif": (encoded(noisy(), "GIF")[:1200], "damaged"),
    "cut.avif": (encoded(noisy(), "AVIF")[:600], "damaged"),
    "wrong-crc.png": (encoded(noisy(), "PNG")[:500] + b"\xff" * 50 + encoded(noisy(), "PNG")[550:], "is damaged"),
    "bomb.png": (png_header(60000, 60000), "has 3,600 million pixels, more than the 200 million"),
    "large.png": (png_header(16000, 16000), "has 256 million pixels, more than the 200 million"),
    "float.tif": (encoded(Image.new("F", (32, 32), 0.5), "TIFF"), "cannot be read (F)"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_file(name, tmp_path):
    data, says = BAD[name]
    good = picture(tmp_path / "good.png")
    bad = tmp_path / name
    bad.write_bytes(data)
    bad.with_suffix(".txt").write_text("fine")
    before = state(tmp_path)

    index = scan([DataSet(path=str(tmp_path))])
    assert [Path(i.ref) for i in index.items] == [good]
    [problem] = [p for p in index.problems if p.level == "error"]
    assert problem.where == str(bad)
    assert problem.text.startswith(f"{bad} ")
    assert says in problem.text
    assert "; " in problem.text
    assert "data.0.on_problem=skip" in problem.text
    assert "\n" not in problem.text
    with pytest.raises(UserError, match="on_problem"):
        stop_on_errors(index.problems)

    skipped = scan([DataSet(path=str(tmp_path), on_problem="skip")])
    assert [Path(i.ref) for i in skipped.items] == [good]
    assert "left out" in texts(skipped.problems, "warning")
    assert not texts(skipped.problems)
    assert state(tmp_path) == before


def test_only_bad_files_left_out_is_an_error(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    index = scan([DataSet(path=str(tmp_path), on_problem="skip", caption="x")])
    assert "no picture can be used" in texts(index.problems)


def test_folders(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.png").write_bytes(b"x")
    for name, says in (("missing", "does not exist"), ("file.png", "is a file"), ("empty", "no pictures")):
        index = scan([DataSet(path=str(tmp_path / "empty" / ".." / "file.png")), DataSet(path=str(tmp_path / name))])
        assert f"data.1.path is {tmp_path / name}" in texts(index.problems)
        assert says in texts(index.problems)


CONVERTED = {
    "cmyk.jpg": (encoded(Image.new("CMYK", (32, 32), (0, 255, 255, 0)), "JPEG"), "CMYK", (254, 0, 0)),
    "cmyk.tif": (encoded(Image.new("CMYK", (32, 32), (0, 255, 255, 0)), "TIFF"), "CMYK", (255, 0, 0)),
    "lab.tif": (encoded(Image.new("LAB", (32, 32), (255, 128, 128)), "TIFF"), "LAB", (255, 255, 255)),
    "deep.png": (encoded(Image.fromarray(np.full((32, 32), 32896, np.uint16)), "PNG"), "16 bits", (128, 128, 128)),
    "deep.tif": (encoded(Image.fromarray(np.full((32, 32), 32896, np.uint16)), "TIFF"), "16 bits", (128, 128, 128)),
    "white.png": (encoded(Image.fromarray(np.full((32, 32), 65535, np.uint16)), "PNG"), "16 bits", (255,) * 3),
    "i.tif": (encoded(Image.fromarray(np.full((32, 32), 32896, np.int32)), "TIFF"), "16 bits", (128, 128, 128)),
    "clear.png": (encoded(Image.new("RGBA", (32, 32), (0, 0, 0, 0)), "PNG"), "put on white", (255, 255, 255)),
    "half.png": (encoded(Image.new("RGBA", (32, 32), (255, 0, 0, 128)), "PNG"), "put on white", (255, 127, 127)),
    "grey-alpha.png": (encoded(Image.new("LA", (32, 32), (0, 128)), "PNG"), "put on white", (127, 127, 127)),
    "key.png": (encoded(Image.new("RGB", (32, 32), (9, 9, 9)), "PNG", transparency=(9,) * 3), "on white", (255,) * 3),
    "film.gif": (
        encoded(Image.new("RGB", (32, 32), (0, 255, 0)), "GIF", save_all=True,
                append_images=[Image.new("RGB", (32, 32), (i, 0, 9)) for i in range(1, 12)]),
        "is an animation of 12 frames; its first frame is used", (0, 255, 0),
    ),
    "film.webp": (
        encoded(Image.new("RGB", (32, 32), (0, 255, 0)), "WEBP", save_all=True, lossless=True,
                append_images=[Image.new("RGB", (32, 32), (255, 0, 0))]),
        "animation of 2 frames", (0, 255, 0),
    ),
    "film.png": (
        encoded(Image.new("RGB", (32, 32), (0, 255, 0)), "PNG", save_all=True,
                append_images=[Image.new("RGB", (32, 32), (255, 0, 0))]),
        "animation of 2 frames", (0, 255, 0),
    ),
    "pages.tif": (
        encoded(Image.new("RGB", (32, 32), (0, 255, 0)), "TIFF", save_all=True,
                append_images=[Image.new("RGB", (32, 32), (255, 0, 0))]),
        "has 2 pages", (0, 255, 0),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CONVERTED)
def test_converted_file(name, tmp_path):
    data, says, colour = CONVERTED[name]
    path = tmp_path / name
    path.write_bytes(data)
    index = scan([DataSet(path=str(tmp_path), caption="x")])
    assert not texts(index.problems)
    [note] = [p for p in index.problems if p.level == "note"]
    assert note.text.startswith(f"{name} ")
    assert says in note.text
    assert note.text.endswith(".")
    [one] = index.items
    image = media.load(Path(one.ref), one.digest)
    assert image.mode == "RGB"
    assert np.abs(np.array(image.getpixel((5, 5))) - colour).max() <= 1


SILENT = {
    "grey.png": (encoded(Image.new("L", (32, 32), 77), "PNG"), (77, 77, 77)),
    "palette.png": (encoded(Image.new("RGB", (32, 32), (10, 20, 30)).quantize(4), "PNG"), (10, 20, 30)),
    "one.png": (encoded(Image.new("1", (32, 32), 1), "PNG"), (255, 255, 255)),
    "opaque.png": (encoded(Image.new("RGBA", (32, 32), (1, 2, 3, 255)), "PNG"), (1, 2, 3)),
    "UPPER.PNG": (encoded(Image.new("RGB", (32, 32), (1, 2, 3)), "PNG"), (1, 2, 3)),
    "really-a-jpeg.png": (encoded(Image.new("RGB", (32, 32), (100, 100, 100)), "JPEG"), (100, 100, 100)),
    "srgb.png": (
        encoded(Image.new("RGB", (32, 32), (1, 2, 3)), "PNG",
                icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()),
        (1, 2, 3),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SILENT)
def test_lossless_conversion_says_nothing(name, tmp_path):
    data, colour = SILENT[name]
    (tmp_path / name).write_bytes(data)
    index = scan([DataSet(path=str(tmp_path), caption="x")])
    assert index.problems == []
    assert media.load(Path(index.items[0].ref), index.items[0].digest).getpixel((5, 5)) == colour


def test_many_notes_of_one_kind_are_counted(tmp_path):
    for number in range(7):
        Image.new("CMYK", (32, 32 + number)).save(tmp_path / f"{number}.jpg")
    index = scan([DataSet(path=str(tmp_path), caption="x")])
    assert [p.text for p in index.problems] == [
        "7 pictures (first: 0.jpg) are in CMYK colours; they are converted to sRGB. "
        "Save them as sRGB pictures if they come out wrong."
    ]


@pytest.mark.parametrize("turn", range(1, 9))
def test_exif_orientation(turn, tmp_path):
    """Each orientation, undone, gives the same upright picture as Pillow's own transpose."""
    from PIL import ImageOps

    image = noisy((48, 32))
    exif = Image.Exif()
    exif[0x0112] = turn
    image.save(tmp_path / "a.png", exif=exif)
    index = scan([DataSet(path=str(tmp_path), caption="x")])
    [one] = index.items
    assert (one.width, one.height) == ((48, 32) if turn <= 4 else (32, 48))
    with Image.open(tmp_path / "a.png") as raw:
        expected = ImageOps.exif_transpose(raw)
    assert media.load(Path(one.ref), one.digest).tobytes() == expected.tobytes()


def test_profile_is_applied(tmp_path):
    """A profile that calls red what sRGB calls blue; one of another colour model, and a damaged one, are only said."""
    swapped = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = swapped.replace("sRGB".encode("utf-16-be"), "mine".encode("utf-16-be"))
    swapped = swapped.replace(b"rXYZ", b"????", 1).replace(b"bXYZ", b"rXYZ", 1).replace(b"????", b"bXYZ", 1)
    other = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    for name, profile in (("a", swapped), ("b", b"no profile"), ("c", other)):
        Image.new("RGB", (32, 32), (200, 0, 0)).save(tmp_path / f"{name}.png", icc_profile=profile)
    index = scan([DataSet(path=str(tmp_path), caption="x")])
    notes = texts(index.problems, "note")
    assert "a.png has the colour profile mine" in notes
    assert "b.png has a colour profile that cannot be applied" in notes
    assert "c.png has a colour profile that cannot be applied" in notes
    pixels = [media.load(Path(i.ref), i.digest).getpixel((0, 0)) for i in index.items]
    assert np.abs(np.array(pixels) - [(0, 0, 200), (200, 0, 0), (200, 0, 0)]).max() <= 1


def test_changed_file_is_refused(tmp_path):
    path = picture(tmp_path / "a.png")
    digest = media.look(path).digest
    picture(path, colour=(0, 0, 0))
    with pytest.raises(media.Unusable, match="changed"):
        media.load(path, digest)


def test_captions(tmp_path):
    for name in ("a", "b", "c", "d", "e"):
        picture(tmp_path / f"{name}.png", caption=None, colour=(ord(name), 0, 0))
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf a cat \r\n")
    (tmp_path / "b.txt").write_text("a [trigger] on a mat")
    (tmp_path / "c.txt").write_text("photo of sks dog")
    (tmp_path / "d.txt").write_text("risks")
    index = scan([DataSet(path=str(tmp_path), trigger="sks")])
    assert [i.captions[0] for i in index.items] == [
        "sks, a cat",
        "a sks on a mat",
        "photo of sks dog",
        "sks, risks",
        "sks",
    ]
    [warning] = [p for p in index.problems if p.level == "warning"]
    assert warning.text.startswith("1 picture has no caption")
    assert "trigger word alone" in warning.text

    index = scan([DataSet(path=str(tmp_path))])
    errors = texts(index.problems)
    assert "1 picture has no caption" in errors
    assert "data.0.caption or data.0.trigger" in errors
    assert str(tmp_path / "e.png") in errors
    assert "says [trigger], but data.0.trigger is not set" in errors

    index = scan([DataSet(path=str(tmp_path), caption="a thing", trigger="sks")])
    assert index.items[-1].captions[0] == "sks, a thing"
    assert index.items[-1].caption_from == "data.0.caption"
    index = scan([DataSet(path=str(tmp_path), caption="", trigger="sks")])
    assert index.items[-1].captions[0] == "sks"


def test_undecodable_caption(tmp_path):
    picture(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes("café".encode("latin-1"))
    index = scan([DataSet(path=str(tmp_path))])
    assert texts(index.problems).startswith(f"{tmp_path / 'a.txt'} is not text in UTF-8")
    assert not len(index)


def test_no_captions_at_all_is_one_sentence(tmp_path):
    for number in range(4):
        picture(tmp_path / f"{number}.png", caption=None, colour=(number, 0, 0))
    index = scan([DataSet(path=str(tmp_path))])
    assert texts(index.problems) == (
        f"4 pictures have no caption (first: {tmp_path / '0.png'}); write a .txt beside each, "
        "or set data.0.caption or data.0.trigger."
    )
    skipped = scan([DataSet(path=str(tmp_path), on_problem="skip")])
    assert "4 pictures have no caption" in texts(skipped.problems, "warning")
    assert "no picture can be used" in texts(skipped.problems)


def test_masks(tmp_path):
    pictures, masks = tmp_path / "p", tmp_path / "p" / "masks"
    for number, name in enumerate(("a", "b", "sub/c")):
        picture(pictures / f"{name}.png", colour=(number, 0, 0))
    picture(masks / "a.jpg", colour=(255, 255, 255), caption=None)
    picture(masks / "sub/c.png", colour=(255, 255, 255), caption=None, size=(32, 64))
    picture(masks / "stray.png", caption=None)
    index = scan([DataSet(path=str(pictures), mask=str(masks))])
    assert "1 picture has no mask" in texts(index.problems)
    assert str(pictures / "b.png") in texts(index.problems)
    assert "data.0.on_problem=skip" in texts(index.problems)
    assert "stray.png" in texts(index.problems, "note")
    assert "is stretched to fit" in texts(index.problems, "warning")

    index = scan([DataSet(path=str(pictures), mask=str(masks), on_problem="skip")])
    assert [i.mask and Path(i.mask.ref).name for i in index.items] == ["a.jpg", None, "c.png"]
    assert "the whole picture counts" in texts(index.problems, "warning")
    assert not texts(index.problems)

    (masks / "b.png").write_bytes(b"")
    picture(masks / "a.jpg", colour=(0, 0, 0), caption=None)
    index = scan([DataSet(path=str(pictures), mask=str(masks))])
    assert f"{masks / 'b.png'} is empty" in texts(index.problems)
    assert "is all black" in texts(index.problems)

    index = scan([DataSet(path=str(pictures), mask=str(tmp_path / "nowhere"))])
    assert "data.0.mask is" in texts(index.problems)


def test_nothing_is_silently_left_out(tmp_path):
    picture(tmp_path / "a.png")
    picture(tmp_path / ".hidden.png", caption=None)
    picture(tmp_path / ".cache" / "x.png", caption=None)
    (tmp_path / "stray.txt").write_text("x")
    (tmp_path / "film.mp4").write_bytes(b"x")
    (tmp_path / "list.xyz").write_bytes(b"x")
    (tmp_path / "phone.HEIC").write_bytes(b"x")
    picture(tmp_path / "copy.png")
    index = scan([DataSet(path=str(tmp_path))])
    assert len(index.items) == 2
    notes, warnings = texts(index.problems, "note"), texts(index.problems, "warning")
    assert "2 hidden files or folders are left out" in notes
    assert "1 caption file has no item of the same name" in notes
    assert "1 file is neither items nor captions and left out (1 .xyz)" in notes
    assert "exact copy" in notes
    assert "1 video is left out (first: film.mp4)" in warnings
    assert "phone.HEIC is not a picture" in texts(index.problems)


def test_natural_order_and_links(tmp_path):
    for name in ("10", "2", "b/1", "B2", "a1"):
        picture(tmp_path / "p" / f"{name}.png")
    os.symlink(tmp_path / "p", tmp_path / "p" / "loop")
    found = listing(0, DataSet(path=str(tmp_path / "p")))
    assert [e.name for e in found.entries] == ["2.png", "10.png", "a1.png", "B2.png", "b/1.png"]
    assert found.problems == []


def test_unchanged_files_are_decoded_once(tmp_path, monkeypatch):
    store, folder = tmp_path / "store", tmp_path / "p"
    (folder / "sub").mkdir(parents=True)
    for number in range(3):
        Image.new("CMYK", (32, 32), number).save(folder / f"{number}.jpg")
    (folder / "bad.png").write_bytes(b"")
    decoded = []
    look = looks.look
    monkeypatch.setattr(looks, "look", lambda one: (decoded.append(Path(one.ref).name), look(one))[1])
    spec = DataSet(path=str(folder), caption="x")
    before = state(folder)
    first = scan([spec], store=store)
    assert sorted(decoded) == ["0.jpg", "1.jpg", "2.jpg", "bad.png"]
    assert scan([spec], store=store) == first
    assert decoded[4:] == ["bad.png"]
    assert state(folder) == before
    times = (folder / "1.jpg").stat()
    Image.new("CMYK", (32, 32), 9).save(folder / "1.jpg")
    os.utime(folder / "1.jpg", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert scan([spec], store=store).items[1].digest != first.items[1].digest
    for file in store.rglob("*.parquet"):
        file.write_bytes(file.read_bytes()[:50])
    assert len(scan([spec], store=store).items) == 3


def test_only_validation_is_an_error(tmp_path):
    picture(tmp_path / "a.png")
    index = scan([DataSet(path=str(tmp_path), role="validation")])
    assert "data.0.role is validation" in texts(index.problems)


def test_scan_needs_no_torch():
    import subprocess
    import sys

    code = "import sys, tuner.data.index; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_long_captions(tmp_path, fake):
    from tuner.data.index import long_captions

    picture(tmp_path / "a.png", caption="one two three four five")
    picture(tmp_path / "b.png", caption="one", colour=(0, 0, 0))
    specs = [DataSet(path=str(tmp_path))]
    index = scan(specs)
    [problem] = long_captions(index, specs, partial(fake.token_counts, {}), fake.name)
    assert problem.level == "error"
    assert problem.text == (
        f"The caption of {tmp_path / 'a.png'} has 5 tokens, but tokenizer of fake takes 4; shorten "
        f"{tmp_path / 'a.txt'}, or set data.0.on_problem=skip to train with the cut caption."
    )
    specs = [DataSet(path=str(tmp_path), on_problem="skip")]
    index = scan(specs)
    assert [p.level for p in long_captions(index, specs, partial(fake.token_counts, {}), fake.name)] == ["warning"]
