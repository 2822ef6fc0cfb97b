"""What the data engine costs: `python tests/data/benchmark.py`. Prints a table, exits with 1 when a bar is missed.

plan:    an index of 10 k to 5 M rows is loaded from Parquet and planned at two resolutions; seconds, and peak memory
         of the process above what its imports took; then the order of an epoch is made and steps are drawn
fill:    seconds of a bare loop that encodes tensors which lie decoded in memory, over those of `fill_media` from files
         to cache (keys, one worker process, decoding, writing), same autoencoder, batches and buckets, in turn. PyTorch
         has one thread in both, so that on two cores the encoder keeps one and the worker the other.
loader:  wall time that the training thread waits for its batch, where a step takes 50 ms in which it sleeps (as it does
         while a GPU works): latents 16x128x128 float32 and text 512x4096 bfloat16, batches of four
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TUNER_DEVICE": "cpu", "TOKENIZERS_PARALLELISM": "false"}
ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

SIZES = (10_000, 100_000, 1_000_000, 5_000_000)
PICTURES, BATCH = 64, 4


def main() -> int:
    """All of it, or the parts that are named (plan, fill, loader)."""
    if sys.argv[1:2] == ["child"]:
        return CHILDREN[sys.argv[2]](Path(sys.argv[3]), *map(int, sys.argv[4:]))
    chosen = sys.argv[1:] or ["plan", "fill", "loader"]
    with tempfile.TemporaryDirectory() as name:
        return int(not min(PARTS[part](Path(name)) for part in chosen))


def child(*arguments: object) -> dict[str, float]:
    """Run this file for one measurement in a process of its own; its last line is JSON."""
    done = subprocess.run(
        [sys.executable, __file__, "child", *map(str, arguments)], capture_output=True, text=True, cwd=ROOT
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.strip().splitlines()[-1] or "{}")


def line(text: str, good: bool = True) -> bool:
    print(f"{text}{'' if good else '   MISSED'}", flush=True)
    return good


# -- plan and sampler --------------------------------------------------------------------------------------------------


def plan_part(folder: Path) -> bool:
    line("plan        rows    uses    seconds   growth   peak MB   sampler: build s   order s     keys/s")
    good, before = True, 0.0
    for rows in SIZES:
        path = folder / f"{rows}.parquet"
        child("make", path, rows)
        got = child("plan", path)
        path.unlink()
        growth = f"{got['seconds'] / before:7.1f}x" if before else "       -"
        before = got["seconds"]
        fine = got["keys"] >= 50_000 and (rows != 1_000_000 or (got["seconds"] <= 10 and got["mb"] <= 1000))
        good &= line(
            f"     {rows:>11,} {got['uses']:>9,} {got['seconds']:8.2f} {growth} {got['mb']:9.0f} "
            f"{got['build']:18.2f} {got['order']:9.2f} {got['keys']:10,.0f}",
            fine,
        )
    line("bars: 1,000,000 rows in 10 s and 1000 MB; 50,000 keys/s. Growth is to be read against 10x, 10x and 5x rows")
    return good


def make(path: Path, rows: int) -> int:
    """An index of pictures of many shapes in two data sets, without an object per row."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    from tuner.data.index import SCHEMA, Index

    random = np.random.default_rng(0)
    number = pa.array(np.arange(rows)).cast(pa.string())
    name = pc.binary_join_element_wise("some/folder/picture-", number, ".jpg", "")
    caption = pc.binary_join_element_wise("a picture of something, number ", number, "")
    area, shape = random.uniform(300**2, 3000**2, rows), np.exp(random.normal(0, 0.4, rows))
    columns: dict[str, Any] = {
        "dataset": np.sort(random.integers(0, 2, rows)),
        "ref": pc.binary_join_element_wise("/", name, ""),
        "name": name,
        "digest": pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(32), rows, [None, pa.py_buffer(random.bytes(32 * rows))]
        ),
        "width": np.sqrt(area * shape),
        "height": np.sqrt(area / shape),
        "captions": pa.ListArray.from_arrays(pa.array(np.arange(rows + 1), pa.int32()), caption),
        "caption_from": name,
        "lyrics": pc.if_else(pa.array(np.ones(rows, bool)), "", number),
        "references": pa.ListArray.from_arrays(
            pa.array(np.zeros(rows + 1), pa.int32()), pa.nulls(0, SCHEMA.field("references").type.value_type)
        ),
    }
    arrays = []
    for field in SCHEMA:
        value = columns.get(field.name)
        if value is None:
            value = np.zeros(rows) if pa.types.is_primitive(field.type) else pa.nulls(rows, field.type)
        arrays.append(value if isinstance(value, pa.Array) else pa.array(value).cast(field.type, safe=False))
    Index(pa.Table.from_arrays(arrays, schema=SCHEMA)).save(path)
    print("{}")
    return 0


def peak() -> float:
    """Most resident memory so far, in MB."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def plan_child(path: Path) -> int:
    """Load, plan, order, draw."""
    from tuner.data.index import Index
    from tuner.data.plan import plan
    from tuner.data.sampler import Rules, Sampler, uses
    from tuner.family import Geometry
    from tuner.recipe import DataSet, MediaSpec

    specs = [DataSet(path="one"), DataSet(path="two", weight=1.5)]
    base, start = peak(), time.perf_counter()
    made = plan(Index.load(path), specs, MediaSpec(), [512, 1024], Geometry(16, 8))
    seconds, memory = time.perf_counter() - start, peak() - base
    start = time.perf_counter()
    chosen = made.having("train", "regularisation")
    given = uses(chosen, made.bucket[chosen], [b.dataset for b in made.buckets], [s.repeats * s.weight for s in specs])
    sampler = Sampler(given, Rules(4, 1, 0))
    build, start = time.perf_counter() - start, time.perf_counter()
    sampler.step(0)
    order, start, keys, k = time.perf_counter() - start, time.perf_counter(), 0, 0
    while keys < 200_000:  # goes on into further epochs of a small index
        keys += sum(len(micro) for micro in sampler.step(k))
        k += 1
    per_second = keys / (time.perf_counter() - start)
    told = {"seconds": seconds, "mb": memory, "uses": len(made), "build": build, "order": order, "keys": per_second}
    print(json.dumps(told))
    return 0


# -- fill --------------------------------------------------------------------------------------------------------------


def fill_part(folder: Path) -> bool:
    got = child("fill", folder / "fill")
    line(f"\nfill   {PICTURES} pictures of 2000x2000 to 256x256, batches of {BATCH}, PyTorch with one thread")
    line(f"       bare encode loop {got['bare']:.1f} s, fill_media with one worker {got['fill']:.1f} s (two of each)")
    ratio = got["bare"] / got["fill"]
    good = line(f"       throughput {ratio:.3f} of bare (bar 0.95)", ratio >= 0.95)
    line(f"       of the fill: the worker decoded {got['decode']:.1f} s, the encoder took {got['encode']:.1f} s")
    beside = (got["decode"] + got["encode"] - got["fill"]) / got["decode"]
    return line(f"       {beside:.0%} of decoding ran beside encoding (bar: more than half)", beside > 0.5) and good


def drawn(folder: Path) -> Any:
    """A data set of large smooth pictures."""
    import numpy as np
    from PIL import Image

    from tuner.recipe import DataSet

    folder.mkdir()
    smooth = np.random.default_rng(0).integers(0, 255, (PICTURES, 30, 30, 3), np.uint8)
    for i in range(PICTURES):
        Image.fromarray(smooth[i]).resize((2000, 2000)).save(folder / f"{i}.jpg", quality=92)
    return DataSet(path=str(folder), caption="x")


def fill_child(folder: Path) -> int:
    import multiprocessing

    import torch
    from diffusers import AutoencoderKL

    from tuner.data import fill
    from tuner.data.cache import Cache
    from tuner.data.index import scan
    from tuner.data.plan import plan
    from tuner.family import Family, Geometry
    from tuner.recipe import MediaSpec
    from tuner.types import Media, Parts

    torch.set_num_threads(1)
    torch.manual_seed(0)
    blocks = ("DownEncoderBlock2D",) * 3, ("UpDecoderBlock2D",) * 3
    vae = AutoencoderKL(3, 3, *blocks, (64, 128, 128), layers_per_block=1, latent_channels=4).eval()
    told = dict.fromkeys(("bare", "fill", "encode"), 0.0)

    class Plain(Family):
        name = "plain"

        def __init__(self) -> None:
            self.options, self.task = None, "generate"

        def encode_settings(self) -> dict[str, Any]:
            return {}

        def encode_media(self, parts: Parts, media: Media) -> torch.Tensor:
            start = time.perf_counter()
            latents = parts["vae"].encode(media.pixels).latent_dist.mode()
            told["encode"] += time.perf_counter() - start
            return latents

    specs, geometry = [drawn(folder)], Geometry(16, 4)
    made = plan(scan(specs), specs, MediaSpec(), [256], geometry)
    encoder = fill.Encoder(Plain(), Parts("unet", {"vae": vae}), geometry)
    groups = fill.media_groups(made, range(len(made)), BATCH)
    ready = list(fill.decoded(made, geometry, groups, 0))
    decoding, load = multiprocessing.Value("d", 0.0), fill.tensor.load

    def timed(*arguments: Any) -> Any:
        start = time.perf_counter()
        loaded = load(*arguments)
        decoding.value += time.perf_counter() - start
        return loaded

    fill.tensor.load = timed  # the worker is forked with it
    with torch.no_grad():
        vae.encode(torch.stack([t.pixels for t in ready[0]]))  # the first one is slower
    for number in range(2):
        start = time.perf_counter()
        for group in ready:
            with torch.no_grad():
                vae.encode(torch.stack([t.pixels for t in group])).latent_dist.mode()
        told["bare"] += time.perf_counter() - start
        cache, start = Cache(folder / f"cache{number}"), time.perf_counter()
        keys = fill.Keys(made, encoder.family, "w", "t")
        fill.fill_media(cache, keys, encoder, lambda *_, **__: None, BATCH, workers=1)
        told["fill"] += time.perf_counter() - start
        assert cache.size()["entries"] == PICTURES
    print(json.dumps({**told, "decode": decoding.value}))
    return 0


# -- loader ------------------------------------------------------------------------------------------------------------


def loader_part(folder: Path) -> bool:
    good = True
    line("\nloader   workers   waited per step   worst   of a 50 ms step   CPU of this process per step   (bar 10 %)")
    for workers in (0, 1):
        got = child("loader", folder / f"loader{workers}", workers)
        share = got["waited"] / 0.05
        good &= line(f"         {workers:>7} {got['waited'] * 1e3:14.2f} ms {got['worst'] * 1e3:4.1f} ms {share:17.1%} "
                     f"{got['cpu'] * 1e3:27.2f} ms", share <= 0.1)  # fmt: skip
    return good


def loader_child(folder: Path, workers: int) -> int:
    import torch

    from tests.data.conftest import GEOMETRY, Fake, item
    from tuner.data.cache import Cache
    from tuner.data.fill import Keys, everything_told
    from tuner.data.index import Index
    from tuner.data.loader import Loader
    from tuner.data.plan import plan
    from tuner.data.sampler import Rules, Sampler, uses
    from tuner.recipe import DataSet, MediaSpec

    torch.set_num_threads(1)
    items = [item(1024, 1024, f"{i}.png") for i in range(32)]
    made = plan(Index.of(items), [DataSet(path="x")], MediaSpec(), [1024], GEOMETRY)
    cache, keys = Cache(folder), Keys(made, Fake(), "w", "t")
    for key in keys.all():
        cache.put(key, {"latents": torch.randn(16, 128, 128)})
    for key in everything_told(keys):
        cache.put(key, {"text": torch.randn(512, 4096).bfloat16()})
    given = uses(made.having("train"), made.bucket, [0], [1.0])
    loader = Loader(Sampler(given, Rules(4, 1, 0)), cache, keys, Fake(), caption_dropout=0.1, workers=workers)
    steps, waits = loader.steps(), []
    for _ in range(10):
        next(steps)
        time.sleep(0.05)
    cpu = time.process_time()
    for _ in range(100):
        start = time.perf_counter()
        [batch] = next(steps)
        waits.append(time.perf_counter() - start)
        assert batch.latents.shape == (4, 16, 128, 128)
        time.sleep(0.05 - min(waits[-1], 0.05))
    cpu = (time.process_time() - cpu) / len(waits)
    steps.close()
    print(json.dumps({"waited": sum(waits) / len(waits), "worst": max(waits), "cpu": cpu}))
    return 0


PARTS = {"plan": plan_part, "fill": fill_part, "loader": loader_part}
CHILDREN = {"make": make, "plan": plan_child, "fill": fill_child, "loader": loader_child}

if __name__ == "__main__":
    sys.exit(main())
