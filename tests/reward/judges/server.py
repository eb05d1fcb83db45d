"""A real HTTP server on the loopback that answers as a test wants it to, and judges that ask it."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from synpro_engine.config import load_config
from synpro_engine.reward.judges import Client, Judge, JudgeConfig, Judgement, open_judges

SECRET = "sk-very-secret-1234567890"
Answer = Callable[["Handler", dict[str, Any]], None]
Choose = Callable[[str, list[str]], Sequence[float] | None]
"""From a question's instructions and the names of its answers ("no" and "yes" of a truth) to their probabilities."""


class Handler(BaseHTTPRequestHandler):
    """Hands each request to `server.answer`, and lets it do what it likes with the connection."""

    protocol_version = "HTTP/1.1"
    server: "Server"  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        self.server.gets.append(self.path)
        self.send(self.server.listing[0], self.server.listing[1])

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with self.server.lock:
            self.server.calls.append((self.path, body, dict(self.headers), time.monotonic()))
        self.server.answer(self, body)

    def send(self, status: int, content: bytes | dict[str, Any], **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def write(self, text: str, logprobs: dict[str, float] | None = None) -> None:
        """A chat completion; logprobs: of the tokens that might have stood in the place of the first."""
        choice: dict[str, Any] = {"index": 0, "message": {"role": "assistant", "content": text}}
        if logprobs is not None:
            top = [{"token": token, "logprob": value} for token, value in logprobs.items()]
            choice["logprobs"] = {"content": [{"token": text, "logprob": -0.1, "top_logprobs": top}]}
        self.send(200, {"object": "chat.completion", "choices": [choice]})

    def decide(self, body: dict[str, Any], choose: Choose, **usage: int) -> None:
        """Typed answers in the form that was asked for; a question for which `choose` gives None has none."""
        if self.path.endswith("/systemone"):
            answers = {
                name: _of_systemone(one, p)
                for name, one in body["questions"].items()
                if (p := choose(one["instructions"], _names(one))) is not None
            }
            self.send(200, {"model": body["model"], "answers": answers, "usage": usage})
        else:
            given = [(one, choose(one["instructions"], _names(one))) for one in body["questions"]]
            answers = [_of_decisions(one, p) for one, p in given if p is not None]
            self.send(200, {"model": body["model"], "answers": answers, "usage": usage})

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    """The server with what it was asked."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, port: int = 0) -> None:
        """port: a free one where it is not given."""
        super().__init__(("127.0.0.1", port), Handler)
        self.answer: Answer = lambda handler, body: handler.write("4")
        self.calls: list[tuple[str, dict[str, Any], dict[str, str], float]] = []
        self.gets: list[str] = []
        self.listing: tuple[int, dict[str, Any]] = (200, {"data": [{"id": "judge-1"}]})
        self.lock = threading.Lock()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def judge(self, **settings: Any) -> JudgeConfig:
        """Settings of a judge that this server is; impatient ones that write, unless told otherwise."""
        given = {"endpoint": self.endpoint, "model": "judge-1", "timeout_s": 2.0, "outage": "give_up", "tries": 3}
        return load_config(JudgeConfig, given | {"api": "chat"} | settings)

    def reward(self, name: str, **settings: Any) -> Judge:
        """The reward `name` as this server judges it."""
        [judge] = self.rewards(name, **settings)
        return judge

    def rewards(self, *names: str, **settings: Any) -> list[Judge]:
        """Rewards of one connection."""
        config = self.judge(**settings)
        return open_judges(dict.fromkeys(names, config), dict.fromkeys(names, config.api))

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # connections that the client gave up


def client(config: JudgeConfig, **options: Any) -> Client:
    """Of a judge of quality."""
    return Client({"quality": config}, config.api, **options)


def texts(*texts: str) -> list[Judgement]:
    """As their quality is asked about."""
    return [Judgement("quality", "", text) for text in texts]


def _names(question: dict[str, Any]) -> list[str]:
    answers = question.get("choices") or question.get("levels") or question.get("criteria") or ["no", "yes"]
    if isinstance(answers, dict):
        return list(answers)
    return [one if isinstance(one, str) else one.get("value", one.get("label")) for one in answers]


def _of_systemone(question: dict[str, Any], p: Sequence[float]) -> dict[str, Any]:
    kind = question["type"]
    if kind == "noul":
        return {"type": kind, "noul": p[1]}
    names = _names(question) if kind == "choice" else map(str, range(len(p)))
    return {"type": kind, "confidence": 0.5, "probabilities": dict(zip(names, p, strict=True))}


def _of_decisions(question: dict[str, Any], p: Sequence[float]) -> dict[str, Any]:
    kind, about = question["type"], {"type": question["type"], "name": question["name"]}
    if kind == "predicate":
        return about | {"probability": p[1]}
    key = "value" if kind == "choice" else "label"
    given = [{key: name, "probability": one} for name, one in zip(_names(question), p, strict=True)]
    return about | {"probabilities": given, "confidence": 0.5}


def cut(handler: Any, body: Any) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)


def cut_in_the_middle(handler: Any, body: Any) -> None:
    handler.wfile.write(b'HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n{"choices": [')
    cut(handler, body)


def slow(handler: Any, body: Any) -> None:
    time.sleep(0.6)


def byte_by_byte(handler: Any, body: Any) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n")
    for _ in range(30):
        handler.wfile.write(b" ")
        time.sleep(0.1)


def huge(handler: Any, body: Any) -> None:
    handler.send(200, b'{"choices": "' + b"4" * 300_000 + b'"}')


FAULTS: dict[str, Callable[[Any, Any], None]] = {
    "500": lambda handler, body: handler.send(500, {"error": {"message": f"oh no, {SECRET}"}}),
    "502 of a gateway": lambda handler, body: handler.send(502, b"<html>Bad Gateway</html>"),
    "429": lambda handler, body: handler.send(429, b"", retry_after="0"),
    "a redirect": lambda handler, body: handler.send(302, b"", location="http://127.0.0.1:9/"),
    "key refused": lambda handler, body: handler.send(401, {"error": {"message": f"bad key {SECRET}"}}),
    "403 of a filter": lambda handler, body: handler.send(403, b"<html>Request blocked</html>"),
    "no credit": lambda handler, body: handler.send(402, {"error": {"message": "Insufficient Balance"}}),
    "no proxy": lambda handler, body: handler.send(407, b""),
    "cut connection": cut,
    "cut in the middle": cut_in_the_middle,
    "slow": slow,
    "byte by byte": byte_by_byte,
    "huge": huge,
    "no HTTP": lambda handler, body: handler.wfile.write(b"4\r\n\r\n") and cut(handler, body),
    "no JSON": lambda handler, body: handler.send(200, b"4"),
    "half a JSON": lambda handler, body: handler.send(200, b'{"choices": [{"message": {"content": "4'),
    "empty": lambda handler, body: handler.send(200, b""),
    "nested": lambda handler, body: handler.send(200, b"[" * 100_000),
}


@contextmanager
def serving() -> Iterator[Server]:
    """A server that runs within the block."""
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()
