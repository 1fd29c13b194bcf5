"""Serve the page on this machine, to who has the address that the terminal printed.

The page can run code, so a request must prove where it comes from. The server listens on the
loopback address only. The address holds a token that is exchanged for a cookie of this site alone
(`SameSite=Strict`, unreadable by scripts); everything else needs the cookie. `Host` must be this
server's own name, or a foreign name that resolves to 127.0.0.1 could read along (DNS rebinding).
What acts is a POST of JSON whose `Origin` is this server. The page may load nothing from elsewhere.
"""

from __future__ import annotations

import hmac
import json
import math
import secrets
import socket
import time
from contextlib import suppress
from functools import cache
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tunemath.course.web.api import Api, Refused
from tunemath.course.workspace import Workspace
from tunemath.errors import CourseError, TunemathError

__all__ = ["CourseServer"]

_ADDRESS = "127.0.0.1"
_BODY = 256 * 1024
_SECONDS = 60
_REQUEST = 10
"""Seconds within which a request must have been sent, whole."""
_CONNECTIONS = 128
"""How many may be open at once; a browser needs six."""
_STATIC = {
    "/app.js": "text/javascript",
    "/editor.js": "text/javascript",
    "/app.css": "text/css",
    "/icon.svg": "image/svg+xml",
}
_HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'nonce-{nonce}'; "
    "img-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
_LOCKED = "Open the whole address that `tunemath learn --web` printed; its token is missing or old."


class CourseServer(ThreadingHTTPServer):
    """The page and its API; port 0 takes any that is free."""

    daemon_threads = True

    def __init__(self, workspace: Workspace, port: int = 0) -> None:
        self.api = Api(workspace)
        self.token = secrets.token_urlsafe(32)
        self.session = secrets.token_urlsafe(32)
        self._until: dict[Any, float] = {}
        try:
            super().__init__((_ADDRESS, port), _Handler)
        except OSError as error:
            raise CourseError(f"port {port} can't be used ({error.strerror}); give another with "
                              "--port, or none for any that is free") from error  # fmt: skip

    @property
    def hosts(self) -> tuple[str, str]:
        """The names that this server answers to."""
        return f"{_ADDRESS}:{self.server_port}", f"localhost:{self.server_port}"

    @property
    def cookie(self) -> str:
        """The cookie's name: cookies are shared between ports, so it holds this one."""
        return f"tunemath-{self.server_port}"

    @property
    def url(self) -> str:
        """The address to open, with the token."""
        return f"http://{self.hosts[0]}/?token={self.token}"

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread of its own, unless too many are open."""
        if len(self._until) >= _CONNECTIONS:
            self.shutdown_request(request)
            return
        self._until[request] = time.monotonic() + _REQUEST
        super().process_request(request, client_address)

    def service_actions(self) -> None:
        """Hang up on who takes too long to ask; called twice a second."""
        now = time.monotonic()
        for request, until in list(self._until.items()):
            if now > until:
                with suppress(OSError):
                    request.shutdown(socket.SHUT_RDWR)

    def was_read(self, request: Any) -> None:
        """Let a request that was sent whole take what time its answer needs."""
        self._until[request] = math.inf

    def shutdown_request(self, request: Any) -> None:
        """Forget a connection, and close it."""
        self._until.pop(request, None)
        super().shutdown_request(request)

    def server_close(self) -> None:
        """End the learner's code too."""
        super().server_close()
        self.api.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that hangs up in the middle of an answer is no error."""


class _Handler(BaseHTTPRequestHandler):
    server: CourseServer  # type: ignore[assignment]
    timeout = _SECONDS

    def do_GET(self) -> None:
        self._answered(self._get)

    def do_POST(self) -> None:
        self._answered(self._post)

    def _answered(self, answer: Any) -> None:
        try:
            answer()
        except Refused as refused:
            self._send_json(refused.status, refused.body)
        except TunemathError as error:
            self._send_json(409, {"error": str(error)})

    def _at_home(self) -> None:
        target = self.requestline.split()[1]  # `path` has lost a second slash
        if not target.startswith("/") or target.startswith("//"):
            raise Refused(404, "there is no such page")
        if self.headers.get("Host") not in self.server.hosts:
            raise Refused(403, f"this server is {self.server.hosts[0]} and no other")

    def _get(self) -> None:
        self.server.was_read(self.connection)
        self._at_home()
        address = urlsplit(self.path)
        given = parse_qs(address.query).get("token", [""])[0]
        if address.path == "/" and _equal(given, self.server.token):
            self._send_cookie()
        elif not self._known():
            self._send(403, "text/plain", _LOCKED.encode())
        elif address.path == "/":
            nonce = secrets.token_urlsafe(16)
            page = _file("index.html").replace(b"{{nonce}}", nonce.encode())
            self._send(200, "text/html", page, {"Content-Security-Policy": _policy(nonce)})
        elif address.path in _STATIC:
            self._send(200, _STATIC[address.path], _file(address.path[1:]))
        else:
            raise Refused(404, "there is no such page")

    def _post(self) -> None:
        body = self._body()
        self.server.was_read(self.connection)
        self._at_home()
        if self.headers.get("Origin") != f"http://{self.headers['Host']}":
            raise Refused(403, "only the page itself may ask for this")
        if not self._known():
            raise Refused(403, _LOCKED)
        if self.headers.get_content_type() != "application/json":
            raise Refused(415, "send JSON")
        try:
            asked = json.loads(body)
        except (ValueError, RecursionError):
            raise Refused(400, "this is no JSON") from None
        if not isinstance(asked, dict):
            raise Refused(400, "send a JSON object")
        action = urlsplit(self.path).path.removeprefix("/api/")
        self._send_json(200, self.server.api.answer(action, asked))

    def _known(self) -> bool:
        try:
            cookie = SimpleCookie(self.headers.get("Cookie", "")).get(self.server.cookie)
        except CookieError:
            return False
        return cookie is not None and _equal(cookie.value, self.server.session)

    def _body(self) -> bytes:
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            raise Refused(411, "how long is the body? Content-Length is missing")
        if int(length) > _BODY:
            self.connection.settimeout(1)  # a client that still sends would not hear the answer
            with suppress(TimeoutError):
                self.rfile.read(min(int(length), 4 * _BODY))
            raise Refused(413, f"an answer may have {_BODY // 1024} KiB at most")
        return self.rfile.read(int(length))

    def _send_cookie(self) -> None:
        cookie = f"{self.server.cookie}={self.server.session}; Path=/; HttpOnly; SameSite=Strict"
        self._send(303, "text/plain", b"", {"Location": "/", "Set-Cookie": cookie})

    def _send_json(self, status: int, body: dict[str, Any]) -> None:
        self._send(status, "application/json", json.dumps(body).encode())

    def _send(
        self, status: int, kind: str, body: bytes, headers: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        text = "" if kind.startswith("image/") else "; charset=utf-8"
        sent = {"Content-Type": kind + text, "Content-Length": str(len(body)), **_HEADERS}
        policy = {"Content-Security-Policy": "default-src 'none'"}
        for name, value in {**sent, **policy, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def version_string(self) -> str:
        return "tunemath"

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: addresses hold the token."""


def _policy(nonce: str) -> str:
    return _POLICY.format(nonce=nonce)


def _equal(given: str, secret: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "replace"), secret.encode())


@cache
def _file(name: str) -> bytes:
    return (files("tunemath.course.web") / "static" / name).read_bytes()
