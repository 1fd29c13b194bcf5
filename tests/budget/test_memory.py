"""Terms, peaks, sizes and what fits, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tunemath.budget import (
    Curves,
    Held,
    Passes,
    Step,
    largest,
    parse_size,
    step_memory,
    this_device,
    weight_bytes,
)
from tunemath.budget import device as devices
from tunemath.errors import ShapeError

PASSES = Passes(kept=1000, backward=1500, gradients=100, forward=1200, reference=300)


class Fixed:
    """Passes of a thousandth of their sizes a place, in bytes."""

    def __init__(self, passes=PASSES):
        self.found = passes

    def passes(self, rows, tokens, *, fresh=True):
        by = rows * tokens
        kept, backward, gradients, forward, reference = (
            by * getattr(self.found, name)
            for name in ("kept", "backward", "gradients", "forward", "reference")
        )
        if not fresh:
            backward, gradients = backward - gradients, 0
        return Passes(kept, backward, gradients, forward, reference)


HELD = Held(base=10_000, added=(((4, 8), 3),), unfrozen=(), hidden=8, vocab=64, activations=Fixed())
STEP = Step(rows=2, tokens=5, supervised=3)


def by_name(memory):
    return {term.name: term for term in memory.terms}


def test_the_peak_is_the_sum_of_what_is_there_then():
    memory = step_memory(HELD, STEP)
    terms = by_name(memory)
    trained = 3 * 4 * 8
    assert terms["base weights"].bytes == 10_000
    assert terms["added weights"].bytes == terms["gradients"].bytes == 4 * trained
    assert terms["optimizer state"].bytes == 8 * trained + 3 * 4
    assert all(terms[name].exact for name in ("base weights", "gradients", "optimizer state"))
    assert not terms["activations"].exact
    assert memory.moment == "backward pass"
    assert memory.peak == 10_000 + 4 * trained + 8 * trained + 12 + 10 * 1500
    assert memory.error == round(0.05 * 10 * 1400)


def test_gradients_that_are_there_before_stay_whole():
    once, twice = step_memory(HELD, STEP), step_memory(HELD, replace(STEP, accumulation=2))
    assert twice.peak - once.peak == 4 * 96 - 10 * 100


def test_the_output_layer_is_some_rows_and_a_tile_or_all_logits():
    wide = replace(HELD, vocab=1 << 20, activations=Fixed(replace(PASSES, backward=0)))
    assert by_name(step_memory(wide, STEP))["output layer"].bytes == 6 * 6 * 8 * 4 + 4 * (1 << 19)
    every = step_memory(wide, replace(STEP, logits="all"))
    assert every.moment == "output layer"
    assert by_name(every)["output layer"].at_peak == 4 * 4 * 10 * (1 << 20)
    trained = step_memory(replace(wide, head_trained=True), STEP)
    head = 4 * 8 * (1 << 20)
    assert by_name(trained)["gradients"].at_peak == head
    assert by_name(trained)["output layer"].bytes == 6 * 6 * 8 * 4 + 4 * 6 * (1 << 20)


def test_the_step_is_highest_where_the_trained_tensors_are_large():
    large = replace(HELD, added=(((1000, 1000), 1),))
    memory = step_memory(large, STEP)
    assert memory.moment == "optimizer step"
    assert memory.peak == 10_000 + 4 * 10**6 * (1 + 1 + 2 + 2) + 4


def test_a_reference_is_another_pass_copies_or_nothing():
    passes = replace(PASSES, backward=0, forward=1000)
    held = replace(HELD, activations=Fixed(passes))
    alone = step_memory(held, STEP).peak
    off = step_memory(held, replace(STEP, reference="switched off"))
    assert off.moment == "reference pass"
    assert off.peak - alone > 10 * 300 - 6 * 6 * 8 * 4 - 4 * 6 * 64
    own = replace(held, unfrozen=(((50,), 2),))
    assert by_name(step_memory(own, replace(STEP, reference="copy")))["reference"].bytes == 400
    whole = step_memory(held, replace(STEP, reference="copy"))
    assert by_name(whole)["reference"].bytes == 10_000
    assert step_memory(held, replace(STEP, reference="cached")).peak == alone


def test_devices_share_what_the_stage_says():
    sizes = [
        {
            name: term.bytes
            for name, term in by_name(
                step_memory(HELD, replace(STEP, zero=stage, devices=4))
            ).items()
        }
        for stage in range(4)
    ]
    for stage in range(4):
        assert sizes[stage]["optimizer state"] == (780 if not stage else 195)
        assert sizes[stage]["gradients"] == (384 if stage < 2 else 96)
        assert sizes[stage]["base weights"] == (10_000 if stage < 3 else 2_500)
    gathered = step_memory(replace(HELD, largest_layer=700), replace(STEP, zero=3, devices=2))
    assert by_name(gathered)["working space"].bytes == 1400
    for whole in (replace(STEP, zero=2, devices=2), replace(STEP, zero=3, devices=1)):
        held = step_memory(replace(HELD, largest_layer=700), whole)
        assert by_name(held).keys() == by_name(step_memory(HELD, whole)).keys()  # none is gathered


def test_quantised_weights_by_hand():
    shape = (11008, 4096)
    n = 11008 * 4096
    assert weight_bytes([(shape, 2)], 10, dtype="bfloat16") == 2 * (2 * n + 10)
    assert weight_bytes([(shape, 1)], 0, quantisation="int8") == n + 4 * 11008
    assert weight_bytes([(shape, 1)], 0, quantisation="nf4") == n // 2 + 4 * n // 64 + 64
    double = n // 2 + n // 64 + 4 * (n // 64 // 256) + 4 + 1024 + 64
    assert weight_bytes([(shape, 1)], 5, dtype="float16", quantisation="nf4-double") == double + 10
    with pytest.raises(ValueError, match="dtype is 'float8'"):
        weight_bytes([], 1, dtype="float8")


def test_curves_go_through_their_points_and_between_them():
    def figures(rows, tokens):
        def at(c, a, b):
            return c + rows * (a * tokens + b * tokens * tokens)

        return Passes(at(5, 10, 2), at(7, 11, 3), 9, at(0, 12, 1), at(1, 1, 1))

    curves = Curves(tuple((size, figures(*size)) for size in ((2, 64), (2, 32), (4, 32))))
    for size in ((2, 64), (4, 32), (1, 100), (16, 7)):
        assert curves.passes(*size) == figures(*size)
    assert curves.passes(3, 9, fresh=False).backward == figures(3, 9).backward - 9


@pytest.mark.parametrize(("limit", "most"), [(6, 0), (7, 1), (70, 10), (10**9, 1000)])
def test_the_largest_that_fits(limit, most):
    assert largest(lambda n: n * 7 <= limit, most=1000) == most
    assert largest(lambda n: n * 7 <= limit, most=1000, step=8) == most // 8 * 8


def test_sizes_as_people_write_them():
    given = ("24GiB", "24G", "80 GB", "512MB", "1.5 TiB", "900", "2kB", "3 b")
    found = [parse_size(text) for text in given]
    gib = 2**30
    assert found == [24 * gib, 24 * gib, 80 * 10**9, 512 * 10**6, 1536 * gib, 900, 2000, 3]
    for wrong in ("", "many", "-3G", "3 iB", "4 gigs"):
        with pytest.raises(ValueError, match="is no size"):
            parse_size(wrong)


def test_a_containers_limit_is_the_machines(tmp_path, monkeypatch):
    limit = tmp_path / "memory.max"
    limit.write_text("1048576\n")
    monkeypatch.setattr(devices, "_NVIDIA", tmp_path / "none")
    monkeypatch.setattr(devices, "_LIMITS", (tmp_path / "absent", limit))
    assert this_device() == ("cpu", 1 << 20)
    limit.write_text("max\n")
    assert (this_device().memory or 0) > 1 << 20


def test_impossible_sizes_are_refused():
    with pytest.raises(ShapeError, match="rows is 0"):
        step_memory(HELD, replace(STEP, rows=0))
