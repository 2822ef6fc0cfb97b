"""What FLUX.1 and its kin are called in Black Forest Labs' own network, which ComfyUI's files follow."""

from __future__ import annotations

from ..native import Native, renamed

DOUBLE, TWO_STREAMS = "double_blocks.{}.", "transformer_blocks.{}."
SINGLE, ONE_STREAM = "single_blocks.{}.", "single_transformer_blocks.{}."

TWO_STREAM_ATTENTION = renamed(
    DOUBLE,
    TWO_STREAMS,
    {
        "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
        "img_attn.proj": "attn.to_out.0",
        "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
        "txt_attn.proj": "attn.to_add_out",
    },
)
BLOCKS = (
    *TWO_STREAM_ATTENTION,
    *renamed(
        DOUBLE,
        TWO_STREAMS,
        {
            "img_mlp.0": "ff.net.0.proj",
            "img_mlp.2": "ff.net.2",
            "txt_mlp.0": "ff_context.net.0.proj",
            "txt_mlp.2": "ff_context.net.2",
        },
    ),
    Native(
        SINGLE + "linear1",
        tuple(ONE_STREAM + m for m in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")),
        rows="square first three",
    ),
    Native(SINGLE + "linear2", (ONE_STREAM + "proj_out",)),
)
MODULATION = (
    *renamed(DOUBLE, TWO_STREAMS, {"img_mod.lin": "norm1.linear", "txt_mod.lin": "norm1_context.linear"}),
    Native(SINGLE + "modulation.lin", (ONE_STREAM + "norm.linear",)),
)
ENDS = renamed("", "", {"img_in": "x_embedder", "txt_in": "context_embedder", "final_layer.linear": "proj_out"})
LAST = Native("final_layer.adaLN_modulation.1", ("norm_out.linear",), swapped=True)


def embedder(native: str, module: str) -> tuple[Native, ...]:
    """An embedding of two layers."""
    return renamed(f"{native}.", f"{module}.", {"in_layer": "linear_1", "out_layer": "linear_2"})
