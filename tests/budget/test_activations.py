"""Passes of a decoder of two layers in float32, where hand arithmetic is exact."""

from __future__ import annotations

import pytest

from tunemath.budget import Decoder, DecoderLayer, Linear

D, WIDE, HEADS, SIZE = 6, 20, 3, 2  # widths of the stream and of the gate, heads and their size
ROWS, TOKENS = 5, 7


def decoder(**changes) -> Decoder:
    layer = DecoderLayer(
        attention=tuple(Linear(D, HEADS * SIZE) for _ in range(3)),
        output=Linear(HEADS * SIZE, D),
        feed=(Linear(D, WIDE), Linear(D, WIDE)),
        down=Linear(WIDE, D),
        heads=HEADS,
        kv_heads=HEADS,
        head_dim=SIZE,
        intermediate=WIDE,
    )
    return Decoder((layer, layer), **changes)


def test_a_pass_without_gradients_holds_two_streams_and_three_wide_tensors():
    wide = (2 * D + 3 * WIDE) * ROWS * TOKENS
    assert decoder().passes(ROWS, TOKENS).reference == 4 * wide
    assert decoder(attention="eager").passes(ROWS, TOKENS).reference == 4 * wide


@pytest.mark.parametrize(("tokens", "scores"), [(11, False), (12, False), (13, True), (90, True)])
def test_eager_scores_are_held_twice_where_they_are_more(tokens, scores):
    # 2 · 6 + 3 · 20 = 72 numbers a place, and 2 · 3 · T of scores and their softmax: equal at 12
    most = 6 * tokens if scores else 72
    found = decoder(attention="eager").passes(ROWS, tokens).reference
    assert found == 4 * most * ROWS * tokens
