"""Watch mode grades every save: whenever it comes, however the editor writes it."""

from __future__ import annotations

import os
import queue
from collections.abc import Iterator
from pathlib import Path

import pytest

from tunemath.course import watching
from tunemath.course.book import exercise
from tunemath.course.grading import Grade
from tunemath.course.watching import Saves
from tunemath.course.workspace import Workspace

ONE = exercise("1")


class Screen:
    """A console and a keyboard; what is shown can be answered by a save or a key."""

    def __init__(self) -> None:
        self.shown: list[str] = []
        self.answers: list[tuple[str, object]] = []
        self.typed: queue.Queue[str] = queue.Queue()

    def print(self, what: object = "", **_: object) -> None:
        self.shown.append(str(what))
        if self.answers and self.answers[0][0] in str(what):
            _, act = self.answers.pop(0)
            self.typed.put(act) if isinstance(act, str) else act()  # type: ignore[operator]

    def rule(self, **_: object) -> None:
        self.print("───")

    def __iter__(self) -> Iterator[str]:
        return iter(self.typed.get, "the end")


@pytest.fixture
def screen(monkeypatch) -> Iterator[Screen]:
    screen = Screen()
    monkeypatch.setattr(watching, "Console", lambda: screen)
    monkeypatch.setattr(watching.sys, "stdin", screen)
    monkeypatch.setattr(watching, "_PAUSE", 0.001)
    monkeypatch.setattr(watching, "shown", lambda found: f"graded {found.printed}")
    monkeypatch.setattr(watching, "question", lambda each: f"the question {each.number}")
    yield screen
    screen.typed.put("the end")


@pytest.fixture
def tried(monkeypatch) -> list[str]:
    """What was graded; no process is started for it."""
    sources: list[str] = []

    def graded(name: str, source: str) -> Grade:
        sources.append(source)
        return Grade((), source)

    monkeypatch.setattr(watching, "graded", graded)
    return sources


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    return Workspace(tmp_path / "learn")


@pytest.mark.parametrize("moment", ["the question", "Watching"])
def test_a_save_while_the_screen_is_drawn_is_graded(screen, tried, workspace, moment):
    path = workspace.path(ONE)
    screen.answers = [(moment, lambda: path.write_text("mine")), ("graded mine", "q")]
    watching.watched(workspace, ONE)
    assert tried == ["mine"]
    assert workspace.progress()[ONE.name]["tries"] == 1


def test_a_save_while_another_is_graded_is_graded_after_it(screen, tried, workspace):
    path = workspace.path(ONE)
    screen.answers = [
        ("Watching", lambda: path.write_text("first")),
        ("graded first", lambda: path.write_text("second")),
        ("graded second", "q"),
    ]
    watching.watched(workspace, ONE)
    assert tried == ["first", "second"]


def test_what_was_written_before_is_graded_and_a_starter_is_not(screen, tried, workspace):
    workspace.save(ONE, "mine")
    screen.answers = [("graded mine", "n"), ("the question 2", "q")]
    watching.watched(workspace, ONE)
    assert tried == ["mine"]
    assert workspace.progress()["kl-movement"]["tries"] == 0


def test_a_file_that_is_no_text_is_said_and_watching_goes_on(screen, tried, workspace):
    path = workspace.path(ONE)
    screen.answers = [
        ("Watching", lambda: path.write_bytes("é = 1".encode("latin-1"))),
        ("save it as UTF-8", lambda: path.write_text("é = 1", encoding="utf-8")),
        ("graded", "q"),
    ]
    watching.watched(workspace, ONE)
    assert tried == ["é = 1"]


STARTER = "def f(): ...\n"


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "answer.py"
    path.write_text(STARTER)
    return path


def polled(saves: Saves, times: int = 4) -> list[bytes]:
    """What some looks at the file give."""
    return [found for found in (saves.new() for _ in range(times)) if found is not None]


def at(path: Path, content: str, when: int = 10**18) -> None:
    """Save, at a time of the file system's clock."""
    path.write_text(content)
    os.utime(path, ns=(when, when))


def test_each_save_is_given_once(file):
    saves = Saves(file, STARTER)
    assert polled(saves) == []
    at(file, "one")
    assert polled(saves) == [b"one"]
    at(file, "two", 2 * 10**18)
    assert polled(saves) == [b"two"]


def test_a_save_in_the_same_tick_of_the_clock_is_seen(file):
    saves = Saves(file, STARTER)
    at(file, "one")
    assert polled(saves) == [b"one"]
    at(file, "two")  # of the same size, at the same time, in the same file
    assert polled(saves) == [b"two"]


def test_a_save_of_the_same_text_is_seen(file):
    saves = Saves(file, STARTER)
    at(file, "one")
    assert polled(saves) == [b"one"]
    at(file, "one", 2 * 10**18)
    assert polled(saves) == [b"one"]


def test_a_save_by_rename_is_seen_and_a_file_that_is_gone_for_a_moment_is_no_save(file, tmp_path):
    saves = Saves(file, STARTER)
    at(file, "one")
    assert polled(saves) == [b"one"]
    file.unlink()
    assert polled(saves) == []
    at(file, "one")  # the same file is back, by its time, size and text
    polled(saves)  # a save or none: its inode may be the former one's
    at(tmp_path / "new", "two")
    (tmp_path / "new").replace(file)
    assert polled(saves) == [b"two"]


def test_half_a_save_is_not_given(file):
    saves = Saves(file, STARTER)
    assert polled(saves) == []
    at(file, "")  # an editor that empties the file first
    assert saves.new() is None
    at(file, "whole")
    assert polled(saves) == [b"whole"]


def test_what_cannot_be_read_is_no_save(file):
    saves = Saves(file, STARTER)
    assert polled(saves) == []
    file.unlink()
    file.mkdir()
    assert polled(saves) == []
