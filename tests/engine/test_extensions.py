"""Techniques: the equation that defines each, alone and in pairs, through real training steps of small networks."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers import FluxTransformer2DModel, UNet2DConditionModel
from torch import Tensor, nn

from tuner import extensions, families, optimizers
from tuner.blocks import Blocks, walk
from tuner.errors import UserError
from tuner.extension import Context, Extension, Stack, Step
from tuner.extensions.tread import cut
from tuner.family import Family
from tuner.loop import Trainer
from tuner.objective import Diffusion, Flow, alphas_cumprod
from tuner.recipe import ExtensionSpec, TrainSpec, Uniform, parse
from tuner.types import Batch, Noised, Parts

SIDE, TEXT = 6, 3
TOKENS = SIDE * SIDE


class Flux(Family):
    """As much of a family as the loop needs, around a transformer of 2 + 3 blocks."""

    name, title, modality = "small_flux", "Small Flux", "image"
    plane = True
    blocks = families.get("flux1").blocks
    objective = Flow()
    channels = 4

    @staticmethod
    def network() -> nn.Module:
        sizes = {"num_layers": 2, "num_single_layers": 3, "num_attention_heads": 2, "attention_head_dim": 16}
        return FluxTransformer2DModel(
            in_channels=4, joint_attention_dim=16, pooled_projection_dim=16, axes_dims_rope=(4, 6, 6), **sizes
        )

    @staticmethod
    def cond(count: int) -> dict[str, Tensor]:
        return {"text": torch.randn(count, TEXT, 16), "pooled": torch.randn(count, 16)}

    def predict(self, denoiser: nn.Module, x: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        rows, columns = torch.meshgrid(torch.arange(x.shape[2]), torch.arange(x.shape[3]), indexing="ij")
        ids = torch.stack([torch.zeros_like(rows), rows, columns], -1).reshape(-1, 3)
        out = denoiser(
            hidden_states=x.flatten(2).mT,
            timestep=t,
            pooled_projections=cond["pooled"],
            encoder_hidden_states=cond["text"],
            txt_ids=torch.zeros(TEXT, 3),
            img_ids=ids,
            return_dict=False,
        )[0]
        return out.mT.reshape(x.shape)


class Unet(Family):
    """The same around a small UNet that predicts noise."""

    name, title, modality = "small_unet", "Small UNet", "image"
    plane = True
    blocks = ()
    objective = Diffusion(
        alphas_cumprod({"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}), snr_gamma=5.0
    )
    channels = 4

    @staticmethod
    def network() -> nn.Module:
        return UNet2DConditionModel(
            block_out_channels=(8, 16),
            layers_per_block=1,
            cross_attention_dim=16,
            attention_head_dim=4,
            norm_num_groups=4,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        )

    cond = staticmethod(Flux.cond)

    def predict(self, denoiser: nn.Module, x: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        return denoiser(x, t * 1000, cond["text"], return_dict=False)[0]


class Whole:
    """The plainest adapter: all weights."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def parameters(self) -> list[nn.Parameter]:
        return list(self.network.parameters())


def make(kind: str, **settings):
    return extensions.build(ExtensionSpec(kind=kind, **settings))


def batch(family, count: int = 2, mask: Tensor | None = None, seed: int = 3) -> Batch:
    torch.manual_seed(seed)
    latents = torch.randn(count, family.channels, SIDE, SIDE)
    names = tuple(f"picture{i}" for i in range(count))
    return Batch(latents, family.cond(count), names, tuple(range(count)), count, mask)


def half() -> Tensor:
    """A mask whose left half is white."""
    mask = torch.zeros(2, 1, SIDE, SIDE)
    mask[..., : SIDE // 2] = 1
    return mask


def trainer(family, *techniques, checkpointing: bool = False, lr: float = 1e-2) -> Trainer:
    torch.manual_seed(0)
    network = family.network().train()
    if checkpointing:
        network.enable_gradient_checkpointing()
    adapter = Whole(network)
    spec = TrainSpec(lr=lr, precision="fp32", steps=50)
    parts = Parts("net", {"net": network})
    stack = Stack(techniques)
    stack.attach(Context(family, network, adapter, spec.steps))
    rule = optimizers.build(spec, adapter.parameters() + stack.parameters())
    AcceleratorState._reset_state()  # a test before may have trained in bf16
    accelerator = Accelerator(cpu=True, mixed_precision="no")
    return Trainer(
        family, parts, adapter, family.objective, Uniform(), lambda _, __: 1.0, stack, *rule, accelerator, spec
    )


def gradients(family, *techniques, mask: Tensor | None = None, checkpointing: bool = False) -> list[Tensor]:
    t = trainer(family, *techniques, checkpointing=checkpointing)
    t.forward_backward(batch(family, mask=mask), 0)
    return [torch.zeros(()) if p.grad is None else p.grad.clone() for p in t.adapter.parameters()]


def weights(t: Trainer) -> list[Tensor]:
    return [p.detach().clone() for p in t.adapter.parameters()]


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def largest(a: list[Tensor], b: list[Tensor]) -> float:
    return max((x - y).abs().max().item() for x, y in zip(a, b, strict=True))


def recipe(**data):
    return parse({"family": "flux1", "source": "x", "data": [{"path": "/x", **data}]})


# -- EMA -------------------------------------------------------------------------------------------------------------


def averaged(**settings):
    parameter = nn.Parameter(torch.tensor([2.0, -1.0]))
    ema = make("ema", **settings)
    ema.attach(Context(Flux(), nn.Identity(), SimpleNamespace(parameters=lambda: [parameter]), 10))
    return ema, parameter


def moved(parameter, value) -> None:
    with torch.no_grad():
        parameter.copy_(torch.tensor(value))


def test_ema_follows_its_equation():
    ema, parameter = averaged(decay=0.9, warmup=False)
    moved(parameter, [3.0, 0.0])
    ema.on_stepped(1)
    assert ema.average[0].tolist() == pytest.approx([2.1, -0.9])
    moved(parameter, [5.0, 1.0])
    ema.on_stepped(2)
    assert ema.average[0].tolist() == pytest.approx([0.9 * 2.1 + 0.5, 0.9 * -0.9 + 0.1])


def test_ema_warmup_forgets_the_start():
    ema, _ = averaged(decay=0.999)
    assert [ema.decay(i) for i in (1, 2, 90)] == pytest.approx([2 / 11, 3 / 12, 0.91])
    assert ema.decay(9000) == 0.999
    assert averaged(decay=0.999, warmup=False)[0].decay(1) == 0.999


def test_ema_skips_steps():
    ema, parameter = averaged(decay=0.5, warmup=False, every=3)
    moved(parameter, [0.0, 0.0])
    for index in (1, 2):
        ema.on_stepped(index)
        assert ema.average[0].tolist() == [2.0, -1.0]
    ema.on_stepped(3)
    assert ema.average[0].tolist() == [1.0, -0.5]


def test_ema_swaps_in_and_back_exactly():
    t = trainer(Flux(), ema := make("ema", decay=0.5))
    for _ in range(3):
        t.step([batch(Flux())])
    before, average = weights(t), [a.clone() for a in ema.average]
    with t.stack.sampling():
        assert equal(weights(t), average)
        assert equal(ema.state_dict()["average"], average)
        with t.stack.sampling():
            assert equal(weights(t), average)
        assert equal(weights(t), average)
    assert equal(weights(t), before)
    assert equal(ema.average, average)
    assert not equal(before, average)
    with pytest.raises(ZeroDivisionError), t.stack.sampling():
        raise ZeroDivisionError
    assert equal(weights(t), before)


def test_ema_does_not_change_training_and_resumes_exactly():
    plain, t = trainer(Flux()), trainer(Flux(), make("ema", decay=0.9))
    for _ in range(2):
        plain.step([batch(Flux())])
        t.step([batch(Flux())])
    assert equal(weights(plain), weights(t))

    again = trainer(Flux(), make("ema", decay=0.9))
    with torch.no_grad():
        for p, value in zip(again.adapter.parameters(), weights(t), strict=True):
            p.copy_(value)
    again.stack.load_state_dict(t.stack.state_dict())
    again.optimizer.load_state_dict(copy.deepcopy(t.optimizer.state_dict()))  # torch would share the tensors
    again.scheduler.load_state_dict(t.scheduler.state_dict())
    again.index = t.index
    for run in (t, again):
        run.step([batch(Flux())])
    assert equal(weights(t), weights(again))
    assert equal(t.stack.state_dict()["ema"]["average"], again.stack.state_dict()["ema"]["average"])
    assert not equal(again.stack.state_dict()["ema"]["average"], weights(again))


def test_ema_and_a_schedule_free_rule_leave_no_trace():
    t = trainer(Flux(), make("ema", decay=0.5))
    spec = TrainSpec(optimizer="schedulefree", lr=1e-2)
    t.optimizer, t.scheduler = optimizers.build(spec, t.adapter.parameters())
    for _ in range(3):
        t.step([batch(Flux())])
    before, average = weights(t), t.stack.state_dict()["ema"]["average"]
    with optimizers.evaluation(t.optimizer), t.stack.sampling():
        assert equal(weights(t), average)
    assert equal(weights(t), before)
    t.step([batch(Flux())])


# -- masked loss -------------------------------------------------------------------------------------------------------


def masked(mask: Tensor | None, elementwise: Tensor, **settings) -> Tensor:
    return make("masked_loss", **settings).on_loss(elementwise, SimpleNamespace(batch=SimpleNamespace(mask=mask)))


def test_no_gradient_where_the_mask_is_black():
    answer = torch.randn(2, 4, SIDE, SIDE, requires_grad=True)
    masked(half(), answer.square()).mean().backward()
    assert (answer.grad[..., SIDE // 2 :] == 0).all()
    assert (answer.grad[..., : SIDE // 2] != 0).all()


def test_masked_loss_equation():
    elementwise = torch.rand(2, 4, SIDE, SIDE)
    assert torch.equal(masked(half(), elementwise, normalise=False), elementwise * half())
    got = masked(half(), elementwise, normalise=False, outside=0.25)
    torch.testing.assert_close(got, elementwise * torch.where(half() == 1, 1.0, 0.25))
    torch.testing.assert_close(masked(half(), elementwise, outside=0.25), got / 0.625)
    assert masked(None, elementwise) is elementwise


def test_normalising_keeps_the_mean_of_an_even_error_item_by_item():
    mask = torch.zeros(3, 1, SIDE, SIDE)
    mask[0, 0, 0, 0] = 1
    mask[1, 0, :2] = 0.5
    mask[2] = 1
    even = torch.ones(3, 4, SIDE, SIDE)
    assert masked(mask, even).mean(dim=(1, 2, 3)).tolist() == pytest.approx([1, 1, 1])
    small = masked(mask, even, normalise=False).mean(dim=(1, 2, 3))
    assert small.tolist() == pytest.approx([1 / TOKENS, 1 / 6, 1])


def test_a_black_mask_gives_zero_and_a_white_one_changes_nothing():
    elementwise = torch.rand(2, 4, SIDE, SIDE)
    assert (masked(torch.zeros(2, 1, SIDE, SIDE), elementwise) == 0).all()
    assert torch.equal(masked(torch.ones(2, 1, SIDE, SIDE), elementwise), elementwise)


def test_a_mask_covers_all_frames():
    elementwise = torch.rand(2, 4, 5, SIDE, SIDE)
    got = masked(half(), elementwise, normalise=False)
    assert torch.equal(got, elementwise * half().unsqueeze(2))


def test_masked_loss_refuses_what_it_cannot_do():
    extension = make("masked_loss")
    assert extension.refuses(Flux(), recipe(mask="/m")) is None
    assert "set data.0.mask or remove" in extension.refuses(Flux(), recipe())
    assert "makes sound" in extension.refuses(SimpleNamespace(name="x", modality="audio"), recipe(mask="/m"))
    with pytest.raises(UserError, match=r"extensions\.0\.outside"):
        make("masked_loss", outside=2)


def test_hidden_pixels_do_not_reach_the_weights():
    """The target where the mask is black has no influence on any gradient; where it is white it has."""

    def grads(column: int) -> list[Tensor]:
        t = trainer(Flux(), make("masked_loss"), Meddle(column))
        t.forward_backward(batch(Flux(), mask=half()), 0)
        return [p.grad for p in t.adapter.parameters()]

    untouched = gradients(Flux(), make("masked_loss"), mask=half())
    assert equal(grads(SIDE - 1), untouched)
    assert not equal(grads(0), untouched)


class Meddle(Extension):
    """Spoils the target in one column."""

    kind = "meddle"

    def __init__(self, column: int) -> None:
        self.column = column

    def on_noised(self, step: Step) -> None:
        step.noised.target[..., self.column] += 100


# -- TREAD -------------------------------------------------------------------------------------------------------------

ALL = {"first": 1, "last": 3}  # over the border of the two runs


def step_of(index: int = 0, seed: int = 0) -> Step:
    return Step(index, 0, seed, None, Noised(*[torch.zeros(1)] * 4), None)


def test_dropped_tokens_are_untouched_by_the_route():
    t = trainer(Flux(), make("tread", drop=0.5, **ALL))
    steps: list[Step] = []
    t.stack._point["on_loss"].append(lambda e, step: steps.append(step) or e)
    seen: dict[str, Tensor] = {}
    walked = [m for m, _ in walk(Flux.blocks, t.parts.network)]
    walked[0].register_forward_hook(lambda m, a, out: seen.update(before=out[1]))
    walked[1].norm1.register_forward_hook(lambda m, a, out: seen.update(inside=a[0]))
    walked[3].register_forward_hook(lambda m, a, out: seen.update(after=out[1]))
    t.forward_backward(batch(Flux()), 0)

    keep = steps[0].routed
    dropped = torch.tensor(sorted(set(range(TOKENS)) - set(keep.tolist())))
    assert len(keep) == TOKENS // 2
    assert torch.equal(keep, keep.sort().values)
    assert torch.equal(seen["inside"], seen["before"][:, keep])
    assert torch.equal(seen["after"][:, dropped], seen["before"][:, dropped])
    assert (seen["after"][:, keep] != seen["before"][:, keep]).any(-1).all()


def test_the_rotary_table_is_cut_as_the_tokens_are():
    t = trainer(Flux(), make("tread", drop=0.5, **ALL))
    steps: list[Step] = []
    t.stack._point["on_loss"].append(lambda e, step: steps.append(step) or e)
    whole: dict[str, Tensor] = {}
    walk(Flux.blocks, t.parts.network)[0][0].register_forward_hook(
        lambda m, a, k, out: whole.update(table=k["image_rotary_emb"][0]), with_kwargs=True
    )
    tables: list[Tensor] = []
    for block in (t.parts.network.transformer_blocks[1], t.parts.network.single_transformer_blocks[1]):
        block.attn.register_forward_pre_hook(lambda m, a, k: tables.append(k["image_rotary_emb"][0]), with_kwargs=True)
    t.forward_backward(batch(Flux()), 0)
    rows = torch.cat([torch.arange(TEXT), steps[0].routed + TEXT])
    assert len(tables) == 2
    for table in tables:
        assert torch.equal(table, whole["table"][rows])


def test_kept_tokens_run_as_if_they_were_alone():
    """A route over all blocks gives kept tokens the answer of a picture that holds only them."""
    t = trainer(Flux(), make("tread", drop=0.5, first=0, last=-1))
    steps: list[Step] = []
    t.stack._point["on_loss"].append(lambda e, step: steps.append(step) or e)
    t.forward_backward(batch(Flux()), 0)
    step, cond = steps[0], steps[0].batch.cond
    rows, columns = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    ids = torch.stack([torch.zeros_like(rows), rows, columns], -1).reshape(-1, 3)
    alone = t.parts.network(
        hidden_states=step.noised.x.flatten(2).mT[:, step.routed],
        timestep=step.noised.t,
        pooled_projections=cond["pooled"],
        encoder_hidden_states=cond["text"],
        txt_ids=torch.zeros(TEXT, 3),
        img_ids=ids[step.routed],
        return_dict=False,
    )[0]
    routed = step.prediction.flatten(2).mT[:, step.routed]
    torch.testing.assert_close(routed, alone, atol=1e-5, rtol=1e-5)


def test_keeping_all_is_plain_training():
    plain, routed = trainer(Flux()), trainer(Flux(), make("tread", drop=0, **ALL))
    for _ in range(3):
        assert plain.step([batch(Flux())]) == routed.step([batch(Flux())])
    assert equal(weights(plain), weights(routed))


def test_dropping_changes_training():
    assert not equal(gradients(Flux()), gradients(Flux(), make("tread", **ALL)))


@pytest.mark.parametrize("route", [(1, 3), (0, -1), (2, 2), (0, 1), (3, 4)])
def test_checkpointing_gives_the_same_gradients(route):
    settings = {"first": route[0], "last": route[1]}
    plain = gradients(Flux(), make("tread", **settings))
    replayed = gradients(Flux(), make("tread", **settings), checkpointing=True)
    assert largest(plain, replayed) < 1e-6


def test_samples_and_passes_without_gradient_see_all_tokens():
    plain, routed = trainer(Flux()), trainer(Flux(), make("tread", **ALL))
    b = batch(Flux())
    args = (b.latents, torch.tensor([0.3, 0.7]), b.cond)
    expected = plain.predict(*args)
    assert torch.equal(routed.predict(*args), expected)  # outside a step
    step = step_of()
    with routed.stack.around(step):
        with torch.no_grad():
            assert torch.equal(routed.predict(*args), expected)  # a teacher's pass
            assert step.routed is None
        assert not torch.equal(routed.predict(*args), expected)
        with torch.no_grad():
            assert torch.equal(routed.predict(*args), expected)
    with routed.stack.sampling():
        assert torch.equal(routed.predict(*args), expected)


def test_a_failed_step_leaves_the_network_plain():
    t = trainer(Flux(), make("tread", **ALL))
    b = batch(Flux())
    args = (b.latents, torch.tensor([0.3, 0.7]), b.cond)
    expected = t.predict(*args)
    with pytest.raises(ZeroDivisionError), t.stack.around(step_of()):
        t.predict(*args)
        raise ZeroDivisionError
    assert torch.equal(t.predict(*args), expected)


@pytest.mark.parametrize(
    ("count", "drop", "kept"), [(36, 0.5, 18), (10, 0.3, 7), (7, 0.3, 5), (3, 0.99, 1), (1, 0.9, 1)]
)
def test_the_number_of_kept_tokens(count, drop, kept):
    assert len(make("tread", drop=drop).keep(step_of(), count)) == kept


def test_routes_are_uniform():
    tread, count, times = make("tread", drop=0.5), 16, 4000
    hits = torch.zeros(count)
    for index in range(times):
        hits[tread.keep(step_of(index), count)] += 1
    # each count is hypergeometric with variance p (1 - p); fixed sum takes one degree of freedom
    chi = ((hits - times / 2).square() / (times / 4)).sum().item() * (count - 1) / count
    assert chi < 37.7  # the 0.999 quantile of chi-square with 15 degrees of freedom
    assert chi > 2.0


def test_routes_repeat_by_step_and_differ_between_steps():
    tread = make("tread")
    assert torch.equal(tread.keep(step_of(5), 64), tread.keep(step_of(5), 64))
    assert not torch.equal(tread.keep(step_of(5), 64), tread.keep(step_of(6), 64))
    assert not torch.equal(tread.keep(step_of(5), 64), tread.keep(step_of(5, seed=1), 64))


def test_cut_keeps_text_before_and_after():
    keep = torch.tensor([0, 2])
    row = torch.arange(5)
    assert cut(row, (0,), keep, 3).tolist() == [0, 1, 2, 4]
    assert cut(row, (0,), keep, 3, "after").tolist() == [0, 2, 3, 4]
    square = torch.arange(25).reshape(1, 1, 5, 5)
    assert cut(square, (2, 3), keep, 3)[0, 0].tolist() == square[0, 0][[0, 1, 2, 4]][:, [0, 1, 2, 4]].tolist()
    assert [c.tolist() for c in cut((row, row + 5), (0,), keep, 3)] == [[0, 1, 2, 4], [5, 6, 7, 9]]
    with pytest.raises(AssertionError, match="has not 9 entries"):
        cut(row, (0,), keep, 9)


class Mixer(nn.Module):
    """A block over one sequence of text and picture: every token gets the mean added."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states + hidden_states.mean(1, keepdim=True)


class Alone(nn.Module):
    def forward(self, hidden_states: Tensor) -> Tensor:
        return hidden_states + 1


class Joining(nn.Module):
    """Separate streams first, then one: text before or after the picture."""

    def __init__(self, before: bool) -> None:
        super().__init__()
        self.before, self.apart, self.joint = before, nn.ModuleList([Alone()]), nn.ModuleList([Mixer(), Mixer()])

    def forward(self, media: Tensor, text: Tensor) -> Tensor:
        media = self.apart[0](media)
        x = torch.cat([text, media] if self.before else [media, text], 1)
        for block in self.joint:
            x = block(x)
        return x


@pytest.mark.parametrize("text", ["before", "after"])
def test_a_route_may_end_in_a_sequence_shared_with_text(text):
    network = Joining(text == "before")
    family = SimpleNamespace(name="x", blocks=(Blocks("apart"), Blocks("joint", text=text)))
    tread = make("tread", first=0, last=1)
    tread.attach(Context(family, network, None, 1))
    media, words, step = torch.randn(2, 8, 4), torch.randn(2, 3, 4), step_of()
    with tread.around(step):
        out = network(media, words)
    # by hand: the route covers the double block and the first mixer
    kept = media[:, step.routed] + 1
    mixed = torch.cat([words, kept], 1)
    mixed = mixed + mixed.mean(1, keepdim=True)
    whole = torch.cat([mixed[:, :3], media.index_copy(1, step.routed, mixed[:, 3:])], 1)
    whole = whole + whole.mean(1, keepdim=True)
    if text == "after":
        whole = torch.cat([whole[:, 3:], whole[:, :3]], 1)
    torch.testing.assert_close(out, whole)
    entering = make("tread", first=1, last=2)
    with pytest.raises(UserError, match="set first to one of 0 to 0"):
        entering.attach(Context(family, network, None, 1))
    assert "yet; remove" in tread.refuses(SimpleNamespace(name="x", blocks=family.blocks[1:]), recipe())


def test_tread_names_wrong_blocks_and_families():
    for settings, said in (
        ({"first": 7}, "first block 7 does not exist; the network has 5 blocks"),
        ({"last": -9}, "last block -9 does not exist"),
        ({"first": 3, "last": 1}, "first block 3 comes after last block 1"),
    ):
        with pytest.raises(UserError, match=said):
            trainer(Flux(), make("tread", **settings))
    assert "remove the extension" in make("tread").refuses(Unet(), recipe())
    assert make("tread").refuses(Flux(), recipe()) is None


# -- together ----------------------------------------------------------------------------------------------------------

MAKE = {
    "ema": lambda: make("ema", decay=0.9),
    "masked_loss": lambda: make("masked_loss"),
    "tread": lambda: make("tread", **ALL),
}
FLUX_SETS = [("ema",), ("masked_loss",), ("tread",), ("ema", "masked_loss"), ("ema", "tread"), ("masked_loss", "tread")]
UNET_SETS = [("ema",), ("masked_loss",), ("ema", "masked_loss")]
SETS = [(Flux, names) for names in FLUX_SETS] + [(Unet, names) for names in UNET_SETS]


@pytest.mark.parametrize(("kind", "names"), SETS, ids=[f"{k.__name__}-{'+'.join(n)}" for k, n in SETS])
def test_techniques_train_together(kind, names):
    family = kind()
    t = trainer(family, *[MAKE[n]() for n in names], lr=3e-3)
    # the same noise each time shows the fall of the loss
    losses = []
    for _ in range(12):
        index, t.index = t.index, 0
        losses.append(t.step([batch(family, mask=half() if "masked_loss" in names else None)])["loss"])
        t.index = index + 1
    assert all(math.isfinite(x) for x in losses)
    assert losses[-1] < 0.9 * losses[0]


def test_order_of_independent_techniques_does_not_matter():
    a = gradients(Flux(), MAKE["masked_loss"](), MAKE["tread"](), mask=half())
    b = gradients(Flux(), MAKE["tread"](), MAKE["masked_loss"](), mask=half())
    assert equal(a, b)


def test_masking_under_a_route_still_hides_what_is_black():
    untouched = gradients(Flux(), MAKE["tread"](), MAKE["masked_loss"](), mask=half())
    spoiled = gradients(Flux(), Meddle(SIDE - 1), MAKE["tread"](), MAKE["masked_loss"](), mask=half())
    assert equal(untouched, spoiled)


def test_a_technique_stands_only_once():
    with pytest.raises(UserError, match="stands twice"):
        Stack([make("ema"), make("ema")])
