"""ACE-Step 1.5."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AceStepTransformer1DModel, AutoencoderOobleck
from diffusers.pipelines.ace_step import AceStepConditionEncoder
from torch import Tensor, nn
from transformers import Qwen3Config, Qwen3Model

from tests.families.case import LONG, Case, Rig, Shape, show
from tests.tiny import QWEN_VOCAB, index, qwen_tokenizer, save, write
from tuner.types import Media, Prompt, generator

LYRICS = "[verse]\nThe rain is on the sea\n[chorus]\nla la la"
METAS = "\nbpm: 96\nkeyscale: C minor\ntimesignature: 3\nlanguage: de"


class AceStep(Case):
    """The 2B base: guidance away from a learned condition, condition as wide as the network."""

    name = family = "ace_step"
    shapes = (Shape(seconds=1.28), Shape(seconds=2.04))  # 32 and 51 frames; the patches are of two
    batch = 1  # the pipeline lets the network read the pads of a batch, we do not: see AceStep.ready
    overfit_shape = Shape(seconds=0.32)
    overfit_steps = 200
    quick = True
    # published as 2B: this, the condition encoder (608 M) and the parts for cover songs (210 M), 2394 M in all
    millions = 1575.459
    layers = {"default": 24 * 8, "attention+feed-forward": 24 * 11, "all-linear": 24 * 11 + 7}
    turbo = False
    width = 64

    def build(self, folder: Path) -> None:
        qwen_tokenizer(folder / "tokenizer")
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
        save(Qwen3Model(Qwen3Config(vocab_size=QWEN_VOCAB, **sizes, **heads)), folder / "text_encoder")
        sizes = {"hidden_size": 64, "intermediate_size": 96, "text_hidden_dim": 32, "timbre_hidden_dim": 8}
        depth = {"num_lyric_encoder_hidden_layers": 2, "num_timbre_encoder_hidden_layers": 2, "sliding_window": 16}
        encoder = AceStepConditionEncoder(**sizes, **depth, **heads)
        encoder.silence_latent.normal_()
        save(encoder, folder / "condition_encoder")
        save(
            AutoencoderOobleck(
                encoder_hidden_size=16, downsampling_ratios=[2, 4, 4, 6, 10], channel_multiples=[1, 1, 1, 1, 1],
                decoder_channels=8, decoder_input_channels=8, sampling_rate=48000,
            ),
            folder / "vae",
        )  # fmt: skip
        save(
            AceStepTransformer1DModel(
                hidden_size=self.width, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
                num_key_value_heads=2, head_dim=16, in_channels=24, audio_acoustic_hidden_dim=8, sliding_window=6,
                encoder_hidden_size=64, is_turbo=self.turbo, model_version="turbo" if self.turbo else "base",
            ),
            folder / "transformer",
        )  # fmt: skip
        schedule = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1, "shift": 1.0}
        write(folder / "scheduler" / "scheduler_config.json", schedule)
        parts = index(
            "AceStepPipeline",
            audio_token_detokenizer=None,
            audio_tokenizer=None,
            condition_encoder="diffusers.AceStepConditionEncoder",
            scheduler="diffusers.FlowMatchEulerDiscreteScheduler",
            text_encoder="transformers.Qwen3Model",
            tokenizer="transformers.Qwen2TokenizerFast",
            transformer="diffusers.AceStepTransformer1DModel",
            vae="diffusers.AutoencoderOobleck",
        )
        write(folder / "model_index.json", {**parts, "_diffusers_version": "0.38.0.dev0"})

    def real(self) -> nn.Module:
        return AceStepTransformer1DModel()

    def cells(self, rig: Rig, shape: Shape) -> tuple[int, ...]:
        return rig.parts["vae"].config.decoder_input_channels, round(shape.seconds * 25)

    def prompts(self, rig: Rig, captions: Sequence[str], media: Media, shape: Shape) -> list[Prompt]:
        return [Prompt(c, lyrics=LYRICS, seconds=shape.seconds) for c in captions]

    def size(self, shape: Shape) -> dict[str, Any]:
        return {"audio_duration": shape.seconds, "output_type": "pt"}

    def run(self, pipe: Any, captions: Sequence[str], shape: Shape, **settings: Any) -> Any:
        return super().run(pipe, captions, shape, lyrics=[LYRICS] * len(captions), **settings)

    def pack(self, rig: Rig, x: Tensor) -> Tensor:
        return x.transpose(1, 2)

    def unpack(self, rig: Rig, x: Tensor, shape: Shape) -> Tensor:
        return x.transpose(1, 2)

    def time(self, rig: Rig, i: int) -> Tensor:
        """The scheduler counts in our t."""
        return rig.official.scheduler.timesteps[i].float()

    def round_trip(self, rig: Rig, media: Media) -> Tensor:
        """The pipeline brings the peak of its output to -1 dB of full scale."""
        vae = rig.official.vae
        with torch.no_grad():
            sound = vae.decode(vae.encode(media.sound).latent_dist.mode()).sample
        return sound / sound.abs().max() * 10 ** (-1 / 20)

    def tokens(self, rig: Rig, shape: Shape) -> int:
        return -(-self.cells(rig, shape)[-1] // rig.source.config("transformer")["patch_size"])

    def prove_batch(self, rig: Rig) -> None:
        """Pads are hidden once the network is ready to be trained, also from the second run of a block in backward."""
        rig.family.ready(rig.parts.network)
        super().prove_batch(rig)
        shape, network = self.shapes[0], rig.parts["transformer"]
        cond, x, t = rig.cond(["a red photo", LONG], shape), rig.latent(shape, 2, 3), torch.tensor([0.3, 0.8])
        pads = (cond["embeds"] == 0).all(-1)
        assert pads.any()
        network.train()
        network.enable_gradient_checkpointing()
        try:
            embeds = cond["embeds"].clone().requires_grad_()
            rig.family.predict(network, x, t, {**cond, "embeds": embeds}).square().sum().backward()
        finally:
            network.disable_gradient_checkpointing()
            network.eval()
        assert embeds.grad is not None
        assert embeds.grad[~pads].abs().sum(-1).min() > 0
        assert not embeds.grad[pads].any()


class Turbo(AceStep):
    """XL turbo: no guidance, a network wider than its condition; samples with another shift; tempo and key told."""

    name = "ace_step-turbo"
    quick = False
    turbo = True
    width = 80
    options = {"sample_shift": 2.0}
    settings = {"shift": 2.0}
    # published as 5B; a file of 9516 MiB in bfloat16 holds 4989 M: this, the condition encoder, the parts for covers
    millions = 4989.1 - 608.4 - 210.0
    tolerance = 2.0
    layers = {"default": 32 * 8, "attention+feed-forward": 32 * 11, "all-linear": 32 * 11 + 7}

    def real(self) -> nn.Module:
        sizes = {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 32, "num_attention_heads": 32}
        return AceStepTransformer1DModel(**sizes, encoder_hidden_size=2048)

    def prompts(self, rig: Rig, captions: Sequence[str], media: Media, shape: Shape) -> list[Prompt]:
        return [Prompt(c + METAS, lyrics=LYRICS, seconds=shape.seconds) for c in captions]

    def run(self, pipe: Any, captions: Sequence[str], shape: Shape, **settings: Any) -> Any:
        metas = {"bpm": 96, "keyscale": "C minor", "timesignature": "3", "vocal_language": "de"}
        return super().run(pipe, captions, shape, **metas, **settings)

    def prove_cached_sampling(self, rig: Rig) -> None:
        """Guidance is distilled: asked for or not, the sample is that of the pipeline without."""
        shape = self.shapes[-1]
        expected = self.pictured(rig, LONG, shape, num_inference_steps=2, generator=generator(1))
        ours = self.drawn_from_cache(rig, self.request(rig, LONG, shape, 2))
        wrong = (ours - expected).abs().max().item()
        show(f"{self.name}: from cached text differs by {wrong:.1e}")
        assert wrong < 1e-4
