"""A real S3 server on loopback (moto's), and a proxy in front of it that puts faults between.

Import the fixtures `moto` and `s3` into a test module. `s3.faults` is asked for each request what is to go wrong.
"""

import contextlib
import http.client
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest

from synpro_engine.remote import patience
from synpro_engine.storage import faults, reading
from synpro_engine.storage.opening import store_of

SECRET = "wJalr/XUtnFEMI+K7MDENG/bPxRfiCYEXAMPLEKEY"
PAGE = 100
"""Files in an answer to a listing; S3 has a thousand."""
_STARTS_S = 60.0


@dataclass
class Request:
    """What came to the proxy."""

    method: str
    path: str
    headers: dict[str, str]

    @property
    def first_byte(self) -> int:
        """Of the range that is asked for."""
        return int(self.headers.get("range", "bytes=0-").removeprefix("bytes=").partition("-")[0])


@dataclass
class Fault:
    """What goes wrong with a request: another answer, a body that ends early, or one that is slow."""

    status: int | None = None
    code: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None
    bytes_per_s: float | None = None


class Proxy(ThreadingHTTPServer):
    """Passes requests on to `upstream`, but for the faults."""

    daemon_threads = True

    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = urlsplit(upstream).netloc
        self.fault_of: Callable[[Request], Fault | None] = lambda request: None
        self.requests: list[Request] = []


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy  # pyright: ignore[reportIncompatibleVariableOverride]

    def handle_one(self) -> None:
        request = Request(self.command, self.path, {name.lower(): value for name, value in self.headers.items()})
        body = self._body(request)
        self.server.requests.append(request)
        fault = self.server.fault_of(request) or Fault()
        if fault.status is not None:
            text = f"<Error><Code>{fault.code}</Code><Message>told by the test: {fault.code}</Message></Error>".encode()
            self._answer(fault.status, {"Content-Type": "application/xml", **fault.headers}, text, fault, len(text))
            return
        upstream = http.client.HTTPConnection(self.server.upstream, timeout=60)
        headers = {n: v for n, v in request.headers.items() if n not in ("transfer-encoding", "connection")}
        upstream.request(self.command, self.path, body, headers)
        answer = upstream.getresponse()
        content = answer.read()
        length = int(answer.headers.get("content-length", len(content)))
        kept = {n: v for n, v in answer.headers.items() if n.lower() not in ("connection", "content-length", "date")}
        self._answer(answer.status, kept, content, fault, length)
        upstream.close()

    def _body(self, request: Request) -> bytes:
        if request.headers.get("transfer-encoding") != "chunked":
            return self.rfile.read(int(request.headers.get("content-length", 0)))
        body = b""
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _answer(self, status: int, headers: dict[str, str], content: bytes, fault: Fault, length: int) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault.cut_after is not None and len(content) > fault.cut_after:
            self.wfile.write(content[: fault.cut_after])
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        step = len(content) if fault.bytes_per_s is None else max(1, int(fault.bytes_per_s / 10))
        for first in range(0, len(content), max(1, step)):
            self.wfile.write(content[first : first + step])
            if fault.bytes_per_s is not None:
                self.wfile.flush()
                time.sleep(0.1)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_one

    def log_message(self, format: str, *args: object) -> None:
        """Silent."""


@dataclass
class Bucket:
    """A bucket of its own for a test. Files are put and read past the proxy."""

    name: str
    proxy: Proxy
    upstream: str

    def address(self, key: str = "") -> str:
        return f"s3://{self.name}/{key}".rstrip("/")

    def put(self, key: str, content: bytes) -> str:
        """Write a file; its address."""
        self._ask("PUT", key, content)
        return self.address(key)

    def put_tree(self, directory: Path, key: str) -> str:
        """Write all files below a directory; the address of that."""
        for path in directory.rglob("*"):
            if path.is_file():
                self.put(f"{key}/{path.relative_to(directory).as_posix()}", path.read_bytes())
        return self.address(key)

    def get(self, key: str) -> bytes:
        return self._ask("GET", key, None)

    def remove(self, key: str) -> None:
        self._ask("DELETE", key, None)

    def listed(self) -> list[str]:
        """Keys of all files."""
        listing = self._ask("GET", "?list-type=2&max-keys=1000", None).decode()
        return [part.partition("</Key>")[0] for part in listing.split("<Key>")[1:]]

    def _ask(self, method: str, key: str, content: bytes | None) -> bytes:
        inner = key if key.startswith("?") else quote(key)
        # Without a type the server would look for a form in it, and of the signature it looks at the name alone.
        signed = "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20260101/us-east-1/s3/aws4_request, Signature=0"
        headers = {"Content-Type": "application/octet-stream", "Authorization": signed}
        request = urllib.request.Request(f"{self.upstream}/{self.name}/{inner}", content, headers, method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.read()

    @contextlib.contextmanager
    def faults(self, fault_of: Callable[[Request], Fault | None]) -> Iterator[list[Request]]:
        """Faults within the block; the requests that came in it."""
        begin = len(self.proxy.requests)
        self.proxy.fault_of = fault_of
        seen: list[Request] = []
        try:
            yield seen
        finally:
            self.proxy.fault_of = lambda request: None
            seen.extend(self.proxy.requests[begin:])


@pytest.fixture(scope="session")
def moto() -> Iterator[str]:
    """The server's address."""
    pytest.importorskip("s3fs")
    pytest.importorskip("moto")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    paged = {**os.environ, "MOTO_S3_DEFAULT_MAX_KEYS": str(PAGE)}
    with subprocess.Popen(command, env=paged, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        end = time.monotonic() + _STARTS_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert server.poll() is None and time.monotonic() < end, "moto's server did not come up"
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
        server.terminate()


@pytest.fixture
def s3(
    moto: str, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Bucket]:
    """A new bucket behind the proxy, with credentials and endpoint in the environment, and a cache of its own."""
    proxy = Proxy(moto)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.server_address[1]}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, "/nonexistent")
    # botocore's own attempts wait for seconds; ours are what is tested.
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("SYNPRO_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(faults, "FIRST_PATIENCE_S", 2.0)
    monkeypatch.setattr(faults, "PATIENCE_S", 4.0)
    monkeypatch.setattr(patience, "_FIRST_S", 0.01)
    monkeypatch.setattr(reading, "_LEAST", 1 << 11)
    store_of.cache_clear()
    bucket = Bucket(f"b{time.time_ns()}", proxy, moto)
    bucket._ask("PUT", "", b"")
    yield bucket
    store_of.cache_clear()
    proxy.shutdown()
    proxy.server_close()
