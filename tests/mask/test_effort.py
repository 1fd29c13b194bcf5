"""Templates that would take for ever, or all memory; and the same text as Jinja for the others."""

from __future__ import annotations

import threading

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tunemath.errors import DataError, ModelError
from tunemath.mask import Message
from tunemath.mask.template import Template
from tunemath.patience import OutOfPatienceError, patience

TRIPLED = (
    "{% set ns = namespace(x=['a']) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x, ns.x] %}"
    "{% endfor %}"
)
DOUBLED = "{% set ns = namespace(x='aa') %}{% for i in range(99) %}{% set ns.x = OP %}{% endfor %}"
LONG = "{% set ns = namespace(x='a' * 10 ** 7) %}{% for i in range(9999) %}"
ENDLESS = [
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(80) }}",
    "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "{% for x in [1] recursive %}{{ loop(range(99999)) }}{% endfor %}",
    "{{ (10 ** (10 ** 8)) | string | length }}",
    "{{ 'a' * 10 ** 10 }}",
    "{{ ['a'] * 10 ** 10 }}",
    DOUBLED.replace("OP", "ns.x + ns.x"),
    DOUBLED.replace("OP", "ns.x ~ ns.x"),
    DOUBLED.replace("OP", "ns.x.replace('a', 'aa')"),
    TRIPLED + "{{ ns.x }}",
    TRIPLED + "{{ ns.x | tojson }}",
    TRIPLED + "{{ ns.x | string }}",
    TRIPLED + "{{ ns.x | join }}",
    TRIPLED + "{{ '%s' % ns.x }}",
    TRIPLED + "{{ '{}'.format(ns.x) }}",
    TRIPLED + "{{ 'a' ~ ns.x }}",
    "{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}",
    "{{ 'a' | center(10 ** 9) }}",
    "{{ 'a'.center(10 ** 9) }}",
    "{{ 'a'.zfill(10 ** 9) }}",
    "{{ '\t'.expandtabs(10 ** 9) }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%*d' % (10 ** 9, 1) }}",
    "{{ '%1000000000d' | format(1) }}",
    "{{ '{:1000000000d}'.format(1) }}",
    "{{ '{:{w}d}'.format(1, w=10 ** 9) }}",
    "{{ '{x:1000000000d}'.format_map({'x': 1}) }}",
    "{{ 'a' | indent(10 ** 9, true) }}",
    "{{ [1] | batch(10 ** 9, 0) | list }}",
    "{{ [1] | slice(10 ** 9) | list }}",
    "{{ [[1]] | tojson(indent=10 ** 9) }}",
    "{{ ('a' * 10 ** 6) | replace('a', 'b' * 10 ** 6) }}",
    "{{ ('a' * 10 ** 6).replace('a', 'b' * 10 ** 6) }}",
    "{{ range(99999) | join('x' * 10 ** 6) }}",
    "{{ ('x' * 10 ** 6).join(range(99999) | map('string')) }}",
    "{{ range(99999) | map('center', 9000) | list }}",
    "{{ ('x ' * 10 ** 5) | wordwrap(1, wrapstring='y' * 10 ** 6) }}",
    "{{ (5).to_bytes(10 ** 9, 'big') }}",
    "{{ 1.5 | round(10 ** 9) }}",
    LONG + "{% if 'zz' in ns.x %}{% endif %}{% endfor %}",
    LONG + "{% if ns.x is in('b' ~ ns.x) %}{% endif %}{% endfor %}",
    LONG + "{% if ns.x ~ 'a' == 'a' ~ ns.x %}{% endif %}{% endfor %}",
    LONG + "{% if 1 < 2 < ns.x | length and 'b' not in ns.x %}{% endif %}{% endfor %}",
    "{{ ('a' * 100).translate({97: 'x' * 10 ** 7}) }}",
    "{% set x = 'a' * 10 ** 7 %}{% set ns = namespace(l=[]) %}{% for i in range(9999) %}"
    "{% set ns.l = ns.l + [x[1:]] %}{% endfor %}",
]
ORDINARY = [
    "{% for m in messages %}{{ loop.index }}{{ loop.last }}{{ loop.length }}{{ m }}{% endfor %}",
    "{% for m in messages recursive %}{{ m.role }}{% endfor %}{{ messages[1:] ~ messages[::-1] }}",
    "{% for m in nothing %}a{% else %}b{% endfor %}{{ 'a' + 'b' ~ 1 ~ none ~ nothing }}",
    "{{ 2 ** 10 }} {{ 2 * 3 }} {{ 'ab' * 3 }} {{ [1] + [2] }} {{ 7 % 4 }} {{ 1700000000 * 1000 }}",
    "{{ '%5d|%-5s|%.2f' % (1, 'a', 2.5) }} {{ '%s' | format('x') }} {{ '{:>8}'.format('x') }}",
    "{{ 'a,b' | replace(',', ';') }} {{ 'abc'.replace('b', 'xx') }} {{ ', '.join(['a', 'b']) }}",
    "{{ messages | map(attribute='role') | join(', ') }} {{ messages | length }}",
    "{{ 'ab' | center(10) }}|{{ 'a\nb' | indent(4) }}|{{ [1, 2, 3] | batch(2) | list }}",
    "{{ {'created': 1}.get('x', 1700000000) }} {{ 'text' | truncate(3) }}{{ 'a b' | wordwrap(1) }}",
    "{% for k, v in {'a': 1}.items() %}{{ k }}={{ v }}{% endfor %}{% set x %}a{% endset %}{{ x }}",
    "{% macro f(a, b=2) %}{{ a }}{{ b }}{{ caller() }}{% endmacro %}{% call f(1) %}c{% endcall %}",
    "{{ ('a' * 1000000) | length }} {% for c in 'abc' if c != 'b' %}{{ c }}{% endfor %}",
]
HI = [Message("user", "hi"), Message("assistant", "ho")]


@pytest.mark.parametrize("source", ENDLESS)
def test_an_endless_template_is_refused(source):
    with pytest.raises(DataError, match="chat template refuses a conversation of user, assistant"):
        Template(source).full(HI)


@pytest.mark.parametrize("source", ORDINARY)
def test_an_ordinary_template_writes_what_jinja_writes(source):
    jinja = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    turns = [{"role": turn.role, "content": turn.content} for turn in HI]
    wanted = jinja.from_string(source).render(messages=turns)
    template = Template(source)
    assert template.full(HI) == wanted
    assert template.full(HI) == wanted  # each rendering has the whole effort


def test_the_effort_is_counted_in_every_thread():
    told: list[BaseException] = []

    def render() -> None:
        try:
            Template(ENDLESS[0]).full(HI)
        except DataError as error:
            told.append(error)

    thread = threading.Thread(target=render)
    thread.start()
    thread.join()
    assert len(told) == 1


def test_a_number_that_makes_nothing_costs_nothing():
    source = "{{ 'abc'.find('c', 0, 10 ** 10) }}{{ 'abc'.startswith('b', 1, 10 ** 10) }}"
    assert Template(source).full(HI) == "2True"


@pytest.mark.parametrize(
    "source",
    [
        "{{ 1 < 2 < 3 }} {{ 'a' in 'abc' }} {{ messages[0].role == 'user' != 'x' }}",
        "{{ 'a' is in(['a']) }} {{ 3 is ge(2) }} {{ x is undefined }} {{ 1 is sameas(1) }}",
        "{% if messages[0].content is string and not 'x' in messages[0].content %}yes{% endif %}",
        "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}",
    ],
)
def test_comparisons_mean_what_they_mean_in_jinja(source):
    turns = [{"role": each.role, "content": each.content} for each in HI]
    own = ImmutableSandboxedEnvironment().from_string(source).render(messages=turns)
    assert Template(source).full(HI) == own


@pytest.mark.parametrize(
    "source",
    [
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
        "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
        "{% for i in x %}" * 30 + "{% endfor %}" * 30,
    ],
)
def test_a_template_that_is_nested_beyond_use_is_refused(source):
    with pytest.raises(ModelError, match="is not valid Jinja"):
        Template(source).full(HI)


def test_what_a_template_says_is_cut_and_cleaned():
    with pytest.raises(DataError) as told:
        Template("{{ raise_exception('\x1b[31mred\u202e' * 100000) }}").full(HI)
    assert len(str(told.value)) < 2000
    assert not {"\x1b", "\u202e"} & set(str(told.value))


def _forever() -> None:
    while True:
        pass


def test_patience_ends_a_regular_expression_and_a_loop():
    import re

    with pytest.raises(OutOfPatienceError, match=r"more than 0\.2 s"), patience(0.2):
        re.fullmatch("((.*)*)*x", "model.layers.0.self_attn.q_proj")
    with pytest.raises(OutOfPatienceError), patience(0.2):
        _forever()
    with patience(60), patience(60):
        pass
