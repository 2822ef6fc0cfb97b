"""Stage 3: word tokenizers and two small text encoders, taught what the picture of a caption looks like."""

import json
import random
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import nn
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5TokenizerFast

from making.autoencoder import rate
from making.pictures import load_folder

MAX_TOKENS = 16
CLIP_TOKENS = 77
CLIP_WIDTH = 192
T5_WIDTH = 256
COMPONENTS = 128
STEPS = 1200
BATCH = 128
PEAK_RATE = 1.5e-3
WARMUP = 60
EXTRA_WORDS = [
    "a",
    "an",
    "the",
    "of",
    "in",
    "on",
    "with",
    "and",
    "style",
    "high",
    "contrast",
    "picture",
    "emoji",
    "drawing",
]


def word_list(captions: list[str]) -> list[str]:
    """All words of the captions, with a few connecting words, in a fixed order."""
    found = {word for caption in captions for word in caption.replace(",", " ").split()}
    return sorted(found.union(EXTRA_WORDS))


def clip_tokenizer(words: list[str]) -> CLIPTokenizer:
    """Byte-pair tokenizer whose merges make one token of every known word; an unknown word falls into pieces."""
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=30000,
        min_frequency=1,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    learner.train_from_iterator([*words, *alphabet], trainer)
    model = json.loads(learner.to_str())["model"]
    vocab = dict(model["vocab"])
    for special in ("<|startoftext|>", "<|endoftext|>"):
        vocab[special] = len(vocab)
    merges = [tuple(pair) for pair in model["merges"]]
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=CLIP_TOKENS)


def t5_tokenizer(words: list[str]) -> T5TokenizerFast:
    """Unigram tokenizer with one piece for every known word and single characters for the rest."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -4.0)]
    pieces += [("▁" + word, -1.0) for word in words]
    pieces += [(chr(code), -8.0) for code in range(33, 127)]
    return T5TokenizerFast(vocab=pieces, extra_ids=0, model_max_length=MAX_TOKENS)


def new_clip(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Build the untrained CLIP text encoder; its pooled state steers every block of the denoiser."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=CLIP_WIDTH,
        intermediate_size=2 * CLIP_WIDTH,
        projection_dim=CLIP_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=6,
        max_position_embeddings=CLIP_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def new_t5(tokenizer: T5TokenizerFast) -> T5EncoderModel:
    """Build the untrained T5 encoder; the denoiser attends to all of its token states."""
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=T5_WIDTH,
        d_kv=32,
        d_ff=T5_WIDTH,
        num_layers=2,
        num_heads=8,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        relative_attention_num_buckets=16,
        relative_attention_max_distance=32,
        tie_word_embeddings=False,
        is_encoder_decoder=False,
        use_cache=False,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return T5EncoderModel(config)


def principal_components(pictures: np.ndarray) -> torch.Tensor:
    """Describe every picture by its leading principal components, the weak ones partly raised."""
    pixels = torch.from_numpy(pictures).float().reshape(len(pictures), 32, 2, 32, 2, 3).mean(dim=(2, 4)).flatten(1)
    centred = (pixels - pixels.mean(dim=0)) / 255
    torch.manual_seed(0)
    left, strength, _ = torch.svd_lowrank(centred, q=COMPONENTS, niter=4)
    return left * len(pictures) ** 0.5 * (strength / strength[0]).sqrt()


def caption_variant(caption: str, draw: random.Random) -> tuple[str, bool]:
    """Reword a caption now and then; the flag says whether it still names one picture."""
    choice = draw.random()
    subject, style = caption.rsplit(", ", 1)
    if choice < 0.6:
        return caption, True
    if choice < 0.7:
        return f"{style} {subject}", True
    if choice < 0.8:
        return f"{draw.choice(['a', 'an', 'the', 'a picture of', 'an emoji of'])} {subject}, {style}", True
    if choice < 0.88:
        return subject, False
    if choice < 0.97:
        words = caption.split()
        words.pop(draw.randrange(len(words)))
        return " ".join(words), False
    return "", False


class PictureHeads(nn.Module):
    """Read a picture's components from text features, and compare captions with pictures."""

    def __init__(self, width: int) -> None:
        """Build the heads for text features of the given width."""
        super().__init__()
        self.components = nn.Linear(width, COMPONENTS)
        self.text = nn.Linear(width, 96)
        self.picture = nn.Linear(COMPONENTS, 96)
        self.sharpness = nn.Parameter(torch.tensor(2.5))

    def forward(self, features: torch.Tensor, target: torch.Tensor, exact: torch.Tensor) -> torch.Tensor:
        """Regression loss over all captions plus a contrastive loss over those that name one picture."""
        regression = functional.mse_loss(self.components(features), target)
        text = functional.normalize(self.text(features[exact]), dim=-1)
        picture = functional.normalize(self.picture(target), dim=-1)
        scores = text @ picture.T * self.sharpness.exp()
        wanted = exact.nonzero().squeeze(1)
        return regression + 0.2 * functional.cross_entropy(scores, wanted)


def token_ids(tokenizer: CLIPTokenizer | T5TokenizerFast, captions: list[str], length: int) -> torch.Tensor:
    """Tokenise to a fixed length, as the pipeline does."""
    return tokenizer(captions, padding="max_length", truncation=True, max_length=length, return_tensors="pt").input_ids


def text_features(
    clip: CLIPTextModel, t5: T5EncoderModel, tokenizers: tuple[CLIPTokenizer, T5TokenizerFast], captions: list[str]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pooled CLIP state and mean of the T5 states, padding included, for a list of captions."""
    pooled = clip(token_ids(tokenizers[0], captions, MAX_TOKENS + 2)).pooler_output
    states = t5(token_ids(tokenizers[1], captions, MAX_TOKENS)).last_hidden_state
    return pooled.float(), states.float().mean(dim=1)


def train_text(work: Path) -> None:
    """Train both encoders and write WORK/tokenizer, tokenizer_2, text_encoder and text_encoder_2."""
    sets = [load_folder(work / "pictures"), load_folder(work / "contrast")]
    captions = [caption for _, found in sets for caption in found]
    target = principal_components(np.concatenate([pictures for pictures, _ in sets]))
    words = word_list(captions)
    tokenizers = clip_tokenizer(words), t5_tokenizer(words)
    torch.manual_seed(0)
    clip, t5 = new_clip(tokenizers[0]), new_t5(tokenizers[1])
    heads = [PictureHeads(CLIP_WIDTH), PictureHeads(T5_WIDTH)]
    trained = nn.ModuleList([clip, t5, *heads])
    optimizer = torch.optim.AdamW(trained.parameters(), lr=PEAK_RATE, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    draw = random.Random(0)
    for step in range(STEPS):
        chosen = draw.sample(range(len(captions)), BATCH)
        variants = [caption_variant(captions[index], draw) for index in chosen]
        exact = torch.tensor([flag for _, flag in variants])
        with torch.autocast("cpu", torch.bfloat16):
            features = text_features(clip, t5, tokenizers, [text for text, _ in variants])
        losses = [head(feature, target[chosen], exact) for head, feature in zip(heads, features, strict=True)]
        loss = torch.stack(losses).sum()
        for group in optimizer.param_groups:
            group["lr"] = rate(step, STEPS, PEAK_RATE, WARMUP)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 100 == 0:
            print(f"text encoders step {step + 1}/{STEPS}: loss {loss.item():.4f}")
    report_text(clip, t5, tokenizers, heads, captions, target)
    folders = ("tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2")
    for folder, part in zip(folders, (*tokenizers, clip, t5), strict=True):
        part.save_pretrained(work / folder)


@torch.no_grad()
def report_text(
    clip: CLIPTextModel,
    t5: T5EncoderModel,
    tokenizers: tuple[CLIPTokenizer, T5TokenizerFast],
    heads: list[PictureHeads],
    captions: list[str],
    target: torch.Tensor,
) -> None:
    """Print how much of the pictures the text features explain, for each encoder."""
    features = text_features(clip, t5, tokenizers, captions)
    for name, head, feature in zip(("CLIP", "T5"), heads, features, strict=True):
        left = functional.mse_loss(head.components(feature), target) / target.square().mean()
        print(f"{name} features explain {100 * (1 - left.item()):.1f} % of the picture components")
