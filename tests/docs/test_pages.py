"""The generated pages are current, complete and true, and a stale one is caught."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import pytest
import yaml
from typer.testing import CliRunner

from processes import output_of
from tunemath.cli.app import app
from tunemath.contract import FineTune
from tunemath.mask import read_rows
from tunemath.space.record import METHODS

ROOT = Path(__file__).parents[2]
GENERATE = ROOT / "docs" / "generate.py"
NAMES = ("checks.md", "cli.md", "contract.md")


def load_generate() -> ModuleType:
    sys.path.append(str(GENERATE.parent))
    spec = importlib.util.spec_from_file_location("docs_generate", GENERATE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generate = load_generate()


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def sections(text: str, mark: str) -> dict[str, str]:
    """Cut a page at the headings of one level."""
    parts = re.split(rf"^{mark} (.+)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def test_the_pages_are_current():
    assert generate.main(["--check"]) == 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("missing", [False, True])
def test_a_stale_page_is_named_with_the_command_that_renews_it(name, missing, tmp_path, capsys):
    generate.main(["--into", str(tmp_path)])
    assert generate.main(["--into", str(tmp_path), "--check"]) == 0
    stale = tmp_path / name
    if missing:
        stale.unlink()
    else:
        stale.write_text(stale.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    capsys.readouterr()
    assert generate.main(["--into", str(tmp_path), "--check"]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert errors[0].endswith(f"{name} is stale; renew it with: make docs")


def test_the_pages_do_not_depend_on_the_terminal_or_the_hash_seed(tmp_path):
    environment = {**os.environ, "COLUMNS": "30", "PYTHONHASHSEED": "7", "LC_ALL": "C", "TERM": ""}
    command = [sys.executable, str(GENERATE), "--into", str(tmp_path)]
    output_of(command, env=environment, cwd=tmp_path)
    for name in NAMES:
        assert (tmp_path / name).read_bytes() == (ROOT / "docs" / name).read_bytes()


def test_every_option_that_help_shows_is_on_the_page():
    runner = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"})
    documented = sections(page("cli.md"), "##")
    top = runner.invoke(app, ["--help"]).output
    assert len(documented) >= 14
    for title, text in documented.items():
        name = title.removeprefix("tunemath ")
        assert re.search(rf"\b{name}\b", top)
        shown = runner.invoke(app, [name, "--help"])
        assert shown.exit_code == 0
        assert f"tunemath {name}" in text
        assert "Example: `tunemath" in text
        options = set(re.findall(r"(?<!\S)--[a-z-]+", shown.output)) - {"--help", "--runs."}
        assert options == set(re.findall(r"`(--[a-z-]+)`", text))


def leaves(values: dict[str, Any], prefix: str = "") -> set[str]:
    found: set[str] = set()
    for key, value in values.items():
        name = f"{prefix}{key}"
        found |= leaves(value, f"{name}.") if isinstance(value, dict) else {name}
    return found


def test_every_field_of_the_contract_is_on_the_page_and_the_smallest_contract_is_one():
    text = page("contract.md")
    smallest, other_space = (yaml.safe_load(block) for block in blocks(text, "yaml"))
    assert FineTune.parse(smallest | other_space).space.method == "adapter"
    every = [FineTune.parse(smallest | {"space": {"method": m}}).resolved() for m in METHODS]
    rows = re.findall(r"^\| `([\w.]+)` \| (.*?) \| (.*?) \| (.*) \|$", text, flags=re.MULTILINE)
    assert {row[0] for row in rows} == set().union(*map(leaves, every))
    once = [row[0] for row in rows if not row[0].startswith("space.")]
    assert len(set(once)) == len(once)
    required = {"mask.train", "evaluation.task", "space.method"}
    assert {row[0] for row in rows if row[2] == "required"} == required
    assert all(kind and meaning for _, kind, _, meaning in rows)


@pytest.mark.parametrize(
    ("title", "kind", "rows"),
    [
        ("Training rows for `sft`", "sft", 2),
        ("Training rows for `dpo`", "dpo", 1),
        ("Items for evaluation", "evaluation", 2),
    ],
)
def test_the_example_rows_of_each_data_format_are_read(
    title: str, kind: Literal["sft", "dpo", "evaluation"], rows: int, tmp_path: Path
):
    examples = blocks(sections(page("contract.md"), "###")[title], "json")
    assert len(examples) == rows
    for example in examples:
        file = tmp_path / "rows.jsonl"
        file.write_text(example, encoding="utf-8")
        assert len(read_rows(file, kind)) == 1
