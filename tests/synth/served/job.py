"""The generation that the tests of this folder ask a server for, and what a good server answers."""

import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from synpro_engine.config import load_config
from synpro_engine.dist import Topology
from synpro_engine.model.build import build_model
from synpro_engine.model.config import ModelConfig
from synpro_engine.sampler import Sampler, SamplingConfig
from synpro_engine.synth import (
    DOCUMENTS,
    REJECTS,
    Producer,
    ServedGenerator,
    ServerConfig,
    generate_corpus,
    lines_of,
    work_items,
)
from tests.reward.judges.server import Handler, Server

SCRIPT = Path(__file__).parents[1] / "generation_job.py"
JOB = runpy.run_path(str(SCRIPT))
TOKENIZER = JOB["make_tokenizer"]()
ITEMS = list(work_items(JOB["make_documents"], JOB["CONFIG"], JOB["SEED"]))
BIGRAM = JOB["BigramGenerator"](TOKENIZER)


def written(body: dict[str, Any]) -> dict[str, Any]:
    """What the bigram model answers, as vLLM says it."""
    limit, stops = body["max_tokens"], body["stop_token_ids"]
    made = BIGRAM._one(body["prompt"], str(body["seed"]), limit, min(stops))
    ids = made.token_ids if made.finished else (made.token_ids * limit)[:limit]
    text = TOKENIZER.decode(ids)
    reason = "stop" if made.finished else "length"
    return {"choices": [{"index": 0, "text": text, "finish_reason": reason, "token_ids": ids}]}


def answer(handler: Handler, body: dict[str, Any]) -> None:
    handler.send(200, written(body))


def all_made(out: Path, producer: Producer, topology: Topology) -> list[dict[str, Any]]:
    """All records of a generation, those refused with them."""
    generate_corpus(out, JOB["make_documents"], producer, topology, seed=JOB["SEED"])
    return records_of(out)


def records_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for stem in (DOCUMENTS, REJECTS) for _, line in lines_of(out, stem)]


def producer_for(server: Server, **settings: Any) -> Producer:
    return JOB["served_producer"](endpoint=server.endpoint, **settings)


def generator_of(producer: Producer) -> ServedGenerator:
    assert isinstance(producer.generator, ServedGenerator)
    return producer.generator


def server_config(endpoint: str, **settings: Any) -> ServerConfig:
    return load_config(ServerConfig, {"endpoint": endpoint, **settings})


def tiny_sampler(topology: Topology, seed: int, shift: float = 0.0) -> Sampler:
    shape = ModelConfig.model_validate(
        {
            "family": "llama", "layers": 2, "d_model": 32, "heads": 4, "kv_heads": 2, "ffn": 64,
            "vocab_size": TOKENIZER.vocab_size + 5, "seq_len": 1024, "init_std": 0.2,
        }
    )  # fmt: skip
    model = build_model(shape, topology, seed=seed)
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
            parameter.add_(shift * noise)
    return Sampler(model)


def greedy_answers(sampler: Sampler, *, logprobs: bool) -> Callable[[Handler, dict[str, Any]], None]:
    def say(handler: Handler, body: dict[str, Any]) -> None:
        assert body["temperature"] == 0.0 and body["logprobs"] == 1
        with handler.server.lock:
            [[made]] = sampler.generate(
                [body["prompt"]], group_size=1, stop_ids=frozenset(body["stop_token_ids"]), seeds=[0],
                sampling=SamplingConfig(temperature=0.0, max_new_tokens=body["max_tokens"]),
                vocab_limit=TOKENIZER.vocab_size,
            )  # fmt: skip
        choice = {"text": "", "token_ids": made.token_ids, "finish_reason": "stop" if made.finished else "length"}
        if logprobs:
            choice["logprobs"] = {"token_logprobs": made.full_logprobs}
        handler.send(200, {"choices": [choice]})

    return say
