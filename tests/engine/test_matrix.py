"""Every kind of adapter on a UNet, a two-stream and a one-stream transformer, from the recipe to the merged model.

The details of each kind (strengths, gradients, other programs' readers) are in `test_kinds` and `test_lycoris`; here
each goes the whole way that a user goes, by the same commands.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from tests.engine.test_runs import losses, pictures
from tests.families.case import SHORT, Rig
from tests.families.cases import all_cases
from tests.families.conftest import checkpoint  # noqa: F401  (a fixture)
from tuner import assemble, compare, prepare, quantise, recipe
from tuner.__main__ import main
from tuner.checkpoint import load
from tuner.compare import Contender
from tuner.types import Parts

NETWORKS = {"sd1": "with-conv", "flux1": "all-linear", "z_image": "all-linear"}
"""A UNet, two streams, one stream; and their widest targets: convolutions, layers with and without bias."""
STEPS = 6
RESTS = re.compile(r"_list\.\d")
"""DyLoRA trains one block of a layer at a time, drawn at random."""
KINDS: dict[str, dict[str, Any]] = {
    "LoRA": {"rank": 4, "alpha": 6.0, "dropout": 0.1, "ranks": {"to_q": 2}, "alphas": {"to_k": 3.0}},
    "DoRA": {"rank": 4, "alpha": 6.0, "dora": True, "dropout": 0.1},
    "rsLoRA": {"rank": 8, "alpha": 3.0, "rslora": True},
    "gaussian": {"rank": 2, "init": "gaussian"},
    "orthogonal": {"rank": 2, "alpha": 3.0, "init": "orthogonal"},
    "PiSSA": {"rank": 4, "alpha": 6.0, "init": "pissa"},
    "fast PiSSA": {"rank": 4, "init": "pissa", "init_iterations": 4, "rslora": True},
    "OLoRA": {"rank": 4, "alpha": 2.0, "init": "olora"},
    "IA3 (peft)": {"kind": "peft", "algorithm": "ia3"},
    "MiSS": {"kind": "peft", "algorithm": "miss", "rank": 3, "targets": "attention+feed-forward"},
    "HRA": {"kind": "peft", "algorithm": "hra", "rank": 2},
    "LoCon": {"kind": "lycoris", "algorithm": "locon", "rank": 4, "alpha": 2, "dropout": 0.1, "rank_dropout": 0.1},
    "LoCon, DoRA": {"kind": "lycoris", "algorithm": "locon", "rank": 4, "alpha": 2, "dora": True},
    "LoHa": {"kind": "lycoris", "algorithm": "loha", "rank": 4, "alpha": 2, "dropout": 0.1, "module_dropout": 0.1},
    "LoKr": {"kind": "lycoris", "algorithm": "lokr", "rank": 2, "alpha": 4, "dropout": 0.1, "module_dropout": 0.1},
    "LoKr, whole": {"kind": "lycoris", "algorithm": "lokr", "full_matrix": True},
    "DyLoRA": {"kind": "lycoris", "algorithm": "dylora", "rank": 4, "alpha": 2, "block_size": 2, "dropout": 0.1},
    "IA3": {"kind": "lycoris", "algorithm": "ia3"},
    "diag-OFT": {"kind": "lycoris", "algorithm": "diag_oft", "rank": 4, "rescaled": True},
    "BOFT": {"kind": "lycoris", "algorithm": "boft", "rank": 256},
    "GLoRA": {"kind": "lycoris", "algorithm": "glora", "rank": 4, "alpha": 2},
    "full difference": {"kind": "lycoris", "algorithm": "full"},
    "full rank": {"kind": "full"},
}
"""The recipe's `adapter`, with alphas unlike ranks and whatever the kind draws at random."""
RATES = {"IA3 (peft)": 1e-1, "IA3": 1e-1, "full rank": 2e-3, "full difference": 2e-3}
QUICK = {("DoRA", "sd1"), ("PiSSA", "flux1"), ("LoKr", "flux1"), ("diag-OFT", "z_image")}
ALL = [
    pytest.param(kind, network, marks=[] if (kind, network) in QUICK else pytest.mark.families)
    for kind in KINDS
    for network in NETWORKS
]


def answer(rig: Rig, parts: Parts) -> Tensor:
    """What a denoiser answers to one fixed question."""
    shape = rig.case.shapes[0]
    with torch.no_grad():
        return rig.family.predict(
            parts.network.eval(), rig.latent(shape, 1, 3), torch.tensor([0.4]), rig.cond([SHORT], shape)
        )


def drawn_with(rig: Rig, adapter: Path) -> Tensor:
    """The answer with an adapter as `tuner sample` loads it."""
    place = quantise.Place("none", torch.float32, torch.device("cpu"))
    contender = Contender(label="it", adapter=str(adapter))
    return answer(rig, compare._Contender(rig.family, rig.source, contender, place, (), lambda *_, **__: None).parts())


def close(a: Tensor, b: Tensor, far: float = 2e-5) -> None:
    """Equal but for rounding."""
    assert (wrong := (a - b).abs().max().item()) < far * max(1.0, b.abs().max().item()), wrong


def exported(run: Path) -> dict[str, bytes]:
    """The bytes of every exported tensor, by its file."""
    files = sorted((run / "export").rglob("*.safetensors"))
    return {f"{file} {k}": v.numpy().tobytes() for file in files for k, v in load_file(file).items()}


@pytest.mark.parametrize(("kind", "network"), ALL)
def test_a_kind_from_recipe_to_merged_model(
    kind: str,
    network: str,
    checkpoint: Callable[..., Path],  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TUNER_HOME", str(tmp_path / "home"))
    case = all_cases()[network]
    folder, out = checkpoint(case), tmp_path / "run"
    rig = Rig(case, folder)
    wide = {} if kind == "full rank" else {"targets": NETWORKS[network]}
    settings = {
        "name": "it", "family": case.family, "source": str(folder), "options": case.chosen(folder),
        "adapter": {**wide, **KINDS[kind]}, "data": [{"path": str(pictures(tmp_path / "pictures", 2))}],
        "media": {"resolutions": [64]}, "validate": {"every": STEPS}, "save": {"every": STEPS // 2},
        "train": {"steps": STEPS, "batch": 2, "lr": RATES.get(kind, 1e-2), "precision": "fp32", "threads": 1,
                  "optimizer_options": {"weight_decay": 0}},
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(settings))

    # it begins as the base
    ready = prepare.prepare(recipe.load(tmp_path / "recipe.yaml"))
    trainer = assemble.build(ready, lambda *_, **__: None).trainer
    base = answer(rig, rig.parts)
    close(answer(rig, trainer.parts), base)

    # it trains, all of it
    assert main(["run", str(tmp_path / "recipe.yaml"), "--out", str(out)]) == 0
    first, (weights, _) = trainer.adapter.state_dict(), load(out / "checkpoints" / f"step-{STEPS:06d}")
    still = [k for k, v in weights.items() if v.equal(first[k]) and not RESTS.search(k)]
    assert not still, still
    trainer.adapter.load_state_dict(weights)
    live = answer(rig, trainer.parts)
    changed = (live - base).abs().max().item()
    assert changed > 1e-3

    # what was saved and what was exported answer the same; a checkpoint of all weights is no adapter
    if kind != "full rank":
        close(drawn_with(rig, out / "checkpoints" / f"step-{STEPS:06d}"), live)
    close(drawn_with(rig, out), live)

    # merged equals unmerged
    if kind != "full rank":
        merged = tmp_path / "merged"
        assert main(["lora", "bake", str(out), str(folder), str(merged)]) == 0
        close(drawn_with(rig, merged), live)

    # a resumed run is the same to the last bit
    told, written = losses(out), exported(out)
    shutil.rmtree(out / "checkpoints" / f"step-{STEPS:06d}")
    assert main(["resume", str(out)]) == 0
    assert losses(out) == told
    assert exported(out) == written
    assert written
