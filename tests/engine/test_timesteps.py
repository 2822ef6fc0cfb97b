"""Draws of t against the distribution functions they should have."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers.training_utils import compute_density_for_timestep_sampling

from tuner.recipe import Beta, LogitNormal, Mode, Uniform
from tuner.timesteps import draw, quantile, shifted

N = 20000
BOUND = 1.95 / math.sqrt(N)  # Kolmogorov-Smirnov: exceeded once in 1000 by right draws; the seeds are fixed


def draws(spec, count=N):
    g = torch.Generator().manual_seed(7)
    return draw(spec, [g] * count, range(count), count)


def distance(t: torch.Tensor, cdf) -> float:
    """The Kolmogorov-Smirnov distance between draws [N] and a distribution function."""
    t = t.double().sort().values
    steps = torch.arange(len(t) + 1, dtype=torch.float64) / len(t)
    return max((cdf(t) - steps[1:]).abs().max().item(), (cdf(t) - steps[:-1]).abs().max().item())


def normal_cdf(x):
    return 0.5 * (1 + torch.erf(x / math.sqrt(2)))


DISTRIBUTIONS = {
    "logit_normal": (LogitNormal(), lambda t: normal_cdf(torch.logit(t))),
    "logit_normal_moved": (LogitNormal(mean=-0.4, std=1.7), lambda t: normal_cdf((torch.logit(t) + 0.4) / 1.7)),
    "uniform": (Uniform(), lambda t: t),
    "uniform_part": (Uniform(low=0.2, high=0.6), lambda t: (t - 0.2) / 0.4),
    "beta_2_2": (Beta(), lambda t: 3 * t**2 - 2 * t**3),
    "beta_arcsine": (Beta(alpha=0.5, beta=0.5), lambda t: 2 / math.pi * torch.asin(t.sqrt())),
    "beta_steep": (Beta(alpha=0.2, beta=1), lambda t: t**0.2),
    "beta_skew": (Beta(alpha=1, beta=5), lambda t: 1 - (1 - t) ** 5),
    "mode_flat": (Mode(scale=0), lambda t: t),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_distribution(name):
    spec, cdf = DISTRIBUTIONS[name]
    assert distance(draws(spec), cdf) < BOUND


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_quantile_inverts_the_distribution_function(name):
    spec, cdf = DISTRIBUTIONS[name]
    u = torch.linspace(1e-4, 1 - 1e-4, 999, dtype=torch.float64)
    torch.testing.assert_close(cdf(quantile(spec, u)), u, atol=1e-5, rtol=0)


def mode_cdf(scale):
    """The distribution function of the mode density by bisection of u -> f(u), independent of our quantile."""

    def cdf(t):
        low, high = torch.zeros_like(t), torch.ones_like(t)
        for _ in range(60):
            u = (low + high) / 2
            value = 1 - u - scale * (torch.cos(math.pi * u / 2) ** 2 - 1 + u)  # falls with u
            low, high = torch.where(value > t, u, low), torch.where(value > t, high, u)
        return 1 - (low + high) / 2

    return cdf


@pytest.mark.parametrize("scale", [-1.0, -0.5, 0.8, 1.29, 1.75])
def test_mode_is_equation_20_of_sd3_as_diffusers_draws_it(scale):
    theirs = compute_density_for_timestep_sampling(
        "mode", N, mode_scale=scale, generator=torch.Generator().manual_seed(3)
    )
    assert distance(theirs, mode_cdf(scale)) < BOUND
    assert distance(draws(Mode(scale=scale)), mode_cdf(scale)) < BOUND
    q = quantile(Mode(scale=scale), torch.linspace(0, 1, 10001, dtype=torch.float64))
    assert (q.diff() > -1e-12).all()
    assert q[0].item() == pytest.approx(0, abs=1e-12)
    assert q[-1].item() == pytest.approx(1, abs=1e-12)


def test_the_mode_prefers_the_middle_above_zero_and_the_ends_below():
    def middle(scale):
        return ((draws(Mode(scale=scale)) - 0.5).abs() < 0.25).double().mean().item()

    assert middle(-0.5) < 0.45 < 0.55 < middle(1.29)


@pytest.mark.parametrize("kind", [LogitNormal, Uniform, Mode, Beta])
def test_stratified_puts_one_draw_into_every_share(kind):
    of = 64
    spec = kind(stratified=True)
    t = draw(spec, [torch.Generator().manual_seed(i) for i in range(of)], range(of), of)
    edges = quantile(spec, torch.arange(of + 1, dtype=torch.float64).div(of).clamp(1e-6, 1 - 1e-6)).float()
    assert ((t >= edges[:-1]) & (t <= edges[1:])).all()


def test_stratified_draws_keep_the_distribution():
    g = torch.Generator().manual_seed(1)
    t = torch.cat([draw(LogitNormal(stratified=True), [g] * 4, range(4), 4) for _ in range(N // 4)])
    assert distance(t, DISTRIBUTIONS["logit_normal"][1]) < BOUND


def test_draws_do_not_depend_on_how_a_step_is_cut():
    def generators(places):
        return [torch.Generator().manual_seed(100 + p) for p in places]

    for spec in (LogitNormal(), Beta(stratified=True)):
        whole = draw(spec, generators(range(4)), range(4), 4)
        parts = torch.cat([draw(spec, generators(p), p, 4) for p in ([0], [1, 2], [3])])
        assert torch.equal(whole, parts)


def test_draws_stay_inside():
    for spec in (LogitNormal(std=30), Uniform(), Mode(), Beta(alpha=0.05, beta=0.05)):
        t = draws(spec, 2000)
        assert t.dtype == torch.float32
        assert t.isfinite().all()
        assert t.min() >= 0
        assert t.max() <= 1


def test_shift_moves_the_distribution_towards_noise():
    t = draws(LogitNormal())
    assert distance(shifted(t, 3.0), lambda s: normal_cdf(torch.logit(s / (3 - 2 * s)))) < BOUND
