"""LTX-2: clips with sound."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKLLTX2Audio,
    AutoencoderKLLTX2Video,
    LTX2Pipeline,
    LTX2VideoTransformer3DModel,
)
from diffusers.pipelines.ltx2 import LTX2TextConnectors, LTX2Vocoder
from diffusers.pipelines.ltx2.utils import apply_image_conditioning_crf
from torch import Tensor, nn
from transformers import Gemma3Config, Gemma3ForConditionalGeneration, GemmaTokenizer
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from tests.families.case import SHORT, Case, Rig, Shape, smooth
from tests.tiny import index, save, write
from tuner.families._latents import pictures
from tuner.families.ltx2 import joined, split
from tuner.family import Request
from tuner.types import Media, generator

SCHEDULE = {
    "_class_name": "FlowMatchEulerDiscreteScheduler", "base_image_seq_len": 1024, "base_shift": 0.95,
    "invert_sigmas": False, "max_image_seq_len": 4096, "max_shift": 2.05, "num_train_timesteps": 1000, "shift": 1.0,
    "shift_terminal": 0.1, "use_dynamic_shifting": True,
}  # fmt: skip
FPS = 19.0  # 9 frames are 11.8 tokens of sound, 17 frames 22.4: rounded up and down
BINS = 16


def clip(shape: Shape, n: int) -> Tensor:
    """[n, 3, F, H, W] of 8-bit values; all start with the same frame, since the pipeline takes one picture."""
    pixels = smooth((n, 3, shape.frames, shape.height, shape.width), 4)
    pixels[:, :, 0] = pixels[0, :, 0]
    return ((pixels + 1) * 127.5).round() / 127.5 - 1


def measured(vae: Any) -> nn.Module:
    """Statistics as measured ones: fresh ones are 0 and 1."""
    with torch.no_grad():
        vae.latents_mean.normal_(0, 0.3)
        vae.latents_std.uniform_(0.5, 1.5)
    return vae


def tokenizer(path: Path) -> int:
    """Gemma's BPE with a start token and byte fallback, one token a character; returns its vocabulary."""
    letters = [*"▁abcdefghijklmnopqrstuvwxyz0123456789.,;", "re", "red"]
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{i:02X}>" for i in range(256)), *letters]
    merges = [("r", "e"), ("re", "d")]
    GemmaTokenizer(
        vocab={t: i for i, t in enumerate(tokens)}, merges=merges, model_max_length=1024, add_bos_token=True
    ).save_pretrained(path)
    return len(tokens)


def heard(sound: Tensor) -> Tensor:
    """The log-mel spectrogram [B, 2, T, BINS] by another implementation than ours."""
    filters = mel_filter_bank(513, BINS, 0.0, 8000.0, 16000, norm="slaney", mel_scale="slaney")
    window = window_function(1024, "hann")
    mels = [
        spectrogram(
            one.numpy().astype(np.float64), window, 1024, 160, power=1.0, center=True, pad_mode="reflect",
            mel_filters=filters, mel_floor=1e-5, log_mel="log",
        ).T
        for one in sound.flatten(0, 1)
    ]  # fmt: skip
    return torch.from_numpy(np.stack(mels)).float().unflatten(0, sound.shape[:2])


class Generate(Case):
    """2.0: captions projected in the network, connectors shared by both streams."""

    name = family = "ltx2"
    options: dict[str, Any] = {"max_tokens": 32}
    settings: dict[str, Any] = {"max_sequence_length": 32}
    no_guidance: dict[str, Any] = {
        "guidance_scale": 1.0, "audio_guidance_scale": 1.0, "stg_scale": 0.0, "audio_stg_scale": 0.0,
        "modality_scale": 1.0, "audio_modality_scale": 1.0,
    }  # fmt: skip
    shapes = (Shape(64, 64, 9), Shape(96, 64, 17))
    overfit_shape = Shape(64, 64, 9)
    overfit_steps, overfit_lr, overfit_batch = 150, 5e-3, 8
    quick = True
    pipeline = "LTX2Pipeline"
    # published as 19B: 14B for the clip and 5B for the sound
    millions = 18876.174
    layers = {"default": 48 * 24, "attention+feed-forward": 48 * 28, "video": 48 * 10, "all-linear": 48 * 28 + 8}

    def build(self, folder: Path) -> None:
        size = tokenizer(folder / "tokenizer")
        widths = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "sliding_window": 8}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "query_pre_attn_scalar": 8}
        ids = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
        seen = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = Gemma3Config(
            text_config={"vocab_size": size, **ids, **widths, **heads},
            vision_config={"image_size": 28, "patch_size": 14, **seen},
            mm_tokens_per_image=4, image_token_index=4, boi_token_index=4, eoi_token_index=4,
        )  # fmt: skip
        save(Gemma3ForConditionalGeneration(config), folder / "text_encoder")
        save(self.connectors(), folder / "connectors")
        save(measured(self.vae()), folder / "vae")
        sounds = {"base_channels": 8, "latent_channels": 2, "mel_bins": BINS, "num_res_blocks": 1}
        save(measured(AutoencoderKLLTX2Audio(**sounds)), folder / "audio_vae")
        save(LTX2Vocoder(in_channels=2 * BINS, hidden_channels=32), folder / "vocoder")
        save(self.tiny(), folder / "transformer")
        write(folder / "scheduler" / "scheduler_config.json", SCHEDULE)
        parts = index(
            self.pipeline,
            audio_vae="diffusers.AutoencoderKLLTX2Audio",
            connectors="ltx2.LTX2TextConnectors",
            scheduler="diffusers.FlowMatchEulerDiscreteScheduler",
            text_encoder="transformers.Gemma3ForConditionalGeneration",
            tokenizer="transformers.GemmaTokenizerFast",
            transformer="diffusers.LTX2VideoTransformer3DModel",
            vae="diffusers.AutoencoderKLLTX2Video",
            vocoder="ltx2.LTX2Vocoder",
        )
        write(folder / "model_index.json", {**parts, "_diffusers_version": "0.37.0.dev0"})

    def connectors(self) -> nn.Module:
        """What is between Gemma and the network."""
        heads = {f"{s}_connector_num_attention_heads": 2 for s in ("video", "audio")}
        sizes = {f"{s}_connector_attention_head_dim": 16 for s in ("video", "audio")}
        depth = {f"{s}_connector_num_layers": 1 for s in ("video", "audio")}
        registers = {f"{s}_connector_num_learnable_registers": 8 for s in ("video", "audio")}
        own = {"caption_channels": 32, "text_proj_in_factor": 3, "rope_type": "split"}
        return LTX2TextConnectors(**heads, **sizes, **depth, **registers, **own)

    def vae(self) -> nn.Module:
        """The clip's autoencoder; both compressions must be said."""
        sizes = {"block_out_channels": (8, 8, 16, 16), "decoder_block_out_channels": (8, 16, 32)}
        layers = {"layers_per_block": (1,) * 5, "decoder_layers_per_block": (1,) * 4}
        ratios = {"spatial_compression_ratio": 32, "temporal_compression_ratio": 8}
        return AutoencoderKLLTX2Video(latent_channels=8, **sizes, **layers, **ratios)

    def tiny(self, **more: Any) -> nn.Module:
        """Two streams of different width and latents of different depth."""
        clips = {"in_channels": 8, "out_channels": 8, "num_attention_heads": 4, "attention_head_dim": 16}
        sounds = {"audio_in_channels": 8, "audio_out_channels": 8, "audio_num_attention_heads": 4}
        cross = {"cross_attention_dim": 64, "audio_cross_attention_dim": 32, "audio_attention_head_dim": 8}
        own = {"num_layers": 2, "caption_channels": 32, "rope_type": "split"}
        return LTX2VideoTransformer3DModel(**clips, **sounds, **cross, **own, **more)

    def real(self) -> nn.Module:
        return LTX2VideoTransformer3DModel()

    def grid(self, shape: Shape) -> tuple[int, int, int]:
        """Cells of the clip's latent."""
        return (shape.frames - 1) // 8 + 1, shape.height // 32, shape.width // 32

    def sounds(self, shape: Shape) -> int:
        """Tokens of sound, as the pipeline counts them."""
        return round(shape.frames / FPS * 25)

    def cells(self, rig: Rig, shape: Shape) -> tuple[int, ...]:
        return 1, math.prod(self.grid(shape)) * 8 + self.sounds(shape) * 8

    def fps(self, rig: Rig) -> float:
        return FPS

    def media(self, rig: Rig, shape: Shape, n: int) -> Media:
        """Sound in the length that the data engine reads: whole tokens."""
        samples = round(shape.frames / FPS * 16000) // 640 * 640
        sound = torch.randn(n, 2, samples, generator=generator(12)) * smooth((n, 2, samples), 8) * 0.3
        return Media(clip(shape, n), sound=sound.clamp(-1, 1), fps=FPS)

    def size(self, shape: Shape) -> dict[str, Any]:
        return {**super().size(shape), "num_frames": shape.frames, "frame_rate": FPS}

    def guided(self, rig: Rig) -> dict[str, Any]:
        """With all that the pipeline does by default."""
        ways = {"stg_scale": 1.0, "audio_stg_scale": 1.0, "modality_scale": 3.0, "audio_modality_scale": 3.0}
        return {"guidance_scale": self.guidance, "audio_guidance_scale": 7.0, **ways}

    def run(self, pipe: Any, captions: Sequence[str], shape: Shape, **settings: Any) -> Any:
        """Given latents are taken unpacked and as they leave the autoencoders."""
        if "latents" in settings:
            picture, sound = self.parted(settings.pop("latents"), shape)
            vae, voice = pipe.vae, pipe.audio_vae
            settings["latents"] = LTX2Pipeline._denormalize_latents(
                LTX2Pipeline._unpack_latents(picture, *self.grid(shape)), vae.latents_mean, vae.latents_std
            )
            tokens = LTX2Pipeline._denormalize_audio_latents(sound, voice.latents_mean, voice.latents_std)
            settings["audio_latents"] = LTX2Pipeline._unpack_audio_latents(tokens, sound.shape[1], BINS // 4)
        return super().run(pipe, captions, shape, **settings)

    def output(self, out: Any) -> Tensor:
        return torch.cat([torch.as_tensor(out.frames).flatten(), out.audio.flatten()])

    def parted(self, x: Tensor, shape: Shape) -> tuple[Tensor, Tensor]:
        """Our latents as the two streams' tokens."""
        return split(x, math.prod(self.grid(shape)), self.sounds(shape), 8)

    def seen(self, rig: Rig, call: dict[str, Any], shape: Shape) -> Tensor:
        return joined(call["hidden_states"], call["audio_hidden_states"])

    def answer(self, rig: Rig, target: Tensor, call: dict[str, Any], shape: Shape) -> Any:
        return self.parted(target, shape)

    def learnable(self, rig: Rig, shape: Shape) -> Tensor:
        """Mostly one value per channel of each stream."""
        count, sounds, g = math.prod(self.grid(shape)), self.sounds(shape), generator(6)
        picture, sound = torch.randn(1, 1, 8, generator=g), torch.randn(1, 1, 8, generator=g)
        z = joined(picture.expand(1, count, 8), sound.expand(1, sounds, 8))
        z = z + 0.3 * torch.randn(z.shape, generator=g)
        return z / z.std()

    def sampled(self, rig: Rig, shape: Shape) -> Tensor:
        """The pipeline copies its scheduler for the sound, so the latents are taken from its output."""
        pipe = rig.official
        out = self.run(
            pipe, [SHORT], shape, num_inference_steps=self.sampling_steps, generator=generator(77), output_type="latent"
        )
        picture = LTX2Pipeline._normalize_latents(out.frames, pipe.vae.latents_mean, pipe.vae.latents_std)
        voice, tokens = pipe.audio_vae, LTX2Pipeline._pack_audio_latents(out.audio)
        sound = LTX2Pipeline._normalize_audio_latents(tokens, voice.latents_mean, voice.latents_std)
        return joined(LTX2Pipeline._pack_latents(picture), sound)

    def round_trip(self, rig: Rig, media: Media) -> Tensor:
        pipe, voice = rig.official, rig.official.audio_vae
        assert media.sound is not None
        assert media.pixels is not None
        with torch.no_grad():
            frames = pipe.video_processor.postprocess_video(
                pipe.vae.decode(self.kept(rig, media)).sample, output_type="pt"
            )
            z = voice.encode(heard(media.sound)).latent_dist.mode()
            z = z[:, :, : round(media.pixels.shape[2] / FPS * 25)]
            sound = pipe.vocoder(voice.decode(z).sample)
        return torch.cat([frames.flatten(), sound.flatten()])

    def kept(self, rig: Rig, media: Media) -> Tensor:
        """The clip's latents, as the autoencoder gives them."""
        return rig.official.vae.encode(media.pixels).latent_dist.mode()

    def tokens(self, rig: Rig, shape: Shape) -> int:
        return math.prod(self.grid(shape))


class ImageToVideo(Generate):
    """2.3: gates, prompts modulated by time, connectors per stream, guidance by perturbed attention."""

    name = "ltx2-i2v"
    task = "image_to_video"
    pipeline = "LTX2ImageToVideoPipeline"
    quick = False
    # published as 22B: this and its connectors (3172 M), to which the projections of captions have moved
    millions = 18988.8
    layers = {"default": 48 * 24, "attention+feed-forward": 48 * 28, "video": 48 * 10, "all-linear": 48 * 34 + 4}

    VERSION = {
        "gated_attn": True, "cross_attn_mod": True, "audio_gated_attn": True, "audio_cross_attn_mod": True,
        "use_prompt_embeddings": False, "perturbed_attn": True,
    }  # fmt: skip

    def connectors(self) -> nn.Module:
        sizes = {"video_connector_num_attention_heads": 4, "audio_connector_num_attention_heads": 2}
        sizes |= {"video_connector_attention_head_dim": 16, "audio_connector_attention_head_dim": 16}
        depth = {f"{s}_connector_num_layers": 1 for s in ("video", "audio")}
        registers = {f"{s}_connector_num_learnable_registers": 8 for s in ("video", "audio")}
        gates = {"video_gated_attn": True, "audio_gated_attn": True, "per_modality_projections": True}
        own = {"caption_channels": 32, "text_proj_in_factor": 3, "rope_type": "split", "proj_bias": True}
        widths = {"video_hidden_dim": 64, "audio_hidden_dim": 32}
        return LTX2TextConnectors(**sizes, **depth, **registers, **gates, **own, **widths)

    def tiny(self, **more: Any) -> nn.Module:
        return super().tiny(**self.VERSION, **more)

    def real(self) -> nn.Module:
        return LTX2VideoTransformer3DModel(**self.VERSION)

    def run(self, pipe: Any, captions: Sequence[str], shape: Shape, **settings: Any) -> Any:
        first = pictures(clip(shape, 1)[:, :, 0])[0]
        return super().run(pipe, captions, shape, image=first, **settings)

    def request(self, rig: Rig, caption: str, shape: Shape, steps: int) -> Request:
        first = pictures(clip(shape, 1)[:, :, 0])
        return dataclasses.replace(super().request(rig, caption, shape, steps), references=tuple(first))

    def kept(self, rig: Rig, media: Media) -> Tensor:
        """The pipeline compresses the picture that it is given, as Lightricks' own does."""
        assert media.pixels is not None
        z = super().kept(rig, media)
        picture = apply_image_conditioning_crf(np.array(pictures(media.pixels[:, :, 0])[0]), 33)
        first = torch.from_numpy(picture).permute(2, 0, 1)[None, :, None] / 127.5 - 1
        return torch.cat([super().kept(rig, Media(first)), z[:, :, 1:]], dim=2)

    @contextmanager
    def given(self, rig: Rig) -> Iterator[None]:
        """Random latents begin with the item's first frame: given latents, the pipeline reads no picture."""
        random = rig.latent

        def latent(shape: Shape, n: int, seed: int = 0) -> Tensor:
            x = random(shape, n, seed)
            with torch.no_grad():
                conds = rig.family.media_cond(rig.parts, self.media(rig, shape, n))
            first = torch.stack([c["first"] for c in conds])[:, None].flatten(2)
            return torch.cat([first, x[..., first.shape[-1] :]], dim=-1)

        rig.latent = latent  # type: ignore[method-assign]
        try:
            yield
        finally:
            del rig.latent

    def prove_call_parity(self, rig: Rig, shape: Shape) -> None:
        with self.given(rig):
            super().prove_call_parity(rig, shape)

    def prove_answer_parity(self, rig: Rig) -> None:
        with self.given(rig):
            super().prove_answer_parity(rig)
