"""LTX-2: a clip and its sound drawn together by two streams that listen to each other, told the text by Gemma 3."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from diffusers import LTX2Pipeline
from diffusers.pipelines.ltx2.utils import apply_image_conditioning_crf, resolve_default_image_crf
from torch import Tensor, nn

from ..blocks import Aligned, Blocks
from ..errors import UserError
from ..family import Family, Geometry, Options, Request, register
from ..native import Names, renamed
from ..objective import Objective
from ..recipe import LogitNormal, setting
from ..source import Source
from ..types import Cond, Drawn, Media, Parts, Prompt
from ._flow import bare, objective, shift
from ._latents import first_frames, pictures
from ._mel import WINDOW, log_mel

STREAMS = r"(audio_)?attn[12]|audio_to_video_attn|video_to_audio_attn"
ATTENTION = rf"transformer_blocks\.\d+\.({STREAMS})\.(to_q|to_k|to_v|to_out\.0)"
VIDEO = r"transformer_blocks\.\d+\.(attn[12]\.(to_q|to_k|to_v|to_out\.0)|ff\.net\.(0\.proj|2))"
FEED_FORWARD = r"transformer_blocks\.\d+\.(audio_)?ff\.net\.(0\.proj|2)"
GATES = rf"transformer_blocks\.\d+\.({STREAMS})\.to_gate_logits"
EMBEDDERS = r"(audio_)?proj_(in|out)|(audio_)?caption_projection\.linear_[12]"
SHORTEST = WINDOW // 2
"""Fewer samples of sound than this have no spectrogram."""


MODULATIONS = {
    "adaln_single": "time_embed",
    "audio_adaln_single": "audio_time_embed",
    "av_ca_video_scale_shift_adaln_single": "av_cross_attn_video_scale_shift",
    "av_ca_audio_scale_shift_adaln_single": "av_cross_attn_audio_scale_shift",
    "av_ca_a2v_gate_adaln_single": "av_cross_attn_video_a2v_gate",
    "av_ca_v2a_gate_adaln_single": "av_cross_attn_audio_v2a_gate",
    "prompt_adaln_single": "prompt_adaln",  # 2.3
    "audio_prompt_adaln_single": "audio_prompt_adaln",
}
LAYERS = ("emb.timestep_embedder.linear_1", "emb.timestep_embedder.linear_2", "linear")
NAMES = Names(
    native=(
        *renamed("", "", {"patchify_proj": "proj_in", "audio_patchify_proj": "audio_proj_in"}),
        *(row for k, v in MODULATIONS.items() for row in renamed(f"{k}.", f"{v}.", dict.fromkeys(LAYERS, ""))),
    ),
    architecture="LTX-2",
    aliases=("LTX-2.3",),
    version="ltx_2",
)


class Ltx2Options(Options):
    """Settings of LTX-2."""

    max_tokens: int = setting(1024, "Length to which Gemma captions are padded", "expert", ge=1, le=1024)
    sound_weight: float = setting(
        1.0,
        "How much the sound's error counts against the picture's; 0 trains the picture alone, hearing the sound",
        ge=0,
    )


@dataclass
class Connected:
    """Stands in for the pipeline's connectors when what they make of the texts is known already."""

    conds: tuple[Cond, ...]

    def __call__(self, *_: Any, **__: Any) -> tuple[Tensor, ...]:
        """(embeddings for the picture, embeddings for the sound, mask), one row per text."""
        return tuple(torch.stack([c[name] for c in self.conds]) for name in ("embeds", "audio_embeds", "mask"))


@register
class Ltx2(Family):
    """Rectified flow over one vector per item: the clip's tokens, then the sound's.

    A latent is [B, 1, L] with L = f * h * w * C + n * C' of f * h * w tokens of the clip and n of the sound. What
    has no sound (pictures, silent videos, media.sound=false) has n = 0: the streams are kept apart then and only the
    one of the clip is trained, as the network itself does when it is asked for one without the other.
    """

    name = "ltx2"
    title = "LTX-2"
    modality = "video"
    pipelines = {"generate": "LTX2Pipeline", "image_to_video": "LTX2ImageToVideoPipeline"}
    accepts = ("LTX2Pipeline", "LTX2ImageToVideoPipeline")
    text_parts = ("tokenizer", "text_encoder", "connectors")
    media_parts = ("vae", "audio_vae")
    further_parts = ("vocoder",)
    sources = {"2.0": "Lightricks/LTX-2", "2.3": "dg845/LTX-2.3-Diffusers"}
    resolution = 640  # about the area of 768x512
    guidance = 3.0
    timesteps = LogitNormal()
    plane = False
    targets = {
        "default": ATTENTION,
        "attention+feed-forward": f"{ATTENTION}|{FEED_FORWARD}",
        "video": VIDEO,
        "all-linear": f"{ATTENTION}|{FEED_FORWARD}|{GATES}|{EMBEDDERS}",
    }
    names = NAMES
    licence = "LTX-2 Community"
    size = "18.9B"
    encoders = "Gemma 3 12B"
    Options = Ltx2Options

    def __init__(self, options: Options | None = None, task: str = "generate") -> None:
        super().__init__(options, task)
        aligned = [Aligned("video_rotary_emb", (-2,)), Aligned("ca_video_rotary_emb", (-2,))]
        # only with a first frame does every token have a time of its own
        aligned += [Aligned("temb")] if task == "image_to_video" else []
        self.blocks = (Blocks("transformer_blocks", output=0, aligned=tuple(aligned)),)

    def accept(self, source: Source) -> None:
        """See `Family.accept`."""
        super().accept(source)
        if "distilled" in Path(source.name).name.lower():  # nothing but the name tells
            raise UserError(
                f"source {source.name} is distilled to a few steps, which training would undo; train 2.0 or 2.3 "
                "instead and use the result with the distilled model."
            )
        network = source.config("transformer")
        if network.get("patch_size", 1) != 1 or network.get("patch_size_t", 1) != 1:
            raise UserError(f"source {source.name} has tokens of several latent cells, which no LTX-2 pipeline draws.")

    def load(self, source: Source, parts: Sequence[str], dtype: torch.dtype) -> Parts:
        """See `Family.load`; tells how the first frame of a clip is compressed, which the text encoder's kind says."""
        loaded = super().load(source, parts, dtype)
        encoder = SimpleNamespace(config=SimpleNamespace(**source.config("text_encoder")))
        loaded.components["image_crf"] = resolve_default_image_crf(encoder)
        return loaded

    def objective(self, source: Source, snr_gamma: float | None) -> Objective:
        """See `Family.objective`."""
        return objective(self.name, snr_gamma)

    def geometry(self, source: Source) -> Geometry:
        """See `Family.geometry`; lengths as the pipeline's own, which takes multiples of 32 pixels."""
        (frame_step, rate), audio = compression(source), source.config("audio_vae")
        return Geometry(
            multiple=math.lcm(32, rate),
            rate=rate,
            frame_step=frame_step,
            fps=24.0,
            frames=121,
            sample_rate=audio.get("sample_rate", 16000),
            channels=audio.get("in_channels", 2),
            hop=audio.get("mel_hop_length", 160) * 4,  # the compression that diffusers' class has without a setting
        )

    def token_counts(self, tokenizers: dict[str, Any], caption: str) -> list[tuple[str, int, int]]:
        """See `Family.token_counts`."""
        return [("tokenizer", len(tokenizers["tokenizer"](caption.strip()).input_ids), self.options.max_tokens)]

    def encode_text(self, parts: Parts, prompts: Sequence[Prompt]) -> list[Cond]:
        """embeds, audio_embeds: [max_tokens, D] of the connectors; mask: [max_tokens], ones where those fill pads."""
        pipe, connectors = self.pipe(parts), parts["connectors"]
        conds: list[Cond] = []
        for prompt in prompts:  # all layers of Gemma at once take much memory
            hidden, mask, _, _ = pipe.encode_prompt(
                prompt.text,
                do_classifier_free_guidance=False,
                max_sequence_length=self.options.max_tokens,
                device=parts["text_encoder"].device,
            )
            made = connectors(hidden, mask, padding_side=pipe.tokenizer.padding_side)
            conds.append(dict(zip(("embeds", "audio_embeds", "mask"), (m[0] for m in made), strict=True)))
        return conds

    def encode_settings(self) -> dict[str, Any]:
        """See `Family.encode_settings`."""
        return {"max_tokens": self.options.max_tokens}

    def encode_media(self, parts: Parts, media: Media) -> Tensor:
        """[B, 1, L]: the posteriors' means, normalised."""
        assert media.pixels is not None
        pixels, vae = media.pixels if media.pixels.ndim == 5 else media.pixels[:, :, None], parts["vae"]
        clip = normalised(vae, vae.encode(pixels.to(vae.dtype)).latent_dist.mode(), vae.config.scaling_factor)
        return joined(LTX2Pipeline._pack_latents(clip).float(), self._sound(parts, media))

    def _sound(self, parts: Parts, media: Media) -> Tensor:
        """[B, n, C'] tokens of as much sound as the pipeline draws to the clip; n = 0 without sound."""
        assert media.pixels is not None
        vae, config, count = parts["audio_vae"], parts["audio_vae"].config, self._sounds(parts, media)
        if not count or media.sound is None:
            return media.pixels.new_zeros(len(media.pixels), 0, len(vae.latents_mean), dtype=torch.float32)
        mel = log_mel(media.sound, config.sample_rate, config.mel_hop_length, config.mel_bins)
        tokens = LTX2Pipeline._pack_audio_latents(vae.encode(mel.to(vae.dtype)).latent_dist.mode())
        return LTX2Pipeline._normalize_audio_latents(tokens, vae.latents_mean, vae.latents_std)[:, :count].float()

    def _sounds(self, parts: Parts, media: Media) -> int:
        """How many tokens of sound these clips have."""
        vae = parts["audio_vae"]
        if media.sound is None or media.pixels is None or media.pixels.ndim != 5 or media.sound.shape[-1] <= SHORTEST:
            return 0
        hop = vae.config.mel_hop_length * vae.temporal_compression_ratio
        drawn = round(media.pixels.shape[2] / media.fps * (vae.config.sample_rate / hop))
        return min(drawn, media.sound.shape[-1] // hop + 1)

    def media_cond(self, parts: Parts, media: Media) -> list[Cond]:
        """grid: [5], frames, rows and columns of the clip's latents, tokens of sound, numbers per token of the clip.
        fps: []. image_to_video: first: [h * w, C], tokens of the first frame, compressed as the pipeline does."""
        assert media.pixels is not None
        vae = parts["vae"]
        *_, height, width = media.pixels.shape
        frames = media.pixels.shape[2] if media.pixels.ndim == 5 else 1
        across, cells = vae.spatial_compression_ratio, (frames - 1) // vae.temporal_compression_ratio + 1
        sizes = [cells, height // across, width // across, self._sounds(parts, media), vae.config.latent_channels]
        conds: list[Cond] = [
            {"grid": torch.tensor(sizes), "fps": torch.tensor(media.fps or 24.0)} for _ in media.pixels
        ]
        if self.task == "image_to_video":
            first = compressed(first_frames(media, self.name), parts["image_crf"])
            z = normalised(vae, vae.encode(first[:, :, None].to(vae.dtype)).latent_dist.mode(), 1.0)
            for cond, tokens in zip(conds, LTX2Pipeline._pack_latents(z), strict=True):
                cond["first"] = tokens
        return conds

    def shift(self, latents: Tensor, cond: Cond, scheduler: dict[str, Any]) -> float:
        """See `Family.shift`; by tokens of the clip, and no further than the scheduler's largest."""
        defaults = {"base_image_seq_len": 1024, "max_image_seq_len": 4096, "base_shift": 0.95, "max_shift": 2.05}
        return shift({**defaults, **scheduler}, math.prod(cond["grid"][0, :3].tolist()))

    def emphasis(self, x: Tensor, cond: Cond) -> Tensor | None:
        """See `Family.emphasis`: the mean over the clip and `sound_weight` times the mean over the sound, by the sum of
        both weights; a given first frame does not count."""
        frames, height, width, sounds, channels = cond["grid"][0].tolist()
        given = height * width if "first" in cond else 0
        if not sounds and not given:
            return None
        clip, sound = split(torch.ones_like(x[:1]), frames * height * width, sounds, channels)
        clip, sound, heard = clip.clone(), sound.clone(), self.options.sound_weight if sounds else 0.0
        clip[:, :given] = 0
        clip *= x.shape[-1] / max(1, clip[:, given:].numel()) / (1 + heard)
        sound *= x.shape[-1] / max(1, sound.numel()) * heard / (1 + heard)
        return joined(clip, sound)

    def predict(self, denoiser: nn.Module, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """See `Family.predict`; x: [B, 1, L]. A given first frame is clean, and its tokens are told t = 0."""
        network = bare(denoiser)
        frames, height, width, sounds, channels = cond["grid"][0].tolist()
        clip, sound = split(x, frames * height * width, sounds, channels)
        time = t * 1000
        told: dict[str, Any] = {"timestep": time}
        if "first" in cond:
            given = height * width
            clip = torch.cat([cond["first"].to(clip), clip[:, given:]], dim=1)
            late = torch.ones_like(clip[..., 0])
            late[:, :given] = 0
            told = {"timestep": time[:, None] * late, "audio_timestep": time}
        if not sounds:  # a token that nothing listens to
            sound = x.new_zeros(len(x), 1, network.config.audio_in_channels)
        fps = cond["fps"]
        picture, heard = denoiser(
            hidden_states=clip,
            audio_hidden_states=sound,
            encoder_hidden_states=cond["embeds"],
            audio_encoder_hidden_states=cond["audio_embeds"],
            sigma=time,
            encoder_attention_mask=cond["mask"],
            audio_encoder_attention_mask=cond["mask"],
            num_frames=frames,
            height=height,
            width=width,
            fps=fps,
            audio_num_frames=sound.shape[1],
            video_coords=network.rope.prepare_video_coords(
                len(x), frames, height, width, x.device, fps=fps.view(-1, 1, 1)
            ),
            audio_coords=network.audio_rope.prepare_audio_coords(len(x), sound.shape[1], x.device),
            isolate_modalities=not sounds,
            spatio_temporal_guidance_blocks=None,
            perturbation_mask=None,
            use_cross_timestep=True,
            attention_kwargs=None,
            return_dict=False,
            **told,
        )
        return joined(picture, heard[:, :sounds])

    def prepare(self, pipe: Any, request: Request) -> None:
        """See `Family.prepare`: the pipeline runs its connectors itself, so they answer with the cached embeddings."""
        guided = request.negative is not None and request.guidance > 1.0
        pipe.connectors = Connected(
            (request.negative, request.cond) if guided and request.negative else (request.cond,)
        )

    def call(self, parts: Parts, request: Request) -> dict[str, Any]:
        """See `Family.call`; guidance of the sound and between the streams as the pipeline's own, or none at all."""
        text = {"prompt_embeds": request.cond["embeds"][None], "prompt_attention_mask": request.cond["mask"][None]}
        if request.negative is not None and request.guidance > 1.0:
            text["negative_prompt_embeds"] = request.negative["embeds"][None]
            text["negative_prompt_attention_mask"] = request.negative["mask"][None]
        said: dict[str, Any] = {**text, "guidance_scale": request.guidance, "frame_rate": request.fps}
        if request.guidance <= 1.0:
            off = {"stg_scale": 0.0, "modality_scale": 1.0, "audio_guidance_scale": 1.0}
            said |= {**off, "audio_stg_scale": 0.0, "audio_modality_scale": 1.0}
        elif not parts[
            "transformer"
        ].config.perturbed_attn:  # this guidance changes nothing there but the time it takes
            said |= {"stg_scale": 0.0, "audio_stg_scale": 0.0}
        if self.task == "image_to_video":
            said |= {"image": request.references[0], "image_crf": parts["image_crf"]}
        return said

    def drawn(self, out: Any, request: Request) -> Drawn:
        """See `Family.drawn`."""
        frames = np.stack([np.asarray(frame) for frame in out.frames[0]])
        return Drawn(frames=frames, fps=request.fps, sound=out.audio[0].float().cpu().numpy())

    def rate(self, parts: Parts) -> int:
        """See `Family.rate`."""
        return parts["vocoder"].config.output_sampling_rate


def compression(source: Source) -> tuple[int, int]:
    """(frames, pixels) per latent cell, as the autoencoder's own class reads them from its configuration."""
    vae = source.config("vae")
    halvings = 2 ** sum(vae.get("spatio_temporal_scaling", (True,) * 4))
    time = vae.get("temporal_compression_ratio") or vae.get("patch_size_t", 1) * halvings
    return time, vae.get("spatial_compression_ratio") or vae.get("patch_size", 4) * halvings


def normalised(vae: nn.Module, z: Tensor, scale: float) -> Tensor:
    """[B, C, f, h, w] → the same by the statistics that lie beside the autoencoder's weights."""
    return LTX2Pipeline._normalize_latents(z, vae.latents_mean, vae.latents_std, scale)  # pyrefly: ignore[bad-argument-type]


def joined(clip: Tensor, sound: Tensor) -> Tensor:
    """Tokens [B, N, C] and [B, n, C'] → [B, 1, L]."""
    return torch.cat([clip.flatten(1), sound.flatten(1)], dim=1)[:, None]


def split(x: Tensor, count: int, sounds: int, channels: int) -> tuple[Tensor, Tensor]:
    """[B, 1, L] → tokens [B, count, channels] of the clip and [B, sounds, C'] of the sound."""
    clip, sound = x[:, 0].split([count * channels, x.shape[-1] - count * channels], dim=1)
    return clip.reshape(len(x), count, channels), sound.reshape(len(x), sounds, -1 if sounds else 1)


def compressed(first: Tensor, crf: int) -> Tensor:
    """[B, 3, H, W] in -1..1 as video compression of this strength leaves it; 0 changes nothing."""
    if crf == 0:
        return first
    seen = [torch.from_numpy(apply_image_conditioning_crf(np.array(p), crf)) for p in pictures(first)]
    return torch.stack(seen).permute(0, 3, 1, 2).to(first) / 127.5 - 1
