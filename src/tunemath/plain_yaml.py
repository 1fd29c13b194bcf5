"""YAML as plain values: nothing that is built, no key twice, and no more than a person writes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from tunemath.shown import shown

__all__ = ["YamlProblemError", "load_yaml"]

_DEEPEST = 50
_MOST = 10_000
_LONGEST_NUMBER = 100


class YamlProblemError(ValueError):
    """Text that is no plain YAML; ``line`` counts from 1, 0 where it is not known."""

    def __init__(self, problem: str, line: int = 0) -> None:
        super().__init__(problem)
        self.line = line


def load_yaml(text: str) -> Any:
    """Return the value that a text describes.

    An alias counts as often as it is used, so a few lines can't stand for a million values.

    >>> load_yaml("rank: 16")
    {'rank': 16}
    """
    try:
        loader = _Loader(text)
        try:
            value = loader.get_single_data()
        finally:
            loader.dispose()
    except RecursionError:
        raise YamlProblemError("a value that holds itself") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        raise YamlProblemError(str(error.problem), mark.line + 1 if mark else 0) from None
    except yaml.YAMLError as error:
        raise YamlProblemError(str(error).splitlines()[0]) from None
    if _size(value, _MOST, _DEEPEST) < 0:
        raise YamlProblemError(
            f"more than {_MOST:,} values, or nested more than {_DEEPEST} deep, with every alias "
            "written out"
        )
    return value


def _size(value: Any, left: int, deeper: int) -> int:
    """Return ``left`` less the values within; negative where they are too many or too deep."""
    if left < 0 or deeper < 0:
        return -1
    if not isinstance(value, dict | list | set | tuple):
        return left - 1
    left -= 1
    for inner in (*value.keys(), *value.values()) if isinstance(value, dict) else value:
        left = _size(inner, left, deeper - 1)
        if left < 0:
            break
    return left


def _merged(node: yaml.MappingNode) -> Iterator[yaml.MappingNode]:
    """Yield the mappings that ``<<`` merges into one, each as often as it is named."""
    for key, value in node.value:
        if key.tag == "tag:yaml.org,2002:merge":
            given = value.value if isinstance(value, yaml.SequenceNode) else [value]
            yield from (each for each in given if isinstance(each, yaml.MappingNode))


class _Loader(yaml.SafeLoader):
    """A safe loader that says where a value can't be read, and refuses a key given twice."""

    deep = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.deep += 1
        if self.deep > _DEEPEST:
            raise yaml.constructor.ConstructorError(
                None, None, f"nested more than {_DEEPEST} deep", self.peek_event().start_mark
            )
        node = super().compose_node(parent, index)
        self.deep -= 1
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        kind = node.tag.rpartition(":")[2]
        given = node.value if isinstance(node, yaml.ScalarNode) else ""
        try:
            if kind in ("int", "float") and len(given) > _LONGEST_NUMBER:
                raise ValueError
            return super().construct_object(node, deep)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            raise yaml.constructor.ConstructorError(
                None, None, f"{shown(given)} can't be read as {kind}", node.start_mark
            ) from None

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else id(key)
            if name in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {str(name)[:80]!r} is given twice", key.start_mark
                )
            seen.add(name)
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        total = len(node.value)
        for merged in _merged(node):
            self.flatten_mapping(merged)
            total += len(merged.value)
            if total > _MOST:
                raise yaml.constructor.ConstructorError(
                    None, None, f"more than {_MOST:,} keys with those merged in", node.start_mark
                )
        super().flatten_mapping(node)
