"""What a family's description writes: the modules, and what is special about some of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from tunemath.space.blueprint.families.fields import Fields
from tunemath.space.blueprint.record import Builder

__all__ = ["Draft", "Family", "Head", "Unsupported", "add_head"]


class Unsupported(Exception):
    """A setting or a class of a known family that is not described here."""


class Draft(Builder):
    """A model as it is being written down."""

    def __init__(self) -> None:
        super().__init__()
        self.input = ""
        """The module of ``get_input_embeddings()``."""
        self.output = ""
        """The module of ``get_output_embeddings()``."""
        self.tied: dict[str, str] = {}
        self.frozen: set[str] = set()
        self.sets: dict[str, Any] = {}
        """Fields of the configuration that the class itself sets."""

    def tie(self, weight: str, *others: str) -> None:
        """Say that other parameters are this one, which comes first in the model."""
        self.tied.update(dict.fromkeys(others, weight))


class Family(NamedTuple):
    """A model type: how its classes are called, and how one is written down."""

    classes: str | tuple[str, ...]
    """What the names of its classes begin with: Llama for LlamaForCausalLM."""
    build: Callable[[Fields, str], Draft]
    """From the fields and the rest of the class's name; raises `Unsupported`."""
    settle: Callable[[dict[str, Any]], None] | None = None
    """Fills in, in place, the fields that transformers derives from others."""

    def ending(self, architecture: str) -> str | None:
        """Return the rest of a class's name; None for a class of another family."""
        names: Iterable[str] = self.classes if isinstance(self.classes, tuple) else (self.classes,)
        lower = architecture.lower()
        return next((architecture[len(n) :] for n in names if lower.startswith(n.lower())), None)


class Head(NamedTuple):
    """What a class puts on the base model."""

    body: str
    """The name that the base model lies under."""
    name: str = ""
    """The linear layer; empty for the base model itself."""
    out: str | int = 0
    """Its width: a number, ``labels``, or ``vocab`` for the head of a language model."""
    bias: bool = False


def add_head(draft: Draft, f: Fields, head: Head, width: int) -> None:
    """Add a head that is one linear layer; a language model's may be tied to the embedding."""
    if not head.name:
        return
    if head.out == "vocab":
        draft.linear(head.name, width, f.size("vocab_size"), head.bias)
        draft.output = head.name
        if f.flag("tie_word_embeddings"):
            draft.tie(f"{draft.input}.weight", f"{head.name}.weight")
    else:
        out = head.out if isinstance(head.out, int) else f.labels
        draft.linear(head.name, width, out, head.bias)
