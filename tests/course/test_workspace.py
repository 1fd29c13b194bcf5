"""A learner's folder: answers, progress, hints, starting again."""

from __future__ import annotations

import json

import pytest

from tunemath.course.book import exercise, exercises
from tunemath.course.grading import Grade, PartGrade
from tunemath.course.workspace import Workspace
from tunemath.errors import CourseError

ONE, TWO = exercises()[:2]
RIGHT = Grade((PartGrade("f", True, 1, 1),))
WRONG = Grade((PartGrade("f", False, 1, 0),))


def test_an_answer_starts_as_the_starter_and_is_kept(tmp_path):
    workspace = Workspace(tmp_path / "learn")
    assert workspace.source(ONE) == ONE.starter
    assert not workspace.folder.exists()
    path = workspace.open(ONE)
    assert path.name == "01-answer-only-loss.py"
    path.write_text("mine")
    assert workspace.open(ONE).read_text() == "mine" == workspace.source(ONE)


def test_what_was_passed_stays_passed(tmp_path):
    workspace = Workspace(tmp_path)
    for grade in (WRONG, RIGHT, WRONG):
        workspace.record(ONE, grade)
    assert Workspace(tmp_path).progress()[ONE.name] == {"passed": True, "tries": 3, "hints": 0}
    assert workspace.next() is TWO


def test_all_passed_leaves_none(tmp_path):
    workspace = Workspace(tmp_path)
    for each in exercises():
        workspace.record(each, RIGHT)
    assert workspace.next() is None


def test_hints_come_one_by_one_and_end(tmp_path):
    workspace = Workspace(tmp_path)
    assert [workspace.hint(TWO) for _ in range(4)] == [*TWO.hints, None]
    assert workspace.progress()[TWO.name]["hints"] == 3


def test_starting_again_keeps_the_former_answer(tmp_path):
    workspace = Workspace(tmp_path)
    workspace.save(ONE, "first")
    workspace.record(ONE, RIGHT)
    kept = workspace.reset(ONE)
    assert kept is not None
    assert kept.read_text() == "first"
    assert workspace.source(ONE) == ONE.starter
    assert workspace.progress()[ONE.name] == {"passed": False, "tries": 0, "hints": 0}
    assert workspace.reset(ONE) is None
    workspace.save(ONE, "second")
    again = workspace.reset(ONE)
    assert again is not None
    assert (again.read_text(), kept.read_text()) == ("second", "first")


def test_a_damaged_record_is_named(tmp_path):
    (tmp_path / "progress.json").write_text("[1]")
    with pytest.raises(CourseError, match="is not a record of progress; delete it"):
        Workspace(tmp_path).progress()
    (tmp_path / "progress.json").write_text("{")
    with pytest.raises(CourseError, match="not valid JSON"):
        Workspace(tmp_path).progress()
    (tmp_path / "progress.json").write_text(json.dumps({"unknown": {}, ONE.name: 3}))
    assert Workspace(tmp_path).progress()[ONE.name]["tries"] == 0


def test_a_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "x").write_text("")
    with pytest.raises(CourseError, match="is a file; give a folder"):
        Workspace(tmp_path / "x")


def test_an_answer_that_is_no_text_is_named(tmp_path):
    workspace = Workspace(tmp_path)
    workspace.path(exercise("1")).write_bytes(b"\xff\xfe")
    with pytest.raises(CourseError, match="save it as UTF-8 text"):
        workspace.source(ONE)
