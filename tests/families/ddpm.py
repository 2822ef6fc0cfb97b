"""What the cases of models with a noise schedule share."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.families.case import Case, Rig, generator, implied_noise
from tuner.types import Media


def decoded_at_step_0(case: Case, rig: Rig, media: Media) -> Tensor:
    """What a pipeline shows whose published scheduler stops at step 0 of its schedule (set_alpha_to_one: false).

    That is short of the clean latent by the noise of that step, which a sampler without fresh noise keeps from the
    first step on: from the latent that it draws with the proof's seed.
    """
    vae, objective = rig.official.vae, rig.objective
    with torch.no_grad():
        z = vae.encode(media.pixels).latent_dist.mode() * vae.config.scaling_factor
        first = torch.randn(z.shape, generator=generator(3)) * rig.official.scheduler.init_noise_sigma
        noise = implied_noise(objective, first, z, case.time(rig, 0)[None])
        last = objective.noised(z, noise, torch.zeros(1)).x / vae.config.scaling_factor
        return rig.official.image_processor.postprocess(vae.decode(last).sample, output_type="pt")
