"""Colours and fonts of the Gradio parts; everything else is in parts/*.css."""

from __future__ import annotations

import gradio as gr

STONE = gr.themes.Color(
    "#faf9f7",
    "#f7f6f4",
    "#e4e1dc",
    "#cfcac3",
    "#a49d93",
    "#7b756c",
    "#5f5a53",
    "#46423c",
    "#2b2926",
    "#1e1d1b",
    "#151413",
)
PINE = gr.themes.Color(
    "#effaf8",
    "#e0f0ed",
    "#b8dfd8",
    "#7ccfc4",
    "#4fb8aa",
    "#1f9488",
    "#148076",
    "#0f6e66",
    "#0b574f",
    "#0a463f",
    "#062d29",
)


def theme() -> gr.themes.Base:
    """System fonts, one accent colour, text contrast of at least 4.5 in light and dark."""
    mono = ["ui-monospace", "DejaVu Sans Mono", "monospace"]
    made = gr.themes.Base(primary_hue=PINE, neutral_hue=STONE, font=["system-ui", "sans-serif"], font_mono=mono)
    return made.set(
        body_background_fill="#f7f6f4",
        body_background_fill_dark="#151413",
        body_text_color="#1f1d1a",
        body_text_color_dark="#efece7",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_600",
        button_primary_text_color="#ffffff",
        button_primary_text_color_dark="#ffffff",
        button_primary_border_color="*primary_700",
        block_background_fill="transparent",
        block_background_fill_dark="transparent",
        block_border_width="0px",
        block_shadow="none",
        link_text_color="*primary_800",
        link_text_color_dark="*primary_300",
    )
