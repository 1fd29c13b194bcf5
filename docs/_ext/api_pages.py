"""The API reference, from the source: signatures, docstrings, fields and examples."""

from __future__ import annotations

import functools
import inspect
import re
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import griffe

__all__ = ["MODULES", "index_page", "module_page"]

_SOURCE = Path(__file__).resolve().parents[2] / "src"

MODULES = {
    "space": "update space",
    "space.weights": "checkpoints on disk",
    "objective": "the objectives",
    "objective.preference": "preference losses",
    "objective.fused": "losses without the logits",
    "mask": "data mask",
    "budget": "optimizer budget",
    "evaluation": "evaluation",
    "contract": "the contract",
    "checks": "the checklist",
    "findings": "what a check returns",
    "pipeline": "runs and their stages",
    "report": "reports",
    "errors": "the errors",
}
"""The public modules, in the order of the reference."""


def index_page() -> str:
    """Return the reference's first page: the top-level names, and the modules."""
    package = _package()
    names = [
        f"| [`{each.name}`]({_page(each.path)}#{_anchor(each.name)}) | {_first(each)} |"
        for each in _members(package)
        if _page(each.path)
    ]
    modules = [f"| [`tunemath.{name}`]({name}.md) | {_first(package[name])} |" for name in MODULES]
    toc = "\n".join(f"{name}" for name in MODULES)
    return "\n".join(
        [
            "# The API",
            "",
            _text(package),
            "",
            "## Top-level names",
            "",
            "| name | what it is |",
            "| --- | --- |",
            *names,
            "",
            "## Modules",
            "",
            "| module | what it is about |",
            "| --- | --- |",
            *modules,
            "",
            "```{toctree}",
            ":hidden:",
            "",
            toc,
            "```",
            "",
        ]
    )


def module_page(name: str) -> str:
    """Return the page of a public module: everything in its ``__all__``."""
    module = _package()[name]
    parts = [f"# tunemath.{name}", _text(module)]
    for each in _members(module):
        parts += _class(each) if each.is_class else _plain(each)
    return "\n\n".join(part for part in parts if part) + "\n"


@functools.cache
def _package() -> Any:
    return griffe.load("tunemath", search_paths=[_SOURCE])


def _members(module: Any) -> Iterator[Any]:
    """Yield what a module exports, where it is defined; a submodule's exports in its place."""
    if module.exports is None:  # a package of modules that are imported one by one
        for each in module.members.values():
            if each.is_module and not each.name.startswith("_"):
                yield from _members(each)
        return
    for name in map(str, module.exports):
        each = module[name]
        yield each.final_target if each.is_alias else each


def _page(path: str) -> str:
    """Return the page that has an object, by the module that exports it."""
    for name in MODULES:
        module = _package()[name]
        if any(each.path == path for each in _members(module)):
            return f"{name}.md"
    return ""


def _anchor(name: str) -> str:
    return name.lower()


def _plain(each: Any) -> list[str]:
    return [f"## {each.name}", *_signature(each), _text(each)]


def _class(each: Any) -> list[str]:
    """Return a class: what it takes, its fields, then its methods."""
    fields, methods = [], []
    for member in each.members.values():
        if member.is_alias or member.name.startswith("_") or member.docstring is None:
            continue
        (methods if member.is_function else fields).append(member)
    bases = [str(base) for base in each.bases]
    parts = [f"## {each.name}", _block("python", f"class {each.name}{_call(bases)}"), _text(each)]
    if fields:
        rows = [f"| `{one.name}` | {_type(one)} | {_first(one)} |" for one in fields]
        parts.append("\n".join(["| field | type | what it is |", "| --- | --- | --- |", *rows]))
    for one in methods:
        parts += [f"### {each.name}.{one.name}", *_signature(one), _text(one)]
    return parts


def _signature(each: Any) -> list[str]:
    if not each.is_function:
        return []
    text = each.signature().replace("(self, ", "(").replace("(self)", "()")
    lines = textwrap.wrap(text, 88, subsequent_indent="    ", break_long_words=False)
    return [_block("python", "\n".join(lines))]


def _call(names: Iterable[str]) -> str:
    listed = ", ".join(names)
    return f"({listed})" if listed else ""


def _type(each: Any) -> str:
    if each.annotation is None:
        return ""
    return "`" + re.sub(r"\s+", " ", str(each.annotation)).replace("|", "\\|") + "`"


def _first(each: Any) -> str:
    """Return the first sentence of a docstring, for a table's cell."""
    text = each.docstring.value if each.docstring else ""
    first = inspect.cleandoc(text).partition("\n\n")[0]
    return re.sub(r"\s+", " ", _marked(first)).replace("|", "\\|")


def _text(each: Any) -> str:
    """Return a docstring as Markdown, its examples in blocks of code."""
    paragraphs: list[str] = []
    text = inspect.cleandoc(each.docstring.value) if each.docstring else ""
    for paragraph in re.split(r"\n\n+", text):
        if paragraph.startswith(">>>") and paragraphs and paragraphs[-1].startswith("```python"):
            paragraphs[-1] = paragraphs[-1].removesuffix("\n```") + f"\n\n{paragraph}\n```"
        elif paragraph.startswith(">>>"):
            paragraphs.append(_block("python", paragraph))
        elif paragraph.startswith("    "):
            paragraphs.append(_block("text", textwrap.dedent(paragraph)))
        else:
            paragraphs.append(_marked(paragraph))
    return "\n\n".join(paragraphs)


def _marked(text: str) -> str:
    """Return a docstring's prose as Markdown: the docstrings' code marks are Markdown's already."""
    plain = re.split(r"(``[^`]+``|`[^`]+`)", text)
    for place in range(0, len(plain), 2):
        plain[place] = re.sub(r"([\\*_$<>\[\]])", r"\\\1", plain[place])
    return "".join(plain)


def _block(language: str, text: str) -> str:
    return f"```{language}\n{text}\n```"
