"""Base models on the Hub and the terms that their adapters inherit, for model cards. Knows no torch."""

from __future__ import annotations

from dataclasses import dataclass

HUB = "https://huggingface.co"


@dataclass(frozen=True)
class Licence:
    """What a model card says. tag: the Hub's name of it; `other` needs a name, and links to the base model's terms."""

    tag: str
    name: str = ""


APACHE, MIT = Licence("apache-2.0"), Licence("mit")
RAIL, RAIL_PLUS = Licence("creativeml-openrail-m"), Licence("openrail++")
FLUX1 = Licence("other", "flux-1-dev-non-commercial-license")
FLUX2 = Licence("other", "flux-non-commercial-license")
STABILITY = Licence("other", "stabilityai-ai-community")
HUNYUAN = Licence("other", "tencent-hunyuan-community")
SEE_BASE = Licence("other", "see-base-model")
"""For a base whose terms are not known here: the card links to it, and claims nothing."""
SANA = Licence("other", "nvidia-nscl-v2-custom")

FAMILIES: dict[str, tuple[str, str, Licence]] = {
    "ace_step": ("ACE-Step 1.5", "audio", MIT),
    "auraflow": ("AuraFlow", "image", APACHE),
    "chroma": ("Chroma 1", "image", APACHE),
    "cosmos2": ("Cosmos-Predict2 Text2Image", "image", Licence("other", "nvidia-open-model-license")),
    "flux1": ("FLUX.1", "image", FLUX1),
    "flux2": ("FLUX.2", "image", FLUX2),
    "hidream": ("HiDream-I1", "image", MIT),
    "hunyuan_video15": ("HunyuanVideo 1.5", "video", HUNYUAN),
    "kandinsky5_image": ("Kandinsky 5.0 Image", "image", MIT),
    "kandinsky5_video": ("Kandinsky 5.0 Video", "video", MIT),
    "kolors": ("Kolors", "image", Licence("other", "kolors-license")),
    "longcat_image": ("LongCat-Image", "image", APACHE),
    "ltx": ("LTX-Video 0.9", "video", SEE_BASE),
    "ltx2": ("LTX-2", "video", Licence("other", "ltx-2-community-license-agreement")),
    "lumina2": ("Lumina-Image 2.0", "image", APACHE),
    "omnigen": ("OmniGen", "image", MIT),
    "pixart_sigma": ("PixArt Sigma", "image", RAIL_PLUS),
    "qwen_image": ("Qwen-Image", "image", APACHE),
    "sana": ("Sana 1.0 and 1.5", "image", SANA),
    "sd1": ("Stable Diffusion 1.x", "image", RAIL),
    "sd2": ("Stable Diffusion 2.x", "image", RAIL_PLUS),
    "sd3": ("Stable Diffusion 3 and 3.5", "image", STABILITY),
    "sdxl": ("Stable Diffusion XL", "image", RAIL_PLUS),
    "stable_cascade": ("Stable Cascade (stage C)", "image", Licence("other", "stable-cascade-nc-community")),
    "wan": ("Wan 2.1 and 2.2", "video", APACHE),
    "z_image": ("Z-Image (Base and Turbo)", "image", APACHE),
}
"""Family → (title, what it makes, licence). Names are those of the makers' own model cards. LTX-Video changed its terms
from one version to the next."""

OWNERS: dict[str, tuple[str, ...]] = {
    "ace_step": ("ACE-Step",),
    "auraflow": ("fal",),
    "chroma": ("lodestones",),
    "cosmos2": ("nvidia",),
    "flux1": ("black-forest-labs",),
    "flux2": ("black-forest-labs",),
    "hidream": ("HiDream-ai",),
    "hunyuan_video15": ("tencent", "hunyuanvideo-community"),
    "kandinsky5_image": ("kandinskylab",),
    "kandinsky5_video": ("kandinskylab",),
    "kolors": ("Kwai-Kolors",),
    "longcat_image": ("meituan-longcat",),
    "ltx": ("Lightricks",),
    "ltx2": ("Lightricks", "dg845"),
    "lumina2": ("Alpha-VLLM",),
    "omnigen": ("Shitao",),
    "pixart_sigma": ("PixArt-alpha",),
    "qwen_image": ("Qwen",),
    "sana": ("Efficient-Large-Model",),
    "sd1": ("stable-diffusion-v1-5", "CompVis", "runwayml"),
    "sd2": ("stabilityai",),
    "sd3": ("stabilityai",),
    "sdxl": ("stabilityai",),
    "stable_cascade": ("stabilityai",),
    "wan": ("Wan-AI",),
    "z_image": ("Tongyi-MAI",),
}
"""Family → who publishes its models, and copies of them, on the Hub. A fine-tune by others has terms of its own."""

EXCEPTIONS: dict[tuple[str, str], Licence] = {
    ("flux1", "black-forest-labs/FLUX.1-schnell"): APACHE,
    ("flux2", "black-forest-labs/FLUX.2-klein-base-4B"): APACHE,
    ("auraflow", "purplesmartai/pony-v7-base"): Licence("other", "pony-license"),
}
"""(family, base model) whose terms differ from those of the family."""


def of(family: str, base: str) -> Licence | None:
    """The terms for adapters of a base model; nothing for an unknown family."""
    known = FAMILIES.get(family)
    if known is None or (family, base) in EXCEPTIONS:
        return EXCEPTIONS.get((family, base))
    return known[2] if not base or base.split("/")[0] in OWNERS[family] else SEE_BASE
