"""Servers that stand in for W&B's, each with one fault; ``server`` gives the ``WANDB_BASE_URL``.

``refuses`` connections, ``silent`` takes them and never answers, ``wrong_key`` answers 401 to all,
``dies`` answers until a run has begun and its first lines have come, then nothing.
"""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KINDS = ("refuses", "silent", "wrong_key", "dies")
LAST_ANSWER = "file_stream"  # in the path of the request after which a server of ``dies`` is dead


@contextmanager
def server(kind: str) -> Iterator[str]:
    """The base URL of a server with this fault."""
    if kind in ("refuses", "silent"):
        with socket.socket() as port:
            port.bind(("127.0.0.1", 0))  # taken, so that nobody else answers there
            if kind == "silent":
                port.listen(1000)  # the system takes connections; nobody reads them
            yield f"http://127.0.0.1:{port.getsockname()[1]}"
        return
    http = ThreadingHTTPServer(("127.0.0.1", 0), _WrongKey if kind == "wrong_key" else _dying())
    http.daemon_threads = True
    http.block_on_close = False
    threading.Thread(target=http.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{http.server_port}"
    finally:
        http.shutdown()
        http.server_close()


class _Answers(BaseHTTPRequestHandler):
    """Reads requests to post and answers JSON."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status, content = self.answer(body)
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def answer(self, body: bytes) -> tuple[int, Any]:
        """Status and content for a request."""
        raise NotImplementedError

    def log_message(self, *_: Any) -> None:
        """Nothing is printed."""


class _WrongKey(_Answers):
    def answer(self, body: bytes) -> tuple[int, Any]:
        return 401, {"errors": [{"message": "user is not logged in"}], "data": None}


def _dying() -> type[_Answers]:
    """Of one server: once it is dead, it is so for all."""
    dead = threading.Event()

    class Dying(_Answers):
        def answer(self, body: bytes) -> tuple[int, Any]:
            if dead.is_set():
                time.sleep(3600)
            if LAST_ANSWER in self.path:
                dead.set()
            asked = json.loads(body) if self.path == "/graphql" else {"query": ""}
            if "upsertBucket" not in asked["query"]:
                return 200, {"data": {}}
            # What the client reads of a run that has begun.
            entity = {"id": "e", "name": "somebody"}
            project = {"id": "p", "name": asked["variables"]["project"], "entity": entity}
            run = {"id": "r", "name": asked["variables"]["name"], "displayName": "a run"}
            bucket = run | {"config": "{}", "project": project, "historyLineCount": 0}
            return 200, {"data": {"upsertBucket": {"bucket": bucket, "inserted": True}}}

    return Dying
