"""Problems for the fused objectives, and what they have to equal: float64 on the full logits."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tunemath.objective.fused import Lora, linear_cross_entropy, linear_token_log_probs

D, V = 16, 700
SHAPE = (3, 11)


class Case(NamedTuple):
    """One choice of every option; what a function does not have is left as it is."""

    bias: bool = False
    lora: str = "none"
    trained: bool = False
    soft_cap: float | None = None
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    weights: bool = False
    mask: bool = True
    deep: bool = False
    base: str = "none"
    near: bool = False
    direction: str = "tuned||base"
    chunk: int | None = None
    dtype: torch.dtype = torch.float64

    @property
    def possible(self) -> bool:
        """A head that trains is not the base's."""
        return not (self.trained and self.base == "shared")

    def __str__(self) -> str:
        set_ = [(k, v) for k, v in self._asdict().items() if v != Case._field_defaults[k]]
        return ",".join(f"{k}={v}".replace("torch.", "") for k, v in set_) or "plain"


# The head's choices are every function's; 3000 logits are 300 to a tile, 1 makes the narrowest.
HEAD: dict[str, tuple[Any, ...]] = {
    "bias": (False, True),
    "lora": ("none", "frozen", "trained"),
    "trained": (False, True),
    "soft_cap": (None, 7.0),
    "mask": (True, False),
    "deep": (False, True),
    "chunk": (None, 1, 2999),
    "dtype": (torch.float64, torch.float32),
}


def product(**choices: tuple[Any, ...]) -> Iterator[Case]:
    """Yield every combination that is possible."""
    for values in itertools.product(*choices.values()):
        case = Case(**dict(zip(choices, values, strict=True)))
        if case.possible:
            yield case


def pairwise(**choices: tuple[Any, ...]) -> list[Case]:
    """Return few cases in which any two choices meet, wherever the two are possible together."""
    rng = random.Random(0)
    every = list(product(**choices))
    rng.shuffle(every)
    every = every[:3000]

    def pairs(case: Case) -> set[Any]:
        return set(itertools.combinations([(name, getattr(case, name)) for name in choices], 2))

    left, chosen = set().union(*map(pairs, every)), []
    while left:
        chosen.append(max(every, key=lambda case: len(left & pairs(case))))
        left -= pairs(chosen[-1])
    return chosen


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """Fill new memory with NaN, so that nothing is read before it is written."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


class Problem:
    """Tensors for a case, its leaves, and the float64 logits that everything is judged by."""

    scale = 0.7
    hidden: Any
    base_hidden: Any
    base_head: Any
    bias: Any
    base_bias: Any
    lora: Any
    mask: Any
    weights: Any

    def __init__(self, case: Case, seed: int = 0) -> None:
        draw = torch.Generator().manual_seed(seed)

        def randn(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=draw, dtype=torch.float64).to(case.dtype)

        self.case = case
        small = 1e-3 if case.near else 0.3
        self.hidden = randn(*SHAPE, D) * (60.0 if case.deep else 1.0)
        self.base_hidden = self.hidden + small * randn(*SHAPE, D)
        self.head = randn(V, D)
        self.base_head = None
        if case.base == "own":
            self.base_head = self.head + 0.01 * randn(V, D)
        if case.base == "narrow":
            self.base_hidden, self.base_head = randn(*SHAPE, 10), randn(V, 10)
        self.bias = randn(V) if case.bias else None
        self.base_bias = randn(V) if case.bias and self.base_head is not None else None
        low = Lora(randn(4, D), randn(V, 4) * (0.01 if case.near else 1.0), 0.5)
        self.lora = None if case.lora == "none" else low
        self.mask = torch.rand(SHAPE, generator=draw) < 0.6 if case.mask else None
        self.targets = torch.randint(V, SHAPE, generator=draw)
        if self.mask is not None:
            self.targets[~self.mask] = -100
        self.weights = torch.rand(SHAPE, generator=draw).to(case.dtype) if case.weights else None
        self.upstream = torch.rand(SHAPE, generator=draw, dtype=torch.float64)
        self.leaves = {"hidden": self.hidden}
        if case.trained:
            self.leaves["head"] = self.head
            if self.bias is not None:
                self.leaves["bias"] = self.bias
        if case.lora == "trained":
            self.leaves |= {"A": low.A, "B": low.B}
        for leaf in self.leaves.values():
            leaf.requires_grad_()

    @property
    def form(self) -> dict[str, Any]:
        """The options that every function has."""
        return {
            "bias": self.bias, "lora": self.lora, "scale": self.scale,
            "soft_cap": self.case.soft_cap, "chunk": self.case.chunk,
        }  # fmt: skip

    @property
    def selected(self) -> Tensor:
        """The mask, all on where none is given."""
        return torch.ones(SHAPE, dtype=torch.bool) if self.mask is None else self.mask

    @property
    def ids(self) -> Tensor:
        """The selected targets."""
        return self.targets[self.selected]

    def logits(self) -> Tensor:
        """Return the selected rows' logits (n, V) in float64."""
        return self._logits(self.hidden, self.head, self.bias, self.lora)

    def base_logits(self) -> Tensor:
        """Return the base's, a constant."""
        head, bias = self.base_head, self.base_bias
        if head is None:
            head, bias = self.head, self.bias
        return self._logits(self.base_hidden, head, bias, None).detach()

    def _logits(self, hidden: Tensor, head: Tensor, bias: Any, lora: Lora | None) -> Tensor:
        weight = head.double()
        if lora is not None:
            weight = weight + lora.scale * lora.B.double() @ lora.A.double()
        x = hidden[self.selected].double() @ weight.T
        x = self.scale * (x if bias is None else x + bias.double())
        cap = self.case.soft_cap
        return x if cap is None else cap * torch.tanh(x / cap)

    def spread(self, values: Tensor) -> Tensor:
        """Return values of the selected rows at their places, 0 elsewhere."""
        return torch.zeros(SHAPE, dtype=values.dtype).masked_scatter(self.selected, values)


def distance(got: Tensor, expected: Tensor, floor: float = 1e-30) -> float:
    """Return ‖got − expected‖ relative to ‖expected‖."""
    expected = expected.detach().double()
    return float((got.detach().double() - expected).norm() / (expected.norm() + floor))


def assert_same(
    got: Tensor,
    expected: Tensor,
    leaves: dict[str, Tensor],
    upstream: Tensor | float = 1.0,
    tolerance: float = 1e-9,
    floor: float = 1e-30,
) -> None:
    """Compare value and every leaf's gradient, each relative to its size."""
    errors = {"value": distance(got, expected, floor)}
    ours, theirs = (
        torch.autograd.grad((one * upstream).sum(), list(leaves.values()), retain_graph=True)
        for one in (got, expected)
    )
    for (name, leaf), a, b in zip(leaves.items(), ours, theirs, strict=True):
        assert a.dtype == leaf.dtype
        assert a.shape == leaf.shape
        errors[name] = distance(a, b, floor)
    assert all(error <= tolerance for error in errors.values()), errors


def summed(*args: Any, **kwargs: Any) -> Tensor:
    """Return the sum alone of linear_cross_entropy."""
    return linear_cross_entropy(*args, **kwargs)[0]


def losses(*args: Any, **kwargs: Any) -> Tensor:
    """Return the loss of each target."""
    return -linear_token_log_probs(*args, **kwargs)


class Recorder(TorchDispatchMode):
    """Counts the numbers that matrix products multiply, and how much memory is new and alive."""

    _PRODUCTS = (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_)

    def __init__(self, *inputs: Tensor) -> None:
        super().__init__()
        self._given = {one.untyped_storage().data_ptr() for one in inputs}
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.multiplied = self.largest = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in self._PRODUCTS:
            left, right = [one for one in args if isinstance(one, Tensor)][-2:]
            self.multiplied += left.shape[0] * left.shape[1] * right.shape[1]
        for one in tree_leaves(result):
            if isinstance(one, Tensor):
                self._count(one)
        return result

    def _count(self, one: Tensor) -> None:
        storage = one.untyped_storage()
        if storage.data_ptr() in self._given:
            return
        self.largest = max(self.largest, one.numel())
        reference = StorageWeakRef(storage)
        self._alive[reference.cdata] = (reference, storage.nbytes())
        gone = [key for key, (one, _) in self._alive.items() if one.expired()]
        for key in gone:
            del self._alive[key]
        self.peak = max(self.peak, sum(size for _, size in self._alive.values()))


def recorded(call: Callable[[], Tensor], *inputs: Tensor) -> Recorder:
    """Run ``call``, and its backward pass where it has one, under a recorder."""
    with Recorder(*inputs) as recorder:
        value = call()
        if value.requires_grad:
            value.sum().backward()
    return recorder
