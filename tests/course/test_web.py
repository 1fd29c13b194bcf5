"""The course's page over HTTP: who is let in, and that what runs can be stopped."""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import re
import socket
import threading
import time
from contextlib import suppress
from xml.etree import ElementTree

import pytest
from web_course import Client, served

from processes import eventually, joined
from tunemath.course.book import exercise, exercises
from tunemath.course.web import server
from tunemath.course.web.markup import html
from tunemath.course.web.server import CourseServer
from tunemath.course.workspace import Workspace
from tunemath.errors import CourseError

ONE = exercise("1")
ENDLESS = "print('begun')\nwhile True: pass"


@pytest.fixture
def client(tmp_path):
    with served(tmp_path / "learn") as server:
        yield Client(server)


def test_the_token_is_exchanged_for_a_cookie_that_no_other_site_sends(client):
    address = client.server.url.partition(client.server.hosts[0])[2]
    status, headers, _ = client.send("GET", address, Cookie=None)
    assert (status, headers["Location"]) == (303, "/")
    assert re.search(r"; Path=/; HttpOnly; SameSite=Strict$", headers["Set-Cookie"])
    cookie = headers["Set-Cookie"].partition(";")[0]
    assert client.server.token not in cookie
    status, headers, page = client.send("GET", "/", Cookie=cookie)
    assert status == 200
    nonce = re.search(r"'nonce-(.+?)'", headers["Content-Security-Policy"])
    assert nonce
    assert nonce[1].encode() in page
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert client.server.token.encode() not in page


@pytest.mark.parametrize("path", ["/", "/?token=wrong", "/?token=", "/app.js", "/secret"])
def test_without_the_token_there_is_nothing(client, path):
    status, _, body = client.send("GET", path, Cookie=None)
    assert status == 403
    assert b"its token is missing or old" in body
    assert client.send("GET", path, Cookie=f"{client.server.cookie}=wrong")[0] == 403


@pytest.mark.parametrize(
    "changed",
    [
        {"Cookie": None},
        {"Cookie": "tunemath=1; a"},
        {"Origin": None},
        {"Origin": "null"},
        {"Origin": "http://example.org"},
        {"Origin": "http://127.0.0.1:1"},
        {"Host": None},
        {"Host": "example.org"},
        {"Host": "127.0.0.1"},
        {"Host": "example.org", "Origin": "http://example.org"},
    ],
    ids=str,
)
def test_a_foreign_request_runs_nothing(client, changed):
    asked = {"exercise": "1", "source": "open('ran', 'w')", "version": ""}
    for action in ("open", "list", "run", "grade", "hint", "solution", "reset", "stop"):
        status, _, _ = client.send("POST", f"/api/{action}", json.dumps(asked).encode(), **changed)
        assert status == 403
    assert not client.server.api.workspace.folder.exists()


def test_a_foreign_name_does_not_get_the_page(client):
    address = client.server.url.partition(client.server.hosts[0])[2]
    status, headers, _ = client.send("GET", address, Host="rebound.example:80")
    assert (status, headers["Set-Cookie"]) == (403, None)


@pytest.mark.parametrize(
    "path",
    ["//app.js", "///app.css", "http://example.org/app.js", "http://127.0.0.1/app.js", "app.js",
     "*", "/../pyproject.toml", "/%2e%2e/api.py", "/static/app.js", "//etc/passwd", "/index.html",
     "/app.js/../../server.py", "/editor.LICENSE.txt\\..\\x"],
)  # fmt: skip
def test_only_the_pages_own_files_are_given(client, path):
    assert client.send("GET", path)[0] == 404


def slow(client: Client) -> socket.socket:
    """A client that has begun to ask."""
    connection = socket.create_connection(("127.0.0.1", client.server.server_port), timeout=60)
    connection.sendall(b"GET / HTTP/1.1\r\n")
    return connection


def test_who_never_ends_a_request_is_hung_up_on(client, monkeypatch):
    """A line now and then keeps each read short, so the whole is timed."""
    monkeypatch.setattr(server, "_REQUEST", 0.5)
    with slow(client) as connection:
        connection.settimeout(0.1)
        for _ in range(600):
            try:
                connection.sendall(b"X-Slow: yes\r\n")
                if connection.recv(100) == b"":
                    break
            except TimeoutError:
                continue
            except OSError:  # it was closed while we wrote
                break
        else:
            pytest.fail("it could go on for a minute")
    assert client.send("GET", "/")[0] == 200


def test_an_answer_may_take_longer_than_a_request(client, monkeypatch):
    monkeypatch.setattr(server, "_REQUEST", 0.5)
    source = "import time\ntime.sleep(2)\nprint('slept')"
    _, opened = client.ask("open", exercise="1")
    status, done = client.ask("run", exercise="1", source=source, version=opened["version"])
    assert (status, done["printed"]) == (200, "slept\n")


def test_connections_are_limited_and_given_back(client, monkeypatch):
    monkeypatch.setattr(server, "_CONNECTIONS", 5)
    held = [slow(client) for _ in range(5)]
    with slow(client) as sixth, suppress(ConnectionResetError):
        assert sixth.recv(100) == b""
    for connection in held:
        connection.close()
    for _ in range(300):
        with suppress(OSError, http.client.HTTPException):
            if client.send("GET", "/")[0] == 200:
                return
        time.sleep(0.05)
    pytest.fail("closed connections still count")


@pytest.mark.parametrize("name", ["../1", "/etc/passwd", "..", "", "11", "01-answer-only-loss.py"])
def test_no_other_file_can_be_named(client, name):
    status, found = client.ask("save", exercise=name, source="x", version="")
    assert status == 404
    assert found["error"].startswith("no exercise")


def test_bodies_that_are_too_large_or_no_json_are_refused(client):
    def send(body, **changed):
        return client.send("POST", "/api/open", body, **changed)[0]

    assert send(b"x" * 300_000) == 413
    assert send(b"{", Content_Length="9" * 30) == 413
    assert send(None) == 411
    assert send(b"", Content_Length="-1") == 411
    assert send(b"{}", Content_Type="text/plain") == 415
    assert send(b"{") == send(b"[" * 100_000) == send(b"[]") == send(b"\xff") == 400
    assert client.ask("open", exercise=1)[0] == 400
    assert client.ask("open")[0] == 400
    assert client.ask("delete", exercise="1")[0] == 404
    assert client.code("save", "'\ud800'")[0] == 400
    assert client.send("PUT", "/api/open", b"{}")[0] == 501


def test_an_endless_loop_is_stopped_by_time_and_what_it_printed_is_shown(client):
    client.server.api.seconds = 1
    status, found = client.code("run", ENDLESS)
    assert (status, found["printed"]) == (200, "begun\n")
    assert found["ended"].startswith("it ran for more than 1 seconds and was stopped")
    status, found = client.code("grade", ENDLESS)
    assert found["error"].startswith("it ran for more than 1 seconds")
    assert found["list"]["exercises"][0]["tries"] == 1


def test_an_endless_loop_is_stopped_by_hand_and_nothing_runs_beside_it(client):
    answers = []
    thread = threading.Thread(target=lambda: answers.append(client.code("grade", ENDLESS)))
    thread.start()
    eventually(client.server.api._running.locked)
    status, found = client.code("run", "print(1)")
    assert (status, found["error"]) == (
        429, "code is running already, maybe from another tab; stop it first"
    )  # fmt: skip
    assert client.ask("stop") == (200, {})
    joined(thread)
    assert answers[0][1]["error"] == "it was stopped"
    assert answers[0][1]["list"]["exercises"][0]["tries"] == 0
    assert client.code("run", "print(1)")[1]["printed"] == "1\n"


@pytest.mark.parametrize(
    "source",
    ["x = bytearray(10**11)", "x = []\nwhile True: x.append(bytearray(10**8))"],
)
def test_a_memory_hog_is_stopped(client, source):
    client.server.api.seconds = 60
    _, found = client.code("run", source)
    assert found["code"] == 1
    assert found["errors"].rstrip().endswith("MemoryError")
    assert 'File "answer.py", line' in found["errors"]
    assert "tunemath" not in found["errors"]


def test_an_endless_output_is_cut(client):
    _, found = client.code("run", "while True: print('x' * 10_000)")
    assert len(found["printed"]) < 25_000
    assert found["printed"].endswith("more characters")


def test_what_an_answer_starts_ends_with_it(client, tmp_path):
    """The child holds a lock as long as it lives, and says that it has it."""
    mark = tmp_path / "held"
    mark.touch()
    child = (
        f"import fcntl, time\nfile = open({str(mark)!r})\nfcntl.flock(file, fcntl.LOCK_EX)\n"
        "print('held', flush=True)\ntime.sleep(3600)"
    )
    _, found = client.code(
        "run",
        f"import subprocess, sys\ncommand = [sys.executable, '-c', {child!r}]\n"
        "process = subprocess.Popen(command, stdout=subprocess.PIPE)\n"
        "print(process.stdout.readline())",
    )
    assert found["printed"] == "b'held\\n'\n"
    with mark.open() as file:
        eventually(lambda: freed(file))


def freed(file) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def test_the_code_ends_with_the_server(tmp_path):
    mark = tmp_path / "process"
    source = f"import os\nopen({str(mark)!r}, 'w').write(str(os.getpid()))\nwhile True: pass"
    with served(tmp_path / "learn") as server:
        client = Client(server)
        thread = threading.Thread(target=client.code, args=("run", source))
        thread.start()
        eventually(lambda: mark.exists() and mark.read_text())
    joined(thread)
    with pytest.raises(ProcessLookupError):
        os.kill(int(mark.read_text()), 0)


def test_a_newcomers_way(client):
    _, listed = client.ask("list")
    assert (listed["next"], len(listed["exercises"])) == (ONE.name, 10)
    _, page = client.ask("open", exercise=ONE.name)
    assert page["source"] == ONE.starter
    assert "<math" in page["question"]
    assert page["hints"] == []
    assert "answer.size" not in json.dumps(page)

    wrong = ONE.solution.replace("answer.mean()", "np.mean(losses)")
    _, found = client.code("grade", wrong)
    assert not found["passed"]
    assert found["parts"][0]["mistake"] == "mean over all tokens"
    assert [client.ask("hint", exercise="1")[1]["hint"] for _ in range(4)] == [
        *map(html, ONE.hints), None
    ]  # fmt: skip
    assert client.ask("open", exercise="1")[1]["hints"] == [*map(html, ONE.hints)]

    _, found = client.code("grade", ONE.solution)
    assert found["passed"]
    assert found["list"]["next"] == exercises()[1].name
    workspace = Workspace(client.server.api.workspace.folder)
    assert workspace.progress()[ONE.name] == {"passed": True, "tries": 2, "hints": 3}
    assert workspace.source(ONE) == ONE.solution

    _, found = client.code("figure", ONE.solution)
    assert ElementTree.fromstring(found["svg"]).tag.endswith("svg")
    _, found = client.ask("reset", exercise="1")
    assert (found["source"], found["hints"]) == (ONE.starter, [])
    assert found["kept"].endswith("01-answer-only-loss.old1.py")


def test_a_file_that_was_changed_outside_is_not_overwritten(client):
    _, page = client.ask("open", exercise="1")
    client.server.api.workspace.save(ONE, "theirs")
    asked = {"exercise": "1", "source": "mine", "version": page["version"]}
    status, found = client.ask("grade", **asked)
    assert (status, found["source"]) == (409, "theirs")
    assert client.server.api.workspace.source(ONE) == "theirs"
    status, found = client.ask("save", **(asked | {"version": found["version"]}))
    assert status == 200
    assert client.server.api.workspace.source(ONE) == "mine"


def test_a_damaged_record_is_named(client):
    client.ask("open", exercise="1")
    (client.server.api.workspace.folder / "progress.json").write_text("[1]")
    status, found = client.ask("list")
    assert status == 409
    assert "is not a record of progress; delete it" in found["error"]


def test_a_port_that_is_taken_is_named(client, tmp_path):
    with pytest.raises(CourseError, match=r"port \d+ can't be used .*; give another with --port"):
        CourseServer(Workspace(tmp_path), client.server.server_port)


@pytest.mark.parametrize("each", exercises(), ids=lambda each: each.name)
def test_every_formula_is_set(each):
    for text in (each.question, each.second, *each.hints):
        shown = re.sub(r"<code>.*?</code>|<math.*?</math>", "", html(text), flags=re.DOTALL)
        assert not re.search(r"\$|\\[a-z]|&lt;!--", shown), shown
        for formula in re.findall(r"<math.*?</math>", html(text), re.DOTALL):
            assert "\\" not in formula
            ElementTree.fromstring(formula)


def test_html_in_a_text_is_shown_as_text():
    assert html("<script>x</script> `<b>`") == (
        "<p>&lt;script&gt;x&lt;/script&gt; <code>&lt;b&gt;</code></p>\n"
    )


# A mistake is a function of the course, so an answer can import it: one of each part at a time.
IMPORTED = "from tunemath.course.book import exercise\nPARTS = exercise({name!r}).parts\n"
TAKEN = "{part.function} = PARTS[{place}].mistakes[{number} % {count}].answer\n"


def mistaken(each, number):
    source = IMPORTED.format(name=each.name)
    for place, part in enumerate(each.parts):
        source += TAKEN.format(part=part, place=place, number=number, count=len(part.mistakes))
    return source, [part.mistakes[number % len(part.mistakes)] for part in each.parts]


def recognised(client, each, numbers):
    for number in numbers:
        source, mistakes = mistaken(each, number)
        _, found = client.code("grade", source, each.name)
        assert [part["mistake"] for part in found["parts"]] == [m.name for m in mistakes], found


def test_all_ten_pass_with_the_solutions_and_a_mistake_is_recognised_in_each(client):
    for each in exercises():
        recognised(client, each, [0])
        assert client.code("grade", each.solution, each.name)[1]["passed"]
    assert client.ask("list")[1]["next"] is None


@pytest.mark.slow
def test_every_mistake_is_recognised(client):
    for each in exercises():
        recognised(client, each, range(max(len(part.mistakes) for part in each.parts)))
