"""The course in the terminal: a question, a grade, the list."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.markdown import Markdown
from rich.padding import Padding
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from tunemath.course.book import Exercise, exercises
from tunemath.course.formulas import readable
from tunemath.course.grading import Grade, PartGrade
from tunemath.course.workspace import Workspace

__all__ = ["code", "graded", "listed", "markdown", "question"]


def markdown(text: str) -> RenderableType:
    """Return Markdown for the terminal; its formulas as plain characters."""
    return Padding(Markdown(readable(text)), (0, 2))


def code(source: str) -> RenderableType:
    """Return Python in colour."""
    return Padding(Syntax(source, "python", background_color="default"), (0, 2))


def question(exercise: Exercise) -> RenderableType:
    """Return what an exercise asks."""
    head = Text(f"\n{exercise.number}. {exercise.title}\n", style="bold")
    return Group(
        Padding(head, (0, 2)),
        markdown(exercise.question),
        Padding(Text("\nThe second part\n", style="bold"), (0, 2)),
        markdown(exercise.second),
    )


def graded(grade: Grade) -> RenderableType:
    """Return a grade: what is right, and the smallest call that is not."""
    lines: list[RenderableType] = []
    if grade.error:
        lines.append(Text(f"✗ the code does not run: {grade.error}", style="red"))
    for part in grade.parts:
        lines.append(_head(part))
        if not part.passed:
            lines.append(Padding(_failed(part), (0, 4)))
    if grade.printed:
        lines.append(Text(f"\nprinted:\n{grade.printed.rstrip()}", style="dim"))
    return Padding(Group(*lines), (0, 2))


def _head(part: PartGrade) -> Text:
    if part.passed:
        return Text(f"✓ {part.function}: right in all of {part.cases} cases", style="green")
    return Text(f"✗ {part.function}: right in {part.right} of {part.cases} cases", style="red")


def _failed(part: PartGrade) -> RenderableType:
    rows = Table.grid(padding=(0, 1))
    if part.call:
        rows.add_row("call", Text(part.call))
        rows.add_row("expected", Text(part.expected))
        rows.add_row("given", Text(part.given))
    if part.why:
        rows.add_row("where", Text(part.why))
    said = f"**{part.mistake}.** {part.message}" if part.mistake else part.message
    return Group(rows, Markdown(readable(said)))


def listed(workspace: Workspace) -> RenderableType:
    """Return all exercises with what was reached."""
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    progress = workspace.progress()
    for each in exercises():
        entry = progress[each.name]
        mark = Text("✓", style="green") if entry["passed"] else Text("·", style="dim")
        tries = f"{entry['tries']} tries" if entry["tries"] else ""
        hints = f"{entry['hints']} of 3 hints" if entry["hints"] else ""
        table.add_row(mark, str(each.number), each.name, each.title, Text(tries, style="dim"),
                      Text(hints, style="dim"))  # fmt: skip
    return Padding(table, (0, 2))
