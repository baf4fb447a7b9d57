"""A fake OpenAI-compatible endpoint in a thread: a judge of a few lines, and whatever else a test makes it do."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class FakeJudge:
    """Calls an answer right if it contains the reference. `behave(number, body)` may give (status, bytes) instead."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.at_once = self.most_at_once = 0
        self.delay_s = 0.0
        self.reply_headers: dict[str, str] = {}
        #: The models that it lists, and how often it was asked for them.
        self.models: list[str] | None = None
        self.lists = 0
        self.behave: Callable[[int, dict[str, Any]], tuple[int, bytes] | None] = lambda number, body: None
        self._lock = threading.Lock()
        judge = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                judge._answer(self)

            def do_GET(self) -> None:
                judge.lists += 1
                models = None if judge.models is None else [{"id": name} for name in judge.models]
                judge._reply(self, 404 if models is None else 200, json.dumps({"data": models}).encode())

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self._lock:
            self.bodies.append({"path": handler.path, **body})
            self.headers.append(dict(handler.headers))
            number = len(self.bodies)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        time.sleep(self.delay_s)
        with self._lock:
            self.at_once -= 1
        self._reply(handler, *(self.behave(number, body) or (200, completion(verdict(body)))))

    def _reply(self, handler: BaseHTTPRequestHandler, status: int, data: bytes) -> None:
        try:
            handler.send_response(status)
            for name, value in self.reply_headers.items():
                handler.send_header(name, value)
            handler.send_header("Content-Length", str(len(data)))
            handler.end_headers()
            handler.wfile.write(data)
        except OSError:  # the client went away
            pass


def parts(body: dict[str, Any]) -> dict[str, str]:
    """What stands between the marks, by name, and the mark as `nonce`."""
    text = body["messages"][0]["content"]
    nonce = re.findall(r"VERDICT (\w+) <number>", text)[-1]
    blocks = re.findall(rf"^--- (\w+) {nonce}\n(.*?)\n--- end of \1 {nonce}$", text, re.DOTALL | re.MULTILINE)
    return {**dict(blocks), "nonce": nonce}


def verdict(body: dict[str, Any], number: int | None = None) -> str:
    shown = parts(body)
    right = int(shown.get("reference", "4") in shown["answer"])
    return f"I compare them.\nVERDICT {shown['nonce']} {right if number is None else number}\n"


def completion(text: Any, **more: Any) -> bytes:
    """A chat completion. `more` are keys of its choice."""
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}, **more}]}).encode()
