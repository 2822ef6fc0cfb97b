"""Stage 2: train the small AutoencoderKL (64 x 64 pixels to 8 x 8 latents of 16 channels)."""

import math
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch.nn import functional

from making.pictures import load_folder

STEPS = 2250
BATCH = 16
PEAK_RATE = 1.5e-3
WARMUP = 100
SHIFT = 2
KL_WEIGHT = 3e-5
FIRST_LOGVAR = -4.0
SAVE_EVERY = 250
STATE_FILE = "autoencoder.pt"


def new_autoencoder() -> AutoencoderKL:
    """Build the untrained autoencoder, with a low noise in its latents from the start."""
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 48, 96, 96),
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=8,
        sample_size=64,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    with torch.no_grad():
        vae.encoder.conv_out.weight[16:].zero_()
        vae.encoder.conv_out.bias[16:].fill_(FIRST_LOGVAR)
    return vae


def to_pixels(pictures: np.ndarray) -> torch.Tensor:
    """Turn uint8 [N, H, W, 3] into float [N, 3, H, W] in -1..1."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1


def rate(step: int, steps: int, peak: float, warmup: int) -> float:
    """Learning rate: linear warm-up, then a cosine to zero."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def shifted(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Move a batch by a few pixels, with white coming in at the border."""
    down, right = torch.randint(0, 2 * SHIFT + 1, (2,), generator=generator).tolist()
    padded = functional.pad(pixels, (SHIFT,) * 4, value=1.0)
    return padded[:, :, down : down + pixels.shape[2], right : right + pixels.shape[3]]


def reconstruction_loss(answer: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """Squared and absolute errors, and absolute errors of the edges."""
    error = answer - pixels
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    return error.square().mean() + 0.2 * error.abs().mean() + 0.1 * edges


def train_step(vae: AutoencoderKL, pixels: torch.Tensor) -> torch.Tensor:
    """Loss of one batch."""
    with torch.autocast("cpu", torch.bfloat16):
        moments = vae.encoder(pixels).float()
        mean, logvar = moments.chunk(2, dim=1)
        logvar = logvar.clamp(-20, 10)
        latents = mean + torch.randn_like(mean) * (0.5 * logvar).exp()
        answer = vae.decoder(latents)
    divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    return reconstruction_loss(answer.float(), pixels) + KL_WEIGHT * divergence


def train_autoencoder(work: Path) -> None:
    """Train on the pictures of all styles and write WORK/vae; an interrupted training goes on from its last save."""
    pictures = np.concatenate([load_folder(work / "pictures")[0], load_folder(work / "contrast")[0]])
    torch.manual_seed(0)
    vae = new_autoencoder()
    optimizer = torch.optim.AdamW(vae.parameters(), lr=PEAK_RATE, betas=(0.9, 0.99), weight_decay=1e-4, fused=True)
    start, state = 0, work / STATE_FILE
    if state.exists():
        saved = torch.load(state, weights_only=True)
        vae.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        start = saved["step"]
    everything = to_pixels(pictures)
    for step in range(start, STEPS):
        generator = torch.Generator().manual_seed(step)
        pixels = shifted(everything[torch.randint(0, len(everything), (BATCH,), generator=generator)], generator)
        for group in optimizer.param_groups:
            group["lr"] = rate(step, STEPS, PEAK_RATE, WARMUP)
        loss = train_step(vae, pixels)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % SAVE_EVERY == 0:
            saved = {"model": vae.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            torch.save(saved, state)
            print(f"autoencoder step {step + 1}/{STEPS}: loss {loss.item():.4f}, {psnr(vae, everything[::16]):.2f} dB")
    measure_latents(vae, to_pixels(load_folder(work / "pictures")[0]))
    vae.save_pretrained(work / "vae")
    print(f"autoencoder done: {psnr(vae, everything):.2f} dB over {len(everything)} pictures")


@torch.no_grad()
def psnr(vae: AutoencoderKL, pixels: torch.Tensor) -> float:
    """Mean peak signal-to-noise ratio of reconstructions, in decibels."""
    values = []
    for batch in pixels.split(64):
        answer = vae.decode(vae.encode(batch).latent_dist.mode()).sample.clamp(-1, 1)
        errors = (answer - batch).square().mean(dim=(1, 2, 3)) / 4
        values.append(-10 * torch.log10(errors.clamp_min(1e-8)))
    return torch.cat(values).mean().item()


@torch.no_grad()
def measure_latents(vae: AutoencoderKL, pixels: torch.Tensor) -> None:
    """Set the shift and scale in the config that give latents a zero mean and unit deviation."""
    latents = torch.cat([vae.encode(batch).latent_dist.mode() for batch in pixels.split(64)])
    vae.register_to_config(shift_factor=latents.mean().item(), scaling_factor=1 / latents.std().item())
