"""The course from the command line: a newcomer's way through an exercise."""

from __future__ import annotations

import json
import os
import signal
import sys
import urllib.request

import pytest

from processes import LIMIT, started
from tunemath.cli import main
from tunemath.course.book import exercise, exercises

ONE = exercise("1")


def call(capsys, *arguments) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["learn", *arguments])
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_newcomers_way(capsys, tmp_path):
    code, out, _ = call(capsys)
    assert (code, "1. The loss of the answer alone" in out) == (0, True)
    path = tmp_path / "learn/01-answer-only-loss.py"
    assert path.read_text() == ONE.starter
    assert ONE.solution not in out

    path.write_text(ONE.solution.replace("answer.mean()", "np.mean(losses)"))
    code, out, _ = call(capsys, "--grade")
    assert (code, "mean over all tokens" in out) == (1, True)
    code, out, _ = call(capsys, "--hint")
    assert "Select them first" in out

    path.write_text(ONE.solution)
    code, out, _ = call(capsys, "--grade")
    assert (code, "goes on to 2. How far the model moved" in out) == (0, True)
    code, out, _ = call(capsys)
    assert "2. How far the model moved" in out
    code, out, _ = call(capsys, "1", "--practice")
    assert "tunemath mask" in out
    code, out, _ = call(capsys, "1", "--figure", "loss.svg")
    assert (tmp_path / "loss.svg").read_text().startswith("<?xml")


def test_progress_and_grade_as_json(capsys):
    code, out, _ = call(capsys, "3", "--grade", "--json")
    assert code == 1
    found = json.loads(out)
    assert found["passed"] is False
    assert found["parts"][0]["function"] == "lora_parameters"
    _, out, _ = call(capsys, "--list", "--json")
    assert json.loads(out)["lora-count"]["tries"] == 1
    _, out, _ = call(capsys, "kl-movement", "--json")
    assert json.loads(out)["file"].endswith("02-kl-movement.py")


def test_begin_again_and_solution(capsys, tmp_path):
    call(capsys, "2")
    (tmp_path / "learn/02-kl-movement.py").write_text("mine")
    _, out, _ = call(capsys, "2", "--reset")
    assert "your former answer is learn/02-kl-movement.old1.py" in out
    _, out, _ = call(capsys, "2", "--solution")
    assert "log_softmax" in out


def test_bad_input_is_said_in_a_line(capsys):
    assert call(capsys, "12")[::2] == (2, "error: no exercise '12'; there are 1 to 10\n")
    code, _, err = call(capsys, "1", "--figure", "loss.svg")
    assert (code, "`tunemath learn 1 --grade` says what is missing" in err) == (2, True)
    code, _, err = call(capsys, "1", "--figure", "loss.png")
    assert (code, "give a name that ends in .svg" in err) == (2, True)


def test_all_done_is_said(capsys, tmp_path):
    for each in exercises():
        call(capsys, each.name)
        (tmp_path / "learn" / f"{each.number:02d}-{each.name}.py").write_text(each.solution)
        assert call(capsys, each.name, "--grade")[0] == 0
    _, out, _ = call(capsys)
    assert "All ten done" in out


def test_watching_grades_what_is_saved_and_goes_on(tmp_path):
    command = [sys.executable, "-c", "from tunemath.cli import main; main()", "learn", "--watch"]
    with started(command, cwd=tmp_path, env={**os.environ, "COLUMNS": "100"}) as process:
        process.until("Watching")
        (tmp_path / "learn/01-answer-only-loss.py").write_text("def answer_only_loss(a, b): ...\n")
        process.until("no function `batch_loss`", "no function batch_loss")
        (tmp_path / "learn/01-answer-only-loss.py").write_text(ONE.solution)
        process.until("Right.")
        process.write("n\n")
        process.until("02-kl-movement.py")
        process.write("h\nq\n")
        assert "Weigh each logarithm" in process.rest()
        assert process.ended() == 0


def test_the_page_is_served_until_ctrl_c(tmp_path):
    # What a shell runs in the background is born deaf to the signal.
    hearing = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    command = [sys.executable, "-c", hearing + "from tunemath.cli import main; main()"]
    command += ["learn", "--web", "--no-browser", "--json"]
    browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
    with started(command, cwd=tmp_path) as process:
        lines = [process.line() for _ in range(4)]
        address = json.loads("".join(lines))["url"]
        with browser.open(address, timeout=LIMIT) as page:
            assert b"<title>The maths of fine-tuning</title>" in page.read()
        process.process.send_signal(signal.SIGINT)
        assert process.ended() == 0
