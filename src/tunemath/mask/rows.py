"""Data as it is on disk: JSONL rows, read into frozen records, refused with file and line.

::

    sft         messages  |  prompt + completion        (a prompt is a string or messages)
    dpo         prompt (or messages) + chosen + rejected
    evaluation  prompt (or messages) + answer
                prompt (or messages) + choices + answer  (index from 0, or the choice's own text)
                a dpo row, which is an item with choices (chosen, rejected)

Every row may also have ``system`` (a string, put first) and ``id``, ``meta``, ``source``.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, overload

from tunemath.errors import DataError
from tunemath.mask.refusals import Refusals
from tunemath.reading import read_text
from tunemath.shown import clip, shown

__all__ = ["Example", "Item", "Message", "Pair", "RowKind", "read_rows"]

RowKind = Literal["sft", "dpo", "evaluation"]

_ROLES = ("system", "user", "assistant")
_ALWAYS = ("id", "meta", "source", "messages", "prompt", "system")
_KEYS: dict[str, tuple[str, ...]] = {
    "sft": ("completion",),
    "dpo": ("chosen", "rejected"),
    "evaluation": ("answer", "choices", "chosen", "rejected"),
}
_FORMS: dict[str, str] = {
    "sft": "`messages`, or `prompt` and `completion`",
    "dpo": "`prompt` (or `messages`), `chosen` and `rejected`",
    "evaluation": (
        "`prompt` (or `messages`) and `answer`, with `choices` when the answer is one of several; "
        "or `prompt`, `chosen` and `rejected`"
    ),
}


@dataclass(frozen=True)
class Message:
    """One turn of a conversation: who speaks (system, user or assistant) and what."""

    role: str
    content: str


@dataclass(frozen=True)
class Example:
    """A conversation to train on; its last message is the assistant's."""

    id: str
    messages: tuple[Message, ...]
    where: str


@dataclass(frozen=True)
class Pair:
    """A prompt with an answer that is preferred and one that is not."""

    id: str
    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    where: str

    def sides(self) -> tuple[Example, Example]:
        """Return the two conversations, chosen first, as examples."""
        chosen, rejected = (
            Example(f"{self.id}#{name}", (*self.prompt, Message("assistant", answer)), self.where)
            for name, answer in (("chosen", self.chosen), ("rejected", self.rejected))
        )
        return chosen, rejected


@dataclass(frozen=True)
class Item:
    """An item of evaluation: a reference ``answer``, or ``choices`` and the index ``correct``."""

    id: str
    prompt: tuple[Message, ...]
    where: str
    answer: str | None = None
    choices: tuple[str, ...] | None = None
    correct: int | None = None
    is_pair: bool = False
    """Whether the choices are a pair's chosen and rejected answers."""

    @property
    def form(self) -> str:
        """What the item is scored by: an answer, choices, or chosen and rejected."""
        if self.choices is None:
            return "`answer`"
        return "`chosen` and `rejected`" if self.is_pair else "`choices`"

    @property
    def reference(self) -> str:
        """The right answer's text."""
        if self.choices is not None and self.correct is not None:
            return self.choices[self.correct]
        return self.answer or ""


@overload
def read_rows(path: Path, kind: Literal["sft"]) -> list[Example]: ...
@overload
def read_rows(path: Path, kind: Literal["dpo"]) -> list[Pair]: ...
@overload
def read_rows(path: Path, kind: Literal["evaluation"]) -> list[Item]: ...
def read_rows(path: Path, kind: RowKind) -> list[Example] | list[Pair] | list[Item]:
    """Read a JSONL file; the kind is ``"sft"``, ``"dpo"`` or ``"evaluation"``.

    A row without ``id`` is called "<file stem>:<line>". Raises one `DataError` for all rows that
    are not complete and unambiguous: a count, and the first of them with file and line.
    """
    path = Path(path)
    rows: list[Any] = []
    seen: dict[str, str] = {}
    refusals, lines = Refusals(path.name, "rows"), 0
    for number, line in _lines(path):
        lines += 1
        with refusals.collected():
            row = _row(path, number, line, kind)
            parsed = _PARSE[kind](row)
            _refuse_beside(row, parsed, rows[0] if rows else parsed, seen)
            seen[parsed.id] = row.where
            rows.append(parsed)
    refusals.raise_if_any(of=lines)
    if not rows:
        raise DataError(f"{path} has no rows; give one JSON object a line with {_FORMS[kind]}")
    return rows


def _refuse_beside(row: _Row, parsed: Any, first: Any, seen: dict[str, str]) -> None:
    """Refuse a row whose id another one has, or an item that is scored unlike the first."""
    if parsed.id in seen:
        row.fail(f"the id {parsed.id!r} is also that of {seen[parsed.id]}; ids must be unique")
    if isinstance(parsed, Item) and parsed.form != first.form:
        row.fail(
            f"an item with {parsed.form} among items with {first.form}; "
            "they are scored differently, so give each form a file of its own"
        )


@dataclass(frozen=True)
class _Row:
    """One line, parsed as JSON, with its place; its methods refuse what does not fit."""

    values: dict[str, Any]
    where: str
    kind: RowKind
    default_id: str

    def fail(self, problem: str) -> NoReturn:
        raise DataError(f"{self.where}: {problem}")

    @property
    def id(self) -> str:
        given = self.values.get("id", self.default_id)
        if isinstance(given, bool) or not isinstance(given, str | int) or not str(given).strip():
            self.fail(f"id is {shown(given)}; give a non-empty string, or leave it out")
        return self.checked(str(given), "id")

    def text(self, key: str) -> str:
        return self.checked(self.values[key], key)

    def checked(self, value: Any, name: str) -> str:
        if not isinstance(value, str):
            self.fail(f"{name} must be a string; got {shown(value)}")
        if not value.strip():
            self.fail(f"{name} is empty; write its text, or remove the row")
        try:
            value.encode()
        except UnicodeEncodeError:
            self.fail(f"{name} contains half of a surrogate pair (\\ud800 to \\udfff); repair it")
        return value

    def require(self, *keys: str) -> None:
        for key in keys:
            if key not in self.values:
                self.fail(f"{key} is missing; a row has {_FORMS[self.kind]}")

    def messages(self, key: str) -> tuple[Message, ...]:
        """Read a list of messages, with the row's ``system`` put first."""
        turns = self.values[key]
        if not isinstance(turns, list) or not turns:
            self.fail(f"{key} must be a non-empty list of messages; got {shown(turns)}")
        messages = [self.message(turn, f"{key}[{index}]") for index, turn in enumerate(turns)]
        return self.with_system(messages)

    def message(self, turn: Any, name: str) -> Message:
        if not isinstance(turn, dict) or not {"role", "content"} <= turn.keys():
            self.fail(f"{name} must be an object with role and content; got {shown(turn)}")
        if extra := turn.keys() - {"role", "content"}:
            self.fail(
                f"{name} has the key {shown(min(extra))}; a message has role and content only"
            )
        if turn["role"] not in _ROLES:
            roles = ", ".join(_ROLES)
            self.fail(f"{name} has the role {shown(turn['role'])}; the roles are {roles}")
        return Message(turn["role"], self.checked(turn["content"], f"{name}.content"))

    def with_system(self, messages: list[Message]) -> tuple[Message, ...]:
        if "system" not in self.values:
            return tuple(messages)
        if any(message.role == "system" for message in messages):
            self.fail("system is given twice: as `system` and as a message; keep one")
        return (Message("system", self.text("system")), *messages)

    def prompt(self) -> tuple[Message, ...]:
        """Read ``prompt`` or ``messages`` as what the model is asked; it ends with the user."""
        self.one_source()
        key = "prompt" if "prompt" in self.values else "messages"
        if key not in self.values:
            self.require("prompt")
        if isinstance(self.values[key], str) and key == "prompt":
            return self.with_system([Message("user", self.text("prompt"))])
        messages = self.messages(key)
        if messages[-1].role != "user":
            self.fail(
                f"the last message of {key} is the {messages[-1].role}'s; end with the user's"
            )
        return messages

    def one_source(self) -> None:
        if {"messages", "prompt"} <= self.values.keys():
            self.fail("messages and prompt exclude each other; keep one")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the number and text of each line that is not blank."""
    for number, line in enumerate(_read(path).split("\n"), start=1):
        if line.strip():
            yield number, line


def _row(path: Path, number: int, line: str, kind: RowKind) -> _Row:
    """Parse a line as a row whose keys are known, each given once."""
    where = f"{path.name}:{number}"
    twice: list[str] = []
    try:
        values = json.loads(line, object_pairs_hook=lambda pairs: _object(pairs, twice))
    except (ValueError, RecursionError) as error:
        reason = clip(getattr(error, "msg", str(error)), 200)
        raise DataError(f"{where}: not valid JSON: {reason}; give one object a line") from None
    if not isinstance(values, dict):
        raise DataError(f"{where}: expected a JSON object, got {shown(values)}")
    row = _Row(values, where, kind, f"{path.stem}:{number}")
    if twice:
        row.fail(f"the key {shown(twice[0])} is given twice in one object; keep one")
    _refuse_unknown_keys(row)
    return row


def _object(pairs: list[tuple[str, Any]], twice: list[str]) -> dict[str, Any]:
    """Return a JSON object, and note a key that it gives more than once."""
    values = dict(pairs)
    if len(values) < len(pairs):
        seen: set[str] = set()
        twice.append(next(name for name, _ in pairs if name in seen or seen.add(name)))
    return values


def _read(path: Path) -> str:
    return read_text(path, DataError, absent="does not exist; give a JSONL file")


def _refuse_unknown_keys(row: _Row) -> None:
    valid = (*_ALWAYS, *_KEYS[row.kind])
    for key in row.values:
        if key not in valid:
            near = difflib.get_close_matches(key[:80], valid, n=1)
            hint = f"did you mean {near[0]}?" if near else f"a row has {_FORMS[row.kind]}"
            row.fail(f"unknown key {shown(key)}; {hint} (free notes go under `meta`)")


def _example(row: _Row) -> Example:
    row.one_source()
    if "messages" in row.values:
        if "completion" in row.values:
            row.fail("messages and completion exclude each other; keep one")
        messages = row.messages("messages")
        if all(message.role != "assistant" for message in messages):
            row.fail("no message is the assistant's, so there is no answer to train on; add one")
        if messages[-1].role != "assistant":
            row.fail(
                f"the last message is the {messages[-1].role}'s; end with the assistant's answer"
            )
        return Example(row.id, messages, row.where)
    if "prompt" not in row.values and "completion" not in row.values:
        row.fail(f"no conversation; a row has {_FORMS['sft']}")
    row.require("prompt", "completion")
    answer = Message("assistant", row.text("completion"))
    return Example(row.id, (*row.prompt(), answer), row.where)


def _pair(row: _Row) -> Pair:
    prompt = row.prompt()
    row.require("chosen", "rejected")
    chosen, rejected = row.text("chosen"), row.text("rejected")
    if chosen.strip() == rejected.strip():
        row.fail("chosen and rejected are the same answer; a pair needs two, so remove the row")
    return Pair(row.id, prompt, chosen, rejected, row.where)


def _item(row: _Row) -> Item:
    if {"chosen", "rejected"} & row.values.keys():
        if both := {"answer", "choices"} & row.values.keys():
            row.fail(f"{min(both)} and chosen/rejected exclude each other; keep one form")
        pair = _pair(row)
        return Item(pair.id, pair.prompt, row.where, None, (pair.chosen, pair.rejected), 0, True)
    prompt = row.prompt()
    row.require("answer")
    if "choices" not in row.values:
        return Item(row.id, prompt, row.where, answer=row.text("answer"))
    choices = _choices(row)
    return Item(row.id, prompt, row.where, None, choices, _correct(row, choices))


def _choices(row: _Row) -> tuple[str, ...]:
    given = row.values["choices"]
    if not isinstance(given, list) or len(given) < 2:
        row.fail(f"choices must be a list of at least 2 answers; got {shown(given)}")
    choices = tuple(row.checked(text, f"choices[{index}]") for index, text in enumerate(given))
    for index, text in enumerate(choices):
        if text.strip() in (earlier.strip() for earlier in choices[:index]):
            row.fail(f"choices[{index}] repeats {shown(text)}; choices must differ")
    return choices


def _correct(row: _Row, choices: tuple[str, ...]) -> int:
    answer = row.values["answer"]
    if isinstance(answer, str):
        if answer not in choices:
            row.fail(f"the answer {shown(answer)} is none of the {len(choices)} choices")
        return choices.index(answer)
    if isinstance(answer, bool) or not isinstance(answer, int):
        row.fail(f"answer must be an index from 0, or a choice's text; got {shown(answer)}")
    if not 0 <= answer < len(choices):
        row.fail(f"answer {answer} is out of range: {len(choices)} choices, counted from 0")
    return answer


_PARSE: dict[str, Callable[[_Row], Any]] = {"sft": _example, "dpo": _pair, "evaluation": _item}
