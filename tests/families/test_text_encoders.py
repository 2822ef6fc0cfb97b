"""Text encoders that train: what they say at first is what the cache holds, and every tensor of theirs learns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.families.case import LONG, SHORT, Case, Rig, assert_same, generator, show
from tests.families.cases import all_cases
from tuner import adapters, families
from tuner.recipe import LoraSpec, LoraTextSpec
from tuner.types import Parts

CASES = [n for n, c in all_cases().items() if families.get(c.family).trainable_text]
CAPTIONS = [SHORT, LONG, "", SHORT]


@pytest.fixture(params=CASES)
def own(request: pytest.FixtureRequest, checkpoint: Callable[[Case], Path]) -> Rig:
    """The models of a case whose text encoders can train, of this test alone."""
    case = all_cases()[request.param]
    return Rig(case, checkpoint(case))


def encoders(rig: Rig) -> Parts:
    """Only what telling captions anew needs."""
    return rig.family.load(rig.source, rig.family.retelling_parts(rig.source), torch.float32)


def trained(rig: Rig, checkpointing: bool = False, rank: int = 2) -> tuple[adapters.WithText, Callable[[], Tensor]]:
    """(adapter, one forward and backward pass that returns the answer)."""
    spec = LoraSpec(rank=rank, text=LoraTextSpec(lr=1e-3, rank=rank, parts=list(rig.family.trainable_text)))
    torch.manual_seed(3)
    inner = adapters.build(spec, rig.family, rig.parts)
    adapter = adapters.with_text(inner, spec, rig.family, encoders(rig), stop=9)
    with torch.no_grad():
        for p in adapter.text.parameters():
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())) * 0.2)
    if checkpointing:
        adapter.text.checkpoint()
    shape = rig.case.shapes[0]
    cond, x = rig.cond(CAPTIONS[:2], shape), rig.latent(shape, 2)

    def answer() -> Tensor:
        told = adapter.text.tell(CAPTIONS[:2], cond, 0)
        out = rig.family.predict(rig.parts.network, x, torch.tensor([0.3, 0.8]), told)
        out.square().sum().backward()
        return out.detach()

    return adapter, answer


def test_untrained_encoders_say_what_the_cache_holds(own: Rig) -> None:
    """Without T5, in a batch, for short, long, dropped and repeated captions; nothing else of the condition changes."""
    cond = own.cond(CAPTIONS, own.case.shapes[0])
    parts = encoders(own)
    assert not any("T5" in type(c).__name__ for c in parts.components.values())
    given = {k: v for k, v in cond.items() if k not in ("embeds", "pooled")} if own.family.retells_all else dict(cond)
    told = own.family.retell(parts, CAPTIONS, given)
    assert told.keys() == cond.keys()
    for name, value in cond.items():
        torch.testing.assert_close(told[name], value, atol=1e-6, rtol=0, msg=lambda m, n=name: f"{n}: {m}")
    for name in told.keys() - given.keys() | {"pooled"} & told.keys():
        torch.testing.assert_close(told[name][0], told[name][3], atol=1e-6, rtol=0)
        assert not torch.allclose(told[name][0], told[name][1], atol=1e-3)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradient_reaches_every_tensor(own: Rig, checkpointing: bool) -> None:
    adapter, answer = trained(own, checkpointing)
    names = adapter.text.named()
    assert names and all(".text_model.encoder.layers." in n for n in names)
    assert {n.split(".")[0] for n in names} == set(own.family.trainable_text)
    answer()
    without = [n for n, p in names.items() if p.grad is None or not p.grad.abs().max() > 0]
    assert not without
    plain, again = trained(Rig(own.case, own.folder))
    again()
    for name, p in plain.text.named().items():
        torch.testing.assert_close(names[name].grad, p.grad, atol=1e-6, rtol=1e-4)


def test_layers_are_what_the_encoders_do(own: Rig) -> None:
    """Each layer's `delta`, added to the base's weight, is what its module answers with."""
    adapter, _ = trained(own)
    layers = adapter.text.layers()
    assert len(layers) * 2 == len(adapter.text.named())
    for layer in layers[:: max(1, len(layers) // 4)]:
        encoder = adapter.text.encoders[layer.part]
        live = layer.module if hasattr(encoder, "text_model") else layer.module.removeprefix("text_model.")
        module = encoder.get_submodule(live)
        x = torch.randn(3, module.base_layer.in_features)
        with torch.no_grad():
            expected = module.base_layer(x) + x @ layer.delta().T
            torch.testing.assert_close(module(x), expected, atol=1e-5, rtol=1e-4)
        assert layer.delta().abs().max() > 1e-3


def test_off_and_scaled_and_restored(own: Rig) -> None:
    """Off is the base; the state survives a round trip through its dictionary."""
    adapter, _ = trained(own)
    base = own.cond(CAPTIONS[:2], own.case.shapes[0])
    tell = lambda: adapter.text.tell(CAPTIONS[:2], base, 0)["pooled" if "pooled" in base else "embeds"].detach()  # noqa: E731
    whole = tell()
    with adapter.disabled():
        plain = tell()
        assert_same(plain, base["pooled" if "pooled" in base else "embeds"], "base")
    with adapter.scaled(0.0):
        torch.testing.assert_close(tell(), plain, atol=1e-6, rtol=0)
    assert tell().equal(whole) and not torch.allclose(whole, plain, atol=1e-3)
    state = adapter.state_dict()
    other, _ = trained(Rig(own.case, own.folder))
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    other.load_state_dict(state)
    assert other.state_dict().keys() == state.keys()
    assert all(v.equal(state[k]) for k, v in other.state_dict().items())
    state.pop(next(k for k in state if k.startswith("text_encoder")))
    with pytest.raises(AssertionError, match="differ in"):
        other.load_state_dict(state)


def test_the_export_draws_elsewhere_what_it_draws_here(
    own: Rig, tmp_path: Path, elsewhere: Callable[..., Tensor]
) -> None:
    """One file for denoiser and encoders, through the official loader of a process that knows nothing of us."""
    adapter, _ = trained(own)
    shape, drawn = own.case.shapes[0], {"num_inference_steps": 2}
    with torch.no_grad():
        for p in adapter.inner.parameters():
            p.add_(torch.randn(p.shape, generator=generator(p.numel())) * 0.05)
    file = own.exported(adapter, tmp_path)[0].path
    setattr(own.official, own.family.denoiser, own.parts.network)

    def here() -> Tensor:
        return own.case.output(own.case.run(own.official, [SHORT], shape, **drawn, generator=generator(11)))

    without = here()
    for name, encoder in adapter.text.encoders.items():
        setattr(own.official, name, encoder.eval())
    whole = here()
    wrong = (elsewhere(own.case.name, own.folder, file, own.family.lora_arguments) - whole).abs().max().item()
    changed = (whole - without).abs().max().item()
    show(f"{own.case.name}: the encoders' part changes the output by {changed:.1e}, elsewhere differs by {wrong:.1e}")
    assert changed > 1e-4
    assert wrong < max(1e-5, 1e-2 * changed)
