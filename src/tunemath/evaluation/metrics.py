"""How one item is scored: a generated answer against its reference, or a choice among several.

Both give an integer an item, so that arms can be compared item by item (paired), and the mean of
the integers is the accuracy.
"""

from __future__ import annotations

import hashlib
import json
import math
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tunemath.errors import DataError

__all__ = ["choice_prediction", "exact_match", "items_sha256", "normalised"]


def normalised(text: str) -> str:
    r"""Return ``text`` in Unicode NFC, each run of whitespace one space, none at the ends.

    >>> normalised("  2024-03-01\n")
    '2024-03-01'
    """
    return " ".join(unicodedata.normalize("NFC", text).split())


def exact_match(output: str, reference: str) -> int:
    r"""Return 1 when a generated answer is the reference, else 0.

    Let n(x) be x in Unicode NFC with whitespace stripped and collapsed (`normalised`);
    the score is ``1[n(output) = n(reference)]``. Upper and lower case differ.

    >>> exact_match(" 2024-03-01\n", "2024-03-01"), exact_match("1 March", "2024-03-01")
    (1, 0)
    """
    return int(normalised(output) == normalised(reference))


def choice_prediction(logprobs: Sequence[float]) -> int:
    """Return the index of the most probable choice; a tie goes to the lowest index.

    Let ℓ_j be the log-probability of choice j, in nats; the prediction is
    ``min argmax_j ℓ_j``. Minus infinity is allowed, NaN is refused.

    >>> choice_prediction([-2.5, -0.7, -0.7])
    1
    """
    values = [float(value) for value in logprobs]
    if not values:
        raise DataError("no choice to predict: the list of log-probabilities is empty")
    if any(math.isnan(value) for value in values):
        raise DataError(
            f"log-probabilities of choices contain NaN: {values}; check the forward pass"
        )
    return values.index(max(values))


def items_sha256(items: Iterable[Mapping[str, Any]]) -> str:
    """Return one SHA-256 over the ids and references of items, in their order.

    Two arms that were evaluated on the same items have the same hash, whatever they answered.
    """
    pairs = [[item["id"], item["reference"]] for item in items]
    text = json.dumps(pairs, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
