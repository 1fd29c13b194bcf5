"""A configuration's fields, held to what they must be when they are read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunemath.errors import ModelError

__all__ = ["MOST", "Fields"]

MOST = 10_000
"""More layers than this are a mistake, and would take for ever to write down."""


class Fields:
    """The fields of a configuration; a wrong one is a `ModelError` that names it.

    >>> Fields({"model_type": "llama", "hidden_size": 64, "mlp_bias": None}).size("hidden_size")
    64
    """

    def __init__(self, values: Mapping[str, Any], place: str = "", labels: int = 2) -> None:
        self.values = values
        self._place = place
        self._labels = labels

    @property
    def model_type(self) -> str:
        """The family's name."""
        return str(self.values.get("model_type", ""))

    def has(self, key: str) -> bool:
        """Whether a field is there and not null."""
        return self.values.get(key) is not None

    def size(self, key: str, least: int = 1) -> int:
        """Return a whole number of at least 1, or of at least ``least``."""
        value = self.values.get(key)
        if type(value) is not int or value < least:
            raise self.wrong(key, f"a whole number of at least {least}")
        return value

    def size_or(self, key: str, default: int) -> int:
        """Return a size, or the default where the field is missing or null."""
        return self.size(key) if self.has(key) else default

    def count(self, key: str, least: int = 1) -> int:
        """Return how many there are of something that is written down one by one."""
        value = self.size(key, least)
        if value > MOST:
            raise self.wrong(key, f"at most {MOST}")
        return value

    def flag(self, key: str) -> bool:
        """Return true or false; a field that is missing or null is false."""
        value = self.values.get(key)
        if value is None or isinstance(value, bool):
            return bool(value)
        raise self.wrong(key, "true or false")

    def text(self, key: str) -> str:
        """Return a string; empty where the field is missing or null."""
        value = self.values.get(key)
        if value is None or isinstance(value, str):
            return value or ""
        raise self.wrong(key, "a string")

    def whole_numbers(self, key: str) -> list[int]:
        """Return a list of whole numbers; empty where the field is missing or null."""
        value = self.values.get(key)
        if value is None:
            return []
        if isinstance(value, list | tuple) and all(type(each) is int for each in value):
            return [*value]
        raise self.wrong(key, "a list of whole numbers")

    def strings(self, key: str) -> list[str]:
        """Return a list of strings; empty where the field is missing or null."""
        value = self.values.get(key)
        if value is None:
            return []
        if isinstance(value, list | tuple) and all(isinstance(each, str) for each in value):
            return [*value]
        raise self.wrong(key, "a list of strings")

    def part(self, key: str) -> Fields:
        """Return the fields of a configuration within this one."""
        value = self.values.get(key)
        if not isinstance(value, Mapping):
            raise self.wrong(key, "a configuration of its own")
        return Fields(value, f"{self._place}{key}.")

    @property
    def labels(self) -> int:
        """The number of classes: of id2label, else num_labels, else the family's default."""
        names = self.values.get("id2label")
        if names is None:
            return self.size("num_labels", least=0) if self.has("num_labels") else self._labels
        if not isinstance(names, Mapping):
            raise self.wrong("id2label", "a name for each class")
        return len(names)

    def split(self, whole: str, parts: str) -> int:
        """Return one field divided by another, which must divide it."""
        total, pieces = self.size(whole), self.size(parts)
        if total % pieces:
            raise ModelError(
                f"the configuration of this {self.model_type or 'model'} has "
                f"{self._place}{whole} {total}, which {self._place}{parts} {pieces} does not "
                "divide; correct one of them"
            )
        return total // pieces

    def wrong(self, key: str, expected: str) -> ModelError:
        """Return the error of a field that is not what it must be."""
        given = repr(self.values[key]) if key in self.values else "nothing"
        return ModelError(
            f"the configuration of this {self.model_type or 'model'} has {given:.60} as "
            f"{self._place}{key}; expected {expected}"
        )
