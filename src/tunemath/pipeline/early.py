"""What a run can know before it spends anything: whether all that it will read can be read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tunemath.errors import DataError
from tunemath.mask import Item, Refusals
from tunemath.pipeline.run import Run
from tunemath.space import positions_of, virtual_tokens

__all__ = ["notices_of", "positions_product", "read_data"]

_FIELDS = {"train": "mask.train", "task": "evaluation.task", "retention": "evaluation.retention"}
_SHOWN = 5


def read_data(run: Run) -> None:
    """Read every data file of a contract; what is wrong with any is told in one `DataError`."""
    faults: dict[str, DataError] = {}
    for name, field in _FIELDS.items():
        try:
            _ = run.training if name == "train" else getattr(run, name)
        except DataError as error:
            faults[field] = error
    if len(faults) == 1:
        raise next(iter(faults.values()))
    if faults:
        told = [
            line
            for field, error in faults.items()
            for line in (f"{field}: {error.message}", *(f"  {each}" for each in error.faults))
        ]
        raise DataError(f"{len(faults)} of the contract's data files are refused:", told)
    _refuse_same_content(run)


def _refuse_same_content(run: Run) -> None:
    first: dict[str, str] = {}
    for name, sha in run.data_hashes.items():
        if sha in first:
            raise DataError(
                f"{_FIELDS[name]} ({run.data_paths[name]}) has the content of "
                f"{_FIELDS[first[sha]]} ({run.data_paths[first[sha]]}); give a file of its own"
            )
        first[sha] = name


@dataclass(frozen=True)
class _Length:
    """The positions that a row or an item takes at the most, and what they are."""

    where: str
    tokens: int
    parts: str
    remedy: str


def positions_product(run: Run) -> dict[str, Any]:
    """Return the positions that rows and items take beside those that the model has.

    Renders all that will be asked and measured: each item's prompt, with and without the examples,
    its reference and its choices. Raises one `DataError` for every item of a set that cannot be
    rendered, and for every row or item that lies beyond the end of a model's positions.
    """
    positions = positions_of(run.blueprint)
    virtual = virtual_tokens(run.contract.space)
    found = {"training rows": list(_rows(run))}
    for name, items in run.items.items():
        found[f"{name} items"] = _items(run, name, items)
    if positions.ends and positions.limit is not None:
        for lengths in found.values():
            _refuse_beyond(lengths, positions.limit, virtual)
    return {
        "limit": positions.limit,
        "ends": positions.ends,
        "virtual": virtual,
        "lengths": {name: _summary(lengths, positions.limit) for name, lengths in found.items()},
    }


def _rows(run: Run) -> Iterator[_Length]:
    virtual = virtual_tokens(run.contract.space)
    parts = "the row" + (f" and {virtual} virtual tokens" if virtual else "")
    for row in run.rows.encoded:
        remedy = "shorten it, or set mask.too_long: drop with mask.max_length: {}"
        yield _Length(row.where, len(row.input_ids) + virtual, parts, remedy)


def _items(run: Run, name: str, items: list[Item]) -> list[_Length]:
    """Render everything of every item; what is refused is told at once."""
    refusals = Refusals(run.data_paths[name].name, "items")
    found = []
    for item in items:
        with refusals.collected():
            found.append(_item(run, item))
    refusals.raise_if_any(of=len(items))
    return found


def _item(run: Run, item: Item) -> _Length:
    """Return the most that an item takes, in whichever way it is asked."""
    evaluation = run.contract.evaluation
    prompt, prompted = len(run.prompt_ids(item)), len(run.prompt_ids(item, with_examples=True))
    reference = len(run.answer_ids(item, item.reference))
    virtual = virtual_tokens(run.contract.space)
    if item.choices is None:
        answer = evaluation.max_new_tokens - 1  # the last token is not read
        what = f"an answer of {evaluation.max_new_tokens} tokens"
    else:
        answer = max(map(len, run.choice_ids(item))) - 1
        what = "the longest choice"
    ways = {
        f"prompt with {evaluation.few_shot} examples and {what}": prompted + answer,
        f"prompt and {what}": prompt + virtual + answer,
        "prompt and reference": prompt + virtual + reference,
    }
    parts = max(ways, key=lambda way: ways[way])
    remedy = "shorten it, or lower evaluation.few_shot"
    if item.choices is None:
        remedy += " or evaluation.max_new_tokens"
    return _Length(item.where, ways[parts], parts, remedy)


def _refuse_beyond(lengths: list[_Length], limit: int, virtual: int) -> None:
    if not lengths:
        return
    refusals = Refusals(lengths[0].where.rpartition(":")[0], "rows")
    for each in lengths:
        with refusals.collected():
            if each.tokens > limit:
                raise DataError(
                    f"{each.where}: {each.parts} take {each.tokens:,} positions, and the model "
                    f"ends at {limit:,}; {each.remedy.format(limit - virtual)}"
                )
    refusals.raise_if_any(of=len(lengths))


def _summary(lengths: list[_Length], limit: int | None) -> dict[str, Any]:
    """Return the longest, and how many lie beyond the limit, with the first few of them."""
    longest = max(lengths, key=lambda each: each.tokens)
    beyond = [each.where for each in lengths if limit is not None and each.tokens > limit]
    return {
        "longest": longest.tokens,
        "where": longest.where,
        "parts": longest.parts,
        "beyond": len(beyond),
        "first_beyond": beyond[:_SHOWN],
    }


def notices_of(run: Run) -> list[str]:
    """Return what a person may not have meant, in sentences: no fault, but worth a look."""
    trained = {_has_system(row) for row in run.rows.examples}
    asked = {_has_system(item) for item in run.items["task"]}
    if trained == {True} and asked == {False}:
        return [
            "every training row has a system message and no task item has one, so the items ask "
            "what was never trained; give the items the rows' system message (`system`)"
        ]
    if trained == {False} and asked == {True}:
        return [
            "every task item has a system message and no training row has one, so the items ask "
            "what was never trained; give the rows the items' system message (`system`)"
        ]
    return []


def _has_system(row: Any) -> bool:
    messages = row.prompt if isinstance(row, Item) else row.messages
    return any(message.role == "system" for message in messages)
