"""Settings of a model behind an endpoint, whatever it is asked."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from synpro_engine.config import Config


class EndpointConfig(Config):
    """Where a model answers, and how patiently it is asked."""

    EXECUTION: ClassVar[frozenset[str]] = frozenset(
        # What it answers hangs on none of it.
        "endpoint api_key_env concurrency timeout_s tries deadline_s outage".split()
    )

    endpoint: str
    """Its address up to the version, as in `http://127.0.0.1:8000/v1`."""
    api_key_env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """The environment variable that holds the API key. The key itself is written nowhere."""
    request: dict[str, Any] = Field(default={})
    """Further fields of the request, such as `{seed: 1}`; they replace ours (`temperature`), and null removes one."""
    concurrency: int = Field(default=64, gt=0)
    """Calls under way at a time, over all ranks."""
    timeout_s: float = Field(default=60.0, gt=0)
    """Longest wait for one answer, in seconds."""
    tries: int = Field(default=6, gt=0)
    """Calls for one value before it is given up, where `outage` is `give_up`; with `wait` twice as many, in a row, at
    which a server that answers another question fails (5xx, or what is no JSON)."""
    deadline_s: float = Field(default=600.0, gt=0)
    """Longest wait for the values of one step or batch, in seconds, likewise."""
    unreadable_tries: int = Field(default=2, gt=0)
    """Answers to one question that may be unreadable before its value is given up."""
    outage: Literal["wait", "give_up"] = "wait"
    """What follows when the endpoint does not answer: `wait` goes on asking, and says so once a minute; `give_up`
    ends that after `tries` calls or `deadline_s`."""

    @field_validator("endpoint")
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("expected an address such as http://127.0.0.1:8000/v1")
        _ = parts.port  # ValueError for what is no port
        for end in ("/chat/completions", "/completions", "/systemone", "/decisions", "/models"):
            if parts.path.rstrip("/").endswith(end):
                raise ValueError(f"without {end}, which calls add")
        return value.rstrip("/")

    @model_validator(mode="after")
    def _holds_no_secret(self) -> Self:
        parts = urlsplit(self.endpoint)
        # Of the whole section, because the message about a single field quotes it.
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError("endpoint: an address alone; a key goes into the variable that `api_key_env` names")
        return self
