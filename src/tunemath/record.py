"""The base of every record that a user writes, and what is said of one that is wrong."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from tunemath.elsewhere import elsewhere
from tunemath.shown import clip, shown

__all__ = ["Record", "UserPath", "explain", "records_of"]

# How pydantic names the arms of a union of plain types in an error's location.
_PLAIN_ARMS = ("str", "list", "literal")
_LONGEST_PATH = 4096


_DEPRECATED = frozenset(
    name
    for name, value in vars(BaseModel).items()
    if hasattr(getattr(value, "__func__", value), "__deprecated__")
)


class _Listed(type(BaseModel)):
    """The class of records; completion leaves out the names that pydantic has deprecated."""

    def __dir__(cls) -> list[str]:
        return [name for name in super().__dir__() if name not in _DEPRECATED]


class Record(BaseModel, metaclass=_Listed):
    """A frozen pydantic model that refuses unknown keys, infinity and NaN.

    Field docstrings reach the schema.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )

    def __dir__(self) -> list[str]:
        return [name for name in super().__dir__() if name not in _DEPRECATED]


def _usable(path: Path) -> Path:
    """Refuse what no file can be called."""
    try:
        name = str(path).encode()
    except UnicodeError:
        raise ValueError("a path must be UTF-8") from None
    if b"\0" in name or len(name) > _LONGEST_PATH:
        raise ValueError(f"a path has no NUL in it and at most {_LONGEST_PATH:,} bytes")
    return path


UserPath = Annotated[Path, AfterValidator(_usable)]
"""A path that a user writes."""


def records_of(field: FieldInfo) -> tuple[type[BaseModel], ...]:
    """Return the records that a field may hold: none, one, or the arms of a union."""
    candidates = [field.annotation, *get_args(field.annotation)]
    return tuple(c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel))


def explain(error: ValidationError, root: type[BaseModel]) -> str:
    """Say each problem of a ``root`` in one line, with the nearest valid name."""
    lines = []
    for problem in error.errors():
        named = problem["type"] == "extra_forbidden"  # its last part is a key that a user wrote
        keys, record, arms, tag = _place(problem["loc"], root, named)
        where = ".".join(keys)
        if named:
            lines.append(_unknown(keys, record, arms, tag))
        elif problem["type"] == "missing":
            lines.append(f"{where} is missing; it has no default")
        else:
            message = problem["msg"].removeprefix("Value error, ")
            whole = isinstance(problem["input"], dict | BaseModel)
            given = "" if whole else _given(problem["input"])
            lines.append(f"{where + ': ' if where else ''}{message}{given}")
    return "; ".join(dict.fromkeys(lines))


def _place(
    location: Sequence[int | str], root: type[BaseModel], named: bool
) -> tuple[list[str], type[BaseModel], Sequence[type[BaseModel]], str]:
    """Return the keys of an error's location, the record of the last, its siblings and its tag.

    Between the keys pydantic puts the tag of the chosen record of a union, and the kind of a plain
    value's union; ``named`` says that the last part is a key, whatever it looks like.
    """
    keys: list[str] = []
    record, siblings, tag = root, (), ""
    found: Sequence[type[BaseModel]] = ()
    for place, part in enumerate(location, 1):
        a_key = named and place == len(location)
        if not isinstance(part, str) or (not a_key and part.partition("[")[0] in _PLAIN_ARMS):
            continue
        if len(found) > 1:
            record = next(arm for arm in found if part in _tags(arm))
            siblings, tag, found = found, part, ()
            continue
        if found:
            record, siblings, tag = found[0], (), ""
        keys.append(part)
        field = record.model_fields.get(part)
        found = records_of(field) if field is not None else ()
    return keys, record, siblings, tag


def _tags(record: type[BaseModel]) -> Iterator[str]:
    for field in record.model_fields.values():
        yield from (value for value in get_args(field.annotation) if isinstance(value, str))


def _unknown(
    keys: list[str], record: type[BaseModel], siblings: Sequence[type[BaseModel]], tag: str
) -> str:
    where, names = ".".join(keys), list(record.model_fields)
    if any(keys[-1] in arm.model_fields for arm in siblings):
        valid = ", ".join(name for name in names if name != "method") or "none"
        return f"{where} has no meaning for method: {tag}; valid: {valid}"
    known = elsewhere(keys[-1])
    if known is not None:
        return f"unknown key {clip(where, 200)}; {known}"
    near = difflib.get_close_matches(keys[-1], names, n=1)
    hint = f"did you mean {near[0]}?" if near else "valid: " + ", ".join(names)
    return f"unknown key {clip(where, 200)}; {hint}"


def _given(value: Any) -> str:
    return f" (given: {shown(value)})"
