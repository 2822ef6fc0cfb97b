"""Full rank: every weight of the denoiser trains; the result is a whole model folder."""

from __future__ import annotations

import json
import shutil
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn

from ..adapter import Written, on_cpu, take
from ..errors import UserError
from ..family import Family
from ..recipe import FullSpec, Recipe
from ..source import Source
from ..types import Parts


class Full:
    """The denoiser itself as the thing that trains."""

    def __init__(self, denoiser: nn.Module, part: str) -> None:
        self.denoiser: Any = denoiser.requires_grad_(True)
        self.part = part

    def parameters(self) -> list[nn.Parameter]:
        """See `Adapter.parameters`."""
        return list(self.denoiser.parameters())

    def scaled(self, strength: float) -> AbstractContextManager[None]:
        """See `Adapter.scaled`."""
        raise UserError("A full-rank run has no adapter strength; use adapter.kind=lora for techniques that scale it.")

    def disabled(self) -> AbstractContextManager[None]:
        """See `Adapter.disabled`."""
        raise UserError("A full-rank run keeps no copy of its base; use adapter.kind=lora for techniques that need it.")

    def state_dict(self) -> dict[str, Tensor]:
        """See `Adapter.state_dict`."""
        return on_cpu(dict(self.denoiser.named_parameters()))

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """See `Adapter.load_state_dict`."""
        take(self.denoiser, state, set(dict(self.denoiser.named_parameters())))

    def metadata(self) -> dict[str, str]:
        """What the header of a weights file says."""
        return {}

    def export(self, folder: Path, source: Source, pipeline: Any) -> list[Written]:
        """Write `folder/model` in Hub layout, the source's other parts beside the trained one; returns its path."""
        target = folder / "model"
        partial = folder / ".partial-model"
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(source.folder, partial, ignore=lambda d, n: [self.part] if Path(d) == source.folder else [])
        self.denoiser.save_pretrained(partial / self.part)
        config = partial / self.part / "config.json"
        settings = json.loads(config.read_text())
        settings.pop("_name_or_path", None)  # a path of this machine is nobody else's business
        config.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
        written = {k: v for file in (partial / self.part).glob("*.safetensors") for k, v in load_file(file).items()}
        live = self.denoiser.state_dict()
        wrong = [k for k in live if k not in written or not written[k].equal(live[k].detach().cpu())]
        if wrong:
            raise AssertionError(f"the exported model differs from the trained one in {wrong[:5]}")
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
        return [Written(target, "model", ("diffusers",))]


def build(spec: FullSpec, family: Family, parts: Parts) -> Full:
    """See `adapters.build`."""
    return Full(parts.network, parts.denoiser)


def refuses(family: Family, recipe: Recipe) -> str | None:
    """See `adapters.refuses`."""
    return None
