"""A server for ``--serve``: NAME and PORT, then what it does. It starts in a tenth of a second with ``python -I -S``.

Options: ``--dies`` at the first question, ``--deaf`` to SIGTERM in a child of its own, whose id it prints.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

name, port, *options = sys.argv[1:]
if "--deaf" in options and not os.fork():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print(f"child {os.getpid()}", flush=True)
    time.sleep(600)
TEXTS = ("The answer is: Gold", "The answer is: Tin")


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.send({"data": [{"id": name}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if "--dies" in options and "river" not in str(body["messages"]):
            print("CUDA error:\n out of memory", flush=True)
            os._exit(7)
        self.send(
            {
                "choices": [
                    {"index": n, "message": {"role": "assistant", "content": TEXTS[n % 2]}, "finish_reason": "stop"}
                    for n in range(body.get("n", 1))
                ]
            }
        )

    def send(self, value: object) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


ThreadingHTTPServer(("127.0.0.1", int(port)), Handler).serve_forever()
