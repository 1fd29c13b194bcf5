from __future__ import annotations

import hashlib
import json
import math

import numpy as np
import pytest

from tunemath.errors import DataError
from tunemath.evaluation import choice_prediction, exact_match, items_sha256


@pytest.mark.parametrize(
    ("output", "reference", "score"),
    [
        ("2024-03-01", "2024-03-01", 1),
        (" 2024-03-01\n", "2024-03-01", 1),
        ("a \t b", "a b", 1),
        ("Cafe\u0301", "Café", 1),
        ("Paris", "paris", 0),
        ("Paris.", "Paris", 0),
        ("", "Paris", 0),
        ("1 0", "10", 0),
    ],
)
def test_exact_match(output, reference, score):
    assert exact_match(output, reference) == score
    assert exact_match(reference, output) == score


@pytest.mark.parametrize(
    ("logprobs", "index"),
    [([-1.0], 0), ([-3.0, -1.0, -2.0], 1), ([-1.0, -1.0], 0), ([-math.inf, -9.0], 1)],
)
def test_choice_prediction_is_the_first_argmax(logprobs, index):
    assert choice_prediction(logprobs) == index == int(np.argmax(logprobs))


def test_choice_prediction_refuses_what_has_no_maximum():
    with pytest.raises(DataError, match="no choice to predict"):
        choice_prediction([])
    with pytest.raises(DataError, match=r"contain NaN: \[nan, -1\.0\]"):
        choice_prediction([math.nan, -1.0])


def test_items_hash_is_of_ids_and_references_in_order():
    items = [{"id": "a", "reference": "é", "score": 1}, {"id": "b", "reference": "y", "score": 0}]
    text = json.dumps([["a", "é"], ["b", "y"]], ensure_ascii=False, separators=(",", ":"))
    assert items_sha256(items) == hashlib.sha256(text.encode()).hexdigest()
    assert items_sha256([{**item, "score": 0, "output": "?"} for item in items]) == items_sha256(
        items
    )
    assert items_sha256(items[::-1]) != items_sha256(items)
