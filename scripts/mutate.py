"""Plant small faults in the code, one at a time, and name those that no test notices.

python scripts/mutate.py                          300 places, drawn with seed 0, over all rooms
python scripts/mutate.py --jobs 2 --seed 7        another sample, two mutants at once
python scripts/mutate.py --count 20 src/tunemath/budget/schedule.py
python scripts/mutate.py --again                  the survivors once more, after tests were added
python scripts/mutate.py --list                   what would be planted; nothing is run

cosmic-ray supplies the faults (a comparison, a sum, a number, a condition, a loop … replaced) and
keeps the results in build/mutants, which a second call goes on from; without that folder all begins
anew. A fault is planted in a copy of the tree, and the tests nearest to its file run until one
fails: those of the folder that mirrors the file's, and those that import it.

A place is drawn by the hash of its line, not by its number, so what is changed elsewhere leaves the
sample as it was. Nothing is planted where no test could or should notice: in text, annotations,
decorators, errors that are raised, imports for types, `strict` of zip.

The exit code is 0, however many survive, and 1 if the tests fail without a fault.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import difflib
import functools
import hashlib
import multiprocessing
import os
import queue
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import parso
import pytest
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.ast.ast_query import ASTQuery
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.number_replacer import NumberReplacer
from cosmic_ray.operators.operator import Operator
from cosmic_ray.plugins import get_operator, operator_names
from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import MutationSpec, TestOutcome, WorkerOutcome, WorkItem, WorkResult
from rich.console import Console
from rich.progress import track

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "build" / "mutants"
FINDINGS = ROOT / "tests" / "checks"  # where every check is held to its limits
ROOMS = (
    "evaluation", "mask", "budget", "report", "checks", "findings.py", "space/checks.py",
    "space/product_checks.py", "objective/checks.py",
)  # fmt: skip
# Tests that hold a file without importing it by name.
ALSO = {
    "activations.py": ("tests/runner/test_tracing.py",),
    "record.py": ("tests/test_contract.py",),
    "product_checks.py": ("tests/runner/test_verifying.py",),
}
SECONDS = 120  # of processor time for one mutant: many times what its tests take
HEAVY = ("numpy", "scipy.stats", "torch", "transformers", "peft", "matplotlib.pyplot", "pytest")
ALIKE = tuple(
    frozenset(words.split())
    for words in (
        "Eq NotEq Lt LtE Gt GtE", "Is IsNot", "Add Sub Mul Div FloorDiv Mod Pow",
        "BitOr BitAnd BitXor",
    )
)  # fmt: skip


class WholeNumber(NumberReplacer):
    """Replace a whole number by its neighbours."""

    def mutation_positions(self, node):
        """Return the number's place, twice."""
        return super().mutation_positions(node) if _is_whole(node) else ()


class Nudge(NumberReplacer):
    """Move a threshold or factor by a tenth of itself, up or down."""

    def mutation_positions(self, node):
        """Return the number's place, twice."""
        return () if _is_whole(node) else super().mutation_positions(node)

    def mutate(self, node, index):
        """Return the number moved."""
        value = ast.literal_eval(node.value) * (1.1, 0.9)[index]
        if not value:  # a tenth of nothing
            return super().mutate(node, index)
        return parso.python.tree.Number(f" {value!r}", node.start_pos)


def _is_whole(node) -> bool:
    return node.type == "number" and isinstance(ast.literal_eval(node.value), int)


@functools.cache
def operators() -> dict[str, Operator]:
    """Return cosmic-ray's operators whose faults a test can see, by name."""
    chosen: dict[str, Operator] = {"WholeNumber": WholeNumber(), "Nudge": Nudge()}
    for name in operator_names():
        kind, *pair = name.removeprefix("core/").split("_")
        if kind.endswith(("BinaryOperator", "ComparisonOperator")):
            if not any(group.issuperset(pair) for group in ALIKE):
                continue  # `a < b` to `a is b` says nothing of a test
        elif kind in ("NumberReplacer", "RemoveDecorator") or get_operator(name).arguments():
            continue
        chosen["_".join((kind, *pair))] = get_operator(name)()
    return chosen


def _unseen(node) -> bool:
    """Return whether the node stands where no test could or should notice a fault."""
    while (parent := node.parent) is not None:
        kind = parent.type
        if kind in ("decorator", "raise_stmt"):
            return True
        if kind == "annassign" and node is parent.children[1]:
            return True
        if kind == "tfpdef" and node is parent.children[2]:
            return True
        if kind == "funcdef" and node is parent.annotation:
            return True
        if kind == "argument" and parent.get_code().strip().startswith("strict="):
            return True
        if kind == "if_stmt" and parent.children[1].get_code().strip() == "TYPE_CHECKING":
            return True
        node = parent
    return False


def mutants(path: Path) -> Iterator[tuple[str, MutationSpec]]:
    """Yield each fault of a file, with a name that holds as long as its line does."""
    source = (ROOT / path).read_text("utf-8")
    tree, lines = get_ast(source), source.splitlines()
    seen: Counter[str] = Counter()
    for operator_name, operator in operators().items():
        nodes = ((node, operator.mutation_positions(node)) for node in ast_nodes(tree))
        places = ((node, *place) for node, found in nodes for place in found)
        for occurrence, (node, start, end) in enumerate(places):
            definition = ASTQuery(node).get_definition_name()
            name = f"{path}|{definition}|{operator_name}|{lines[start[0] - 1].strip()}"
            seen[name] += 1
            if not _unseen(node):
                spec = MutationSpec(
                    module_path=path,
                    operator_name=operator_name,
                    occurrence=occurrence,
                    start_pos=start,
                    end_pos=end,
                    definition_name=definition,
                )
                yield f"{name}|{seen[name]}", spec


def draw(files: Sequence[Path], seed: int, count: int) -> list[WorkItem]:
    """Return one fault at each of ``count`` places; a place with many operators counts once."""
    least: dict[tuple[object, ...], WorkItem] = {}
    for path in files:
        for name, spec in mutants(path):
            place = (path, spec.operator_name.split("_")[0], spec.start_pos)
            key = hashlib.sha256(f"{seed}|{name}".encode()).hexdigest()
            if place not in least or key < least[place].job_id:
                least[place] = WorkItem.single(key, spec)
    return sorted(least.values(), key=lambda item: item.job_id)[:count]


@functools.cache
def imported(path: Path) -> set[str]:
    """Return the modules, and the names within modules, that a test file imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@functools.cache
def nearest(path: Path) -> list[str]:
    """Return the tests of a source file: its own first, then its doctests and the others."""
    inside = path.relative_to("src/tunemath")
    module = "tunemath." + ".".join(inside.with_suffix("").parts)
    module = module.removesuffix(".__init__")
    own = [test for test in (ROOT / "tests").rglob("test_*.py") if module in imported(test)]
    folder = sorted((ROOT / "tests" / inside.parent).glob("test_*.py"))
    if "checks" in path.as_posix():
        folder = sorted({*(ROOT / "tests").rglob("test_*checks.py"), *FINDINGS.glob("test_*.py")})
    elif inside.parent == Path():
        folder = []
    tests = dict.fromkeys(str(test.relative_to(ROOT)) for test in (*sorted(own), *folder))
    named = [test for test in tests if Path(test).stem == f"test_{path.stem}"]
    return [*dict.fromkeys((*named, str(path), *tests, *ALSO.get(path.name, ())))]


def copy_tree(to: Path) -> Path:
    """Copy what git tracks, and what is new, from the working tree."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.split("\0")  # fmt: skip
    for name in filter(None, listed):
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)
    return to


def run_pytest(tree: Path, tests: Sequence[str], seconds: int, log: Path) -> None:
    """Run the tests of a tree in this process, a fork that has the libraries; exit as pytest."""
    os.setpgrp()  # what the tests start ends with them
    os.chdir(tree)
    os.environ["PYTHONPATH"] = str(tree / "src")
    sys.path.insert(0, str(tree / "src"))
    sys.argv[:] = ["pytest"]
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    if seconds:
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    sys.dont_write_bytecode = True
    # What is imported already can't have its assertions rewritten.
    options = ("-q", "-x", "--assert=plain", "-p", "no:cacheprovider", "-m", "not slow")
    code = pytest.main([*options, *tests])
    sys.stdout.flush()
    os._exit(code)


class Bench:
    """Copies of the tree, one for each mutant that runs at once, and forks that test them."""

    def __init__(self, folder: Path, jobs: int) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["__main__", *HEAVY])
        self._free: queue.Queue[Path] = queue.Queue()
        for index in range(jobs):
            self._free.put(copy_tree(folder / f"tree-{index}"))

    def test(self, tests: Sequence[str]) -> tuple[int, str]:
        """Run tests on a tree as it is; return pytest's exit code and the end of its output."""
        tree = self._free.get()
        try:
            return self._fork(tree, tests, seconds=0)
        finally:
            self._free.put(tree)

    def judge(self, item: WorkItem) -> WorkResult:
        """Plant one fault, run the nearest tests, and return what became of it."""
        (spec,) = item.mutations
        tree = self._free.get()
        file = tree / spec.module_path
        source = file.read_text("utf-8")
        try:
            text = mutate_code(source, operators()[spec.operator_name], spec.occurrence)
            file.write_text(text, encoding="utf-8")
            code, output = self._fork(tree, nearest(spec.module_path), SECONDS)
            if code in (pytest.ExitCode.USAGE_ERROR, pytest.ExitCode.NO_TESTS_COLLECTED):
                raise SystemExit(f"no tests ran for {spec.module_path}:\n{output}")
        finally:
            file.write_text(source, encoding="utf-8")
            self._free.put(tree)
        lines = difflib.ndiff(source.splitlines(), text.splitlines())
        return WorkResult(
            worker_outcome=WorkerOutcome.NORMAL,
            test_outcome=TestOutcome.KILLED if code else TestOutcome.SURVIVED,
            output=f"exit {code}\n{output}",
            diff="\n".join(line for line in lines if line[:2] in ("- ", "+ ")),
        )

    def _fork(self, tree: Path, tests: Sequence[str], seconds: int) -> tuple[int, str]:
        log = tree / "pytest.log"
        process = self._context.Process(target=run_pytest, args=(tree, tests, seconds, log))
        process.start()
        process.join(20 * seconds or None)  # it may sleep and use no processor time at all
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.join()
        return process.exitcode, "\n".join(log.read_text(errors="replace").splitlines()[-12:])


def tell(console: Console, sample: Sequence[WorkItem], results: dict[str, WorkResult]) -> None:
    """Print what survived, where, and how many of each folder."""
    alive = [item for item in sample if not results[item.job_id].is_killed]
    for spec, item in sorted(
        ((item.mutations[0], item) for item in alive),
        key=lambda pair: (pair[0].module_path, pair[0].start_pos),
    ):
        where = f"{spec.module_path}:{spec.start_pos[0]}"
        console.print(f"\n{where}  {spec.operator_name}", style="bold", highlight=False)
        console.print(results[item.job_id].diff, markup=False, highlight=False)
    rooms = Counter(str(item.mutations[0].module_path.parent) for item in sample)
    lived = Counter(str(item.mutations[0].module_path.parent) for item in alive)
    console.print()
    for room, planted in sorted(rooms.items()):
        console.print(f"{room}: {lived[room]} of {planted} survive", highlight=False)
    console.print(f"{len(alive)} of {len(sample)} survive", style="bold", highlight=False)


def run(console: Console, todo: Sequence[WorkItem], jobs: int, database: WorkDB) -> None:
    """Test each fault, after the tests were seen to pass without one."""
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), jobs)
        tests = {test for item in todo for test in nearest(item.mutations[0].module_path)}
        code, output = bench.test(sorted(tests))
        if code:
            raise SystemExit(f"the tests fail without a fault (exit {code}):\n{output}")
        pool = ThreadPoolExecutor(jobs)
        running = {pool.submit(bench.judge, item): item for item in todo}
        try:
            for done in track(as_completed(running), "mutants", len(todo), console=console):
                database.set_result(running[done].job_id, done.result())
        finally:
            pool.shutdown(cancel_futures=True)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="*", type=Path, help="source files or folders; all rooms")
    parser.add_argument("--count", type=int, default=300, help="places to plant a fault at (300)")
    parser.add_argument("--seed", type=int, default=0, help="which places (0)")
    parser.add_argument("--jobs", type=int, default=1, help="mutants at once (1)")
    parser.add_argument("--again", action="store_true", help="run what survived once more")
    parser.add_argument("--list", action="store_true", help="show the sample and run nothing")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw, run what has no result yet, tell."""
    options, console = parse(arguments), Console()
    given = options.files or [ROOT / "src" / "tunemath" / room for room in ROOMS]
    files = sorted(
        found.resolve().relative_to(ROOT)
        for path in given
        for found in (path.rglob("*.py") if path.is_dir() else [path])
    )
    sample = draw(files, options.seed, options.count)
    if options.list:
        for item in sample:
            (spec,) = item.mutations
            print(f"{spec.module_path}:{spec.start_pos[0]} {spec.operator_name}")
        return
    RESULTS.mkdir(parents=True, exist_ok=True)
    with use_db(RESULTS / f"seed-{options.seed}.sqlite") as database:
        known = {item.job_id for item in database.work_items}
        database.add_work_items(item for item in sample if item.job_id not in known)
        results = dict(database.results)
        todo = [
            item
            for item in sample
            if item.job_id not in results or (options.again and not results[item.job_id].is_killed)
        ]
        if todo:
            run(console, todo, options.jobs, database)
        tell(console, sample, dict(database.results))


if __name__ == "__main__":
    os.environ |= {
        "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1",
        "MPLBACKEND": "agg",
    }  # fmt: skip
    main()
