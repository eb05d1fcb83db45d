"""Who competes: our client whole, and HTTP clients that make the same calls and nothing more.

A contender is made for an address and a number of calls at a time, and answers a list of request bodies.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from synpro_engine.reward.judges import Client, JudgeConfig, Judgement

Ask = Callable[[Sequence[str]], list[str]]
"""The written answer to each question."""
_JSON = {"content-type": "application/json"}


def _body(question: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}]
    return {"model": "judge", "max_tokens": 8, "temperature": 0.0, "messages": messages}


def _text(reply: Any) -> str:
    return reply["choices"][0]["message"]["content"]


def ours(endpoint: str, concurrency: int) -> Ask:
    """The judge's client whole: requests, retries, breaker, counts, reading, answers kept in memory."""
    config = JudgeConfig(
        endpoint=endpoint, model="judge", concurrency=concurrency, top_logprobs=0, api="chat", prompt="{text}"
    )
    client = Client({"quality": config}, "chat")

    def ask(questions: Sequence[str]) -> list[str]:
        values = client.values([Judgement("quality", "", question) for question in questions])
        return [f"{value:g}" for value in values]

    return ask


def _threads(one: Callable[[str], str], concurrency: int) -> Ask:
    pool = ThreadPoolExecutor(concurrency)
    return lambda questions: list(pool.map(one, questions))


def with_urllib3(endpoint: str, concurrency: int) -> Ask:
    """The library that ours is made on."""
    pool = importlib.import_module("urllib3").PoolManager(maxsize=concurrency)

    def one(question: str) -> str:
        body = json.dumps(_body(question))
        return _text(json.loads(pool.request("POST", f"{endpoint}/chat/completions", body=body, headers=_JSON).data))

    return _threads(one, concurrency)


def with_httpx(endpoint: str, concurrency: int) -> Ask:
    """httpx's successor, which the Hugging Face hub's client uses."""
    httpx = importlib.import_module("httpx2")
    limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
    client = httpx.Client(limits=limits, timeout=30)

    def one(question: str) -> str:
        reply = client.post(f"{endpoint}/chat/completions", content=json.dumps(_body(question)), headers=_JSON)
        return _text(reply.json())

    return _threads(one, concurrency)


def with_openai(endpoint: str, concurrency: int) -> Ask:
    """OpenAI's own package, without its retries."""
    openai = importlib.import_module("openai")
    limits = importlib.import_module("httpx2").Limits(
        max_connections=concurrency, max_keepalive_connections=concurrency
    )
    http_client = openai.DefaultHttpxClient(limits=limits)
    client = openai.OpenAI(api_key="-", base_url=endpoint, max_retries=0, timeout=30, http_client=http_client)

    def one(question: str) -> str:
        return client.chat.completions.create(**_body(question)).choices[0].message.content

    return _threads(one, concurrency)


CLIENTS: dict[str, Callable[[str, int], Ask]] = {
    "ours": ours, "urllib3": with_urllib3, "httpx2": with_httpx, "openai": with_openai,
}  # fmt: skip
