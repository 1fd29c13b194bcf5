"""The memory of a training step, term by term, and when it is highest."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Literal

from tunemath.arrays import positive
from tunemath.budget.optimizers import Tensors, state_bytes, step_bytes
from tunemath.budget.passes import Activations

__all__ = [
    "DTYPES",
    "QUANTISATIONS",
    "TILE",
    "Held",
    "Memory",
    "Quantisation",
    "Reference",
    "Step",
    "Term",
    "step_memory",
    "weight_bytes",
]

DTYPES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of a number."""

Quantisation = Literal["nf4", "nf4-double", "int8"]
"""bitsandbytes' 4 bits, the same with quantised scales (QLoRA), and 8 bits."""
QUANTISATIONS: tuple[Quantisation, ...] = ("nf4", "nf4-double", "int8")

Reference = Literal["none", "switched off", "copy", "cached"]
"""DPO's: the update switched off, frozen copies, or log-probabilities kept from before."""

_FLOAT32 = 4
# Logits of a tile, and of rows that a trained head keeps whole: `objective.fused`'s defaults.
TILE = {"cpu": 1 << 19, "cuda": 1 << 26}
_WHOLE = {"cpu": 1 << 26, "cuda": 1 << 28}
# Supervised rows of D numbers at once: gathered, their products, targets and gradient.
_OUTPUT_ROWS = 6
# What a GPU's driver and libraries take before anything is allocated; it differs by their versions.
_CONTEXT = {"cpu": 0, "cuda": 1 << 29}
# Arrays of V float32 numbers a position where all logits are held, beside the logits as the output
# layer gives them: their log-softmax, and the gradients of both.
_ALL_LOGITS = 3


@dataclass(frozen=True)
class Step:
    """How an optimizer step is taken."""

    rows: int
    """B, the rows in memory at once; a pair of DPO is two."""
    tokens: int
    """T, the tokens of the longest row."""
    supervised: int
    """The supervised tokens of a row."""
    accumulation: int = 1
    """Passes in a step."""
    optimizer: str = "adamw"
    reference: Reference = "none"
    logits: Literal["tiles", "all"] = "tiles"
    """``tiles``: the fused objectives. ``all``: logits of every position, as most trainers hold."""
    zero: Literal[0, 1, 2, 3] = 0
    """What devices share: 1 optimizer state, 2 gradients too, 3 weights too (FSDP's full shard)."""
    devices: int = 1
    device: Literal["cpu", "cuda"] = "cpu"


@dataclass(frozen=True)
class Held:
    """What a model and its update hold, whatever the rows are."""

    base: int
    """Bytes of the base's weights as they lie in memory: `weight_bytes`."""
    added: Tensors
    """Shapes of the tensors that the method adds."""
    unfrozen: Tensors
    """Shapes of the base's own trained tensors."""
    hidden: int
    vocab: int
    """V, the logits a position; 0 for a model without an output layer over tokens."""
    activations: Activations
    trained: int = _FLOAT32
    """Bytes of a trained number, of its gradient, and of its moments where these are as wide."""
    head_trained: bool = False
    head_copy: int = 0
    """Bytes of the output layer's weight as it is cast for all logits."""
    copied: Tensors = ()
    """Shapes of trained copies of the base's modules, which PEFT leaves in the base's dtype."""
    copied_width: int = _FLOAT32
    """Bytes of a number of these."""
    prompt: int = 0
    """P, virtual tokens that are places of every row, and so have logits."""
    largest_layer: int = 0
    """Bytes of the largest layer's weights, which devices that share them gather."""
    dequantised: int = 0
    """Bytes of the largest weight in the dtype of the products, where weights are quantised."""
    element: int = _FLOAT32
    """Bytes of an activation."""
    error: float = 0.05
    """The relative error of the activations' bytes."""
    source: Literal["closed form", "traced", "rough"] = "closed form"
    """Where the activations come from."""
    why: str = ""
    """Why they could not be traced, where they are rough."""


@dataclass(frozen=True)
class Term:
    """One part of the memory, in bytes."""

    name: str
    bytes: int
    """Its own size."""
    at_peak: int
    """What of it is there when the memory is highest."""
    error: float = 0.0
    """The relative error of ``bytes``: 0 where it follows from counts."""

    @property
    def exact(self) -> bool:
        """Whether it follows from counts alone."""
        return self.error == 0


@dataclass(frozen=True)
class Memory:
    """A step's memory; the parts that are there at the peak sum to it."""

    terms: tuple[Term, ...]
    moment: str
    """When it is highest."""

    @property
    def peak(self) -> int:
        """The most that is held at once, in bytes."""
        return sum(term.at_peak for term in self.terms)

    @property
    def error(self) -> int:
        """The peak's error, in bytes: those of its terms together."""
        return round(sum(term.at_peak * term.error for term in self.terms))


def weight_bytes(
    linears: Iterable[tuple[tuple[int, ...], int]],
    others: int,
    *,
    dtype: str = "float32",
    quantisation: Quantisation | None = None,
) -> int:
    """Return the bytes of a model's weights in memory.

    ``linears`` are shapes (d_out, d_in) of the layers that are quantised, with how many there are;
    ``others`` the parameters that are not. A quantised weight of n numbers takes

    - ``nf4``: ``n/2 + 4 n/64`` and its table of 16 float32;
    - ``nf4-double``: ``n/2 + n/64 + 4 n/(64·256)``, an offset, tables of 16 and of 256 float32;
    - ``int8``: ``n + 4 d_out``,

    each part rounded up. Returns bytes.

    >>> weight_bytes([((64, 64), 1)], 0, quantisation="nf4")
    2368

    Source: Dettmers et al. 2023, arXiv 2305.14314; bitsandbytes' QuantState.
    """
    size = _bytes_of(dtype)
    total = size * others
    for shape, count in linears:
        n = prod(shape)
        if quantisation is None:
            total += count * size * n
        elif quantisation == "int8":
            total += count * (n + _FLOAT32 * shape[0])
        else:
            blocks = -(-n // 64)
            scales = _FLOAT32 * blocks
            if quantisation == "nf4-double":
                scales = blocks + _FLOAT32 * (-(-blocks // 256) + 1 + 256)
            total += count * (-(-n // 2) + scales + 16 * _FLOAT32)
    return total


def step_memory(held: Held, step: Step) -> Memory:
    """Return the memory of one optimizer step after the first.

    Weights, gradients and optimizer state follow from counts. The passes' share is
    ``held.activations``; the output layer's is some rows of D and a tile of logits, or where all
    logits are held these and three arrays of V float32 a position. What is highest is the forward
    or backward pass, the output layer between them, DPO's reference pass, or the optimizer's step.

    Returns bytes, without the allocator's rounding.
    """
    rows, tokens, supervised = positive(
        rows=step.rows, tokens=step.tokens, supervised=step.supervised
    )
    trained = [*held.added, *held.unfrozen]
    copied = held.copied_width * _elements(held.copied)
    added = held.trained * _elements(held.added) + copied
    gradients = held.trained * _elements(trained) + copied
    fresh = step.accumulation == 1
    share = [step.devices if step.zero >= level else 1 for level in (1, 2, 3)]
    states = state_bytes(step.optimizer, trained, width=held.trained)
    states += state_bytes(step.optimizer, held.copied, width=held.copied_width)
    state = -(-states // share[0])
    owned = -(-gradients // share[1])
    weights = -(-held.base // share[2])
    gathered = (2 * held.largest_layer if share[2] > 1 else 0) + held.dequantised
    reference = _reference_bytes(held, step)
    passes = held.activations.passes(rows, tokens, fresh=fresh)
    output = _output_bytes(held, step, rows * supervised)
    whole_head = held.head_trained and step.logits == "tiles"
    # A trained head's gradient is made with the loss, also where it is then added to another.
    head = held.trained * held.vocab * held.hidden if whole_head else 0
    before = 0 if fresh else owned
    every = [*trained, *held.copied]
    stepping = step_bytes(step.optimizer, every, width=held.trained, device=step.device)
    # (when, gradients, activations, output layer, working space)
    moments = [
        ("forward pass", before, passes.kept, 0, passes.forward - passes.kept),
        ("output layer", before + head, passes.kept, output, 0),
        (
            "backward pass",
            before + passes.gradients,
            passes.backward - passes.gradients,
            0,
            0,
        ),
        ("optimizer step", owned, 0, 0, stepping),
    ]
    if step.reference in ("switched off", "copy"):
        rows_kept = held.element * held.hidden * rows * supervised
        moments.append(("reference pass", before, passes.kept, rows_kept, passes.reference))
    moment, now, kept, out, work = max(moments, key=lambda parts: sum(parts[1:]))
    prefix = min(passes.prefix, kept)
    terms = [
        Term("base weights", weights, weights),
        Term("added weights", added, added),
        Term("gradients", owned, now),
        Term("optimizer state", state, state),
        Term("reference", reference, reference),
        Term("activations", passes.kept - passes.prefix, kept - prefix, held.error),
        Term("prefix's keys and values", passes.prefix, prefix),
        Term("output layer", output, out, 0.25),
        Term("working space", work + gathered, work + gathered, 0.25),
        Term("device context", _CONTEXT[step.device], _CONTEXT[step.device], 0.5),
    ]
    return Memory(tuple(term for term in terms if term.bytes), moment)


def _reference_bytes(held: Held, step: Step) -> int:
    """Return what DPO's reference holds between passes."""
    if step.reference == "copy":
        return held.trained * _elements(held.unfrozen) or held.base
    return 0


def _output_bytes(held: Held, step: Step, supervised: int) -> int:
    if step.logits == "all":
        places = step.rows * (step.tokens + held.prompt)
        return (_ALL_LOGITS * _FLOAT32 + held.element) * places * held.vocab + held.head_copy
    if not held.vocab:
        return 0
    rows = _OUTPUT_ROWS * supervised * held.hidden * held.element
    tile = TILE[step.device]
    if held.head_trained:
        whole = max(1, _WHOLE[step.device] // held.vocab)
        tile = min(supervised, whole) * held.vocab
    return rows + _FLOAT32 * min(tile, supervised * held.vocab)


def _elements(tensors: Tensors) -> int:
    return sum(count * prod(shape) for shape, count in tensors)


def _bytes_of(dtype: str) -> int:
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; expected one of {', '.join(DTYPES)}")
    return DTYPES[dtype]
