"""Reach into any transformer through its family's description of it, never through its source."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


@dataclass(frozen=True)
class Aligned:
    """A block argument with one entry per token along `dims`.

    text: where entries of text stand among them (if any); None: as in the run, before the tokens' if that has none.
    entry: where only one tensor of a tuple is of the media tokens, its place (rotary tables of picture and text apart).
    axes: where it has per-token entries only when it has this many axes (a time embedding per token or per item).
    """

    name: str
    dims: tuple[int, ...] = (1,)
    text: Literal["before", "after"] | None = None
    entry: int | None = None
    axes: int | None = None

    def tables(self, value: Any) -> tuple[Tensor, ...]:
        """The tensors of the argument that have an entry per token."""
        if self.entry is not None:
            return (value[self.entry],)
        if isinstance(value, dict):
            return tuple(value.values())
        return tuple(value) if isinstance(value, tuple | list) else (value,)

    def changed(self, value: Any, fn: Callable[[Any], Any]) -> Any:
        """The argument with `fn` applied to what has an entry per token."""
        if self.entry is None:
            return fn(value)
        return tuple(fn(v) if i == self.entry else v for i, v in enumerate(value))


@dataclass(frozen=True)
class Blocks:
    """A run of transformer blocks: where it is, and how its calls look.

    path: submodule that holds the blocks. tokens: the argument that carries the media tokens [B, N, D].
    output: which element of the returned tuple they are in (None: the result itself, or its first element).
    text: whether text tokens stand in the same sequence, before or after. aligned: other per-token arguments.
    plane: whether the blocks also see their tokens as a plane (convolutions), so that none may be left out.
    closed: whether the network counts the tokens where this run ends, so that none may be missing there.
    """

    path: str
    tokens: str = "hidden_states"
    output: int | None = None
    text: Literal["none", "before", "after"] = "none"
    aligned: tuple[Aligned, ...] = ()
    plane: bool = False
    closed: bool = False


def walk(descriptions: Sequence[Blocks], denoiser: nn.Module) -> list[tuple[nn.Module, Blocks]]:
    """Every block in the order in which it runs, with the description of the run it belongs to."""
    return [(m, b) for b in descriptions for m in denoiser.get_submodule(b.path).children()]


class Call:
    """One call of a block, its arguments by name whichever way they were passed."""

    def __init__(self, signature: inspect.Signature, blocks: Blocks, args: tuple, kwargs: dict) -> None:
        self.blocks = blocks
        self.bound = signature.bind(*args, **kwargs)

    @property
    def tokens(self) -> Tensor:
        """The media tokens [B, N, D]."""
        return self.bound.arguments[self.blocks.tokens]

    def set(self, name: str, value: Any) -> None:
        """Replace an argument."""
        self.bound.arguments[name] = value

    def aligned(self) -> Iterator[tuple[Aligned, Any]]:
        """The per-token arguments that were passed, with their descriptions."""
        for described in self.blocks.aligned:
            value = self.bound.arguments.get(described.name)
            if value is not None and described.axes in (None, getattr(value, "ndim", None)):
                yield described, value


def on_input(module: nn.Module, blocks: Blocks, fn: Callable[[Call], None]) -> RemovableHandle:
    """Let `fn` see and change the call of `module` before it runs."""
    signature = inspect.signature(module.forward)

    def hook(_: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        call = Call(signature, blocks, args, kwargs)
        fn(call)
        return call.bound.args, call.bound.kwargs

    return module.register_forward_pre_hook(hook, with_kwargs=True)


def on_output(module: nn.Module, blocks: Blocks, fn: Callable[[Tensor], Tensor]) -> RemovableHandle:
    """Let `fn` replace the media tokens that `module` returns."""

    def hook(_: nn.Module, args: tuple, out: Any) -> Any:
        if not isinstance(out, tuple):
            return fn(out)
        place = blocks.output or 0
        return tuple(fn(o) if i == place else o for i, o in enumerate(out))

    return module.register_forward_hook(hook)
