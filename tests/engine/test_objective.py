"""Objectives against numbers computed independently (closed forms, and the schedule of Stable Diffusion)."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from diffusers import FlowMatchEulerDiscreteScheduler

from tuner.objective import Diffusion, Flow, alphas_cumprod, error, reduce
from tuner.timesteps import shifted
from tuner.types import Noised

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}


def at(step: int) -> torch.Tensor:
    return torch.tensor([step / 1000])


def weights(steps, **settings):
    objective = Diffusion(alphas_cumprod(SD), snr_gamma=5.0, **settings)
    x = torch.zeros(1, 1, 2, 2)
    return [objective.noised(x, x, at(s)).weight.item() for s in steps]


def test_alphas_of_stable_diffusion():
    a = alphas_cumprod(SD)
    assert a[[0, 499, 999]].tolist() == pytest.approx([0.99915, 0.27766965, 0.0046600985], rel=1e-5)


def test_snr_of_stable_diffusion():
    a = alphas_cumprod(SD).double()
    golden = {0: 1175.47, 1: 585.864, 10: 103.508, 100: 8.45389, 250: 2.06553, 500: 0.38185, 750: 0.0595127}
    golden[999] = 0.00468192
    for step, snr in golden.items():
        assert (a[step] / (1 - a[step])).item() == pytest.approx(snr, rel=2e-4)


def test_min_snr_epsilon():
    assert weights([10, 100, 250, 500, 999]) == pytest.approx([0.0483057, 0.591443, 1, 1, 1], rel=1e-4)


def test_min_snr_velocity():
    golden = [0.0478435, 0.528883, 0.673793, 0.276333, 0.0046601]
    assert weights([10, 100, 250, 500, 999], predicts="velocity") == pytest.approx(golden, rel=1e-4)


def test_no_gamma_no_weight():
    x = torch.zeros(1, 1, 2, 2)
    assert Diffusion(alphas_cumprod(SD)).noised(x, x, at(5)).weight is None


def test_diffusion_uses_the_step_it_reports():
    """The noise level and the t that the network is told are the same table entry."""
    a = alphas_cumprod(SD)
    objective = Diffusion(a)
    for t, step in ((0.0, 0), (0.4994, 499), (0.4996, 500), (0.9997, 999), (1.0, 999)):
        noised = objective.noised(torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1), torch.tensor([t]))
        assert round(noised.t.item() * 1000) == step
        assert noised.x.item() == pytest.approx(a[step].sqrt().item(), rel=1e-6)


def test_velocity_target_is_made_of_latents():
    x0, n = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    a = alphas_cumprod(SD)[[100, 700]].reshape(2, 1, 1, 1)
    noised = Diffusion(alphas_cumprod(SD), "velocity").noised(x0, n, torch.tensor([0.1, 0.7]))
    torch.testing.assert_close(noised.target, a.sqrt() * n - (1 - a).sqrt() * x0)


@pytest.mark.parametrize(
    "objective",
    [Flow(), Diffusion(alphas_cumprod(SD)), Diffusion(alphas_cumprod(SD), "velocity")],
    ids=["flow", "eps", "v"],
)
def test_the_right_answer_gives_no_loss_and_the_clean_latent(objective):
    g = torch.Generator().manual_seed(0)
    x0, n = torch.randn(3, 4, 5, 5, generator=g), torch.randn(3, 4, 5, 5, generator=g)
    noised = objective.noised(x0, n, torch.tensor([0.05, 0.5, 0.8]))
    assert reduce(error(noised.target, noised.target), noised).item() == 0
    torch.testing.assert_close(objective.clean(noised.target, noised), x0, atol=2e-5, rtol=1e-4)
    assert not torch.allclose(objective.clean(noised.target + 0.1, noised), x0, atol=1e-3)


def test_flow_ends():
    x0, n = torch.randn(1, 4, 2, 2), torch.randn(1, 4, 2, 2)
    assert torch.equal(Flow().noised(x0, n, torch.zeros(1)).x, x0)
    assert torch.equal(Flow().noised(x0, n, torch.ones(1)).x, n)
    assert torch.equal(Flow().noised(x0, n, torch.ones(1)).target, n - x0)


@pytest.mark.parametrize("steps", [1, 7, 50])
def test_euler_with_the_flow_oracle_recovers_the_data(steps):
    x0, n = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8)
    x, times = n.clone(), torch.linspace(1, 0, steps + 1)
    for here, there in itertools.pairwise(times):
        x = x + (there - here) * Flow().noised(x0, n, here[None]).target
    torch.testing.assert_close(x, x0, atol=1e-5, rtol=1e-5)


def test_shift_map():
    got = shifted(torch.tensor([0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0]), 3.0).tolist()
    assert got == pytest.approx([0, 0.25, 0.5, 0.75, 0.9, 0.9642857, 1], rel=1e-6)
    t = torch.rand(9)
    assert torch.equal(shifted(t, 1.0), t)


@pytest.mark.parametrize(
    ("pixels", "shift"), [(256, 1.648721), (512, 1.877611), (768, 2.331861), (1024, 3.158193), (2048, 25.279657)]
)
def test_shift_by_resolution_as_flux_does(pixels, shift):
    """e^mu of Flux, read out of diffusers' own scheduler: our map with s = e^mu is its map with mu."""
    mu = (pixels / 16) ** 2 * (1.15 - 0.5) / (4096 - 256) + 0.5 - 256 * (1.15 - 0.5) / (4096 - 256)
    assert math.exp(mu) == pytest.approx(shift, rel=1e-6)
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    scheduler.set_timesteps(sigmas=[0.9, 0.5, 0.1], mu=mu)
    torch.testing.assert_close(
        shifted(torch.tensor([0.9, 0.5, 0.1]), shift), scheduler.sigmas[:3], atol=1e-6, rtol=1e-6
    )


def test_error_measures():
    d, zero = torch.tensor([0.0, 0.05, 0.1, 0.3, -2.0]), torch.zeros(5)
    assert error(d, zero).tolist() == pytest.approx([0, 0.0025, 0.01, 0.09, 4])
    huber = [0, 0.05**2 / 2, 0.1**2 / 2, 0.1 * (0.3 - 0.05), 0.1 * (2 - 0.05)]
    assert error(d, zero, "huber", 0.1).tolist() == pytest.approx(huber)
    assert error(d, zero, "smooth_l1", 0.1).tolist() == pytest.approx([h / 0.1 for h in huber])
    torch.testing.assert_close(error(d, zero, "huber", 1e6), error(d, zero) / 2)


def test_error_is_computed_in_float32():
    big = torch.full((4,), 300.0, dtype=torch.float16)
    assert error(big, -big).tolist() == [360000.0] * 4


def test_reduce_weighs_samples_not_elements():
    elementwise = torch.stack([torch.full((4, 2, 2), 1.0), torch.full((4, 2, 2), 3.0)])
    noised = Noised(elementwise, torch.zeros(2), elementwise, elementwise, weight=torch.tensor([2.0, 0.5]))
    assert reduce(elementwise, noised).item() == pytest.approx((1 * 2 + 3 * 0.5) / 2)
    noised.weight = None
    assert reduce(elementwise, noised).item() == pytest.approx(
        F.l1_loss(elementwise, torch.zeros_like(elementwise)).item()
    )
