"""The LoRA toolbox, one file per tool: inspect, convert, merge, resize, extract and bake adapter files."""
