"""A step's memory from a model and a method, and what to change so that it fits a device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from tunemath.budget import (
    Activations,
    Attention,
    Held,
    Memory,
    Reference,
    Step,
    Training,
    forward_flops,
    largest,
    step_memory,
    training_flops,
)
from tunemath.errors import ModelError
from tunemath.extras import install_command
from tunemath.pipeline.costs import Precision, Setting, held_of, training_of
from tunemath.pipeline.decoders import virtual_places
from tunemath.space import (
    UNFREEZING,
    Blueprint,
    Ledger,
    PromptSpace,
    UpdateSpace,
    ledger_of,
    positions_of,
    read_space,
)
from tunemath.space.methods import peft_settings, task_of
from tunemath.space.peft import AdapterConfig, peft_ledger

__all__ = ["Scenario", "memory_product"]

_MOST_TOKENS = 1 << 20
_MOST_ROWS = 1 << 14
_DEVICES = tuple(1 << n for n in range(1, 11))


@dataclass(frozen=True)
class Scenario:
    """All that the memory of a step depends on; a variant is a `dataclasses.replace` away."""

    blueprint: Blueprint
    space: UpdateSpace | AdapterConfig
    tokens: int
    """T, the tokens of the longest row."""
    supervised: int
    """The supervised tokens of a row."""
    batch: int = 1
    """Examples in an optimizer step; a pair of DPO is one."""
    micro_batch: int = 1
    """Examples in memory at once."""
    objective: Literal["sft", "dpo"] = "sft"
    precision: Precision = field(default_factory=Precision)
    optimizer: str = "adamw"
    checkpointing: bool = False
    attention: Attention = "fused"
    masked: bool = False
    reference: Reference | None = None
    """DPO's; the update switched off when None, or copies where the base's weights change."""
    logits: Literal["tiles", "all"] = "tiles"
    zero: Literal[0, 1, 2, 3] = 0
    devices: int = 1
    device: Literal["cpu", "cuda"] = "cpu"
    trace: bool = False
    traced_at: tuple[int, int] | None = None
    """The rows and tokens at which activations are traced; its own where None."""
    class_task: str | None = None
    """PEFT's task by which the model's class was chosen, where its configuration does not."""

    @property
    def sides(self) -> int:
        """Rows of an example: two for a pair."""
        return 2 if self.objective == "dpo" else 1

    @property
    def rows(self) -> int:
        """Rows in memory at once."""
        return self.micro_batch * self.sides

    @property
    def most_tokens(self) -> int:
        """The longest row that the model's positions leave room for."""
        limit = positions_of(self.blueprint).limit
        taken = sum(virtual_places(self.blueprint, self.ledger.change) or ())
        return _MOST_TOKENS if limit is None else max(0, limit - taken)

    @cached_property
    def ledger(self) -> Ledger:
        """What is trained."""
        if isinstance(self.space, AdapterConfig):
            return peft_ledger(self.blueprint, self.space)
        return ledger_of(self.blueprint, self.space, task_type=task_of(self.blueprint))

    @property
    def method(self) -> str:
        """The contract's method, or PEFT's type."""
        return self.space.peft_type if isinstance(self.space, AdapterConfig) else self.space.method

    @property
    def unfreezes(self) -> bool:
        """Whether the method trains the base's own weights."""
        return self.method in UNFREEZING

    @property
    def rank(self) -> int:
        """The rank that can be changed; 0 where there is none."""
        if isinstance(self.space, AdapterConfig):
            return self.space["r"] if self.method == "LORA" else 0
        return getattr(self.space, "rank", 0)

    @cached_property
    def memory(self) -> Memory:
        """The memory of one step."""
        return self.of_size()

    def of_size(
        self, *, micro_batch: int | None = None, batch: int | None = None, tokens: int | None = None
    ) -> Memory:
        """Return the memory of another size; the supervised share of a row stays."""
        examples = micro_batch or self.micro_batch
        length = tokens or self.tokens
        reference: Reference = "none"
        if self.objective == "dpo":
            reference = self.reference or ("copy" if self.unfreezes else "switched off")
        step = Step(
            rows=examples * self.sides,
            tokens=length,
            supervised=max(1, length * self.supervised // self.tokens),
            accumulation=-(-(batch or self.batch) // examples),
            optimizer=self.optimizer,
            reference=reference,
            logits=self.logits,
            zero=self.zero,
            devices=self.devices,
            device=self.device,
        )
        return step_memory(self.held, step)

    @cached_property
    def held(self) -> Held:
        """What model and method hold, whatever the rows are."""
        space = self.space
        is_peft = isinstance(space, AdapterConfig)
        setting = Setting(
            self.precision,
            attention=self.attention,
            masked=self.masked,
            checkpointing=self.checkpointing,
            dropout=bool(space.get("lora_dropout") if is_peft else getattr(space, "dropout", 0.0)),
            device=self.device,
            prompt_in_rows=is_peft or self.logits == "all",
        )
        return held_of(
            self.ledger,
            setting,
            traced=self._traced,
            trace=self.trace,
            peft_type=space.peft_type if is_peft else "LORA",
        )

    @property
    def flops(self) -> float:
        """The operations of one optimizer step, all of its tokens in rows of the longest."""
        rows = self.batch * self.sides
        pairs = rows * self.tokens * (self.tokens + 1) // 2
        work: Training = training_of(self.ledger)
        total = training_flops(
            self.blueprint, work, rows * self.tokens, rows * self.supervised,
            attended=pairs, checkpointing=self.checkpointing,
        )  # fmt: skip
        if self.objective == "dpo" and self.reference != "cached":
            total += forward_flops(
                self.blueprint, rows * self.tokens, rows * self.supervised, attended=pairs
            )
        return total

    def _traced(self) -> Activations:
        """Trace by torch, or say what that needs."""
        try:
            from tunemath.runner import tracing
        except ImportError as error:
            raise ModelError(
                f"the activations of {self.blueprint.model_type or 'this model'} are traced, which "
                f"needs {error.name}; run: {install_command('train')}"
            ) from error
        rows, tokens = self.traced_at or (self.rows, self.tokens)
        precision, space = self.precision, self.space
        task = task_of(self.blueprint)
        if isinstance(space, PromptSpace) and self.logits == "all":  # in every row, as PEFT's
            kind, values = peft_settings(space, task)
            space = AdapterConfig(kind, **values)
        setting = tracing.Setting(
            task=task, class_task=self.class_task, dtype=precision.dtype, base=precision.held,
            quantised=precision.quantisation is not None, mixing=precision.mixing,
            device=self.device, checkpointing=self.checkpointing, masked=self.masked,
            attention="eager" if self.attention == "eager" else "sdpa",
        )  # fmt: skip
        return tracing.trace_curves(self.blueprint.config, space, rows, tokens, setting)


def memory_product(
    scenario: Scenario, limit: int | None, *, contract: bool = False
) -> dict[str, Any]:
    """Return a step's memory as JSON values; with a ``limit`` in bytes, what would fit it.

    ``contract`` leaves out the changes that a contract can't say.
    """
    memory = scenario.memory
    product: dict[str, Any] = {
        "terms": [
            {
                "name": term.name,
                "bytes": term.bytes,
                "at_peak": term.at_peak,
                "exact": term.exact,
                "error": term.error,
            }
            for term in memory.terms
        ],
        "moment": memory.moment,
        "peak_bytes": memory.peak,
        "error_bytes": memory.error,
        "rows": scenario.rows,
        "tokens": scenario.tokens,
        "supervised": scenario.supervised,
        "activations": scenario.held.source,
        "why_rough": scenario.held.why,
        "device": scenario.device,
        "limit_bytes": limit,
    }
    if limit is not None:
        product |= _fitting(scenario, limit, contract)
    return product


def _fitting(scenario: Scenario, limit: int, contract: bool) -> dict[str, Any]:
    """Return whether it fits, the largest settings that do, and the cheapest changes."""
    closed = scenario.held.source == "closed form"
    if not closed:
        scenario = replace(scenario, traced_at=(scenario.rows, scenario.tokens))
    fits = _fits(scenario, limit)
    sizes = {
        "micro_batch": largest(
            lambda n: scenario.of_size(micro_batch=n, batch=n).peak <= limit,
            most=_MOST_ROWS,
        ),
        "tokens": largest(
            lambda n: scenario.of_size(tokens=n).peak <= limit, most=scenario.most_tokens, step=8
        ),
    }
    if scenario.rank and closed:  # each rank would be a trace of its own
        most = max(min(m.d_in, m.d_out) for m in scenario.ledger.change.targets)
        sizes["rank"] = largest(lambda r: _fits(_of_rank(scenario, r), limit), most=most)
    changes = [
        {**change.said, "peak_bytes": change.to.memory.peak, "fits": _fits(change.to, limit)}
        for change in _changes(scenario, limit, contract)
    ]
    product: dict[str, Any] = {"fits": fits, "largest": sizes, "changes": changes}
    product["cheapest"] = [] if fits else _cheapest(scenario, limit, contract)
    return product


def _fits(scenario: Scenario, limit: int) -> bool:
    return scenario.memory.peak <= limit


def _of_length(scenario: Scenario, tokens: int) -> Scenario:
    """Return rows of another length with the same share of supervised tokens."""
    supervised = max(1, tokens * scenario.supervised // scenario.tokens)
    return replace(scenario, tokens=tokens, supervised=supervised)


def _of_rank(scenario: Scenario, rank: int) -> Scenario:
    space = scenario.space
    if isinstance(space, AdapterConfig):
        return replace(scenario, space=space.having(r=rank))
    return replace(scenario, space=space.model_copy(update={"rank": rank}))


@dataclass(frozen=True)
class _Change:
    what: str
    setting: str
    cost: str
    to: Scenario

    @property
    def kind(self) -> str:
        """The setting without its value."""
        return self.setting.partition("=")[0].partition(" ")[0]

    @property
    def said(self) -> dict[str, str]:
        """It as JSON values."""
        return {"change": self.what, "set": self.setting, "cost": self.cost}


def _fewer(s: Scenario, examples: int, contract: bool) -> _Change:
    name = "budget.micro_batch_size=" if contract else "--micro-batch "
    return _Change(
        f"{examples} of {s.batch} examples at once",
        f"{name}{examples}",
        "the same update, in more and smaller passes",
        replace(s, micro_batch=examples),
    )


def _changes(scenario: Scenario, limit: int, contract: bool) -> Iterator[_Change]:
    """Yield single changes that take less memory, from the cheapest to the dearest."""
    for change in _every_change(scenario, limit, contract):
        if change.to.memory.peak < scenario.memory.peak:
            yield change


def _every_change(s: Scenario, limit: int, contract: bool) -> Iterator[_Change]:
    if s.logits == "all":
        yield _Change(
            "logits by tiles", "--logits tiles", "none: the same loss, and faster",
            replace(s, logits="tiles"),
        )  # fmt: skip
    if s.micro_batch > 1:
        half = next(n for n in range(s.micro_batch - 1, 0, -1) if s.batch % n == 0)
        yield _fewer(s, half, contract)
    if s.reference == "copy" and not contract:
        yield _Change(
            "the reference's log-probabilities kept from before", "--reference cached",
            "one pass of the base over the data first; then each step is cheaper",
            replace(s, reference="cached"),
        )  # fmt: skip
    if not s.checkpointing:
        to = replace(s, checkpointing=True)
        yield _Change(
            "gradient checkpointing",
            "budget.gradient_checkpointing=true" if contract else "--checkpointing",
            f"{100 * (to.flops / s.flops - 1):.0f} % more operations; the same update",
            to,
        )
    if not contract:
        yield from _by_other_trainers(s, limit)
    half = s.rank // 2
    if half:
        setting = f"space.rank={half}" if contract else f"--set rank={half}"
        if isinstance(s.space, AdapterConfig):
            setting = f"r={half} in --peft-config"
        yield _Change(f"rank {half}", setting, "another update", _of_rank(s, half))
    if s.method == "full":
        yield _Change(
            "LoRA of rank 8", "space.method=lora" if contract else "--method lora",
            "another method: see whether the task needs more",
            replace(s, space=read_space({"method": "lora"})),
        )  # fmt: skip
    if not contract and s.tokens > 16:
        to = _of_length(s, s.tokens // 2)
        yield _Change(
            f"rows of {to.tokens} tokens", f"--length {to.tokens}",
            "longer rows are cut or left out: other data", to,
        )  # fmt: skip


def _by_other_trainers(s: Scenario, limit: int) -> Iterator[_Change]:
    """Yield what other trainers offer besides."""
    if s.optimizer == "adamw":
        yield _Change(
            "an 8-bit optimizer", "--optimizer adamw_8bit",
            "states of 8 bits: nearly the same update", replace(s, optimizer="adamw_8bit"),
        )  # fmt: skip
    if s.precision.element == 4 and not s.unfreezes:
        yield _Change(
            "weights and activations in bfloat16", "--dtype bfloat16",
            "three digits instead of seven in the frozen weights and activations",
            replace(s, precision=replace(s.precision, dtype="bfloat16")),
        )  # fmt: skip
    if s.precision.quantisation is None and not s.unfreezes:
        yield _Change(
            "the base in 4 bits", "--quantise nf4",
            "another base: measure its KL from the one that is meant",
            replace(s, precision=replace(s.precision, quantisation="nf4")),
        )  # fmt: skip
    if s.zero < 3:
        shared = [replace(s, zero=3, devices=n) for n in _DEVICES if n >= s.devices]
        to = next((one for one in shared if _fits(one, limit)), shared[0])
        yield _Change(
            f"weights, gradients and states shared by {to.devices} devices",
            f"--zero 3 --devices {to.devices}", "more devices, and traffic between them", to,
        )  # fmt: skip


def _cheapest(scenario: Scenario, limit: int, contract: bool) -> list[dict[str, str]]:
    """Return the first changes in order of cost that fit together; empty where none do."""
    taken: list[_Change] = []
    now = replace(scenario, micro_batch=1)
    while not _fits(now, limit):
        # A change that was taken is gone from the list, but for those that go on: rank, devices.
        gone = {change.kind for change in taken}
        change = next((c for c in _changes(now, limit, contract) if c.kind not in gone), None)
        if change is None:
            return []
        taken.append(change)
        now = change.to
    found = [change.said for change in taken]
    examples = next(
        n
        for n in range(scenario.micro_batch, 0, -1)
        if scenario.batch % n == 0 and now.of_size(micro_batch=n).peak <= limit
    )
    if examples < scenario.micro_batch:
        found.insert(0, _fewer(scenario, examples, contract).said)
    return found
