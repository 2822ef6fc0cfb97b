"""What the cases of FLUX and its kin share: packed latents, and reference pictures that survive as PIL."""

from __future__ import annotations

from diffusers import FluxPipeline
from PIL import Image
from torch import Tensor

from tests.families.case import Case, Rig, Shape, smooth


class Packed(Case):
    """Latents in 2x2 patches; what follows them in the sequence (references) is not the drawn picture's."""

    def pack(self, rig: Rig, x: Tensor) -> Tensor:
        return FluxPipeline._pack_latents(x, *x.shape)

    def unpack(self, rig: Rig, x: Tensor, shape: Shape) -> Tensor:
        factor = rig.official.vae_scale_factor
        own = (shape.height // factor // 2) * (shape.width // factor // 2)
        return FluxPipeline._unpack_latents(x[:, :own], shape.height, shape.width, factor)


def picture(number: int, width: int, height: int) -> Image.Image:
    """A smooth picture, another for every number."""
    pixels = smooth((number + 1, 3, height, width), 4)[number]
    return Image.fromarray(((pixels + 1) * 127.5).round().byte().permute(1, 2, 0).numpy())
