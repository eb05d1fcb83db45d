"""What a server is asked for, and how its answers are read."""

import json
from pathlib import Path
from typing import Any

import pytest

from synpro_engine.data import load_tokenizer
from synpro_engine.dist import Topology
from synpro_engine.sampler import SamplingConfig
from synpro_engine.synth import REPHRASE, ChatFormat, GenerateConfig, ServedGenerator, render_chat
from synpro_engine.synth.served.generator import Request
from tests.reward.judges.server import Handler, Server
from tests.synth.published import FAMILIES, write
from tests.synth.served.job import ITEMS, TOKENIZER, all_made, generator_of, producer_for, server_config, written


def test_a_server_is_asked_for_what_the_sampler_would_be(server: Server, topology: Topology, tmp_path: Path) -> None:
    producer = producer_for(server, request={"min_p": None, "priority": 1})
    records = all_made(tmp_path / "corpus", producer, topology)
    bodies = [body for _, body, _, _ in server.calls]
    assert {path for path, *_ in server.calls} == {"/v1/completions"}
    prompts = [producer.prompters[item.operation].ask(item.slice.text) for item in ITEMS]
    fitting = [prompt for prompt in prompts if len(prompt) <= producer.longest_prompt]
    assert 0 < len(fitting) < len(prompts) and len(bodies) == len(fitting) * producer.config.samples
    assert {tuple(body["prompt"]) for body in bodies} == set(map(tuple, fitting))
    assert len({body["seed"] for body in bodies}) == len(bodies) and all(0 <= b["seed"] < 2**31 for b in bodies)
    stops = sorted(producer.prompters["rephrase"].stop_ids)
    fixed = {
        "model": "bigram", "temperature": 1.0, "top_p": 1.0, "max_tokens": 60, "stop_token_ids": stops,
        "return_token_ids": True, "top_k": -1, "repetition_penalty": 1.0, "presence_penalty": 0.0,
        "frequency_penalty": 0.0, "priority": 1,
    }  # fmt: skip
    assert all({k: v for k, v in body.items() if k not in ("prompt", "seed")} == fixed for body in bodies)
    assert {record["provenance"]["engine"] for record in records} == {"server"}
    cut_short = {record["id"] for record in records if record.get("reason") == "truncated"}
    unfinished = {record["id"] for record in records if not record["provenance"]["finished"]}
    assert cut_short and cut_short <= unfinished < {record["id"] for record in records}


def test_cuts_that_the_sampling_makes_are_the_servers_too(server: Server) -> None:
    producer = producer_for(server)
    generator = ServedGenerator(
        producer.config.server, "bigram", TOKENIZER, generator_of(producer).service,
        seq_len=64, share=lambda work: work(),
    )  # fmt: skip
    sampling = SamplingConfig(max_new_tokens=9, top_k=20, min_p=0.1)
    generator.generate([[65]], group_size=1, sampling=sampling, stop_ids=frozenset({256}), seeds=[1])
    _, body, _, _ = server.calls[-1]
    assert (body["top_k"], body["min_p"], body["repetition_penalty"]) == (20, 0.1, 1.0)


def test_a_prompt_takes_no_more_room_than_the_context_leaves(server: Server) -> None:
    producer = producer_for(server)
    generator = ServedGenerator(
        producer.config.server, "bigram", TOKENIZER, generator_of(producer).service,
        seq_len=20, share=lambda work: work(),
    )  # fmt: skip
    [[made]] = generator.generate(
        [list(range(65, 80))], group_size=1, sampling=SamplingConfig(max_new_tokens=9), stop_ids=frozenset({256}),
        seeds=[1],
    )  # fmt: skip
    assert server.calls[0][1]["max_tokens"] == 5 and 0 < len(made.token_ids) <= 6


def test_a_server_without_token_ids_is_read_by_its_text(server: Server) -> None:
    def plain(handler: Handler, body: dict[str, Any]) -> None:
        reply = written(body)
        del reply["choices"][0]["token_ids"]
        handler.send(200, reply)

    producer = producer_for(server)
    by_ids = producer.batch(ITEMS[:3])
    server.answer = plain
    assert producer.batch(ITEMS[:3]) == by_ids


@pytest.mark.parametrize(("name", "processed"), [*((name, True) for name in FAMILIES), ("gemma", False)])
def test_a_server_that_reads_text_as_transformers_does_comes_to_the_prompts_own_ids(
    name: str, processed: bool, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    file = write(tmp_path, name) / "tokenizer.json"
    if not processed:  # the settings alone ask for a begin-of-text, and transformers does not hear them
        file.write_text(json.dumps(json.loads(file.read_text()) | {"post_processor": None}))
    tokenizer, theirs = load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    formats: tuple[ChatFormat, ...] = ("auto", "plain")
    for chat_format in formats:
        prompt = render_chat(REPHRASE.messages("The mill burned down."), REPHRASE.prefill, tokenizer, chat_format)
        request = Request(
            prompt=prompt, seed=0, max_tokens=9, sampling=SamplingConfig(), stop_ids=frozenset(), vocab_limit=None
        )
        body = request.body("any", server_config("http://h/v1", api="text"), tokenizer)
        assert theirs(body["prompt"])["input_ids"] == prompt


def test_a_corpus_hangs_on_what_is_asked_and_not_on_where_or_how_patiently() -> None:
    assert "server" not in GenerateConfig().recorded(), "work that was begun before there were servers stays as it is"
    server = server_config("http://gpu-7:8000/v1", model="m", api_key_env="KEY", patience_s=1.0, request={"min_p": 0.1})
    recorded = GenerateConfig(server=server).recorded()["server"]
    assert recorded == {"request": {"min_p": 0.1}, "api": "tokens"}
