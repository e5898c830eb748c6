"""An OpenAI-compatible endpoint on this machine, with answers by a rule."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Stub(ThreadingHTTPServer):
    """Answers by a rule; ``fail`` holds the statuses of the next requests, ``hang_after`` a number of answers."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.prompts: list[str] = []
        self.keys: set[str | None] = set()
        self.fail: list[int] = []
        self.hang_after = 10**9
        self.hanging = threading.Event()
        self.freed = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Stub

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.keys.add(self.headers["authorization"])
        prompt = body["messages"][0]["content"]
        if self.server.fail:
            self.send_response(self.server.fail.pop(0))
            self.send_header("retry-after", "7")
            self.end_headers()
            return
        if len(self.server.prompts) >= self.server.hang_after:
            self.server.hanging.set()
            self.server.freed.wait(60)
            return
        self.server.prompts.append(prompt)
        text = f"1. about {prompt}."
        if prompt.startswith("What are"):
            text = "Objects: hat, magic wand\nScenes:\n- kitchen"
        elif prompt.startswith("Generate 5"):
            text = "1. Lifting a hat.\n2. wash"
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        answer = {
            "id": "1",
            "object": "chat.completion",
            "created": 1,
            "model": "m",
            "choices": [choice],
            "usage": usage,
        }
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass
