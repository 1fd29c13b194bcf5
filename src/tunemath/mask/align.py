"""Which positions of a row are answers: the mask, built from text and aligned with the targets.

A conversation is rendered turn by turn. Before each assistant turn the template gives the prompt,
after it the whole; what was added is the answer, its end-of-turn token, and a tail::

    prompt             answer        terminator    tail
    …<|im_start|>assistant↵  2024-03-01   <|im_end|>   ↵
    not supervised     supervised    supervised    not supervised

The prompt is encoded as it is at inference and the answer after it, so the ids before an answer are
exactly those that the model will see. Masks go by position, never by id: a pad token that is also
the terminator changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NoReturn

from tunemath.errors import DataError, MaskError
from tunemath.mask.refusals import Refusals
from tunemath.mask.rows import Example, Message, Pair
from tunemath.mask.template import Template
from tunemath.mask.tokenize import Tokenizer

__all__ = [
    "Encoded",
    "TrainingRows",
    "Turn",
    "encode_answer",
    "encode_example",
    "encode_prompt",
    "encode_rows",
    "render_turn",
    "supervised_turns",
]

Answers = Literal["all", "last"]


@dataclass(frozen=True)
class Encoded:
    """A row as ids and its mask, both of length T.

    ``supervised[t]`` says that the token at t is itself a target: an answer's token or the
    terminator after it. ``prompt_length`` tokens come before the first target. ``boundary_stable``
    says that tokenising the whole text in one pass gives the same ids.
    """

    id: str
    input_ids: tuple[int, ...]
    supervised: tuple[bool, ...]
    answer_text: str
    where: str
    prompt_length: int
    boundary_stable: bool = True


@dataclass(frozen=True)
class Turn:
    """The text of one assistant turn: what precedes it, what is learned, what follows."""

    prompt: str
    answer: str
    terminator: str
    tail: str

    @property
    def target(self) -> str:
        """The supervised text: the answer and its terminator."""
        return self.answer + self.terminator


@dataclass(frozen=True)
class TrainingRows:
    """The rows that are trained on: texts and ids side by side, and how many were too long.

    For pairs, each row gives two examples, chosen and then rejected.
    """

    examples: tuple[Example, ...]
    encoded: tuple[Encoded, ...]
    dropped: int
    pairs: bool


def render_turn(
    template: Template,
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    answer: str,
    where: str = "",
) -> Turn:
    """Render one assistant turn after ``messages`` and split it at its ends.

    Raises `DataError` when the template's prompt is not a prefix of the conversation with the
    answer in it, or when it changes the answer's text.
    """
    place = f"{where}: " if where else ""
    turns = (*messages, Message("assistant", answer))
    try:
        _refuse_controls(tokenizer, turns)
        prompt, full = template.prompt(messages), template.full(turns)
    except DataError as error:
        raise DataError(f"{place}{error}") from None
    if not full.startswith(prompt):
        raise DataError(
            f"{place}the chat template renders the prompt differently once its answer follows, so "
            "no position marks where the answer begins; use a template whose generation prompt is "
            "the start of the assistant's turn"
        )
    segment = full[len(prompt) :]
    start, text = segment.find(answer), answer
    if start < 0:
        text = answer.strip()
        start = segment.find(text)
    if start < 0:
        raise DataError(f"{place}the chat template changes the answer's text; it wrote {segment!r}")
    return _split(tokenizer, template, prompt, segment, start + len(text))


def _refuse_controls(tokenizer: Tokenizer, messages: Sequence[Message]) -> None:
    for message in messages:
        if found := tokenizer.specials.search(message.content):
            raise DataError(
                f"the {message.role}'s text contains {found[0]!r}, a control token of this model, "
                "which would end or start a turn; remove it"
            )


def _split(tokenizer: Tokenizer, template: Template, prompt: str, segment: str, end: int) -> Turn:
    """Split a turn's text at the first control token after the answer, which ends at ``end``."""
    stop = tokenizer.controls(template.source).search(segment, end)
    if stop is None:
        return Turn(prompt, segment[:end], "", segment[end:])
    return Turn(prompt, segment[: stop.start()], stop[0], segment[stop.end() :])


def supervised_turns(messages: Sequence[Message], answers: Answers) -> list[int]:
    """Return the indices of the assistant messages that are trained on."""
    turns = [index for index, message in enumerate(messages) if message.role == "assistant"]
    return turns if answers == "all" else turns[-1:]


def encode_example(
    example: Example, template: Template, tokenizer: Tokenizer, answers: Answers = "all"
) -> Encoded:
    """Encode a conversation; its answers and their terminators are supervised, nothing else.

    Raises `DataError` with the row's place when the template does not keep earlier turns as they
    were, since then no single row shows the model what it sees at each answer.
    """
    text, ids, mask, learned = "", (), [], []
    turn = Turn("", "", "", "")
    for index in supervised_turns(example.messages, answers):
        message = example.messages[index]
        turn = render_turn(
            template, tokenizer, example.messages[:index], message.content, example.where
        )
        if not turn.prompt.startswith(text):
            raise DataError(
                f"{example.where}: the chat template rewrites earlier turns once a later one "
                "follows; set mask.answers: last, or give each answer its own row"
            )
        for piece, supervised in ((turn.prompt[len(text) :], False), (turn.target, True)):
            added = _continue(tokenizer, text, ids, piece)
            text, ids = text + piece, ids + added
            mask += [supervised] * len(added)
        learned.append(turn.target)
    tail = _continue(tokenizer, text, ids, turn.tail)
    text, ids = text + turn.tail, ids + tail
    mask += [False] * len(tail)
    if not any(mask):
        raise MaskError(f"{example.where}: the answer has no tokens, so nothing is supervised")
    return Encoded(
        id=example.id,
        input_ids=ids,
        supervised=tuple(mask),
        answer_text="".join(learned),
        where=example.where,
        prompt_length=mask.index(True),
        boundary_stable=tokenizer.encode(text) == ids,
    )


def encode_prompt(
    template: Template, tokenizer: Tokenizer, messages: Sequence[Message], where: str = ""
) -> tuple[int, ...]:
    """Return the ids that the model is given to answer ``messages``."""
    try:
        _refuse_controls(tokenizer, messages)
        return tokenizer.encode(template.prompt(messages))
    except DataError as error:
        raise DataError(f"{where}: {error}" if where else str(error)) from None


def encode_answer(
    template: Template,
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    answer: str,
    where: str = "",
) -> tuple[int, ...]:
    """Return the ids of an answer and its terminator, to be put after `encode_prompt`'s."""
    turn = render_turn(template, tokenizer, messages, answer, where)
    prompt = tokenizer.encode(turn.prompt)
    return _continue(tokenizer, turn.prompt, prompt, turn.target)


def encode_rows(
    rows: Sequence[Example] | Sequence[Pair],
    template: Template,
    tokenizer: Tokenizer,
    answers: Answers = "all",
    max_length: int = 512,
    too_long: Literal["refuse", "drop"] = "refuse",
) -> TrainingRows:
    """Encode every training row and leave out, or refuse, those longer than ``max_length`` tokens.

    Rows are never cut. A pair is too long when either of its sides is. Raises one `DataError` for
    all rows that cannot be encoded, or are too long when ``too_long`` is ``"refuse"``; and when no
    row is left.
    """
    examples: list[Example] = []
    encoded: list[Encoded] = []
    dropped = longest = 0
    pairs = bool(rows) and isinstance(rows[0], Pair)
    refusals = Refusals(rows[0].where.rpartition(":")[0] if rows else "", "rows")
    for row in rows:
        sides = row.sides() if isinstance(row, Pair) else (row,)
        kind: Answers = "last" if isinstance(row, Pair) else answers
        with refusals.collected():
            ids = [encode_example(side, template, tokenizer, kind) for side in sides]
            length = max(len(side.input_ids) for side in ids)
            longest = max(longest, length)
            if length <= max_length:
                examples += sides
                encoded += ids
            elif too_long == "drop":
                dropped += 1
            else:
                _refuse_length(max(ids, key=lambda side: len(side.input_ids)), max_length)
    refusals.raise_if_any(of=len(rows))
    if not encoded:
        raise DataError(
            f"every training row is longer than mask.max_length {max_length}; "
            f"raise it (the longest has {longest} tokens)"
        )
    return TrainingRows(tuple(examples), tuple(encoded), dropped, pairs)


def _refuse_length(row: Encoded, max_length: int) -> NoReturn:
    length, limit = len(row.input_ids), f"mask.max_length is {max_length}"
    fix = "raise mask.max_length, shorten the row, or set mask.too_long: drop"
    if row.prompt_length >= max_length:
        raise DataError(
            f"{row.where}: the prompt alone has {row.prompt_length} tokens and {limit}, so no "
            f"answer fits; {fix}"
        )
    raise DataError(f"{row.where}: the row has {length} tokens and {limit}; {fix}")


def _continue(tokenizer: Tokenizer, text: str, ids: tuple[int, ...], piece: str) -> tuple[int, ...]:
    """Return the ids of ``piece`` as they follow ``text``, whose ids are given and stay."""
    if not piece:
        return ()
    whole = tokenizer.encode(text + piece)
    if whole[: len(ids)] == ids:
        return whole[len(ids) :]
    # A newline before the piece keeps SentencePiece from adding the space it puts before any text.
    newline = tokenizer.encode("\n")
    after = tokenizer.encode("\n" + piece)
    return after[len(newline) :] if after[: len(newline)] == newline else tokenizer.encode(piece)
