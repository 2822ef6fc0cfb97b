"""Measure how often a sample of the embedded base looks like the picture that its caption names.

python recipes/demo/measure_base.py --pictures WORK/pictures [--base DIR] [--guidance 1.0] [--steps 20]

200 captions of the training set (a fixed seeded choice, each of another subject) are sampled through FluxPipeline
with fixed seeds. A sample and the 200 real pictures are compared by the averages of 4 x 4 pixel blocks (L2). The bar:
the right picture is the nearest for at least 50 % and among the five nearest for at least 75 %.
WORK/pictures comes from `python recipes/demo/make_base.py --work WORK render`.
"""

import argparse
import random
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import FluxPipeline
from making.pictures import SIZE, features
from making.text import MAX_TOKENS
from PIL import Image

COUNT = 200
SEED = 7
BAR_NEAREST = 0.50
BAR_FIVE = 0.75


def choose(folder: Path) -> list[Path]:
    """Pick one picture of each of 200 subjects, always the same ones."""
    subjects: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*.png")):
        subjects.setdefault(path.stem.rsplit("-", 1)[0], []).append(path)
    draw = random.Random(SEED)
    return [draw.choice(subjects[subject]) for subject in draw.sample(sorted(subjects), COUNT)]


def sample(pipeline: FluxPipeline, captions: list[str], args: argparse.Namespace) -> list[Image.Image]:
    """Draw one picture for every caption, each from its own seed, so that the batch size does not matter."""
    pictures: list[Image.Image] = []
    for start in range(0, len(captions), args.batch):
        batch = captions[start : start + args.batch]
        seeds = [torch.Generator().manual_seed(SEED + start + index) for index in range(len(batch))]
        guided = {"true_cfg_scale": args.guidance, "negative_prompt": [""] * len(batch)} if args.guidance > 1 else {}
        answer = pipeline(
            batch,
            height=SIZE,
            width=SIZE,
            num_inference_steps=args.steps,
            max_sequence_length=MAX_TOKENS,
            generator=seeds,
            **guided,
        )
        pictures.extend(answer.images)
    return pictures


def ranks(samples: list[Image.Image], real: list[Image.Image]) -> np.ndarray:
    """For every sample: how many real pictures are nearer than the right one."""
    drawn = np.stack([features(picture) for picture in samples])
    wanted = np.stack([features(picture) for picture in real])
    distances = np.linalg.norm(drawn[:, None] - wanted[None], axis=2)
    return (distances < distances.diagonal()[:, None]).sum(axis=1)


def write_sheet(path: Path, samples: list[Image.Image], real: list[Image.Image]) -> None:
    """Save real pictures above their samples, twenty pairs a row."""
    rows = -(-len(samples) // 20)
    sheet = Image.new("RGB", (20 * SIZE, rows * 2 * SIZE), "white")
    for index, (drawn, wanted) in enumerate(zip(samples, real, strict=True)):
        row, column = divmod(index, 20)
        sheet.paste(wanted, (column * SIZE, row * 2 * SIZE))
        sheet.paste(drawn, (column * SIZE, (row * 2 + 1) * SIZE))
    sheet.save(path)


def main() -> None:
    """Sample, compare, and print both figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=Path(__file__).resolve().parent / "base", help="the model")
    parser.add_argument("--pictures", type=Path, required=True, help="the training pictures with their captions")
    parser.add_argument("--guidance", type=float, default=1.0, help="classifier-free guidance; 1 means none")
    parser.add_argument("--steps", type=int, default=20, help="sampling steps")
    parser.add_argument("--batch", type=int, default=50, help="captions sampled together")
    parser.add_argument("--sheet", type=Path, help="write a picture with real ones above samples")
    args = parser.parse_args()
    pipeline = FluxPipeline.from_pretrained(args.base, dtype=torch.bfloat16)
    pipeline.set_progress_bar_config(disable=True)
    chosen = choose(args.pictures)
    captions = [path.with_suffix(".txt").read_text(encoding="utf-8").strip() for path in chosen]
    real = [Image.open(path).convert("RGB") for path in chosen]
    began = time.monotonic()
    samples = sample(pipeline, captions, args)
    found = ranks(samples, real)
    nearest, five = float((found == 0).mean()), float((found < 5).mean())
    print(f"{COUNT} samples in {time.monotonic() - began:.0f} s, {args.steps} steps, guidance {args.guidance:g}")
    print(f"right picture nearest: {nearest:.1%} (bar {BAR_NEAREST:.0%})")
    print(f"right picture among the five nearest: {five:.1%} (bar {BAR_FIVE:.0%})")
    if args.sheet:
        write_sheet(args.sheet, samples, real)
    if nearest < BAR_NEAREST or five < BAR_FIVE:
        raise SystemExit("The bar is not reached.")


if __name__ == "__main__":
    main()
