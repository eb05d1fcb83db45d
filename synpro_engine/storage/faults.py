"""What a store's faults mean: gone, not allowed, or passing; how long one that passes is waited for.

Stores answer through half a dozen libraries with exceptions of their own. They are told apart by HTTP's status where
there is one, and else by kind; what comes from none of these libraries is a bug, and stays what it is.
"""

from __future__ import annotations

import errno
import random
import sys
import threading
import time
from typing import Literal

from tqdm import tqdm

from synpro_engine.config import UserError, first_line
from synpro_engine.config.errors import printable, without_credentials
from synpro_engine.remote.patience import backoff_s

Kind = Literal["missing", "denied", "changed", "elsewhere", "refused", "passing"]
PATIENCE_S = 900.0
"""How long a store that answered before may fail to."""
FIRST_PATIENCE_S = 60.0
"""And one that has not answered yet: its address may be wrong."""
_ANSWERED = set[str]()  # addresses of buckets
_TOLD_AFTER = 3  # faults in a row
_LIBRARIES = {
    *("botocore", "aiobotocore", "s3fs", "aiohttp", "gcsfs", "google", "huggingface_hub", "hf_xet", "requests"),
    *("urllib3", "httpx", "httpcore", "httpx2", "httpcore2", "fsspec"),
}
_LATER = {408, 409, 425, 429}
_FOR_GOOD = {
    *(errno.EINVAL, errno.EPERM, errno.EACCES, errno.ENOSYS, errno.ENAMETOOLONG, errno.EMSGSIZE, errno.EISDIR),
    *(errno.ENOTDIR, errno.ENOSPC, errno.EROFS),
}
_CONNECTIONS = {
    *("HTTPClientError", "ResponseParserError", "ClientError", "TransportError", "RequestException", "RequestError"),
    *("HTTPError", "TimeoutError", "ConnectionError", "IncompleteRead", "ProtocolError"),
}
"""Classes of these libraries, by name, below which a call came to no whole answer."""
_CUT = {"ClientPayloadError", "ContentLengthError", "ServerDisconnectedError", "IncompleteRead", "IncompleteReadError"}
"""Of an answer that broke off; aiohttp gives it a status of its own, 400."""


def kind_of(error: Exception) -> Kind:
    """What kind a store's fault is of; raises `error` itself where it is none."""
    names = {base.__name__ for base in type(error).__mro__}
    if isinstance(error, TimeoutError) or names & _CUT:
        return "passing"
    status = _status(error)
    if type(error).__name__ == "FileExpired" or status == 412:
        return "changed"
    if isinstance(error, FileNotFoundError) or status == 404:
        return "missing"
    if isinstance(error, PermissionError) or status in (401, 403):
        return "denied"
    if status is not None and status >= 300:
        later = status in _LATER or status >= 500
        return "elsewhere" if status < 400 or "region" in str(error) else "passing" if later else "refused"
    if isinstance(error, OSError) and not names & {"FileExistsError", "IsADirectoryError"}:
        return "refused" if error.errno in _FOR_GOOD else "passing"
    if type(error).__module__.partition(".")[0] not in _LIBRARIES:
        raise error
    if "Credentials" in type(error).__name__ or "RefreshError" in names:
        return "denied"
    return "passing" if names & _CONNECTIONS else "refused"


def _status(error: BaseException) -> int | None:
    """HTTP's, of the fault or of what it was made from."""
    for one in (error, error.__cause__):
        response = getattr(one, "response", None)
        if isinstance(response, dict):  # botocore's
            response = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        for value in (response, getattr(response, "status_code", None), getattr(one, "status", None),
                      getattr(one, "code", None)):  # fmt: skip
            if isinstance(value, int) and 100 <= value < 600:
                return value
    return None


def _said(error: Exception) -> str:
    said = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
    return printable(without_credentials(first_line(ValueError(said))).rstrip("."))


def told(address: str, error: Exception, kind: Kind) -> UserError:
    """The line for the user."""
    said = _said(error)
    if kind == "denied" and "redential" in said and address.startswith("s3:"):
        said += "; FSSPEC_S3_ANON=true reads public buckets without any"
    what = {
        "missing": "not found",
        "denied": "access denied",
        "changed": "was changed while it was read; begin again",
        "elsewhere": "lies in another region; AWS_DEFAULT_REGION names it",
        "refused": "refused",
        "passing": "no answer",
    }[kind]
    return UserError(f"{address}: {what} ({said})")


class Attempts:
    """Faults of one thing that is asked of a store until it succeeds, as long as that may take."""

    def __init__(self, address: str, patience_s: float | None = None, stop: threading.Event | None = None) -> None:
        """stop: ends a wait; whoever sets it wants no answer any more."""
        self._address, self._stop = address, stop or threading.Event()
        self._store = "/".join(address.split("/")[:3])  # s3://bucket
        known = PATIENCE_S if self._store in _ANSWERED else FIRST_PATIENCE_S
        self._patience_s = known if patience_s is None else patience_s
        self._jitter, self._faults, self._since = random.Random(), 0, 0.0

    def failed(self, error: Exception) -> None:
        """Wait before the next attempt; UserError where none can help, or they took too long."""
        kind = kind_of(error)
        now = time.monotonic()
        self._since = self._since if self._faults else now
        self._faults += 1
        if kind != "passing" or now - self._since >= self._patience_s or self._stop.is_set():
            raise told(self._address, error, kind) from None
        if self._faults == _TOLD_AFTER:
            tqdm.write(f"{self._address}: no answer ({_said(error)}); it is asked again", file=sys.stderr)
        self._stop.wait(backoff_s(self._faults, self._jitter))

    def succeeded(self) -> None:
        """Know that the store is there: what is asked of it from here on is waited for longer."""
        _ANSWERED.add(self._store)
