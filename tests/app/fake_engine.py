"""A stand-in for `python -m tuner` that keeps the same contract in a second: for tests of the app alone."""

from __future__ import annotations

import colorsys
import json
import math
import os
import random
import sys
import time
from pathlib import Path

import yaml
from PIL import Image, ImageDraw, PngImagePlugin

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tuner import events, home
from tuner.__main__ import main as tuner_main
from tuner.caption.book import Book

DAMAGED = "The picture cat.png is damaged; remove it or set data.0.on_problem to skip."
FAILURES = {
    "breaks": (DAMAGED, lambda r: r["data"][0].get("on_problem") == "skip"),
    "memory": ("Memory ran out. Lower train.batch or media.resolutions, or set memory.checkpointing=true; the last "
               "checkpoint is untouched.", lambda r: (r.get("memory") or {}).get("checkpointing")
               or r["train"]["batch"] < 8 or (r.get("memory") or {}).get("quantise") == "int8"),
    "diverges": ("The loss became nan at step 3 (items a); lower train.lr, or use train.precision=fp32 if it happens "
                 "at once. The last checkpoint is untouched.", lambda r: r["train"]["lr"] < 1e-3),
    "size": ("validate.size is [60, 60]; both must be multiples of 64.",
             lambda r: (r.get("validate") or {}).get("size") == [64, 64]),
    "gone": ("data.0.path is /nowhere, which does not exist; create the folder, or correct the path.", None),
    "model": ("source broken: unet could not be loaded (header too large); download it again.", None),
    "full": ("There is no space left to write in /runs/x (the disk is full); free some space, then go on with "
             "`python -m tuner resume /runs/x`. Earlier checkpoints are untouched.", None),
    "hub": ("source a/b could not be fetched from the Hub (LocalEntryNotFoundError); check the name, your network, and "
            "for gated models that you accepted the licence and ran `hf auth login`.", None),
    "cache": ("The cache entry 12ab in /cache is missing or damaged; start or resume the run again, and it is made "
              "anew.", None),
    "ours": ("KeyError: 'x'", None),
}  # fmt: skip
"""By the name of the recipe: what is said, and what of the recipe solves it (nothing: it fails only once)."""
REMEDIES = {"breaks": {"data.0.on_problem": "skip"}, "size": {"validate.size": [64, 64]}}


def failed(folder: Path, recipe: dict, journal: events.Journal) -> bool:
    """Fail as this recipe's name says, unless that was mended."""
    said, mended = FAILURES.get(recipe["name"], ("", None))
    before = folder / "failed-before"
    if not said or (mended(recipe) if mended else before.exists()):
        return False
    before.touch()
    remedy = {"remedy": REMEDIES[recipe["name"]]} if recipe["name"] in REMEDIES else {}
    journal("failed", error=said, user=recipe["name"] != "ours", **remedy)
    return True


def picture(path: Path, seed: int, learned: float) -> None:
    """A disc whose colour turns to black and white with learning."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draw = random.Random(seed)
    red, green, blue = colorsys.hsv_to_rgb(draw.random(), 0.75 * (1 - learned), 0.9 - 0.8 * learned)
    image = Image.new("RGB", (96, 96), "white")
    colour = (int(255 * red), int(255 * green), int(255 * blue))
    sides = draw.randint(3, 9)
    ImageDraw.Draw(image).regular_polygon((48, 48, 34), sides, draw.randint(0, 90), fill=colour)
    image.save(path)


def samples(folder: Path, journal: events.Journal, recipe: dict, step: int, of: int) -> None:
    """One picture per prompt."""
    files = []
    for i, prompt in enumerate((recipe.get("validate") or {}).get("prompts") or []):
        name = f"samples/step-{step:06d}-{i}.png"
        picture(folder / name, i, step / max(1, of))
        files.append({"prompt": prompt, "file": name, "seed": 0})
    if files:
        journal("sample", step=step, files=files)


def begun(folder: Path, journal: events.Journal, pace: float) -> bool:
    """What comes before the first step; whether nobody stopped it."""
    for name in ("prepare", "cache pictures", "cache text", "load"):
        for done in range(1, 4):
            journal("phase", name=name, done=done, of=3)
            time.sleep(min(0.05, pace))
            if take(folder, "stop"):
                journal("stopped")
                return False
    return True


def train(folder: Path, recipe: dict, pace: float, first: int) -> int:
    """Pretend to learn."""
    journal = events.Journal(folder / "events.jsonl")
    of, every = recipe["train"]["steps"], (recipe.get("validate") or {}).get("every", 100)
    journal(
        "started", pid=os.getpid(), born=events.birth(os.getpid()), from_step=first, steps=of, name=recipe["name"],
        family=recipe["family"], device="cpu", precision="fp32", hooks=[],
    )  # fmt: skip
    journal("planned", items=24, left_out=2, per_epoch=3)
    if not begun(folder, journal, pace):
        return 0
    if first == 0:
        samples(folder, journal, recipe, 0, of)
    journal("phase", name="train", done=first, of=of)
    if failed(folder, recipe, journal):
        return 1
    if recipe["name"] == "dies":
        os.kill(os.getpid(), 9)
    draw = random.Random(0)
    for step in range(first + 1, of + 1):
        time.sleep(pace)
        loss = 0.2 + 0.6 * math.exp(-4 * step / of) + draw.gauss(0, 0.05)
        memory = {"used": int(2.1e9 + step), "peak": int(3.4e9), "of": int(8e9)}
        journal("step", step=step, of=of, loss=loss, lr=1e-4, norm=0.5 + draw.random() / 5, seconds=pace, memory=memory)
        if take(folder, "sample") or step % every == 0 or step == of:
            samples(folder, journal, recipe, step, of)
            held = 0.22 + 0.6 * math.exp(-4 * step / of)
            journal("validation", step=step, loss=held, by_t={"0.1": held + 0.1, "0.9": held - 0.1})
        if take(folder, "save") or step % 50 == 0 or step == of:
            (folder / "checkpoints" / f"step-{step:06d}").mkdir(parents=True, exist_ok=True)
            journal("checkpoint", step=step, path=f"checkpoints/step-{step:06d}")
        if take(folder, "stop") and recipe["name"] != "deaf":
            (folder / "checkpoints" / f"step-{step:06d}").mkdir(parents=True, exist_ok=True)
            journal("checkpoint", step=step, path=f"checkpoints/step-{step:06d}")
            journal("stopped", step=step)
            return 0
    journal("phase", name="export", done=0, of=1)
    out = folder / "export" / "diffusers" / "pytorch_lora_weights.safetensors"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(b"not really")
    comfy = folder / "export" / "comfyui" / f"{recipe['name']}.safetensors"
    comfy.parent.mkdir(exist_ok=True)
    comfy.write_bytes(b"not really")
    files = [
        {"path": str(out.relative_to(folder)), "format": "diffusers", "loads_in": ["diffusers"], "problems": []},
        {"path": str(comfy.relative_to(folder)), "format": "comfyui", "loads_in": [],
         "problems": ["2 keys are unknown to ComfyUI: <b>x</b>"]},
    ]  # fmt: skip
    journal("export", path=files[0]["path"], verified=False, files=files)
    journal("finished", step=of, seconds=of * pace)
    return 0


def take(folder: Path, request: str) -> bool:
    """Whether this was asked for."""
    path = folder / "control" / request
    if not path.exists():
        return False
    path.unlink()
    return True


def check(path: Path) -> int:
    """A plan and no problems, but for a source that says "missing"."""
    recipe = yaml.safe_load(path.read_text())
    files = [p for p in Path(recipe["data"][0]["path"]).iterdir() if p.suffix == ".png"]
    problems = []
    if "missing" in recipe["source"]:
        text = f"source: {recipe['source']} is no model folder; give a folder in Hub layout."
        problems = [{"level": "error", "where": "source", "text": text, "remedy": {"source": "sd1"}}]
    plan = {
        "items": len(files), "unused": 0, "steps_per_epoch": len(files), "epochs": 5, "cell": 8,
        "buckets": [{"width": 64, "height": 64, "items": len(files)}],
        "uses": [
            {"name": p.name, "dataset": 0, "kind": "image", "resolution": 64, "bucket": [64, 64],
             "original": [128, 64], "scaled": [128, 64], "crop": [32, 0, 96, 64], "tokens": [9, 77]} for p in files
        ],
    }  # fmt: skip
    device = {"name": "cpu", "reason": "no GPU was found"}
    print(json.dumps({"ok": not problems, "problems": problems, "plan": plan, "device": device}))
    return int(bool(problems))


def examine(path: Path) -> int:
    """The first two pictures are copies; the recipe could be longer."""
    recipe = yaml.safe_load(path.read_text())
    names = sorted(p.name for p in Path(recipe["data"][0]["path"]).iterdir() if p.suffix == ".png")
    copies = [{"dataset": 0, "name": name} for name in names[:2]]
    findings = [
        {"kind": "copies", "level": "warning", "text": "1 picture is a copy.", "items": [], "groups": [copies],
         "remedy": {}},
        {"kind": "few_views", "level": "warning", "text": "Seen too rarely.", "items": [], "groups": [],
         "remedy": {"train.steps": 321}},
    ]  # fmt: skip
    print(json.dumps({"ok": False, "items": len(names), "findings": findings if len(names) > 1 else []}))
    return 0


def caption(folder: Path, arguments: list[str], pace: float) -> int:
    """A caption for everything that has none, with the engine's own book."""
    job = Path(arguments[arguments.index("--job") + 1])
    word = arguments[arguments.index("--trigger") + 1] + ", " if "--trigger" in arguments else ""
    journal = events.Journal(job / "events.jsonl")
    journal("started", pid=os.getpid(), born=events.birth(os.getpid()), from_step=0, steps=0, name="captions")
    book = Book.open(folder)
    files = [p for p in sorted(folder.iterdir()) if p.suffix == ".png" and not p.with_suffix(".txt").exists()]
    if "--only" in arguments:
        some = Path(arguments[arguments.index("--only") + 1]).read_text().splitlines()
        files = [p for p in files if p.name in some]
    for done, path in enumerate(files, 1):
        if take(job, "stop"):
            journal("stopped")
            return 0
        time.sleep(pace * 5)
        book.add(path.name, path.with_suffix(".txt"), f"{word}thing {done}", "basic", "general")
        book.save()
        journal("caption", item=path.name, text=f"thing {done}", done=done, of=len(files))
        journal("phase", name="caption", done=done, of=len(files))
    journal("finished")
    return 0


def mask(arguments: list[str], pace: float) -> int:
    """The left half of every picture is a person, but for the last picture, where there is none."""
    path, out = Path(arguments[0]), Path(arguments[arguments.index("--out") + 1])
    job = Path(arguments[arguments.index("--job") + 1])
    journal = events.Journal(job / "events.jsonl")
    journal("started", pid=os.getpid(), born=events.birth(os.getpid()), from_step=0, steps=0, name="masks")
    names = [p.name for p in sorted(path.iterdir()) if p.suffix == ".png"]
    if "--only" in arguments:
        names = Path(arguments[arguments.index("--only") + 1]).read_text().splitlines()
    out.mkdir(parents=True, exist_ok=True)
    for done, name in enumerate(names, 1):
        if take(job, "stop"):
            journal("stopped")
            return 0
        time.sleep(pace * 5)
        target = out / f"{Path(name).stem}.png"
        if done < len(names) or done == 1:
            with Image.open(path / name) as picture:
                made = Image.new("L", picture.size, 0)
            made.paste(255, (0, 0, made.width // 2, made.height))
            told = PngImagePlugin.PngInfo()
            told.add_text("Software", "tuner mask")
            if not target.exists():
                made.save(target, pnginfo=told)
            journal("mask", item=name)
        else:
            journal("note", text=f"No person was found in 1 (first: {name}); no mask was made for these.")
        journal("phase", name="mask", done=done, of=len(names))
    journal("finished")
    return 0


def sample(request: Path, folder: Path, pace: float) -> int:
    """Pictures for each contender."""
    asked = yaml.safe_load(request.read_text())
    journal = events.Journal(folder / "events.jsonl")
    journal(
        "started", pid=os.getpid(), born=events.birth(os.getpid()), from_step=0, steps=0, name="compare",
        family=asked["family"], device="cpu", precision="fp32", hooks=[],
    )  # fmt: skip
    for c, contender in enumerate(asked["contenders"]):
        if "broken" in contender["label"]:
            journal("refused", contender=c, text=f"{contender['adapter']} does not fit FLUX.1; choose another adapter.")
            continue
        for p, _ in enumerate(asked["prompts"]):
            for seed in asked["seeds"]:
                time.sleep(pace)
                if take(folder, "stop"):
                    journal("stopped", folder=str(folder))
                    return 0
                name = f"c{c}-p{p}-{seed}.png"
                picture(folder / name, 10 * p + seed, contender["strength"] if contender["adapter"] else 0.0)
                journal("sample", contender=c, prompt=p, seed=seed, file=name)
    journal("finished", step=0, seconds=1.0)
    return 0


def export(path: Path, arguments: list[str], pace: float) -> int:
    """A small file per format; what is called "bent" does not load as it was trained."""

    def given(name: str, otherwise: str) -> str:
        return next((a.partition("=")[2] for a in arguments if a.startswith(f"--{name}=")), otherwise)

    out, job = (Path(arguments[arguments.index(name) + 1]) for name in ("--out", "--job"))
    journal = events.Journal(job / "events.jsonl")
    journal("started", pid=os.getpid(), born=events.birth(os.getpid()), from_step=0, steps=0, name="export")
    time.sleep(10 * pace)
    if "broken" in path.name:
        journal("failed", error=f"{path.name} is damaged; download it again.", user=True)
        return 1
    files = []
    for kind in given("formats", "diffusers,comfyui").split(","):
        file = out / kind / ("pytorch_lora_weights.safetensors" if kind == "diffusers" else f"{path.stem}.safetensors")
        file.parent.mkdir(parents=True)
        header = json.dumps({"__metadata__": {"asked": " ".join(arguments[:-4]), "ss_steps": "50"}}).encode()
        file.write_bytes(len(header).to_bytes(8, "little") + header)
        problems = ["its change of 2 of 9 layers is not the trained one"] if "bent" in str(path) else []
        reader = {"comfyui": "ComfyUI"}.get(kind, kind)
        files.append({"path": str(file.relative_to(out)), "format": kind, "loads_in": [] if problems else [reader],
                      "problems": problems})  # fmt: skip
    journal("export", path=files[0]["path"], verified=not any(f["problems"] for f in files), files=files)
    journal("finished", seconds=0.1)
    return 0


def describe() -> int:
    """One family."""
    family = {
        "name": "flux1", "title": "FLUX.1", "modality": "image", "tasks": ["generate"], "sources": ["dev", "schnell"],
        "licence": "non-commercial", "resolution": 1024, "guidance": 3.5, "targets": ["default"], "size": "12 B",
        "options": {}, "no_formats": {"kohya": "kohya-like tools do not know this family"},
    }  # fmt: skip
    print(json.dumps({"families": [family], "extensions": [], "version": "0"}))
    return 0


def inspect() -> int:
    """What is in any adapter file."""
    print(json.dumps({"dialect": "kohya", "kinds": {"lora": 2}, "ranks": {"4": 2}, "families": ["sd1"], "layers": 2,
                      "warnings": ["The metadata holds <b>a path</b>."]}))  # fmt: skip
    return 0


def prune() -> int:
    """Delete all that is cached."""
    for path in (home.cache_folder() / "entries").glob("*"):
        path.unlink()
    return 0


def main() -> int:
    """PACE COMMAND ARGUMENTS."""
    pace, command, *rest = float(sys.argv[1]), *sys.argv[2:]
    commands = {
        "check": lambda: examine(Path(rest[0])) if "--data" in rest else check(Path(rest[0])),
        "caption": lambda: caption(Path(rest[0]), rest, pace),
        "mask": lambda: mask(rest, pace),
        "describe": describe,
        "lora": inspect,
        "sample": lambda: sample(Path(rest[0]), Path(rest[2]), pace),
        "cache": prune,
        "export": lambda: export(Path(rest[0]), rest[1:], pace),
        "publish": lambda: tuner_main(sys.argv[2:]),  # nothing to fake: it needs no model
    }
    if command in commands:
        return commands[command]()
    if command == "resume":
        folder = Path(rest[0])
        found, _ = events.follow(folder / "events.jsonl")
        saved = [e["step"] for e in found if e["kind"] == "checkpoint"]
        recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
        if "--steps" in rest:
            recipe["train"]["steps"] = int(rest[rest.index("--steps") + 1])
        return train(folder, recipe, pace, saved[-1] if saved else 0)
    return train(Path(rest[2]), yaml.safe_load(Path(rest[0]).read_text()), pace, 0)


if __name__ == "__main__":
    sys.exit(main())
