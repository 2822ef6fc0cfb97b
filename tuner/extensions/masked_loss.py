"""Masked loss: what the mask shows is learned, what it hides is not.

The error of a latent cell is multiplied by w = outside + (1 - outside) * mask.
"""

from __future__ import annotations

from torch import Tensor

from ..extension import Extension, Settings, Step, extension
from ..family import Family
from ..recipe import Recipe, setting


class MaskedLossSettings(Settings):
    """See the module."""

    outside: float = setting(
        0.0, "Weight of the error where the mask is black; 0 ignores it, 1 makes the mask void", "basic", ge=0, lt=1
    )
    normalise: bool = setting(
        True, "Divide by the mask's mean weight, so that a small mask does not mean a small learning step"
    )


@extension
class MaskedLoss(Extension):
    """Weighs the elementwise error by each item's mask. Items of data sets without masks count whole."""

    kind = "masked_loss"
    title = "Masked loss"
    Settings = MaskedLossSettings
    reads = frozenset({"mask"})

    def refuses(self, family: Family, recipe: Recipe) -> str | None:
        """Without masks it would do nothing; sound has no picture to mask."""
        if family.modality == "audio":
            return f"masked_loss is for pictures and videos, {family.name} makes sound; remove the extension."
        if not family.plane:
            return f"masked_loss cannot tell where a picture is in the latents of {family.name}; remove the extension."
        if not any(data.mask or data.columns.mask for data in recipe.data if data.role != "validation"):
            return "masked_loss needs a mask folder; set data.0.mask or remove the extension."
        return None

    def on_loss(self, elementwise: Tensor, step: Step) -> Tensor:
        """elementwise: [B, C, ..., h, w]; the mask [B, 1, h, w] is the same for all channels and frames."""
        mask = step.batch.mask
        if mask is None:
            return elementwise
        if mask.shape[-2:] != elementwise.shape[-2:]:
            raise AssertionError(f"mask {tuple(mask.shape)} does not fit the error {tuple(elementwise.shape)}")
        weight = self.settings.outside + (1 - self.settings.outside) * mask.to(elementwise)
        if self.settings.normalise:
            # at least one white cell's worth: an all-black mask gives zero, not 0 / 0
            least = 1 / (mask.shape[-2] * mask.shape[-1])
            weight = weight / weight.mean(dim=(1, 2, 3), keepdim=True).clamp_min(least)
        between = [1] * (elementwise.ndim - 4)
        return elementwise * weight.reshape(len(weight), 1, *between, *weight.shape[-2:])
