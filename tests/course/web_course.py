"""A server of the course on a folder of its own, and a client that speaks plain HTTP to it."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from processes import LIMIT, joined
from tunemath.course.web.server import CourseServer
from tunemath.course.workspace import Workspace


@contextmanager
def served(folder: Path) -> Iterator[CourseServer]:
    with CourseServer(Workspace(folder)) as server:
        server.api.seconds = 120  # a machine may be busy; a test of the limit sets its own
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            joined(thread)


class Client:
    """Sends what a browser that came by the right address would, and what is asked instead."""

    def __init__(self, server: CourseServer) -> None:
        self.server = server
        self.headers = {
            "Host": server.hosts[0],
            "Origin": f"http://{server.hosts[0]}",
            "Cookie": f"{server.cookie}={server.session}",
            "Content-Type": "application/json",
        }

    def send(self, method: str, path: str, body: bytes | None = None, **changed: str | None) -> Any:
        """Return status, headers and body; a header that is given as None is left out."""
        named = {name.replace("_", "-"): value for name, value in changed.items()}
        connection = http.client.HTTPConnection("127.0.0.1", self.server.server_port, timeout=LIMIT)
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        length = {"Content-Length": str(len(body))} if body is not None else {}
        for name, value in {**self.headers, **length, **named}.items():
            if value is not None:
                connection.putheader(name, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        found = answer.status, answer.headers, answer.read()
        connection.close()
        return found

    def ask(self, action: str, **asked: Any) -> tuple[int, dict[str, Any]]:
        """Return an action's status and answer."""
        status, _, body = self.send("POST", f"/api/{action}", json.dumps(asked).encode())
        return status, json.loads(body)

    def code(self, action: str, source: str, exercise: str = "1") -> tuple[int, dict[str, Any]]:
        """Return what an action on code gives, from the file's present version."""
        _, now = self.ask("open", exercise=exercise)
        return self.ask(action, exercise=exercise, source=source, version=now["version"])
