"""A server of OpenAI's completions that serves an exported folder: `model_server.py FOLDER NAME PORT`.

The engine's own import and sampler stand where vLLM's stand elsewhere, so its weights are those of the folder.
"""

from __future__ import annotations

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import synpro_engine  # noqa: F401 - installs the import hook
from synpro_engine.dist import ParallelConfig, launched
from synpro_engine.model.hf import import_hf
from synpro_engine.sampler import Sampler, SamplingConfig

FOLDER, NAME, PORT = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])


def complete(sampler: Sampler, body: dict[str, Any]) -> dict[str, Any]:
    """The answer to a request, with log-probabilities where they are asked for."""
    limits = {name: body[name] for name in ("temperature", "top_p")}
    [[made]] = sampler.generate(
        [body["prompt"]], group_size=1, sampling=SamplingConfig(**limits, max_new_tokens=body["max_tokens"]),
        stop_ids=frozenset(body["stop_token_ids"]), seeds=[body["seed"]],
    )  # fmt: skip
    choice = {"text": "", "token_ids": made.token_ids, "finish_reason": "stop" if made.finished else "length"}
    return choice | ({"logprobs": {"token_logprobs": made.full_logprobs}} if body.get("logprobs") else {})


with launched(ParallelConfig()) as topology:
    sampler, lock = Sampler(import_hf(FOLDER, topology).model), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send({"data": [{"id": NAME, "max_model_len": sampler.max_prompt_tokens + 1}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with lock:
                self.send({"choices": [complete(sampler, body)]})

        def send(self, content: dict[str, Any]) -> None:
            data = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
