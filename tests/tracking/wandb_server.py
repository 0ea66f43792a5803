"""A stand-in for W&B's server on the loopback: keeps what the real client sends, and misbehaves when told to.

It speaks what `wandb` 0.31 asks for in a run with artifacts; see `wandb_answers`. In the file stream the client says at
which line its lines begin: a line that is sent again replaces the old one, and a run that is resumed is told how many
lines there are. A client that counts on neither loses or doubles rows here as it would there.
"""

from __future__ import annotations

import base64
import gzip
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.tracking.wandb_answers import Answers, Artifact, Run

MOODS = ("fine", "refuse", "silent", "500", "429", "401", "slow")
LIMITS = {"Retry-After": "1", "RateLimit-Remaining": "0", "RateLimit-Reset": "1"}  # beside status 429


@dataclass(frozen=True)
class Request:
    """One request as it came, and the status that it was answered with (0: no answer)."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    status: int


class WandbServer:
    """Requests, runs and artifacts that it was given. `mood`, one of MOODS, says how it answers.

    `idle`: it takes no CPU time that anybody else wants, like a server on another machine.
    """

    def __init__(self, key: str, idle: bool = False) -> None:
        self.idle = idle
        self.key, self.mood, self.only, self.slow_s = key, "fine", "", 2.0
        self.requests: list[Request] = []
        self._changed = threading.Event()
        self._held, self.port = _hold_a_port()
        self._http = self._listen()
        self.url = f"http://127.0.0.1:{self.port}"
        self.answers = Answers(self.url)

    @property
    def runs(self) -> dict[str, Run]:
        return self.answers.runs

    @property
    def artifacts(self) -> list[Artifact]:
        """The committed versions."""
        return [item for item in self.answers.artifacts.values() if item.state == "COMMITTED"]

    def behave(self, mood: str, only: str = "") -> None:
        """Answer like this from now on, where `only` is in the path; a client that was kept waiting is cut off."""
        assert mood in MOODS and not (mood == "refuse" and only)
        before, self.mood, self.only = self.mood, mood, only
        if mood == "refuse" != before:
            self._stop()
        if before == "refuse" != mood:
            self._http = self._listen()
        self._changed.set()
        self._changed = threading.Event()

    def close(self) -> None:
        """Stop listening, and give the port back."""
        self._stop()
        self._held.close()

    def _stop(self) -> None:
        """Connections are refused from now on."""
        self._http.shutdown()
        self._http.server_close()
        self._changed.set()

    def respond(self, method: str, path: str, authorization: str, body: bytes) -> tuple[int, dict[str, Any] | bytes]:
        """Status and content by mood. Status 0: close the connection without an answer."""
        mood = self.mood if self.only in path else "fine"
        if mood == "slow":
            time.sleep(self.slow_s)
        elif mood == "silent":
            self._changed.wait()
        if mood in ("silent", "refuse"):
            return 0, b""
        if mood.isdecimal():
            return int(mood), {"error": f"the stand-in is told to answer {mood}"}
        scheme, _, given = authorization.partition(" ")
        known = scheme == "Basic" and base64.b64decode(given) == f"api:{self.key}".encode()
        if not known and not path.startswith(("/storage/", "/sdk/otel/")):
            return 401, {"error": "wrong key"}
        return self.answers.to(method, path, body)

    def _listen(self) -> ThreadingHTTPServer:
        http = _Quiet(("127.0.0.1", self.port), type("Handler", (_Handler,), {"wandb": self}))
        threading.Thread(target=self._serve, args=(http,), daemon=True).start()
        return http

    def _serve(self, http: ThreadingHTTPServer) -> None:
        if self.idle:  # of this thread alone, and of those that it starts
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        http.serve_forever(0.02)


def _hold_a_port() -> tuple[socket.socket, int]:
    """A free port of the loopback, bound and not listened to: nobody else is given it while this server refuses."""
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # beside the one that listens, which sets it as well
    held.bind(("127.0.0.1", 0))
    return held, held.getsockname()[1]


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that is killed resets its connections: no error of ours, unlike everything else."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # the client keeps its connections
    wandb: WandbServer

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
        status, content = self.wandb.respond(self.command, self.path, self.headers.get("Authorization", ""), body)
        self.wandb.requests.append(Request(self.command, self.path, dict(self.headers), body, status))
        if not status:
            self.close_connection = True
            return
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        with suppress(ConnectionError):  # the client may be gone: that is what some tests are about
            self.send_response(status)
            for name, value in (LIMITS if status == 429 else {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    do_PUT = do_GET = do_POST  # noqa: N815


@contextmanager
def wandb_server(key: str, idle: bool = False) -> Iterator[WandbServer]:
    """A server in good mood that knows this API key."""
    server = WandbServer(key, idle)
    try:
        yield server
    finally:
        if server.mood != "refuse":
            server.close()
