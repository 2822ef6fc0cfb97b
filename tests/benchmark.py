"""What the studio costs over a bare PyTorch loop: `python tests/benchmark.py`. CPU-seconds, one thread, one run.

step:   our step and a bare loop's (same network, LoRA, batch, optimiser, clipping) in turn, in one process
start:  CPU-seconds from the command to its first optimiser step, caches empty, 32 captioned pictures
memory: peak resident memory of a process that trains with us, and of one that runs the bare loop

`python tests/benchmark.py adapters [row ...]`: every kind of adapter and every form of the base on the model that ships
with the studio, as multiples of a plain LoRA. A row is a title and what it changes in `recipes/demo/style-lora.yaml`.

`python tests/benchmark.py quantised [method ...]` prints only the rows of quantised bases.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TUNER_DEVICE": "cpu", "TOKENIZERS_PARALLELISM": "false"}
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

LARGE = dict(
    num_layers=2, num_single_layers=3, num_attention_heads=4, attention_head_dim=64, axes_dims_rope=[16, 24, 24]
)


WIDE = "targets: attention+feed-forward"
ROWS: dict[str, list[str]] = {
    "LoRA": [],
    "DoRA": ["adapter.dora=true"],
    "rsLoRA": ["adapter.rslora=true"],
    "PiSSA": ["adapter.init=pissa"],
    "OLoRA": ["adapter.init=olora"],
    "LoRA, CLIP too": ["adapter.text={}"],
    "IA3 (peft)": [f"adapter={{kind: peft, algorithm: ia3, {WIDE}}}"],
    "MiSS": [f"adapter={{kind: peft, algorithm: miss, rank: 16, {WIDE}}}"],
    "HRA": [f"adapter={{kind: peft, algorithm: hra, rank: 16, {WIDE}}}"],
    **{
        f"LyCORIS {name}": [f"adapter={{kind: lycoris, algorithm: {name}, {WIDE}}}"]
        for name in ("locon", "loha", "lokr", "dylora", "ia3", "diag_oft", "glora", "full")
    },
    "LyCORIS boft": [f"adapter={{kind: lycoris, algorithm: boft, rank: 128, {WIDE}}}"],
    "full rank": ["adapter={kind: full}"],
}
METHODS = ("int8", "int8_bnb", "fp8_quanto", "fp8", "nf4", "int4", "int8_torchao", "fp8_torchao")
HELD = {f"base {m}": [f"memory.quantise={m}", f"memory.checkpointing={str(m == 'fp8').lower()}"] for m in METHODS}
"""LoRA on a quantised base; fp8 saves in training with checkpointing only, which is a part of its time."""


def main() -> int:
    """Print all three tables; returns 1 if a bar of the README is missed."""
    if sys.argv[1:2] == ["adapters"]:
        return adapters(sys.argv[2:])
    if sys.argv[1:2] == ["quantised"]:
        return adapters([f"base {method}" for method in sys.argv[2:] or METHODS])
    if len(sys.argv) > 1:
        children = {"step": child_step, "start": child_start, "memory": child_memory, "adapter": child_adapter}
        return children[sys.argv[1]](*sys.argv[2:])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["TUNER_HOME"] = str(folder / "home")
        missed = 0
        for size in ("tiny", "large"):
            recipe = prepare(folder, size)
            figures = child("step", recipe)
            over, ratio = figures["ours"] - figures["bare"], figures["ours"] / figures["bare"]
            good = over <= 5 if size == "tiny" else ratio <= 1.02
            missed += not good
            print(f"step, {size} Flux: ours {figures['ours']:.1f} ms, bare {figures['bare']:.1f} ms, "
                  f"overhead {over:.2f} ms, ratio {ratio:.3f} {'ok' if good else 'MISSED'}")  # fmt: skip
            peak = {kind: child("memory", recipe, kind)["mb"] for kind in ("ours", "bare")}
            good = peak["ours"] <= 1.1 * peak["bare"]
            missed += not good
            print(f"memory, {size} Flux: ours {peak['ours']:.0f} MB, bare {peak['bare']:.0f} MB, "
                  f"ratio {peak['ours'] / peak['bare']:.3f} {'ok' if good else 'MISSED'}")  # fmt: skip
        starts = []
        for i in range(3):
            os.environ["TUNER_HOME"] = str(folder / f"empty{i}")
            starts.append(child("start", folder / "tiny.yaml")["cpu"])
        good = statistics.median(starts) <= 1.3 * 4.4
        missed += not good
        print(f"start: {statistics.median(starts):.2f} CPU-s to the first step (bar 5.72) {'ok' if good else 'MISSED'}")
    return int(missed > 0)


def adapters(wanted: list[str]) -> int:
    """One table of adapters and bases: each row in a process of its own, as multiples of the plain LoRA's figures."""
    rows = list(dict.fromkeys(["LoRA", *(wanted or [*ROWS, *HELD])]))
    with tempfile.TemporaryDirectory() as name:
        os.environ["TUNER_HOME"] = name
        plain = child("adapter", "LoRA")  # fills the caches
        plain = child("adapter", "LoRA")
        print("| kind | time per step | memory | trained numbers | bytes of the base | loss apart |")
        print("|---|---|---|---|---|---|")
        for row in rows:
            try:
                found = plain if row == "LoRA" else child("adapter", row)
            except SystemExit as error:
                print(f"| {row} | {str(error).strip().splitlines()[-1]} | | | | |", flush=True)
                continue
            apart = max(abs(a - b) / b for a, b in zip(found["losses"], plain["losses"], strict=True))
            print(
                f"| {row} | {found['ratio']:.2f} | {found['mb'] / plain['mb']:.2f} | {found['trained']:,.0f} "
                f"| {found['bytes'] / plain['bytes']:.2f} | {f'{apart:.4f}' if row in HELD else ''} |",
                flush=True,
            )
    return 0


def child_adapter(row: str) -> int:
    """One row: its peak resident memory beyond what the libraries take, then its steps and those of the plain LoRA in
    turn (median ratio of CPU times, which other programs on the machine do not change)."""
    import torch

    from tuner import assemble, prepare, quantise
    from tuner.recipe import load

    torch.set_num_threads(1)
    demo = ROOT / "recipes" / "demo" / "style-lora.yaml"

    def built(settings: list[str]) -> tuple[Any, Any]:
        job = assemble.build(prepare.prepare(load(demo, [*settings, "validate.prompts=[]"])), lambda *_, **__: None)
        return job.trainer, job.loader.steps(0)

    def step(job: tuple[Any, Any]) -> tuple[float, float]:
        batch, began = next(job[1]), time.process_time()
        loss = job[0].step(batch)["loss"]
        return loss, time.process_time() - began

    libraries = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    own = built({**ROWS, **HELD}[row])
    losses = [step(own)[0] for _ in range(4)]
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - libraries) / 1024
    other, ratios = built([]), []
    for _ in range(10):
        loss, ours = step(own)
        losses.append(loss)
        ratios.append(ours / step(other)[1])
    trained = sum(p.numel() for p in own[0].trained)
    network = own[0].parts.network
    inside = {id(p) for p in network.parameters()}
    added = 0 if row == "full rank" else sum(p.nbytes for p in own[0].adapter.parameters() if id(p) in inside)
    held = quantise.size(network) - added
    return say({"ratio": statistics.median(ratios[2:]), "mb": peak, "trained": trained, "bytes": held,
                "losses": losses})  # fmt: skip


def child(*arguments: object) -> dict[str, Any]:
    """Run this file for one measurement in a process of its own; its last line is JSON."""
    done = subprocess.run([sys.executable, __file__, *map(str, arguments)], capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.strip().splitlines()[-1])


def prepare(folder: Path, size: str) -> Path:
    """A random Flux, 32 captioned pictures and a recipe."""
    import yaml
    from PIL import Image

    from tests.tiny import build

    edge = 64 if size == "tiny" else 256
    pictures = folder / f"pictures-{size}"
    pictures.mkdir()
    for i in range(32):
        Image.effect_noise((edge, edge), 10 + i).convert("RGB").save(pictures / f"{i:02}.png")
        (pictures / f"{i:02}.txt").write_text(f"picture number {i}")
    build("flux1", folder / size)
    if size == "large":
        enlarge(folder / size)
    recipe = {
        "family": "flux1", "source": str(folder / size), "options": {"max_tokens": 512 if size == "tiny" else 64},
        "data": [{"path": str(pictures)}], "media": {"resolutions": [edge]}, "adapter": {"kind": "lora", "rank": 4},
        "train": {"steps": 10_000, "batch": 1, "lr": 1e-4, "precision": "fp32"}, "save": {"every": 10_000},
    }  # fmt: skip
    path = folder / f"{size}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def enlarge(source: Path) -> None:
    """Swap the tiny denoiser for one whose step takes more than 200 ms on one core."""
    from diffusers import FluxTransformer2DModel

    config = dict(FluxTransformer2DModel.load_config(source / "transformer"))
    FluxTransformer2DModel.from_config({**config, **LARGE}).save_pretrained(source / "transformer")


def ours(recipe: str) -> Callable[[int], None]:
    """`steps(n)`: train n more steps as a run does, journal and loader included."""
    from tuner import assemble, prepare
    from tuner.events import Journal
    from tuner.recipe import load

    journal = Journal(Path(recipe).with_suffix(f".{os.getpid()}.jsonl"))
    job = assemble.build(prepare.prepare(load(recipe)), journal)
    batches = job.loader.steps(0)

    def steps(count: int) -> None:
        for _ in range(count):
            said = job.trainer.step([b.to(job.trainer.accelerator.device) for b in next(batches)])
            journal("step", step=job.trainer.index, **said)

    return steps


def bare(recipe: str) -> Callable[[int], None]:
    """`steps(n)`: the shortest loop that does the same work on tensors that are already in memory."""
    import peft
    import torch
    import yaml
    from diffusers import FluxPipeline, FluxTransformer2DModel

    settings = yaml.safe_load(Path(recipe).read_text())
    model = FluxTransformer2DModel.from_pretrained(f"{settings['source']}/transformer").requires_grad_(False)
    targets = [
        "attn.to_q",
        "attn.to_k",
        "attn.to_v",
        "attn.to_out.0",
        "add_q_proj",
        "add_k_proj",
        "add_v_proj",
        "to_add_out",
    ]
    model.add_adapter(peft.LoraConfig(r=4, lora_alpha=4, target_modules=targets))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    edge = settings["media"]["resolutions"][0]
    c, side = model.config.in_channels // 4, edge // vae_rate(settings["source"])
    texts = torch.randn(32, settings["options"]["max_tokens"], model.config.joint_attention_dim)
    pooled = torch.randn(32, model.config.pooled_projection_dim)
    latents = torch.randn(32, c, side, side)
    text_ids = torch.zeros(texts.shape[1], 3)
    image_ids = FluxPipeline._prepare_latent_image_ids(1, side // 2, side // 2, "cpu", torch.float32)

    def steps(count: int) -> None:
        for i in range(count):
            z = latents[i % 32][None]
            noise, t = torch.randn_like(z), torch.rand(1).sigmoid()
            x = (1 - t) * z + t * noise
            out = model(
                hidden_states=FluxPipeline._pack_latents(x, 1, c, side, side), timestep=t,
                guidance=torch.ones(1) if model.config.guidance_embeds else None,
                pooled_projections=pooled[i % 32][None],
                encoder_hidden_states=texts[i % 32][None], txt_ids=text_ids, img_ids=image_ids, return_dict=False,
            )[0]  # fmt: skip
            loss = (FluxPipeline._unpack_latents(out, side, side, 1) - (noise - z)).square().mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            loss.item()

    return steps


def vae_rate(source: str) -> int:
    """Pixels per latent cell."""
    return 2 ** (len(json.loads((Path(source) / "vae" / "config.json").read_text())["block_out_channels"]) - 1)


def child_step(recipe: str) -> int:
    """Both loops in turn, block by block; medians of the blocks."""
    import torch

    torch.set_num_threads(1)
    loops = {"ours": ours(recipe), "bare": bare(recipe)}
    block = 20 if recipe.endswith("tiny.yaml") else 4
    times: dict[str, list[float]] = {name: [] for name in loops}
    for round_ in range(10):
        for name, steps in loops.items():
            began = time.process_time()
            steps(block)
            if round_ > 1:  # the first rounds warm up
                times[name].append((time.process_time() - began) / block * 1000)
    return say({name: statistics.median(values) for name, values in times.items()})


def child_memory(recipe: str, kind: str) -> int:
    """Peak resident memory after twenty steps."""
    {"ours": ours, "bare": bare}[kind](recipe)(20)
    return say({"mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024})


def child_start(recipe: str) -> int:
    """CPU-seconds of this process when `tuner run` does its first step."""
    from tuner import console
    from tuner.__main__ import main as tuner

    seen: list[float] = []

    class Watch(console.Console):
        def __call__(self, event: dict[str, Any]) -> None:
            if event["kind"] == "step":
                seen.append(time.process_time())

    console.Console = Watch
    out = Path(recipe).parent / f"start-{os.getpid()}"
    code = tuner(["run", recipe, "train.steps=1", "--out", str(out)])
    assert code == 0
    return say({"cpu": seen[0]})


def say(figures: dict[str, Any]) -> int:
    """The line that `child` reads."""
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
