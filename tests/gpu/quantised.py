"""Every quantisation on the device that is here: `python -m tests.gpu.quantised [--small] [--seconds 170] [--int4]`.

A random FLUX of 1.4 B parameters (on a CPU, or with --small, one of 5 M) is made on the device from its configuration;
nothing is downloaded. For each quantisation, with and without checkpointing, a LoRA trains five steps in bf16 on one
item of random latents and text; then a checkpoint is loaded into a model that is built anew, which must go on to the
same loss; then the adapter is exported and verified. Printed is one line each:

base    bytes of the frozen network, and as a share of those without quantisation; `said` is what was predicted
peak    most memory of the training steps (CUDA: allocated), as a share of that without quantisation
time    of a step (median of the last three), as a multiple of that without quantisation
answer  distance of the network's answer before training, ||q - plain|| / ||plain||
loss    mean distance of the five losses, |q - plain| / plain
resume  distance of the next loss after loading, |again - straight| / straight

Ends with 1 if one that was not refused fails: answer above 0.5, a resume above 1e-3, an export with problems, or an
error. Starts nothing new after --seconds, so that the slow ones stand last. int4 compiles code for minutes at first
use, and is done only if asked for (--int4).
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import torch
import yaml

from tests.tiny import build
from tuner import assemble, device, prepare, quantise
from tuner.assistants import Assistants
from tuner.recipe import load
from tuner.run import Run
from tuner.types import Batch, generator

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

LARGE = dict(num_layers=4, num_single_layers=12, num_attention_heads=16, attention_head_dim=128,
             axes_dims_rope=[16, 56, 56], joint_attention_dim=1024, pooled_projection_dim=768)  # fmt: skip
SMALL = dict(num_layers=1, num_single_layers=2, num_attention_heads=4, attention_head_dim=64,
             axes_dims_rope=[16, 24, 24], joint_attention_dim=64, pooled_projection_dim=64)  # fmt: skip
METHODS = ["none", "int8", "nf4", "fp8", "int8_bnb", "fp8_quanto", "int8_torchao", "fp8_torchao"]
STEPS = 5


def say(kind: str, **fields: Any) -> None:
    """Events that matter here."""
    if kind == "quantised":
        print("  ", fields["text"], flush=True)


def cuda() -> bool:
    """Whether the device is a CUDA one."""
    return device.pick().kind == "cuda"


class Bench:
    """One random model; rows of the table."""

    def __init__(self, folder: Path, small: bool) -> None:
        from PIL import Image

        self.small, self.folder = small, folder
        self.config = SMALL if small else LARGE
        build("flux1", folder / "model", latent_channels=16)
        (folder / "pictures").mkdir()
        Image.effect_noise((64, 64), 20).convert("RGB").save(folder / "pictures" / "a.png")
        (folder / "pictures" / "a.txt").write_text("noise")
        config = folder / "model" / "transformer" / "config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), **self.config}))
        side, tokens = (16, 32) if small else (64, 512)
        where = device.pick().torch
        self.batch = Batch(
            torch.randn(1, 16, side, side, generator=generator(1)),
            {
                "embeds": torch.randn(1, tokens, self.config["joint_attention_dim"], generator=generator(2)),
                "pooled": torch.randn(1, self.config["pooled_projection_dim"], generator=generator(3)),
            },
            ("a",), (0,), 1,
        ).to(where)  # fmt: skip
        self.plain: dict[str, Any] = {}

    def ready(self, method: str, checkpointing: bool) -> prepare.Prepared:
        """The prepared recipe, whose source makes the denoiser on the device instead of reading it."""
        recipe = {
            "family": "flux1", "source": str(self.folder / "model"), "options": {"max_tokens": 32},
            "data": [{"path": str(self.folder / "pictures")}], "media": {"resolutions": [64]},
            "adapter": {"kind": "lora", "rank": 16, "targets": "attention+feed-forward"},
            "train": {"steps": 100, "lr": 1e-3, "precision": "bf16"},
            "memory": {"quantise": method, "checkpointing": checkpointing},
        }  # fmt: skip
        (self.folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        ready = prepare.prepare(load(self.folder / "recipe.yaml"))
        read, source = ready.source.load, ready.source

        def made(part: str, dtype: torch.dtype) -> Any:
            if part != "transformer":
                return read(part, dtype)
            network = source.outline(part).to(dtype).to_empty(device=device.pick().torch)
            fill = torch.Generator(device.pick().torch).manual_seed(0)
            with torch.no_grad():
                for name, p in network.named_parameters():
                    if p.ndim > 1:
                        p.normal_(0, p.shape[1] ** -0.5, generator=fill)
                    else:
                        p.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
            return network.requires_grad_(False).eval()

        source.load = made  # pyrefly: ignore[bad-assignment]
        return ready

    def run(self, ready: prepare.Prepared) -> Run:
        """A run with its model built."""
        dtype = device.storage(ready.recipe, ready.device)
        trainer = assemble.load_trainer(ready, dtype, say)
        none = Assistants((), ready.family, ready.source, trainer.parts.network)
        job = assemble.Job(trainer, None, None, none)  # pyrefly: ignore[bad-argument-type]
        return Run(ready, job, self.folder / "run", lambda *_, **__: None)

    def row(self, method: str, checkpointing: bool) -> dict[str, Any]:
        """Train, resume, export."""
        ready = self.ready(method, checkpointing)
        if errors := [p.text for p in ready.problems if p.level == "error"]:
            return {"method": method, "checkpointing": checkpointing, "refused": errors[0]}
        run = self.run(ready)
        trainer = run.job.trainer
        adapter = sum(p.numel() * p.element_size() for p in trainer.adapter.parameters())
        said = ready.weights[0]
        row: dict[str, Any] = {
            "method": method, "checkpointing": checkpointing, "base": quantise.size(trainer.parts.network) - adapter,
            "said": said["bytes"],
        }  # fmt: skip
        x, t = self.batch.latents, torch.tensor([0.5], device=self.batch.latents.device)
        with torch.no_grad():
            answer = trainer.predict(x, t, self.batch.cond).float()
        if cuda():
            torch.cuda.reset_peak_memory_stats()
        losses, times = [], []
        for _ in range(STEPS):
            losses.append(self.step(trainer, times))
        row["peak"] = torch.cuda.max_memory_allocated() if cuda() else row["base"]
        row["seconds"] = statistics.median(times[-3:])
        row["losses"] = losses
        (self.folder / "run").mkdir(exist_ok=True)
        run.save()
        straight = self.step(trainer, times)
        again = self.run(ready)
        again.restore(sorted((self.folder / "run" / "checkpoints").iterdir())[-1])
        row["resume"] = abs(self.step(again.job.trainer, times) - straight) / straight
        (self.folder / "run" / "export").mkdir(exist_ok=True)
        written = assemble.exported(again.job, ready, self.folder / "run", say)
        row["export"] = [p for w in written for p in w.problems] or "ok"
        if method == "none":
            self.plain[str(checkpointing)] = {**row, "answer": answer.cpu()}
        plain = self.plain[str(checkpointing)]
        row["answer"] = float((answer.cpu() - plain["answer"]).norm() / plain["answer"].norm())
        row["loss"] = statistics.mean(abs(a - b) / b for a, b in zip(losses, plain["losses"], strict=True))
        for name, key in (("base", "base"), ("peak", "peak"), ("time", "seconds")):
            row[f"{name} ratio"] = row[key] / plain[key]
        return row

    def step(self, trainer: Any, times: list[float]) -> float:
        """One step; its time in seconds is added to `times`."""
        began = time.perf_counter()
        loss = trainer.step([self.batch])["loss"]
        if cuda():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
        return loss


def shown(row: dict[str, Any]) -> str:
    """The line of a row."""
    name = f"{row['method']:13}{'checkpointing' if row['checkpointing'] else '':14}"
    if reason := row.get("refused") or row.get("error"):
        return f"{name} {'refused' if 'refused' in row else 'FAILED'}: {reason}"
    return (
        f"{name} base {row['base'] / 1e6:8.1f} MB ({row['base ratio']:.3f}, said {row['said'] / 1e6:.1f}) "
        f"peak {row['peak'] / 1e6:8.1f} MB ({row['peak ratio']:.3f}) time {row['seconds'] * 1e3:7.1f} ms "
        f"({row['time ratio']:.2f}) answer {row['answer']:.1e} loss {row['loss']:.1e} resume {row['resume']:.1e} "
        f"export {row['export']}{'' if good(row) else '  FAILED'}"
    )


def good(row: dict[str, Any]) -> bool:
    """Whether a row is as it should be."""
    if "refused" in row:
        return True
    return "error" not in row and row["answer"] < 0.5 and row["resume"] <= 1e-3 and row["export"] == "ok"


def main() -> int:
    """Print the table; returns 1 if something failed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--seconds", type=float, default=170)
    parser.add_argument("--int4", action="store_true")
    parser.add_argument("--methods", default=",".join(METHODS))
    asked = parser.parse_args()
    where, began, rows = device.pick(), time.monotonic(), []
    print(where.name, "torch", torch.__version__, flush=True)
    methods = asked.methods.split(",") + (["int4"] if asked.int4 else [])
    with tempfile.TemporaryDirectory() as name:
        os.environ["TUNER_HOME"] = str(Path(name) / "home")
        bench = Bench(Path(name), asked.small or where.kind == "cpu")
        for method in methods:
            for checkpointing in (False, True):
                if time.monotonic() - began > asked.seconds:
                    print(f"{method} was not run: no time left", flush=True)
                    continue
                try:
                    row = bench.row(method, checkpointing)
                except Exception as error:  # noqa: BLE001  (one that fails must not hide the others)
                    traceback.print_exc()
                    row = {"method": method, "checkpointing": checkpointing, "error": repr(error)[:200]}
                rows.append(row)
                print(shown(row), flush=True)
                gc.collect()
                if cuda():
                    torch.cuda.empty_cache()
    if out := os.environ.get("OUT"):
        (Path(out) / "quantised.json").write_text(json.dumps(rows, indent=1))
    print(f"{time.monotonic() - began:.0f} s", flush=True)
    return int(not all(good(row) for row in rows))


if __name__ == "__main__":
    sys.exit(main())
