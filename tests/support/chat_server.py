"""A server that speaks OpenAI's interface and answers by a function: an oracle, an empty one, one that is wrong."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from solopo_nemo.builders.pairs.client import PROBE

Answer = Callable[[str, dict[str, Any]], Any]
"""Gives a text, a text and its finish reason, an error code and its message, or None for an error 500."""


class ChatServer:
    """Counts what it is asked.

    Attributes:
        url: where its interface begins.
        asked: the bodies of all requests.
        answer: gives the text for a prompt and the whole body.
        name: its model, which it tells nobody; only the answer to the probe differs.
        well: it answers the probe.
    """

    name, well = "a model", True

    def __init__(self, port: int, answer: Answer) -> None:
        self.url = f"http://127.0.0.1:{port}/v1"
        self.asked: list[dict[str, Any]] = []
        self.answer = answer


@contextmanager
def chat_server(answer: Answer) -> Iterator[ChatServer]:
    """Run a server until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            self._send(200, {"data": [{"id": "m"}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            prompt = body["messages"][-1]["content"]
            if prompt == PROBE[0]["content"]:
                text = f"A river, as {server.name} tells it." if server.well else None
            else:
                server.asked.append(body)
                text = server.answer(prompt, body)
            if text is None:
                self._send(500, {"error": {"message": "out of order"}})
            elif isinstance(text, tuple) and isinstance(text[0], int):
                self._send(text[0], {"error": {"message": text[1]}})
            else:
                words, finish = text if isinstance(text, tuple) else (text, "stop")
                message = {"role": "assistant", "content": words}
                self._send(200, {"choices": [{"index": 0, "message": message, "finish_reason": finish}]})

        def _send(self, code: int, value: dict[str, Any]) -> None:
            data = json.dumps(value).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server = ChatServer(http.server_address[1], answer)
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
