"""Write the generated pages of docs/ from the code itself, or check that they are current.

The commands come from the Typer application, the contract's fields from its pydantic records,
the checks from the registry; so no page can say what the code does not.

The pages of the objectives take headings, signatures and examples from the functions; what
stands between, in docs/templates/objective, is written by hand. docs/figures.py draws.

    python docs/generate.py           writes the pages and the figures
    python docs/generate.py --check   exits with 1 and names each that is not current
"""

from __future__ import annotations

import argparse
import doctest
import inspect
import json
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from os.path import relpath
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import figures
import typer
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic import BaseModel

from tunemath import objective
from tunemath.checks import OWED, Checklist
from tunemath.cli.app import app
from tunemath.contract import FineTune, contract_schema
from tunemath.findings import CheckStage, Status, Verdict
from tunemath.objective import fused, preference
from tunemath.record import records_of

__all__ = ["PAGES", "main"]

_HERE = Path(__file__).resolve().parent
_RENEW = "make docs"
_NOTE = f"<!-- Written by docs/generate.py: change the code or docs/templates, then {_RENEW}. -->"

_STATUSES: dict[Status, str] = {
    Status.PASS: "The claim was measured on this run and holds.",
    Status.FAIL: "It was measured and does not hold; the finding says where, and what to do.",
    Status.INSUFFICIENT_EVIDENCE: (
        "It was measured, and the data cannot tell, as when a 95 % interval contains the threshold."
    ),
    Status.NOT_RUN: "The evidence that the check reads is absent, or the check does not apply.",
    Status.ERROR: "The check itself raised an error. It never counts as passed.",
}
_STAGES: dict[CheckStage, str] = {
    "static": "from text, token ids and settings, without a model",
    "forward": "from a forward pass",
    "backward": "from a backward pass",
    "run": "from the steps of the training run",
    "artefact": "from what was saved, merged and loaded again",
    "evaluation": "from answers to evaluation items",
}
_VERDICTS: dict[Verdict, str] = {
    Verdict.PASS: "every required check is PASS",
    Verdict.FAIL: "a required check is FAIL or ERROR",
    Verdict.INSUFFICIENT_EVIDENCE: (
        "none is FAIL or ERROR, but a required one is INSUFFICIENT_EVIDENCE or NOT_RUN"
    ),
}
_OTHER_CODES = [
    (2, "–", "bad input: the message says what, where, and the fix"),
    (70, "–", "an internal error of tunemath, with its traceback"),
]


def cli_page() -> str:
    """Return docs/cli.md: every command with its usage, arguments, options and example."""
    group: Any = typer.main.get_command(app)
    functions = {info.name: info.callback for info in app.registered_commands}
    commands = [_command(name, made, functions[name]) for name, made in group.commands.items()]
    return _filled(
        "cli.md",
        about=inspect.cleandoc(group.help),
        contents="\n".join(f"- [`tunemath {name}`](#tunemath-{name})" for name in group.commands),
        commands="\n\n".join(commands),
    )


def _command(name: str, command: Any, function: Callable[..., Any] | None) -> str:
    """Return a command's section."""
    purpose, _, example = inspect.cleandoc(command.help).partition("\n\nExample: ")
    hints = get_type_hints(function)
    shown = [parameter for parameter in command.params if not parameter.hidden]
    arguments = [_argument(p) for p in shown if p.param_type_name == "argument"]
    options = ["[OPTIONS]"] if len(shown) > len(arguments) else []
    usage = " ".join(["tunemath", name, *options, *arguments])
    parts = [f"## tunemath {name}", purpose, f"```\n{usage}\n```"]
    if shown:
        header = ("argument or option", "value", "default", "meaning")
        rows = [(_name(p), _value(p, hints[p.name]), _default(p), p.help or "") for p in shown]
        parts.append(_table(header, rows))
    if example:
        parts.append(f"Example: {example}")
    return "\n\n".join(parts)


def _name(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{_argument(parameter)}`"
    return _codes(parameter.opts)


def _argument(parameter: Any) -> str:
    name = (parameter.metavar or parameter.name).strip("[]").upper()
    return name if parameter.required else f"[{name}]"


def _value(parameter: Any, hint: Any) -> str:
    """Return what a parameter takes, and whether it may be repeated; nothing for a flag."""
    if hint is bool:
        return ""
    kinds = [hint, *get_args(hint)]
    literal = next((kind for kind in kinds if get_origin(kind) is Literal), None)
    kind = "path" if Path in kinds else "text"
    value = _alternatives(get_args(literal)) if literal else kind
    if parameter.param_type_name == "option" and parameter.metavar:
        value = f"`{parameter.metavar}`"
    return f"{value}, repeatable" if parameter.multiple else value


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    return f"`{parameter.default}`" if parameter.default not in (None, False) else ""


def contract_page() -> str:
    """Return docs/contract.md: the fields by section, a minimal contract, the data formats."""
    own = [name for name, field in FineTune.model_fields.items() if not records_of(field)]
    sections = [("At the top", "", _rows(FineTune, "", own))]
    for name, field in FineTune.model_fields.items():
        meaning = re.sub(r"^\d ", "", field.description or "")
        records = records_of(field)
        for record in records:
            title, text = f"`{name}`", meaning
            if len(records) > 1:
                title += f" with {_methods(record)}"
                text = re.sub("``", "`", inspect.cleandoc(record.__doc__ or ""))
            sections.append((title, f"{text}\n\n", _rows(record, f"{name}.")))
    header = ("field", "type", "default", "meaning")
    tables = [f"### {title}\n\n{text}{_table(header, rows)}\n" for title, text, rows in sections]
    return _filled("contract.md", fields="\n".join(tables))


def _rows(
    record: type[BaseModel], prefix: str, names: Iterable[str] = ()
) -> Iterator[tuple[str, str, str, str]]:
    """Yield (name, type, default, meaning) of a record's fields, those of inner records too."""
    schema = record.model_json_schema()["properties"]
    for name in names or record.model_fields:
        field = record.model_fields[name]
        if inner := records_of(field):
            yield from _rows(inner[0], f"{prefix}{name}.")
            continue
        default = "required" if field.is_required() else _json(field.default)
        yield f"`{prefix}{name}`", _kind(schema[name]), default, field.description or ""


def _methods(record: type[BaseModel]) -> str:
    return _alternatives(get_args(record.model_fields["method"].annotation))


def _json(value: Any) -> str:
    return "none" if value is None else f"`{json.dumps(value, ensure_ascii=False)}`"


def _kind(schema: dict[str, Any]) -> str:
    """Return a JSON Schema type in words."""
    if "anyOf" in schema:
        kinds = [_kind(arm) for arm in schema["anyOf"] if arm.get("type") != "null"]
        return " or ".join(kinds)
    if "const" in schema or "enum" in schema:
        return _alternatives(schema.get("enum") or [schema["const"]])
    if schema["type"] == "array":
        return f"list of {_kind(schema['items'])}"
    if schema["type"] == "string":
        name = "path" if schema.get("format") == "path" else "text"
        return f"{name} matching `{schema['pattern']}`" if "pattern" in schema else name
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {schema[key]}" for key, sign in signs.items() if key in schema]
    name = {"boolean": "true or false"}.get(schema["type"], schema["type"])
    return f"{name} {' and '.join(bounds)}".strip()


def checks_page() -> str:
    """Return docs/checks.md: every check, the five statuses, the exit codes."""
    items = Checklist().items
    ids = [f"`{check.id}`" for check in items]
    about = [(c.choice, c.stage, "yes" if c.required else "no", c.claim) for c in items]
    covers = [(_codes(c.needs), _codes(c.covers) or "–") for c in items]
    codes = [(v.exit_code, v.value, _VERDICTS[v]) for v in Verdict] + _OTHER_CODES
    return _filled(
        "checks.md",
        count=len(items),
        owed=len(OWED),
        checks=_table(
            ("check", "choice", "stage", "required", "what a PASS proves"),
            [(name, *row) for name, row in zip(ids, about, strict=True)],
        ),
        stages="\n".join(f"- {stage}: {_STAGES[stage]}" for stage in get_args(CheckStage)),
        covers=_table(
            ("check", "reads", "covers"),
            [(name, *row) for name, row in zip(ids, covers, strict=True)],
        ),
        statuses=_table(("status", "meaning"), [(s.value, _STATUSES[s]) for s in Status]),
        codes=_table(("exit code", "verdict", "when"), sorted(codes)),
    )


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a Markdown table; pipes and line breaks inside cells are made safe."""
    cells = [[re.sub(r"\s+", " ", str(c)).replace("|", "\\|") for c in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *cells))


def _alternatives(values: Sequence[Any]) -> str:
    *first, last = (f"`{value}`" for value in values)
    return f"{', '.join(first)} or {last}" if first else last


def _codes(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _filled(page: str, **parts: Any) -> str:
    """Return a page: its template with the generated parts."""
    templates = Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    return f"{_NOTE}\n{templates.get_template(f'{page}.j2').render(parts)}"


# The families in the order of the index.
OBJECTIVE_PAGES = (
    "log-probabilities",
    "sft",
    "divergences",
    "estimators",
    "distillation",
    "preference",
    "reference-free",
    "unpaired",
    "fused",
)


def objective_page(name: str) -> str:
    """Return a page of docs/objective: the template's prose around what the functions say."""
    shown = _documented(name)
    # On a page without sections of its own, each function is one.
    level = "###" if re.search("^## ", _template(name), re.MULTILINE) else "##"
    return _filled(
        f"objective/{name}.md",
        functions=", ".join(f"[`{one}`](#{one.lower()})" for one in shown),
        imports=_imports(shown),
        function=partial(_function, level),
        example=lambda one: _block("python", _examples(one)),
        arxiv=lambda number: f"[arXiv {number}](https://arxiv.org/abs/{number})",
        figure=lambda one: f"![{figures.alt(one)}](figures/{one}.svg)",
        losses=_losses,
    )


def objective_index() -> str:
    """Return docs/objective/index.md: the conventions, and every function with its page."""
    rows = [
        (f"[`{one}`]({page}.md#{one.lower()})", _summary(one))
        for page in OBJECTIVE_PAGES
        for one in _documented(page)
    ]
    table = _table(("function", "what it is"), rows)
    return _filled("objective/index.md", table=table, pages="\n".join(OBJECTIVE_PAGES))


def _documented(page: str) -> list[str]:
    """Return the names that a page's template has a section for, in its order."""
    return re.findall(r"\{\{ function\(\"(\w+)\"\) \}\}", _template(page))


def _template(page: str) -> str:
    return (_HERE / "templates" / "objective" / f"{page}.md.j2").read_text(encoding="utf-8")


def _home(name: str) -> Any:
    """Return the module that a public name is imported from."""
    return next(one for one in (fused, preference, objective) if name in one.__all__)


def _imports(names: Iterable[str]) -> str:
    """Return the statements that a page's examples begin with."""
    examples = "\n".join(_examples(name) for name in names)
    lines = [f">>> import {one}" for one in ("math", "torch") if f"{one}." in examples]
    homes: dict[str, list[str]] = {}
    for name in names:
        homes.setdefault(_home(name).__name__, []).append(name)
    for home, several in homes.items():
        listed = textwrap.wrap(", ".join(sorted(several)) + ",", 90)
        lines += [f">>> from {home} import (", *(f"...     {line}" for line in listed), "... )"]
    return _block("python", "\n".join(lines))


def _function(level: str, name: str) -> str:
    """Return a function's heading, its signature and its first sentence."""
    thing = getattr(_home(name), name)
    parts = [f"{level} {name}"]
    if callable(thing):
        signature = inspect.signature(thing)
        bare = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
        text = f"{name}{inspect.Signature(bare)}"
        parts += [_block("", "\n".join(textwrap.wrap(text, 88, subsequent_indent="    ")))]
        parts += [_summary(name)]
    return "\n\n".join(parts)


def _summary(name: str) -> str:
    thing = getattr(_home(name), name)
    if not callable(thing):
        return "The preference losses by their names."
    first = inspect.cleandoc(thing.__doc__ or "").partition("\n\n")[0]
    return re.sub(r"``", "`", first.partition("\n")[0])


def _examples(name: str) -> str:
    """Return the examples of a function's docstring, with what they give."""
    text = getattr(_home(name), name).__doc__ or ""
    found = (
        doctest.DocTestParser().get_examples(text) if callable(getattr(_home(name), name)) else []
    )
    lines = []
    for one in found:
        first, *rest = one.source.splitlines()
        lines += [f">>> {first}", *(f"... {line}" for line in rest), *one.want.splitlines()]
    return "\n".join(lines)


def _losses() -> str:
    """Return the table of the preference losses by name."""
    rows = []
    for name, loss in preference.PAIR_LOSSES.items():
        parameters = inspect.signature(loss).parameters.values()
        arrays = [p.name for p in parameters if p.default is p.empty]
        rows.append((f"`{name}`", f"`{loss.__name__}`", _codes(arrays)))
    return _table(("name", "function", "needs"), rows)


def _block(language: str, text: str) -> str:
    return f"```{language}\n{text}\n```"


def schema_file() -> str:
    """Return the schema by which an editor completes the contracts of ``examples/``."""
    return json.dumps(contract_schema(), indent=1) + "\n"


PAGES: dict[str, Callable[[], str]] = {
    "checks.md": checks_page,
    "cli.md": cli_page,
    "contract.md": contract_page,
    "finetune.schema.json": schema_file,
    "objective/index.md": objective_index,
    **{f"objective/{name}.md": partial(objective_page, name) for name in OBJECTIVE_PAGES},
    **{f"objective/figures/{name}.svg": partial(figures.svg, name) for name in figures.NAMES},
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the pages, or with ``--check`` compare them; return the exit code."""
    parser = argparse.ArgumentParser(description="Write the generated pages of docs/.")
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    parser.add_argument("--into", type=Path, default=_HERE, help="the folder of the pages")
    options = parser.parse_args(arguments)
    stale = 0
    for name, page in PAGES.items():
        path = options.into / name
        if not options.check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(page(), encoding="utf-8", newline="\n")
        elif not path.is_file() or not _is_current(path, page):
            print(f"{relpath(path)} is stale; renew it with: {_RENEW}", file=sys.stderr)
            stale = 1
    return stale


def _is_current(path: Path, page: Callable[[], str]) -> bool:
    """Return whether a file says what the code does; a figure, whether it plots the same."""
    if path.suffix == ".svg":
        return figures.is_current(path.stem, path.read_text(encoding="utf-8"))
    return path.read_bytes() == page().encode()


if __name__ == "__main__":
    sys.exit(main())
