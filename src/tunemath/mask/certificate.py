"""The proof, over every row, that the mask is the answers and their terminators and nothing else.

The mask is built forwards, from text to ids (`align`). The certificate goes backwards: it decodes
the supervised ids and compares them with what the template writes between a prompt and the end of
its turn, and finds where an answer must begin by encoding the prompt alone.
"""

from __future__ import annotations

import hashlib
import statistics
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from tunemath.errors import MaskError
from tunemath.mask.align import Answers, Encoded, Turn, render_turn, supervised_turns
from tunemath.mask.declared import clock_dependent, undeclared_text
from tunemath.mask.overlap import overlap, repeated
from tunemath.mask.rows import Example, Item
from tunemath.mask.template import Template
from tunemath.mask.tokenize import Tokenizer
from tunemath.mask.view import sample_rows

__all__ = ["MASK_VIOLATIONS", "certify", "row_hash", "rows_hash"]

MASK_VIOLATIONS = (
    "prompt_or_padding_supervised",
    "answer_text_differs",
    "terminator_not_supervised",
    "double_bos",
    "pair_prompt_differs",
)
"""The violations that make a mask wrong; the others are reported beside them."""

_KINDS = (*MASK_VIOLATIONS, "unstable_boundary", "undeclared_text", "clock_dependent")
_SHOWN = 5


def row_hash(input_ids: Sequence[int] | np.ndarray, supervised: Sequence[bool] | np.ndarray) -> str:
    """Return the SHA-256 of a row: its ids and its mask, without padding.

    The bytes are the length, the ids and the mask as little-endian 64-bit integers; the same row
    in a batch that reaches the model has the same hash, whatever its dtype or container was.

    >>> row_hash([5, 6], [False, True]) == row_hash(np.array([5, 6]), np.array([0, 1]))
    True
    """
    ids, mask = np.asarray(input_ids, dtype="<i8"), np.asarray(supervised).astype(bool)
    if ids.ndim != 1 or ids.shape != mask.shape:
        raise MaskError(f"ids and mask are one row each; got shapes {ids.shape} and {mask.shape}")
    digest = hashlib.sha256(np.asarray([ids.size], dtype="<i8").tobytes())
    digest.update(ids.tobytes())
    digest.update(mask.astype("<i8").tobytes())
    return digest.hexdigest()


def rows_hash(rows: Sequence[Encoded]) -> str:
    """Return one SHA-256 over the hashes of rows, in their order."""
    hashes = (row_hash(row.input_ids, row.supervised) for row in rows)
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


def certify(
    examples: Sequence[Example],
    encoded: Sequence[Encoded],
    template: Template,
    tokenizer: Tokenizer,
    *,
    data: str | Path,
    answers: Answers = "all",
    pairs: bool = False,
    dropped: int = 0,
    task: Sequence[Item] = (),
    retention: Sequence[Item] = (),
) -> dict[str, Any]:
    """Return the mask certificate of a training set, ready to be written as JSON.

    ``examples`` and ``encoded`` are the rows as text and as ids, side by side (for ``pairs``,
    chosen and rejected in turn); ``task`` and ``retention`` are the evaluation's items. Violations
    are counted in rows and never raised: a check judges them.
    """
    if len(examples) != len(encoded) or not encoded:
        raise MaskError(
            f"{len(examples)} rows of text and {len(encoded)} of ids; give one each, at least one"
        )
    ledger = _Ledger()
    kind: Answers = "last" if pairs else answers
    for example, row in zip(examples, encoded, strict=True):
        _judge(example, row, template, tokenizer, kind, ledger)
    if pairs:
        _judge_pairs(encoded, ledger)
    injected = Counter(text for _, text in _judge_declared(examples, template, tokenizer, ledger))
    path = Path(data)
    return {
        "rows": len(encoded) // (2 if pairs else 1),
        "sequences": len(encoded),
        **_counts(encoded),
        "dropped": dropped,
        "template_sha256": template.sha256,
        "tokenizer_sha256": tokenizer.sha256,
        "rows_sha256": rows_hash(encoded),
        "data": {"path": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()},
        "terminator": ledger.terminator(tokenizer),
        "violations": {name: ledger.counts[name] for name in _KINDS},
        "first_violations": ledger.first,
        "undeclared": [{"text": text, "rows": count} for text, count in injected.most_common()],
        "overlap": {
            "task": overlap(examples, task, kind) if task else None,
            "retention": overlap(examples, retention, kind) if retention else None,
        },
        "repeated": repeated(examples, pairs),
        "samples": sample_rows(encoded, tokenizer),
    }


def _counts(encoded: Sequence[Encoded]) -> dict[str, float]:
    """Return how many tokens there are, and how many of them are supervised."""
    supervised = [sum(row.supervised) for row in encoded]
    lengths = [len(row.input_ids) for row in encoded]
    return {
        "tokens": sum(lengths),
        "supervised": sum(supervised),
        "prompt": sum(lengths) - sum(supervised),
        "median_supervised": statistics.median(supervised),
        "longest_row": max(lengths),
    }


@dataclass
class _Ledger:
    """What the judging found: violations, and the terminators that were expected and seen."""

    counts: Counter[str] = field(default_factory=Counter)
    first: list[dict[str, str]] = field(default_factory=list)
    terminators: Counter[str] = field(default_factory=Counter)
    expected: int = 0
    supervised: int = 0

    def add(self, kind: str, where: str, detail: str) -> None:
        self.counts[kind] += 1
        if self.counts[kind] <= _SHOWN:
            self.first.append({"kind": kind, "where": where, "detail": detail})

    def terminator(self, tokenizer: Tokenizer) -> dict[str, Any]:
        text = self.terminators.most_common(1)[0][0] if self.terminators else None
        token = tokenizer.backend.token_to_id(text) if text else None
        return {
            "text": text,
            "id": token,
            "expected": self.expected,
            "supervised": self.supervised,
            "stops_generation": token in tokenizer.eos_ids,
        }


def _judge(
    example: Example,
    row: Encoded,
    template: Template,
    tokenizer: Tokenizer,
    answers: Answers,
    ledger: _Ledger,
) -> None:
    """Judge one row; each kind of violation counts once a row, with its first detail."""
    found: dict[str, str] = {}
    spans = _spans(row.supervised)
    turns = supervised_turns(example.messages, answers)
    previous = 0
    for index, span in zip_longest(turns, spans):
        if index is None:
            found.setdefault("prompt_or_padding_supervised", f"targets at {span} are no answer")
            continue
        before, content = example.messages[:index], example.messages[index].content
        turn = render_turn(template, tokenizer, before, content, example.where)
        prompt = tokenizer.encode(turn.prompt)
        begins = len(prompt) if row.input_ids[: len(prompt)] == prompt else None
        _judge_answer(
            row, span, turn, content, max(previous, begins or 0), tokenizer, found, ledger
        )
        previous = span[1] if span else previous
    bos = next((i for i, token in enumerate(row.input_ids) if token != tokenizer.bos_id), 0)
    if bos > 1:
        found["double_bos"] = f"the row begins with {bos} BOS tokens"
    if tokenizer.encode(template.full(example.messages)) != row.input_ids:
        found["unstable_boundary"] = "one pass over the whole text gives other ids"
    for kind, detail in found.items():
        ledger.add(kind, example.where, detail)


def _judge_answer(
    row: Encoded,
    span: tuple[int, int] | None,
    turn: Turn,
    content: str,
    begins: int,
    tokenizer: Tokenizer,
    found: dict[str, str],
    ledger: _Ledger,
) -> None:
    """Judge one answer: what its targets decode to, where they begin, and that it ends."""
    ledger.expected += 1
    ledger.terminators.update([turn.terminator] if turn.terminator else [])
    text = _text(row.input_ids, span, tokenizer) if span else ""
    if not turn.terminator or turn.terminator not in text:
        given = f"targets are {text!r}" if turn.terminator else "the template writes none"
        found.setdefault("terminator_not_supervised", given)
    else:
        ledger.supervised += 1
    if not _same(text, turn.target, tokenizer):
        found.setdefault("answer_text_differs", f"targets are {text!r}, not {turn.target!r}")
    elif not _same(turn.answer.strip(), content.strip(), tokenizer):
        found.setdefault(
            "answer_text_differs", f"the template makes {turn.answer!r} of {content!r}"
        )
    if span and (span[0] < begins or (len(text) > len(turn.target) and turn.target in text)):
        found.setdefault("prompt_or_padding_supervised", f"targets are {text!r}")


def _judge_pairs(encoded: Sequence[Encoded], ledger: _Ledger) -> None:
    """Require that both sides of each pair follow the same prompt ids."""
    for chosen, rejected in zip(encoded[::2], encoded[1::2], strict=True):
        prompts = [side.input_ids[: side.prompt_length] for side in (chosen, rejected)]
        if prompts[0] != prompts[1]:
            ledger.add("pair_prompt_differs", chosen.where, "chosen and rejected: other prompt ids")


def _judge_declared(
    examples: Sequence[Example], template: Template, tokenizer: Tokenizer, ledger: _Ledger
) -> list[tuple[Example, str]]:
    """Record the text that the template adds, and the dates; return the added text."""
    injected = undeclared_text(examples, template, tokenizer)
    for example, text in injected:
        ledger.add("undeclared_text", example.where, f"the template adds {text!r}")
    for example in clock_dependent(examples, template):
        ledger.add("clock_dependent", example.where, "the text changes with the date")
    return injected


def _spans(mask: Sequence[bool]) -> list[tuple[int, int]]:
    """Return the runs of True as half-open ranges."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], np.asarray(mask, dtype=np.int8), [0]))))
    return [(int(start), int(stop)) for start, stop in zip(edges[::2], edges[1::2], strict=True)]


def _text(ids: Sequence[int], span: tuple[int, int], tokenizer: Tokenizer) -> str:
    """Return the text that ids in ``span`` add to the text of the ids before them."""
    before, through = tokenizer.decode(ids[: span[0]]), tokenizer.decode(ids[: span[1]])
    if through.startswith(before):
        return through[len(before) :]
    return tokenizer.decode(ids[span[0] : span[1]])


def _same(text: str, expected: str, tokenizer: Tokenizer) -> bool:
    """Compare texts; in NFC where the tokenizer normalises what it reads."""
    if text == expected or tokenizer.backend.normalizer is None:
        return text == expected
    return unicodedata.normalize("NFC", text) == unicodedata.normalize("NFC", expected)
