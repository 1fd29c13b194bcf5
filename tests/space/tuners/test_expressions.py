"""Expressions that adapters bring: Python's own meaning, and an end."""

from __future__ import annotations

import re

import pytest

from tunemath.errors import ModelError
from tunemath.space.peft import expressions
from tunemath.space.peft.expressions import Expression, hold_expressions

ENDLESS = "((.*)*)*x"
NAME = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize("pattern", [r".*q_proj", r"model\.(.*)\.(q|v)_proj", "q_proj", r"[a-z.]+"])
@pytest.mark.parametrize("how", ["match", "fullmatch", "search"])
def test_what_ends_means_what_python_means(pattern, how):
    found, own = (
        getattr(each, how)(NAME) for each in (Expression(pattern, pattern), re.compile(pattern))
    )
    assert (found and found.span()) == (own and own.span())


@pytest.mark.parametrize("pattern", [ENDLESS, r"(.|\w)*!", ".?" * 28 + "x!"])
@pytest.mark.parametrize("how", ["match", "fullmatch", "search"])
def test_what_does_not_end_is_told(monkeypatch, how, pattern):
    monkeypatch.setattr(expressions, "_PATIENCE", 0.2)
    expression = Expression(pattern, pattern)
    for _ in range(2):  # its time is gone for the second name too
        with pytest.raises(ModelError, match="repetition inside another"):
            getattr(expression, how)(NAME)


def test_expressions_are_held_before_peft_uses_them(monkeypatch):
    monkeypatch.setattr(expressions, "_PATIENCE", 0.2)
    hold_expressions({"target_modules": ["(v_proj"], "alpha_pattern": {"q_proj": 3}}, [NAME])
    for config in ({"exclude_modules": ENDLESS}, {"rank_pattern": {ENDLESS: 3}}):
        with pytest.raises(ModelError, match="repetition inside another"):
            hold_expressions(config, [NAME])


def test_a_pattern_is_held_as_peft_uses_it(monkeypatch):
    monkeypatch.setattr(expressions, "_PATIENCE", 0.2)
    late = r"q_proj(x|.)*(.|\w)*!"  # fails at once at a name's beginning, and not after its dots
    with pytest.raises(ModelError, match="repetition inside another"):
        hold_expressions({"rank_pattern": {late: 3}}, ["model.q_proj" + "a" * 40])


def test_quick_matches_are_not_added_up(monkeypatch):
    monkeypatch.setattr(expressions, "_PATIENCE", 0.02)
    expression = Expression(r"(.*)\.(.*)_proj", r"(.*)\.(.*)_proj")
    assert all(expression.fullmatch(NAME) for _ in range(20_000))


def test_what_is_no_expression_is_told():
    with pytest.raises(ModelError, match=r"'\(\(\(' is used as a regular expression, and is not a"):
        Expression("(((", "(((")
