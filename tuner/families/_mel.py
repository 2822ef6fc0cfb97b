"""Sound as the log of a mel spectrogram, the input of LTX-2's audio autoencoder."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.audio_utils import mel_filter_bank

WINDOW = 1024
"""Samples per Fourier transform and Hann window; no configuration in diffusers' layout states it."""
FLOOR = 1e-5


def log_mel(sound: Tensor, rate: int, hop: int, bins: int) -> Tensor:
    """[B, channels, samples] in -1..1 → [B, channels, samples // hop + 1, bins] float32: natural log of magnitudes.

    As in Lightricks' own front end (ltx-core, `AudioProcessor`): frames centred on every `hop` samples over reflected
    ends, magnitudes (not power), Slaney's mel scale from 0 to rate / 2 with filters of equal area, not below 1e-5.
    """
    flat = sound.float().flatten(0, 1)
    window = torch.hann_window(WINDOW, device=sound.device)
    spectrum = torch.stft(flat, WINDOW, hop, window=window, center=True, pad_mode="reflect", return_complex=True)
    filters = mel_filter_bank(WINDOW // 2 + 1, bins, 0.0, rate / 2, rate, norm="slaney", mel_scale="slaney")
    mel = spectrum.abs().transpose(1, 2) @ torch.from_numpy(filters).to(flat)
    return mel.clamp_min(FLOOR).log().unflatten(0, sound.shape[:2])
