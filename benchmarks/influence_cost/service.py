"""The rival: influence as a service of its own, one text a request, as the method's public code has it.

`python -m benchmarks.influence_cost.service FOLDER` serves the two models of `setup.py` on 127.0.0.1 and
prints its port. POST /influence {"text": ...} answers {"influence": ...}, in nats per token. A thread for each
connection, one lock around the models, the text tokenised on arrival. It is no straw man: the forwards are ours,
connections stay open, and nothing waits for a packet. Knows JSON only; no other format comes in or goes out.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch

import synpro_engine  # noqa: F401 - first: it prepares Megatron's import
from benchmarks.influence_cost.setup import open_models
from synpro_engine.dist import ParallelConfig, Topology, launched
from synpro_engine.influence import sequence_logprobs

LONGEST_REQUEST = 1 << 20
"""Bytes."""


class Scorer:
    """I(x) of one text at a time."""

    def __init__(self, folder: Path, topology: Topology) -> None:
        self._settings, self._tokenizer, *self._models = open_models(folder, topology)
        self._lock = threading.Lock()
        torch.set_num_threads(self._settings.threads)

    def __call__(self, text: str) -> float:
        """Nats per token; 0 for a text without tokens."""
        ids = self._tokenizer.encode(text)
        if not ids:
            return 0.0
        with self._lock:
            theta, probe = (
                sequence_logprobs(model, [ids], start_id=self._tokenizer.eos_id, micro_batch=1)[0]
                for model in self._models
            )
        return float((probe - theta).mean())


def handler(scorer: Scorer) -> type[BaseHTTPRequestHandler]:
    """The answers to requests."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # connections stay open
        disable_nagle_algorithm = True
        wbufsize = -1  # head and body in one packet

        def do_POST(self) -> None:
            size = int(self.headers.get("Content-Length", 0))
            if self.path != "/influence" or not 0 < size <= LONGEST_REQUEST:
                self.send_error(400)
                return
            try:
                text = json.loads(self.rfile.read(size))["text"]
            except (ValueError, KeyError, TypeError):
                text = None
            if not isinstance(text, str):
                self.send_error(400)
                return
            body = json.dumps({"influence": scorer(text)}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: a line a request would cost time."""

    return Handler


def main(folder: Path) -> None:
    """Serve until standard input ends: whoever started this is then gone."""
    with launched(ParallelConfig()) as topology:
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler(Scorer(folder, topology)))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        print(server.server_address[1], flush=True)
        sys.stdin.read()
        server.shutdown()


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main(Path(sys.argv[1]))
