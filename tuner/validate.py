"""What a run looks at while it trains: samples from fixed seeds, and the loss at fixed noise and fixed t."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from . import optimizers, sample
from .family import Request
from .loop import Trainer
from .objective import reduce
from .recipe import Sweep, ValidateSpec
from .seeds import mix
from .source import Source
from .sweep import Read, swept
from .types import Batch, Cond, Noised, generator

TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)
"""The noise levels of the validation loss: it moves only when the model does, never with the draw of t."""


Tell = Callable[[Sequence[str], Cond, int], Cond]
"""See `Trainer.tell`."""


@dataclass
class Validator:
    """Draws samples and measures the loss of a trainer without leaving a trace in its state.

    items: batches of one picture. prompts: one unbatched condition per prompt.
    """

    trainer: Trainer
    spec: ValidateSpec
    source: Source
    items: Sequence[Batch]
    prompts: Sequence[Cond]
    negative: Cond | None
    dtype: torch.dtype
    pictures: Sequence[tuple[Any, ...]] = ()
    """What each sample starts from (PIL), for tasks that need it."""
    fps: float = 0.0
    sampling: Callable[[], AbstractContextManager[None]] = nullcontext
    """Entered around samples, not around the loss: frozen assistants step back in it."""
    read: Read = lambda _: ()
    """How the files of sweeps are read."""
    controls: Sequence[Any] = ()
    """The control picture of each sample (PIL), for a network that looks at one, and how strongly it acts."""
    strength: float = 1.0
    speaking: Callable[[], Any] | None = None
    """Loads the text encoders, for sweeps that change them in a run that has them in the cache."""

    @contextmanager
    def _watching(self) -> Iterator[None]:
        """Averaged weights in place, network in evaluation mode; everything put back afterwards."""
        network, random = self.trainer.parts.network, torch.get_rng_state()
        network.eval()
        try:
            with (
                torch.no_grad(),
                torch.compiler.set_stance("force_eager"),  # compiling for these few shapes would cost a minute
                optimizers.evaluation(self.trainer.optimizer),
                self.trainer.stack.sampling(),
            ):
                yield
        finally:
            network.train()
            torch.set_rng_state(random)

    def loss(self) -> dict[str, Any]:
        """Mean loss over the validation items, and per t: {"loss": float, "by_t": {"0.1": float, ...}}."""
        by_t = {}
        with self._watching():
            for t in TIMES:
                losses = [self._item_loss(i, t) for i in range(len(self.items))]
                by_t[str(t)] = sum(losses) / len(losses)
        return {"loss": sum(by_t.values()) / len(by_t), "by_t": by_t}

    def _item_loss(self, i: int, t: float) -> float:
        latents, cond = self.items[i].latents, self.trainer.told(self.items[i]).cond
        noise = torch.randn(latents.shape, generator=generator(mix(self.trainer.spec.seed, "validation", i, t)))
        noised = self.trainer.objective.noised(
            latents, noise.to(latents.device), torch.tensor([t], device=latents.device)
        )
        prediction = self.trainer.predict(noised.x, noised.t, cond)
        plain = Noised(noised.x, noised.t, noised.noise, noised.target)
        return float(reduce(self.trainer.score(prediction, plain, cond), plain))

    def samples(self, folder: Path, step: int) -> list[dict[str, Any]]:
        """Every prompt as the model stands, then under each sweep, into `folder`; what the journal says of them."""
        self._load_decoder()
        said = []
        with self._watching(), sample.as_exported(self.trainer.trained, self.dtype), self.sampling():
            for sweep in (None, *self.spec.sweep):
                with self._swept(sweep) as tell:
                    said += self._drawn(folder, f"step-{step:06d}", sweep.label if sweep else "", tell)
        self._move_decoder(torch.device("cpu"))
        return said

    @contextmanager
    def _swept(self, sweep: Sweep | None) -> Iterator[Tell | None]:
        """Within, the model answers as the sweep says; what tells prompts there, None where the cache does.

        Files are read anew each time and held only meanwhile, so that a long list takes no memory from the training.
        """
        if sweep is None:
            yield self.trainer.tell
            return
        family, files = self.trainer.family, [self.read(Path(one.path)) for one in sweep.adapters]
        tell, encoders = self.trainer.tell, self.trainer.encoders
        if tell is None and any(layer.part in family.trainable_text for layers in files for layer in layers):
            assert self.speaking is not None
            spoken = self.speaking()
            tell, encoders = spoken.tell, spoken.encoders
        networks = {family.denoiser.removesuffix("_2"): self.trainer.parts.network, **encoders}
        with swept(sweep, files, networks, self.trainer.adapter):
            yield tell

    def _drawn(self, folder: Path, stem: str, label: str, tell: Tell | None) -> list[dict[str, Any]]:
        family, parts = self.trainer.family, self.trainer.parts
        negative = self._told(self.spec.negative, self.negative, tell) if self.negative is not None else None
        said = []
        for i, prompt in enumerate(self.spec.prompts):
            folder.mkdir(exist_ok=True)
            request = self._request(i, self._told(prompt, self.prompts[i], tell), negative)
            name = f"{stem}-{i:02d}" + (f"-{label}" if label else "")
            file = sample.save(sample.draw(family, parts, request), folder / name)
            more = {"sweep": label} if label else {}
            said.append({"prompt": prompt, "file": f"{folder.name}/{file.name}", "seed": self.spec.seed, **more})
        return said

    def _told(self, text: str, cond: Cond, tell: Tell | None) -> Cond:
        """What text encoders that do not stand still say of a prompt now; else what the cache holds."""
        if tell is None:
            return cond
        batch = tell([text], {k: v[None] for k, v in cond.items()}, self.trainer.index)
        return {k: v[0] for k, v in batch.items()}

    def _request(self, i: int, cond: Cond, negative: Cond | None) -> Request:
        spec, family = self.spec, self.trainer.family
        return Request(
            cond,
            negative,
            *(spec.size or (0, 0)),
            spec.steps,
            family.guidance if spec.guidance is None else spec.guidance,
            spec.seed,
            spec.frames or 1,
            self.fps,
            spec.seconds or 0.0,
            self.pictures[i] if self.pictures else (),
            self.controls[i] if self.controls else None,
            self.strength,
        )

    def _load_decoder(self) -> None:
        """What sampling needs is loaded at the first sample and waits in main memory between samples."""
        parts, family = self.trainer.parts, self.trainer.family
        missing = [n for n in family.sample_parts(self.source) if parts.components.get(n) is None]
        if missing:
            parts.components |= family.load(self.source, missing, self.dtype).components
        self._move_decoder(next(parts.network.parameters()).device)

    def _move_decoder(self, device: torch.device) -> None:
        for name in self.trainer.family.sample_parts(self.source):
            if isinstance(component := self.trainer.parts.components[name], torch.nn.Module):
                component.to(device)
