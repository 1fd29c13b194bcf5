"""`tunemath learn`: the ten exercises."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunemath.cli.options import AsJson
from tunemath.cli.output import print_json

if TYPE_CHECKING:
    from tunemath.course.book import Exercise
    from tunemath.course.workspace import Workspace

__all__ = ["register"]

_FOLDER = Path("learn")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("learn")(_learn)


def _learn(
    which: Annotated[
        str | None, typer.Argument(metavar="[EXERCISE]", help="Its number or name; else the next.")
    ] = None,
    listed: Annotated[
        bool, typer.Option("--list", help="All exercises and your progress.")
    ] = False,
    grade: Annotated[bool, typer.Option("--grade", help="Grade once; exit code 0 or 1.")] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Grade each time the file is saved, then go on.")
    ] = False,
    hint: Annotated[bool, typer.Option("--hint", help="The next of three hints.")] = False,
    figure: Annotated[
        Path | None, typer.Option("--figure", metavar="FILE", help="Draw with your functions.")
    ] = None,
    practice: Annotated[
        bool, typer.Option("--practice", help="What does this on a real model; sources.")
    ] = False,
    notebooks: Annotated[
        Path | None, typer.Option("--notebooks", metavar="DIR", help="Write all as notebooks.")
    ] = None,
    web: Annotated[
        bool, typer.Option("--web", help="A page in your browser, with an editor.")
    ] = False,
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="With --web; else any that is free.")
    ] = 0,
    no_browser: Annotated[
        bool, typer.Option("--no-browser", help="With --web: print the address only.")
    ] = False,
    solution: Annotated[bool, typer.Option("--solution", help="Show a solution.")] = False,
    reset: Annotated[
        bool, typer.Option("--reset", help="Begin again; your answer is kept beside.")
    ] = False,
    folder: Annotated[
        Path, typer.Option("--dir", metavar="DIR", help="Where answers and progress are kept.")
    ] = _FOLDER,
    as_json: AsJson = False,
) -> None:
    """Learn the maths of fine-tuning: ten exercises, graded, each leading to a real model.

    Example: `tunemath learn`, then write into the file that it names, then `tunemath learn --grade`
    (or leave `tunemath learn --watch` running beside your editor). All of it in a browser:
    `tunemath learn --web`.
    """
    from tunemath.course.book import exercise
    from tunemath.course.workspace import Workspace

    if notebooks is not None:
        _notebooks(notebooks)
        return
    workspace = Workspace(folder)
    if web:
        _serve(workspace, port, not no_browser, as_json)
        return
    chosen = exercise(which) if which else workspace.next()
    if listed or chosen is None:
        _show_list(workspace, as_json)
    elif watch:
        from tunemath.course.watching import watched

        watched(workspace, chosen)
    elif grade:
        _grade(workspace, chosen, as_json)
    elif figure is not None:
        _draw(workspace, chosen, figure)
    elif reset:
        kept = workspace.reset(chosen)
        typer.echo(f"{workspace.path(chosen)} is the starter again")
        if kept is not None:
            typer.echo(f"your former answer is {kept}")
    else:
        _show(workspace, chosen, hint=hint, practice=practice, solution=solution, as_json=as_json)


def _console() -> Any:
    from rich.console import Console

    return Console(width=min(Console().width, 100))


def _show_list(workspace: Workspace, as_json: bool) -> None:
    if as_json:
        print_json(workspace.progress())
        return
    from tunemath.course.terminal import listed

    console = _console()
    console.print(listed(workspace))
    if workspace.next() is None:
        console.print("\n  All ten done. Next: `tunemath init`, and a contract of your own.\n")


def _show(
    workspace: Workspace,
    chosen: Exercise,
    *,
    hint: bool,
    practice: bool,
    solution: bool,
    as_json: bool,
) -> None:
    """Show one text of an exercise: its question, or what was asked for."""
    from tunemath.course.terminal import code, markdown, question

    if hint:
        text = workspace.hint(chosen) or (
            "That were all three hints. `tunemath learn --solution` shows a solution."
        )
    elif practice:
        text = f"{chosen.practice}\n\n### Sources\n\n{chosen.sources}"
    elif solution:
        text = chosen.solution
    else:
        text = f"{chosen.question}\n\n{chosen.second}"
    path = workspace.open(chosen)
    if as_json:
        print_json({"exercise": chosen.name, "file": str(path), "text": text})
        return
    console = _console()
    if not (hint or practice or solution):
        console.print(question(chosen))
        console.print(f"\n  Write into {path}, then: tunemath learn --grade", style="bold")
        console.print("  Stuck? tunemath learn --hint\n", style="dim")
    else:
        console.print(code(text) if solution else markdown(text))


def _grade(workspace: Workspace, chosen: Exercise, as_json: bool) -> None:
    from dataclasses import asdict

    from tunemath.course.isolated import graded
    from tunemath.course.terminal import graded as shown

    workspace.open(chosen)
    found = graded(chosen.name, workspace.source(chosen))
    workspace.record(chosen, found)
    if as_json:
        print_json({"exercise": chosen.name, "passed": found.passed, **asdict(found)})
    else:
        console = _console()
        console.print(shown(found))
        if found.passed:
            console.print(_after(workspace, chosen))
    raise typer.Exit(0 if found.passed else 1)


def _after(workspace: Workspace, chosen: Exercise) -> str:
    following = workspace.next()
    more = f"tunemath learn {chosen.number} --practice shows it on a real model"
    if following is None:
        return f"\n  All ten done. {more}.\n"
    return f"\n  {more};\n  tunemath learn goes on to {following.number}. {following.title}\n"


def _notebooks(folder: Path) -> None:
    from tunemath.course.notebook import write_notebooks

    written = write_notebooks(folder)
    typer.echo(f"wrote {len(written)} notebooks to {folder}; open one with: jupyter lab {folder}")


def _serve(workspace: Workspace, port: int, browser: bool, as_json: bool) -> None:
    import threading
    import webbrowser

    from tunemath.course.web.server import CourseServer

    with CourseServer(workspace, port) as server:
        if as_json:
            print_json({"url": server.url, "folder": str(workspace.folder)})
        else:
            typer.echo(f"the course is at {server.url}\nCtrl+C ends it; your answers stay in "
                       f"{workspace.folder}")  # fmt: skip
        sys.stdout.flush()
        if browser:  # a browser of the terminal's would not come back
            threading.Thread(target=webbrowser.open, args=(server.url,), daemon=True).start()
        with suppress(KeyboardInterrupt):
            server.serve_forever()


def _draw(workspace: Workspace, chosen: Exercise, file: Path) -> None:
    from tunemath.course.isolated import pictured
    from tunemath.errors import CourseError
    from tunemath.storage import write_text

    if file.suffix != ".svg":
        raise CourseError(f"{file}: figures are written as SVG; give a name that ends in .svg")
    svg, error = pictured(chosen.name, workspace.source(chosen))
    if error:
        raise CourseError(f"{error}. `tunemath learn {chosen.number} --grade` says what is missing")
    write_text(file, svg.decode())
    typer.echo(f"wrote {file}")
