"""A process that knows diffusers and peft but not the engine: loads a model and an adapter file, draws, answers.

Reads one JSON request a line, {"case", "folder", "adapter", "arguments", "out"}, writes the tensor to `out` and "done".
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch


def load(pipe: Any, network: Any, adapter: Path, arguments: dict[str, Any]) -> None:
    """As the libraries' own documentation says for each kind of model."""
    if hasattr(pipe, "load_lora_weights"):
        pipe.load_lora_weights(str(adapter.parent), weight_name=adapter.name, **arguments)
    elif hasattr(network, "load_lora_adapter"):
        network.load_lora_adapter(str(adapter.parent), prefix=None, weight_name=adapter.name, use_safetensors=True)
    else:
        import peft

        peft.PeftModel.from_pretrained(network, str(adapter.parent))


def main() -> None:
    """Serve requests until the input ends."""
    from tests.families.case import SHORT, generator
    from tests.families.cases import all_cases

    cases = all_cases()
    torch.set_num_threads(1)
    for line in sys.stdin:
        request = json.loads(line)
        case = cases[request["case"]]
        pipe = case.official(Path(request["folder"]))
        load(pipe, getattr(pipe, request["part"]), Path(request["adapter"]), request["arguments"])
        out = case.run(pipe, [SHORT], case.shapes[0], num_inference_steps=2, generator=generator(11))
        torch.save(case.output(out), request["out"])
        sys.stdout.write("done\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
