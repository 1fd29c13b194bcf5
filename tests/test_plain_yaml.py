"""YAML that is more than a person writes, or no plain values: each a problem with its line."""

from __future__ import annotations

import pytest
import yaml

from tunemath.plain_yaml import YamlProblemError, load_yaml

LEVELS = "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9))
MERGED = "\n".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}" for n in range(1, 9))
MANY = "a: &a {" + ", ".join(f"k{n}: 1" for n in range(900)) + "}\n"
MANY += "b: {<<: [" + "*a, " * 200_000 + "]}"


@pytest.mark.parametrize(
    ("text", "words", "line"),
    [
        ("a: 1\nb: 2024-99-99", '"2024-99-99" can\'t be read as timestamp', 2),
        ("a: !!int abc", '"abc" can\'t be read as int', 1),
        ("a: !!int ''", "can't be read as int", 1),
        ("a: !!float '_'", "can't be read as float", 1),
        ("a: !!bool xyz", '"xyz" can\'t be read as bool', 1),
        ("a: !!map x", "expected a mapping", 1),
        ("a: 0x_", "can't be read as int", 1),
        ("a: 0b_", "can't be read as int", 1),
        ("a: " + "9" * 5000, "9999... can't be read as int", 1),
        ("a: 0x" + "f" * 5000, "can't be read as int", 1),
        ("a: " + "[" * 1000 + "]" * 1000, "nested more than 50 deep", 1),
        ("{a: " * 1000, "nested more than 50 deep", 1),
        ("a0: &a0 [x]\n" + LEVELS, "more than 10,000 values", 0),
        ("a0: &a0 {x: 1, y: 2}\n" + MERGED, "more than 10,000 keys", None),
        (MANY, "more than 10,000 keys", 2),
        ("seed: &a [*a]", "nested more than 50 deep", 0),
        ("a: 1\n\na: 2", "the key 'a' is given twice", 3),
        ("a: !!python/object/apply:os.system [x]", "could not determine a constructor", 1),
        ("a\0b", "special characters are not allowed", 0),
        ("? [a]\n: 1", "unhashable", 1),
    ],
)
def test_what_is_no_plain_yaml(text, words, line):
    with pytest.raises(YamlProblemError) as told:
        load_yaml(text)
    assert words in str(told.value)
    assert line is None or told.value.line == line
    assert len(str(told.value)) < 300


@pytest.mark.parametrize(
    "text",
    [
        "a: [1, 2.5, true, null, text, 2024-01-02, 0x1f, 1_000, .5, 1e3, .inf]",
        "base: &base {x: 1, y: [1, 2]}\nother: {<<: *base, z: *base}",
        "base: &base {a: 1}\nx: {y: &mid {<<: *base, a: 2}}\ntop: {<<: *mid}",
        "a: |\n  lines\n  of text\n",
        "",
        "just text",
        "[" * 49 + "]" * 49,
    ],
)
def test_plain_yaml_is_what_the_library_reads(text):
    assert load_yaml(text) == yaml.safe_load(text)
