"""Help: the five steps, the terms, where files are, and the keys."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ..parts.widget import widget
from ..studio import Studio

STEPS = {
    "1. Bring pictures": "Drop them on Dataset. Ten to thirty good ones are enough for a person, a style or an object.",
    "2. Write captions": "Say in a sentence what each picture shows. A trigger word is the name of the new thing.",
    "3. Choose a recipe": "A recipe is a model with settings that work. One dial sets how long it learns.",
    "4. Train": "Watch the samples. You can close the page or the app; training goes on.",
    "5. Compare and keep": "Lay base and result side by side, choose the best step, then export or publish it.",
}
TERMS = {
    "Accumulation": "Several batches are added up before the weights change: a larger batch in the same memory.",
    "Adapter": "A small file with what was learned. It is loaded on top of the base model, which stays as it is.",
    "Alpha": "Scales an adapter: its effect is alpha divided by rank. With alpha equal to rank the scale is one.",
    "Base model": "The model that you start from. An adapter fits only the base that it was trained on, or its kin.",
    "Batch": "How many items are learned from in one step. More is steadier, and needs more memory.",
    "Bucket": "Pictures of like shape are put together and trained at one size, so that little has to be cropped away.",
    "Caption": "What a picture shows. What the caption names stays free to change; what it leaves out is learned.",
    "Checkpoint": "The state of a run at one step. A run goes on from its last one, and you may prefer an earlier one.",
    "ControlNet": "A network beside the model that makes it follow a drawing, an edge map, a depth map or a pose.",
    "DoRA": "A LoRA that learns direction and size of a change apart. Often a little better, and a little slower.",
    "EMA": "A running mean of the weights over the last steps. It is calmer than the newest weights and often better.",
    "Epoch": "One time through the whole data set.",
    "Flow": "A way to make pictures: the model learns the direction from noise to picture. FLUX and others do it.",
    "Gradient checkpointing": "Computes parts twice instead of keeping them: much less memory, about a third slower.",
    "Guidance": "How strongly a sample follows its prompt. Too high makes colours harsh and shapes stiff.",
    "Latents": "Pictures made small by the model's own coder. Training reads them instead of pixels; they are cached.",
    "Learning rate": "How large each step of learning is. Too high breaks the model, too low learns nothing.",
    "LoRA": "The usual adapter: two thin matrices for each layer. Small, quick to train, loaded by most programs.",
    "Loss": "How wrong the model's guess is. It is noisy; look at the smoothed line and at the validation loss.",
    "LyCORIS": "Relatives of LoRA (LoHa, LoKr, others) that shape the change in other ways. Fewer programs load it.",
    "Mask": "Marks what matters in a picture, so that the rest is learned less or not at all.",
    "Noise level (t)": "From 0, the clean picture, to 1, pure noise. High levels teach layout, low ones teach detail.",
    "Optimiser": "The rule by which the weights change. Some find the learning rate by themselves.",
    "Precision": "How many bits a number has while it trains. bf16 halves the memory of fp32 and is nearly as exact.",
    "Quantised base": "The base model with fewer bits for each number: it needs less memory and is less exact.",
    "Rank": "How much an adapter can hold. 8 to 16 for a person or object, 32 and more for a wide style.",
    "Regularisation pictures": "Ordinary pictures of the same kind beside yours, so that the model keeps what it knew.",
    "Repeats": "How often an item is shown in one epoch. More for the few good ones, fewer for the many plain ones.",
    "Sample": "A picture, film or sound that is drawn during training, always from the same prompt and seed.",
    "Seed": "The number from which chance is drawn. With the same seed a sample can be drawn again.",
    "Step": "One change of the weights, from one batch.",
    "Strength": "How much of an adapter is applied when it is used. 1 is as trained; less mixes it with the base.",
    "Text encoder": "The part of the model that reads the prompt. It mostly stays as it is; its answers are cached.",
    "Trigger word": "A word that the model does not know yet. Put it in the prompt to call up what was trained.",
    "Validation loss": "The loss on pictures held back and always the same noise. Where it rises, it learns by heart.",
}
KEYS = {
    "Left and right on a tab": "Go to the next screen.",
    "Enter in a caption": "Save it and go on to the next picture.",
    "Arrow keys on a picture": "Go to the next one; with Shift, select all on the way.",
    "Ctrl+Space and Ctrl+A on a picture": "Select it, or all of them.",
    "Escape": "Leave a caption, or close a window.",
    "Tab and Shift+Tab": "Go to the next or the last control.",
    "Left and right on the loss": "Read the values step by step.",
    "Left and right on a wipe": "Move the line between two pictures.",
    "Left and right in the blind test": "Choose the left or the right one.",
}


def view(studio: Studio) -> dict[str, Any]:
    """Sections of entries, in the order they are read."""
    root = studio.workspace.root
    places = {
        "Everything": f"{root}. Set the environment variable TUNER_HOME to keep it elsewhere.",
        "Runs": f"{root / 'runs'}: one folder each, with recipe.yaml, samples, checkpoints and export.",
        "The adapter": "In the folder export of a run. ComfyUI, diffusers and other programs load it from there.",
        "Data sets": f"{root / 'datasets'}: copies of your pictures with captions as .txt. The originals stay.",
        "Exports": f"{root / 'exports'}: files that you had written for other programs.",
        "Bin": f"{root / 'bin'}: what you deleted in Library, until you empty it.",
    }
    told = {"The five steps": STEPS, "Where your files are": places, "Keys": KEYS, "Terms": TERMS}
    sections = [
        {"title": title, "entries": [{"term": t, "text": x} for t, x in entries.items()]}
        for title, entries in told.items()
    ]
    return {"sections": sections}


def build(studio: Studio) -> gr.HTML:
    """The screen; it never changes."""
    return widget("help", view(studio), "help")
