"""Jinja's sandbox with a limit on what a template may do: it comes with a model, from a stranger.

A rendering has so much effort to spend. Each turn of a loop and each call costs some of it, and
text, lists and numbers cost their length before they are made; so neither time nor memory grows
beyond what a long conversation needs, in any thread.
"""

from __future__ import annotations

import functools
import json
import re
import types
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from typing import Any

from jinja2 import nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

__all__ = ["LimitedSandbox"]

_MOST = 200_000_000
_STEP, _CALL, _NODE = 20, 200, 100
_BIT = 100
_WIDEST = 10_000
# Filters that look at a value's elements and do not write them out.
_LOOKING = frozenset(
    ("attr", "batch", "count", "d", "default", "dictsort", "first", "groupby", "items", "last",
     "length", "list", "map", "max", "min", "random", "reject", "rejectattr", "reverse", "select",
     "selectattr", "slice", "sort", "sum", "unique")
)  # fmt: skip
# Filters of which a number is a width or a count, and a text is put in many times.
_WIDENING = ("batch", "center", "indent", "round", "slice", "wordwrap")
# Methods of text and numbers that make as much as a number says.
_PADDING = ("center", "ljust", "rjust", "to_bytes", "zfill")
_DIRECTIVE = re.compile(r"%(?:\([^()]*\))?[#0\- +]*(\*|\d*)(?:\.(\*|\d*))?")
_HOLDERS = (list, tuple, set, frozenset, KeysView, ValuesView, ItemsView)
_DIGITS = re.compile(r"\d+")


class LimitedSandbox(ImmutableSandboxedEnvironment):
    """Jinja's immutable sandbox in which all work is counted; `renew` begins a rendering."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, **options: Any) -> None:
        super().__init__(finalize=self._finalized, **options)
        self.concat = self._concatenated
        self.filters["tojson"] = self._tojson
        for name, function in self.filters.items():
            self.filters[name] = self._limited(name, function)
        for name, function in self.tests.items():
            self.tests[name] = self._looked_at(function)
        self.filters["_compared"] = pass_context(lambda _, value: self._compared(value))
        self.filters["_counted"] = pass_context(lambda _, value: self._counted(value))
        self.filters["_joined"] = pass_context(lambda _, values: self._joined(values))
        self.filters["_sliced"] = pass_context(lambda _, *given: self._sliced(*given))
        self.globals.pop("lipsum")
        self.renew()

    def renew(self) -> None:
        """Give a rendering its effort."""
        self._left = _MOST

    def spend(self, cost: int) -> None:
        """Take some effort; raises `SecurityError` where there is no more."""
        self._left -= cost
        if self._left < 0:
            raise SecurityError("it does more than a conversation needs: endless loops or text")

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = _Counting().visit(super()._parse(source, name, filename))
        return tree.set_environment(self)

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call a function, or a method of a value, that the template names."""
        self.spend(_CALL)
        if isinstance(obj, LoopContext):
            args = tuple(map(self._counted, args[:1])) + args[1:]
        elif isinstance(obj, types.BuiltinMethodType):
            args = self._paid(obj.__self__, obj.__name__, args, kwargs)
        return super().call(context, obj, *args, **kwargs)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Compute ``left operator right``."""
        if operator == "%" and isinstance(left, str):
            self._hold_directives(left, right)
        elif isinstance(left, int) and isinstance(right, int):
            bits = {"*": left.bit_length() + right.bit_length(), "**": left.bit_length() * right}
            self.spend(_BIT * max(0, bits.get(operator, 0)))
        elif operator == "*":
            for value, times in ((left, right), (right, left)):
                if isinstance(times, int):
                    self.spend(_length(value) * max(0, times))
        elif operator == "+":
            self.spend(_length(left) + _length(right))
        return super().call_binop(context, operator, left, right)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Return ``str.format`` with its fields sandboxed and their widths limited."""
        if super().wrap_str_format(value) is None:
            return None
        text, formatter = value.__self__, _LimitedFormatter(self)

        def formatted(*args: Any, **kwargs: Any) -> str:
            if value.__name__ == "format_map":
                (kwargs,), args = args, ()
            return formatter.vformat(text, args, kwargs)

        return functools.update_wrapper(formatted, value)

    def _paid(
        self, holder: Any, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[Any, ...]:
        """Spend what a method of a value makes, and return its arguments."""
        given = (*args, *kwargs.values())
        if isinstance(holder, str | bytes | int) and name in _PADDING:
            self.spend(sum(abs(each) for each in given if isinstance(each, int)))
        if not isinstance(holder, str):
            return args
        self.spend(len(holder))
        if name == "join" and args:
            args = ([*self._counted(args[0])],)
            self.spend(self._written(args[0]) + len(holder) * len(args[0]))
        elif name == "replace" and len(args) > 1:
            self.spend(_replaced(holder, *args[:2]))
        elif name == "expandtabs":
            width = next((each for each in given if isinstance(each, int)), 8)
            self.spend(holder.count("\t") * max(0, width))
        elif name == "translate" and args and isinstance(args[0], Mapping):
            longest = max((len(str(each)) for each in args[0].values()), default=1)
            self.spend(len(holder) * longest)
        return args

    def _limited(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a filter that spends what it reads and makes."""
        first = 1 if hasattr(function, "jinja_pass_arg") else 0

        @functools.wraps(function)
        def limited(*args: Any, **kwargs: Any) -> Any:
            value, given = args[first], (*args[first + 1 :], *kwargs.values())
            if name == "join" and not hasattr(value, "__len__"):
                value = [*self._counted(value)]
                args = (*args[:first], value, *args[first + 1 :])
            size = _length(value) if name in _LOOKING else self._written(value)
            self.spend(_STEP + size)
            if name in _WIDENING:
                self.spend(size * self._widths(given))
            elif name == "replace" and len(given) > 1:
                self.spend(_replaced(str(value), *given[:2]))
            elif name == "join":
                self.spend(len(value) * sum(len(each) for each in given if isinstance(each, str)))
            elif name == "format":
                self._hold_directives(str(value), given)
            found = function(*args, **kwargs)
            self.spend(_length(found))
            return found

        return limited

    def _widths(self, given: Iterable[Any]) -> int:
        numbers = [abs(each) for each in given if isinstance(each, int)]
        if any(number > _WIDEST for number in numbers):
            raise SecurityError(f"a width or a count of more than {_WIDEST:,}")
        return sum(numbers) + sum(len(each) for each in given if isinstance(each, str))

    def _hold_directives(self, text: str, given: Any) -> None:
        """Hold the widths of ``'%20s' % given``, and spend what is written."""
        widths = [width for found in _DIRECTIVE.finditer(text) for width in found.groups() if width]
        values = given if isinstance(given, tuple) else (given,)
        starred = "*" in widths
        numbers = [abs(each) for each in values if starred and isinstance(each, int)]
        numbers += [int(width[:9]) for width in widths if width != "*"]
        if any(number > _WIDEST for number in numbers):
            raise SecurityError(f"a width of more than {_WIDEST:,} characters")
        self.spend(len(text) + sum(numbers) + self._written(given))

    def _finalized(self, value: Any) -> Any:
        """Spend what a value takes when it is written out."""
        if not isinstance(value, str):
            self.spend(self._written(value))
        return value

    def _written(self, value: Any) -> int:
        """Return about how many characters a value has, at most a little over what is left."""
        total, rest = 0, [value]
        while rest and total <= self._left:
            each = rest.pop()
            total += _NODE
            if isinstance(each, str | bytes):
                total += len(each) + 2
            elif isinstance(each, int):
                total += 2 + each.bit_length() // 3
            elif isinstance(each, Namespace):
                rest.append(object.__getattribute__(each, "_Namespace__attrs"))
            elif isinstance(each, Mapping):
                total += 4 * len(each) + 2
                rest += [*each.keys(), *each.values()]
            elif isinstance(each, _HOLDERS):
                total += 2 * len(each) + 2
                rest += each
        return total

    def _counted(self, values: Iterable[Any]) -> Iterator[Any]:
        for value in values:
            self.spend(_STEP)
            yield value

    def _joined(self, values: Iterable[Any]) -> str:
        return self._concatenated([str(self._finalized(value)) for value in values])

    def _compared(self, value: Any) -> Any:
        """Spend what a value takes to be compared or searched: text an eighth of its length."""
        self.spend(_length(value) // 8 if isinstance(value, str) else 4 * _length(value))
        return value

    def _looked_at(self, function: Callable[..., bool]) -> Callable[..., bool]:
        """Return a test, as in ``x is in y``, that spends what it looks at."""
        first = 1 if hasattr(function, "jinja_pass_arg") else 0

        @functools.wraps(function)
        def looked_at(*args: Any) -> bool:
            for each in args[first:]:
                self._compared(each)
            return function(*args)

        return looked_at

    def _sliced(self, value: Any, start: Any, stop: Any, step: Any) -> Any:
        self.spend(_length(value) + _STEP)
        return value[start:stop:step]

    def _concatenated(self, pieces: Iterable[str]) -> str:
        pieces = [*pieces]
        self.spend(sum(map(len, pieces)))
        return "".join(pieces)

    def _tojson(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        self.spend(self._written(value) * (1 + sum(map(len, separators or ()))))
        self._widths([indent])
        encoder = json.JSONEncoder(
            ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )
        if indent is None:
            return encoder.encode(value)
        return self._concatenated(self._counted(encoder.iterencode(value)))


class _LimitedFormatter(SandboxedFormatter):
    """A formatter whose fields have a limited width."""

    _env: LimitedSandbox

    def format_field(self, value: Any, format_spec: str) -> Any:
        numbers = [len(each) for each in _DIGITS.findall(format_spec)]
        if any(length > len(str(_WIDEST)) for length in numbers):
            raise SecurityError(f"a width of more than {_WIDEST:,} characters")
        self._env.spend(self._env._written(value) + len(format_spec))
        found = super().format_field(value, format_spec)
        self._env.spend(len(found))
        return found


class _Counting(NodeTransformer):
    """Has loops, comparisons, joined text and slices, which become plain Python, be counted too."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _filtered(node.iter, "_counted")
        return node

    def visit_Operand(self, node: nodes.Operand) -> nodes.Node:
        self.generic_visit(node)
        node.expr = _compared(node.expr)
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        node.expr = _compared(node.expr)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(nodes.List(node.nodes, lineno=node.lineno), "_joined")

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        part = node.arg
        if not isinstance(part, nodes.Slice):
            return node
        none = nodes.Const(None, lineno=node.lineno)
        ends = [each or none for each in (part.start, part.stop, part.step)]
        return _filtered(node.node, "_sliced", ends)


def _compared(node: nodes.Expr) -> nodes.Expr:
    return node if isinstance(node, nodes.Const) else _filtered(node, "_compared")


def _filtered(node: nodes.Node, name: str, args: list[nodes.Expr] | None = None) -> nodes.Filter:
    return nodes.Filter(node, name, args or [], [], None, None, lineno=node.lineno)


def _length(value: Any) -> int:
    return len(value) if isinstance(value, str | list | tuple | dict) else 0


def _replaced(text: str, old: Any, new: Any) -> int:
    """Return the characters of a text in which one part is replaced by another."""
    old, new = str(old), str(new)
    return len(text) + text.count(old) * len(new)
