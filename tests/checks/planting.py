"""How a fault is planted in the evidence of a sound run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def put(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Set one value of the evidence; ``value`` may be a function of the old one."""

    def fault(evidence: dict[str, Any]) -> None:
        *way, last = path.split("/")
        holder: Any = evidence
        for part in way:
            holder = holder[int(part)] if isinstance(holder, list) else holder[part]
        key: Any = int(last) if isinstance(holder, list) else last
        holder[key] = value(holder[key]) if callable(value) else value

    return fault


def one_more(value: int) -> int:
    return value + 1


def one_fewer(value: int) -> int:
    return value - 1
