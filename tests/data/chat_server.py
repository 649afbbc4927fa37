"""An OpenAI-compatible server over a small Hugging Face model, for tests: it generates what it answers.

Run as a process of its own. It prints its port when it listens.
"""

from __future__ import annotations

import argparse
import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


class ChatServer(ThreadingHTTPServer):
    """Serves one model under one name.

    Attributes:
        busy: So many requests are answered with 429 first.
        die_after: The process ends, in the middle of a request, after so many answers; 0 for never.
        log: Gets one line an answer, the prompt, before the answer is sent.
    """

    daemon_threads = True

    def __init__(self, port: int, folder: Path, name: str, busy: int, die_after: int, log: Path) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder).eval()
        self.name, self.busy, self.die_after, self.log = name, busy, die_after, log
        self.answered = 0
        self.lock = threading.Lock()

    def choices(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        """Generate; one request at a time, because the seed is torch's own."""
        inputs = self.tokenizer.apply_chat_template(
            body["messages"], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with torch.inference_mode():
            torch.manual_seed(body["seed"])
            out = self.model.generate(
                **inputs,
                do_sample=True,
                top_k=0,
                temperature=body["temperature"],
                top_p=body["top_p"],
                max_new_tokens=body["max_tokens"],
                num_return_sequences=body["n"],
                pad_token_id=self.tokenizer.pad_token_id,
            )
        new = out[:, inputs["input_ids"].shape[1] :]
        return [
            {
                "index": index,
                "message": {"role": "assistant", "content": self.tokenizer.decode(ids, skip_special_tokens=True)},
                "finish_reason": "stop" if self.tokenizer.eos_token_id in ids else "length",
            }
            for index, ids in enumerate(new)
        ]


class Handler(BaseHTTPRequestHandler):
    """`/v1/models` and `/v1/chat/completions`."""

    protocol_version = "HTTP/1.1"
    server: ChatServer

    def do_GET(self) -> None:
        self.reply(200, {"data": [{"id": self.server.name, "object": "model"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            if server.busy:
                server.busy -= 1
                self.reply(429, {"error": {"message": "too many requests"}}, {"Retry-After": "0.01"})
            elif body["model"] != server.name:
                self.reply(404, {"error": {"message": f"no model {body['model']}"}})
            elif server.die_after and server.answered == server.die_after:
                os._exit(1)
            else:
                choices = server.choices(body)
                with server.log.open("a") as log:
                    log.write(json.dumps(body["messages"]) + "\n")
                self.reply(200, {"choices": choices})
                server.answered += 1

    def reply(self, code: int, value: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        content = json.dumps(value).encode()
        self.send_response(code)
        for name, text in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the tests read the log."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--busy", type=int, default=0)
    parser.add_argument("--die-after", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    server = ChatServer(
        arguments.port, arguments.model, arguments.name, arguments.busy, arguments.die_after, arguments.log
    )
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
