"""A chat endpoint that answers everything after a fixed time: `python -m benchmarks.judges.service SECONDS`.

Prints its port and serves on 127.0.0.1 until standard input ends. It does as little as HTTP allows, in a process of its
own, so that what is measured is the client.
"""

from __future__ import annotations

import asyncio
import re
import sys
import threading

ANSWER = "4"
_BODY = b'{"object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"%s"}}]}'
_LENGTH = re.compile(rb"^content-length:\s*(\d+)", re.IGNORECASE | re.MULTILINE)


class Service(asyncio.Protocol):
    """One connection."""

    def __init__(self, seconds: float) -> None:
        body = _BODY % ANSWER.encode()
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        self._seconds, self._response, self._read = seconds, head.encode() + body, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer every whole request after the given time."""
        self._read += data
        while True:
            head, end, rest = self._read.partition(b"\r\n\r\n")
            found = _LENGTH.search(head)
            if not end or found is None or len(rest) < int(found[1]):
                return
            self._read = rest[int(found[1]) :]
            write = self._transport.write  # pyright: ignore[reportAttributeAccessIssue]
            asyncio.get_running_loop().call_later(self._seconds, write, self._response)


async def serve(seconds: float) -> None:
    """Print the port and answer until the process is told to end."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Service(seconds), "127.0.0.1", 0, backlog=512)
    print(server.sockets[0].getsockname()[1], flush=True)
    over = asyncio.Event()

    def wait() -> None:
        sys.stdin.read()
        loop.call_soon_threadsafe(over.set)

    threading.Thread(target=wait, daemon=True).start()
    await over.wait()


if __name__ == "__main__":
    asyncio.run(serve(float(sys.argv[1])))
