"""What rows have in common at their beginning, and so need computing only once."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["common_prefix"]


def common_prefix(rows: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Return the longest prefix of all rows that leaves at least one token to each.

    >>> common_prefix([[1, 2, 3], [1, 2, 4, 5]])
    (1, 2)
    >>> common_prefix([[1, 2], [1, 2]])
    (1,)
    """
    if not rows:
        return ()
    ordered = [tuple(row) for row in rows]
    first, last = min(ordered), max(ordered)  # these two differ as early as any two rows
    limit = min(map(len, ordered)) - 1
    same = next((i for i in range(limit) if first[i] != last[i]), max(limit, 0))
    return first[:same]
