"""ACE-Step 1.5: music from a description and lyrics, by a 1D transformer over latents of 25 frames a second."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import AceStepPipeline
from torch import Tensor, nn

from ..blocks import Aligned, Blocks
from ..errors import UserError
from ..family import Family, Geometry, Options, Request, register
from ..native import Names, renamed
from ..objective import Objective
from ..recipe import LogitNormal, setting
from ..source import Source
from ..types import Cond, Drawn, Media, Parts, Prompt
from ._flow import bare, objective

ATTENTION = r"layers\.\d+\.(self_attn|cross_attn)\.(to_q|to_k|to_v|to_out\.0)"
FEED_FORWARD = r"layers\.\d+\.mlp\.(gate|up|down)_proj"
EMBEDDERS = r"condition_embedder|time_embed(_r)?\.(linear_1|linear_2|time_proj)"
TEXT_TOKENS, LYRIC_TOKENS = 256, 2048
"""How much of the description and of the lyrics the pipeline reads, with the template around them."""
META = re.compile(r"(bpm|keyscale|timesignature|language)[ \t]*:[ \t]*(\S.*?)[ \t]*", re.IGNORECASE)


ATTENTION_NAMES = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "o_proj": "to_out.0"}
NATIVE = (
    *renamed("layers.{}.self_attn.", "layers.{}.self_attn.", ATTENTION_NAMES),
    *renamed("layers.{}.cross_attn.", "layers.{}.cross_attn.", ATTENTION_NAMES),
    *renamed("", "", {"proj_in.1": "proj_in_conv", "proj_out.1": "proj_out_conv"}),
)
SAME = (
    *renamed("layers.{}.mlp.", "layers.{}.mlp.", dict.fromkeys(("gate_proj", "up_proj", "down_proj"), "")),
    *renamed("time_embed.", "time_embed.", dict.fromkeys(("linear_1", "linear_2", "time_proj"), "")),
    *renamed("time_embed_r.", "time_embed_r.", dict.fromkeys(("linear_1", "linear_2", "time_proj"), "")),
    *renamed("", "", {"condition_embedder": ""}),
)
NAMES = Names(
    native=NATIVE,
    prefix="base_model.model.",  # the official adapters'; ComfyUI and diffusers read it
    # behind ComfyUI's usual prefix the denoiser is a part of the whole
    others=tuple(replace(row, name=f"decoder.{row.name}") for row in (*NATIVE, *SAME)),
    architecture="ACE-Step-1.5",
    version="ace_step_1_5",
)


class AceStepOptions(Options):
    """Settings of ACE-Step."""

    sample_shift: float = setting(
        3.0, "How far the steps of samples are moved towards noise, as the pipeline's `shift`", "expert", gt=0
    )


@dataclass
class Encoded:
    """Stands in for the pipeline's condition encoder when the condition [1, L, D] is known already."""

    embeds: Tensor
    silence_latent: Tensor
    null_condition_emb: Tensor

    def __call__(self, **_: Any) -> tuple[Tensor, None]:
        """The condition, and no mask: one item has no pads."""
        return self.embeds, None


@register
class AceStep(Family):
    """Rectified flow over [B, C, T] latents of a waveform.

    The caption describes the music. Lines of it such as `bpm: 120`, `keyscale: C major`, `timesignature: 4` and
    `language: de` (of the lyrics) are put where the model's template has them. A dropped (empty) caption stands for
    the model's own learned condition of nothing, as in its training.
    """

    name = "ace_step"
    title = "ACE-Step 1.5"
    modality = "audio"
    pipelines = {"generate": "AceStepPipeline"}
    accepts = ("AceStepPipeline",)
    text_parts = ("tokenizer", "text_encoder", "condition_encoder")
    media_parts = ("vae", "condition_encoder")  # it holds the latents of silence
    reads = frozenset({"lyrics", "seconds"})
    sources = {
        "xl-base": "ACE-Step/acestep-v15-xl-base-diffusers",
        "xl-turbo": "ACE-Step/acestep-v15-xl-turbo-diffusers",
    }
    guidance = 7.0
    timesteps = LogitNormal(mean=-0.4)  # as the base model was trained: its timestep_mu and timestep_sigma
    blocks = (Blocks("layers", aligned=(Aligned("position_embeddings", (0,)), Aligned("attention_mask", (2, 3)))),)
    targets = {
        "default": ATTENTION,
        "attention+feed-forward": f"{ATTENTION}|{FEED_FORWARD}",
        "all-linear": f"{ATTENTION}|{FEED_FORWARD}|{EMBEDDERS}",
    }
    names = NAMES
    licence = "MIT"
    size = "1.6B; XL 4.2B"
    encoders = "Qwen3-Embedding-0.6B, the model's own lyric and timbre encoders"
    Options = AceStepOptions

    def load(self, source: Source, parts: Sequence[str], dtype: torch.dtype) -> Parts:
        """See `Family.load`; tells latent frames per second, which the pipeline guesses without an autoencoder."""
        loaded, geometry = super().load(source, parts, dtype), self.geometry(source)
        loaded.components["latents_per_second"] = geometry.sample_rate / geometry.hop
        return loaded

    def objective(self, source: Source, snr_gamma: float | None) -> Objective:
        """See `Family.objective`."""
        return objective(self.name, snr_gamma)

    def geometry(self, source: Source) -> Geometry:
        """See `Family.geometry`; songs of up to four minutes, as in the model's own fine-tuning."""
        vae = source.config("vae")
        return Geometry(
            sample_rate=vae.get("sampling_rate", 44100),
            channels=vae.get("audio_channels", 2),
            hop=math.prod(vae.get("downsampling_ratios", (2, 4, 4, 8, 8))),
            seconds=240.0,
        )

    def token_counts(self, tokenizers: dict[str, Any], caption: str) -> list[tuple[str, int, int]]:
        """See `Family.token_counts`; the template around the caption counts too."""
        text, metas = described(caption)
        metas.pop("vocal_language", None)
        whole, _ = AceStepPipeline._format_prompt(AceStepPipeline, text, **metas)  # pyrefly: ignore[bad-argument-type]
        return [("tokenizer", len(tokenizers["tokenizer"](whole).input_ids), TEXT_TOKENS)]

    def encode_text(self, parts: Parts, prompts: Sequence[Prompt]) -> list[Cond]:
        """embeds: [L, D] of the condition encoder, of lyrics, timbre (of silence) and description, without pads.

        Raises `UserError` for lyrics that are longer than the model reads.
        """
        pipe = self.pipe(parts)
        pipe.latents_per_second = parts["latents_per_second"]
        return [{"embeds": self._condition(pipe, prompt)} for prompt in prompts]

    def _condition(self, pipe: Any, prompt: Prompt) -> Tensor:
        encoder = pipe.condition_encoder
        if not prompt.text:
            return encoder.null_condition_emb[0].clone()  # entries of a cache own their memory
        text, metas = described(prompt.text)
        length = len(pipe.tokenizer(prompt.lyrics).input_ids)
        if length + 16 > LYRIC_TOKENS:
            raise UserError(
                f"Lyrics of {length} tokens are longer than the {LYRIC_TOKENS - 16} that ACE-Step reads (they begin "
                f"with {prompt.lyrics[:40]!r}); shorten them to what is sung in the clip."
            )
        told = pipe.encode_prompt([text], [prompt.lyrics], encoder.device, audio_duration=prompt.seconds, **metas)
        silence = encoder.silence_latent[:, : math.ceil(30 * pipe.latents_per_second)]
        embeds, _ = encoder(
            text_hidden_states=told[0],
            text_attention_mask=told[1],
            lyric_hidden_states=told[2],
            lyric_attention_mask=told[3],
            refer_audio_acoustic_hidden_states_packed=silence.to(told[0]),
            refer_audio_order_mask=torch.zeros(1, dtype=torch.long, device=told[0].device),
        )
        return embeds[0]

    def encode_media(self, parts: Parts, media: Media) -> Tensor:
        """[B, C, T]: the posterior's mean, as it is; long sounds are encoded in overlapping parts, one by one."""
        assert media.sound is not None
        vae = parts["vae"]
        vae.enable_tiling()
        vae.enable_slicing()
        return vae.encode(media.sound.to(vae.dtype)).latent_dist.mode()

    def media_cond(self, parts: Parts, media: Media) -> list[Cond]:
        """silence: [T, C], latents of as much silence, from which music is made rather than from other music."""
        assert media.sound is not None
        length = media.sound.shape[-1] // parts["vae"].hop_length
        silence = parts["condition_encoder"].silence_latent[0]
        silence = silence.repeat(-(-length // len(silence)), 1)[:length]
        return [{"silence": silence.clone()} for _ in media.sound]

    def collate(self, conds: Sequence[Cond]) -> Cond:
        """Pads captions with rows of zeros, which `ready` keeps the network from reading."""
        batch = {k: torch.stack([c[k] for c in conds]) for k in conds[0] if k != "embeds"}
        return {**batch, "embeds": nn.utils.rnn.pad_sequence([c["embeds"] for c in conds], batch_first=True)}

    def ready(self, denoiser: nn.Module) -> None:
        """Hide pads from the network. It takes no mask of its condition: drawing one song at a time needs none, but in
        a batch of captions of different length every song would attend to pads and train to something else."""
        network = bare(denoiser)
        if not hasattr(network, "hides_pads"):
            network.hides_pads = True
            network.condition_embedder.register_forward_hook(_empty_where_empty)
            for block in network.layers:
                block.register_forward_pre_hook(_mask_empty, with_kwargs=True)

    def predict(self, denoiser: nn.Module, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """See `Family.predict`; x: [B, C, T]. The mask of ones asks for all of the song."""
        latents, silence = x.transpose(1, 2), cond["silence"].to(x)
        out = denoiser(
            hidden_states=latents,
            timestep=t,
            timestep_r=t,
            encoder_hidden_states=cond["embeds"],
            context_latents=torch.cat([silence, torch.ones_like(latents)], dim=-1),
            attention_kwargs=None,
            return_dict=False,
        )[0]
        return out.transpose(1, 2)

    def prepare(self, pipe: Any, request: Request) -> None:
        """See `Family.prepare`: the pipeline takes no embeddings, so its encoders answer with the cached ones."""
        encoder = pipe.condition_encoder
        pipe.encode_prompt = lambda **_: (None,) * 4
        pipe.condition_encoder = Encoded(
            request.cond["embeds"][None].to(pipe.transformer.dtype), encoder.silence_latent, encoder.null_condition_emb
        )

    def call(self, parts: Parts, request: Request) -> dict[str, Any]:
        """See `Family.call`; guidance is away from the model's own condition of nothing; turbo models have none."""
        config = parts["transformer"].config
        turbo = config.is_turbo or config.model_version == "turbo"
        return {
            "prompt": "",
            "audio_duration": request.seconds,
            "guidance_scale": 1.0 if turbo else request.guidance,
            "shift": self.options.sample_shift,
            "output_type": "pt",
        }

    def drawn(self, out: Any, request: Request) -> Drawn:
        """See `Family.drawn`."""
        return Drawn(sound=out.audios[0].float().cpu().numpy())

    def rate(self, parts: Parts) -> int:
        """See `Family.rate`."""
        return parts["vae"].config.sampling_rate

    def wants_negative(self, source: Source, guidance: float) -> bool:
        """See `Family.wants_negative`; guidance is away from a learned condition, never from a text."""
        return False


def described(caption: str) -> tuple[str, dict[str, Any]]:
    """A caption without its lines such as `bpm: 120`, and those as arguments of the pipeline's `encode_prompt`."""
    kept, metas = [], {}
    for line in caption.splitlines():
        if found := META.fullmatch(line.strip()):
            name, value = found[1].lower(), found[2]
            if name == "bpm" and not value.isdecimal():
                raise UserError(f"The caption line {line.strip()!r} has no whole number of beats; write bpm: 120.")
            metas["vocal_language" if name == "language" else name] = int(value) if name == "bpm" else value
        else:
            kept.append(line)
    return ("\n".join(kept).strip() if metas else caption), metas


def _empty_where_empty(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
    """Rows of zeros stay so, by which every block tells the pads, also when it is run again in backward."""
    return out * args[0].any(dim=-1, keepdim=True)


def _mask_empty(block: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """Give a block the mask [B, 1, 1, L] of its condition's rows."""
    bound = inspect.signature(block.forward).bind(*args, **kwargs)
    condition = bound.arguments["encoder_hidden_states"]
    if len(condition) > 1:
        bound.arguments["encoder_attention_mask"] = condition.detach().any(dim=-1)[:, None, None]
    return bound.args, bound.kwargs
