"""One call to an OpenAI-compatible endpoint: what came of it is an answer, or a fault that says what may be done.

It keeps connections, bounds time and size, and never shows the API key: not in an error, not in a log.
"""

from __future__ import annotations

import json
import os
import re
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import unquote, urlsplit

import urllib3
from urllib3.util import make_headers, parse_url

from synpro_engine.config import UserError, brief
from synpro_engine.remote.config import EndpointConfig

_MAX_BYTES = 4 * 2**20
"""Of an answer; those that are wanted have a few thousand."""
_CONNECT_S = 10.0
_LATER = {408, 409, 425, 429}
"""Codes below 500 that say: again, later."""
_ELSEWHERE = {301, 302, 303, 307, 308}
DENIED = {401, 403}
"""Codes that say: not without a valid key."""
_OUTAGES = {*_LATER, *DENIED, 402, 404, 407}
"""Codes below 500 that say nothing of the question: 402 is an account without credit, 407 a proxy's 401."""
NO_SUCH_HOST = "no such host"
"""Reason of a fault: the address names a machine that nobody knows."""
_LONGEST_PAUSE_S = 900.0
_SHOWN = 200  # characters of what a server says


@dataclass
class CallFault(Exception):
    """No answer to one call.

    `status` is HTTP's, None where there was no whole answer of HTTP at all; 200 where the answer is no JSON object, or
    too long.
    """

    reason: str
    status: int | None = None
    retry_after_s: float = 0.0

    def __str__(self) -> str:
        return self.reason

    @property
    def final(self) -> bool:
        """Whether the very same call would be refused again: the question is at fault, and not the service."""
        # A key or an address that stops working in the middle of a run is an outage: gateways answer so while they
        # restart, and it was checked at the beginning.
        return self.status is not None and 400 <= self.status < 500 and self.status not in _OUTAGES

    @property
    def unreadable(self) -> bool:
        """Whether there was an answer, of which nothing can be made."""
        return self.status == 200

    @property
    def may_be_final(self) -> bool:
        """Whether the question may be at fault as well as the service, which fails at it or makes no answer of it."""
        # 503 says that the service has too much to do, or is not up yet. Gateways that do not like a text say 403.
        return self.unreadable or (self.status is not None and self.status >= 400 and self.status not in {503, *_LATER})


class Endpoint:
    """Calls to one endpoint, from any number of threads."""

    def __init__(self, config: EndpointConfig, key: str) -> None:
        """key: the setting that holds `config`, for messages. UserError where the API key is not in the environment."""
        self._config, self._secret = config, _secret(config, f"{key}.api_key_env")
        self._headers = {"content-type": "application/json", "accept": "application/json"}
        if self._secret:
            self._headers["authorization"] = f"Bearer {self._secret}"
        # Retries are `service`'s, which shares them out over all calls; a redirect might carry the key elsewhere.
        self._pool = _pool(config.endpoint, maxsize=config.concurrency, retries=False)

    def post(self, path: str, body: bytes, seconds: float) -> dict[str, Any]:
        """The JSON object that answers `body`, which is JSON, within `seconds`; CallFault where there is none."""
        return self._call("POST", path, body, seconds)

    def get(self, path: str, seconds: float) -> dict[str, Any]:
        """The JSON object at `path`, likewise."""
        return self._call("GET", path, None, seconds)

    def _call(self, method: str, path: str, body: bytes | None, seconds: float) -> dict[str, Any]:
        end = time.monotonic() + seconds
        timeout = urllib3.Timeout(connect=min(_CONNECT_S, seconds), read=seconds)
        url = f"{self._config.endpoint}/{path}"
        try:
            response = self._pool.request(
                method, url, body=body, headers=self._headers, timeout=timeout, preload_content=False, redirect=False
            )
            try:
                content = _read(response, end, seconds)
            except BaseException:
                response.close()  # what is left of it would be the next call's answer
                raise
            # Servers that have failed often drop the connection without a word, and the next call on it would fail too.
            response.close() if response.status >= 500 else response.release_conn()
        except urllib3.exceptions.HTTPError as error:
            raise CallFault(_transport_fault(error, seconds)) from None
        if response.status != 200:
            told = "" if response.status in DENIED else self._told(content)
            told = ", a redirect, which is not followed" if response.status in _ELSEWHERE else told
            told += _version_hint(self._config.endpoint) if response.status == 404 else ""
            after = _retry_after_s(response.headers.get("retry-after"))
            raise CallFault(f"HTTP {response.status}{told}", response.status, after)
        try:
            data = json.loads(content)
        except (ValueError, RecursionError):
            raise CallFault("its answer is no JSON", response.status) from None
        if not isinstance(data, dict):
            raise CallFault("its answer is no JSON object", response.status)
        return data

    def _told(self, content: bytes) -> str:
        """What the server says of a fault, in short and without the key, which some servers repeat."""
        text = content[:2000].decode(errors="replace").strip()
        try:
            told = json.loads(content)
            told = told.get("error", told.get("detail", told.get("message", told)))
            text = str(told.get("message", told) if isinstance(told, dict) else told)
        except (ValueError, RecursionError, AttributeError):
            pass  # no JSON of a known shape: the text as it is
        if self._secret:
            text = text.replace(self._secret, "***")
        # Printed to a terminal, which untrusted text must not command.
        text = "".join(c if c.isprintable() else " " for c in text)
        return f": {text if len(text) <= _SHOWN else text[:_SHOWN] + '...'}" if text else ""


def _version_hint(address: str) -> str:
    """What is mostly wrong with an address at which nothing is found; servers say no more than that."""
    hint = "; the address ends with no version such as /v1: add it, if the server wants one"
    return "" if re.search(r"/v\d+", urlsplit(address).path) else hint


def listed_models(listing: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """What an endpoint's list says of each of its models, by name; empty where it is of another form."""
    data = listing.get("data")
    entries = data if isinstance(data, list) else []
    return {str(entry["id"]): entry for entry in entries if isinstance(entry, dict) and "id" in entry}


def _secret(config: EndpointConfig, key: str) -> str:
    if config.api_key_env is None:
        return ""
    value = os.environ.get(config.api_key_env, "").strip()
    if not value:
        raise UserError(f"`{key}`: the environment variable {config.api_key_env} is not set")
    if not (value.isascii() and value.isprintable()):
        raise UserError(f"`{key}`: what {config.api_key_env} holds is no API key (it has unprintable characters)")
    return value


def _pool(url: str, **options: Any) -> urllib3.PoolManager:
    """Connections to an address, through the proxy that the environment names for it (`https_proxy`, `no_proxy`)."""
    parts = urlsplit(url)
    named = None if urllib.request.proxy_bypass(parts.netloc) else urllib.request.getproxies().get(parts.scheme)
    if not named:
        return urllib3.PoolManager(**options)
    try:
        proxy = parse_url(named if "://" in named else f"http://{named}")
        # A pool takes no notice of credentials that stand in the address.
        credentials = make_headers(proxy_basic_auth=unquote(proxy.auth)) if proxy.auth else None
        return urllib3.ProxyManager(proxy._replace(auth=None).url, proxy_headers=credentials, **options)
    except (urllib3.exceptions.ProxySchemeUnknown, urllib3.exceptions.LocationParseError):
        # It is not shown, for it may hold a password.
        told = "names no proxy of http:// or https://; others, such as socks, are not supported"
        raise UserError(f"the environment variable {parts.scheme}_proxy {told}") from None


def _read(response: urllib3.BaseHTTPResponse, end: float, seconds: float) -> bytes:
    """The body, in as many pieces as it comes in: a server that sends a byte a minute never meets a socket's limit."""
    content = bytearray()
    while piece := response.read1(2**16):
        content += piece
        if len(content) > _MAX_BYTES:
            raise CallFault(f"its answer is longer than {_MAX_BYTES} bytes", response.status)
        if time.monotonic() > end:
            raise CallFault(f"no whole answer within {seconds:g} s")
    return bytes(content)


def _transport_fault(error: urllib3.exceptions.HTTPError, seconds: float) -> str:
    if isinstance(error, urllib3.exceptions.NameResolutionError):  # to urllib3 one of the time-outs below
        return NO_SUCH_HOST
    if isinstance(error, urllib3.exceptions.ConnectTimeoutError):
        return "no connection"
    if isinstance(error, urllib3.exceptions.TimeoutError):
        return f"no answer within {seconds:g} s"
    # Their texts name pools and objects; the cause alone is of use.
    cause = error.__cause__ or error.__context__ or error
    return f"{type(error).__name__}: {brief(str(cause))}"


def _retry_after_s(value: str | None) -> float:
    """Seconds of a Retry-After header, which are a number or a date (RFC 9110); 0 for none, and for nonsense."""
    try:
        seconds = float(value or 0)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(str(value)).timestamp() - time.time()
        except (ValueError, OverflowError):
            return 0.0
    # A slip of the server must not hold a job for a year; NaN fails the comparison.
    return min(seconds, _LONGEST_PAUSE_S) if seconds > 0 else 0.0
