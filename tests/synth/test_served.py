"""Generation by a server over real HTTP: whatever it does, the corpus is whole, and never what was not asked for."""

import itertools
import json
import os
import random
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from synpro_engine.config import UserError, load_config
from synpro_engine.config.errors import Stopped
from synpro_engine.dist import ParallelConfig, Topology, launched, on_first
from synpro_engine.dist.testing import run_ranks
from synpro_engine.model.build import build_model
from synpro_engine.model.config import ModelConfig
from synpro_engine.remote import endpoint as endpoint_module
from synpro_engine.remote import patience
from synpro_engine.remote import service as service_module
from synpro_engine.sampler import Sampler, SamplingConfig
from synpro_engine.synth import (
    DOCUMENTS,
    REJECTS,
    GenerateConfig,
    Producer,
    Prompter,
    ServedGenerator,
    ServerConfig,
    generate_corpus,
    lines_of,
    operation_named,
    work_items,
)
from synpro_engine.synth.ledger import read_commits
from synpro_engine.synth.served import check_server, check_weights, expected_answers, wait_for_server
from tests.reward.judges.server import FAULTS, SECRET, Handler, Server, serving

SCRIPT = Path(__file__).with_name("generation_job.py")
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


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(patience, "_FIRST_S", 0.01)
    monkeypatch.setattr(service_module, "_LOOK_S", 0.02)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with serving() as running:
        running.answer = answer
        running.listing = (200, {"data": [{"id": "bigram", "max_model_len": 4096}]})
        yield running


@pytest.fixture(scope="module")
def topology() -> Iterator[Topology]:
    with launched(ParallelConfig()) as topology:
        yield topology


def _made(out: Path, producer: Producer, topology: Topology) -> list[dict[str, Any]]:
    """All records of a generation, those refused with them."""
    generate_corpus(out, JOB["make_documents"], producer, topology, seed=JOB["SEED"])
    return _records(out)


def _records(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for stem in (DOCUMENTS, REJECTS) for _, line in lines_of(out, stem)]


def _producer(server: Server, **settings: Any) -> Producer:
    return JOB["served_producer"](endpoint=server.endpoint, **settings)


def _generator(producer: Producer) -> ServedGenerator:
    assert isinstance(producer.generator, ServedGenerator)
    return producer.generator


def test_a_server_is_asked_for_what_the_sampler_would_be(server: Server, topology: Topology, tmp_path: Path) -> None:
    producer = _producer(server, request={"min_p": None, "priority": 1})
    records = _made(tmp_path / "corpus", producer, topology)
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


def test_a_prompt_takes_no_more_room_than_the_context_leaves(server: Server) -> None:
    producer = _producer(server)
    generator = ServedGenerator(
        producer.config.server, "bigram", TOKENIZER, _generator(producer).service, seq_len=20, share=lambda work: work()
    )  # fmt: skip
    [[made]] = generator.generate(
        [list(range(65, 80))], group_size=1, sampling=SamplingConfig(max_new_tokens=9), stop_ids=frozenset({256}),
        seeds=[1],
    )  # fmt: skip
    assert server.calls[0][1]["max_tokens"] == 5 and 0 < len(made.token_ids) <= 6


def test_whatever_goes_wrong_on_the_way_the_corpus_is_the_same(
    server: Server, topology: Topology, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint_module, "_MAX_BYTES", 200_000)
    wanted = _made(tmp_path / "wanted", _producer(server), topology)
    turn, faults = itertools.count(), itertools.cycle(FAULTS.values())

    def misbehave(handler: Handler, body: dict[str, Any]) -> None:
        fault = next(faults) if next(turn) % 3 == 0 else answer
        fault(handler, body)

    server.answer = misbehave
    assert _made(tmp_path / "corpus", _producer(server, timeout_s=0.5, concurrency=4), topology) == wanted


def _with(change: Callable[[dict[str, Any]], Any]) -> Callable[[Handler, dict[str, Any]], None]:
    def say(handler: Handler, body: dict[str, Any]) -> None:
        reply = written(body)
        change(reply["choices"][0])
        handler.send(200, reply)

    return say


USELESS: dict[str, Callable[[Handler, dict[str, Any]], None]] = {
    "wrong schema": lambda handler, body: handler.send(200, {"result": "text"}),
    "no choice": lambda handler, body: handler.send(200, {"choices": []}),
    "aborted": _with(lambda choice: choice.update(finish_reason="abort")),
    "filtered": _with(lambda choice: choice.update(finish_reason="content_filter")),
    "no end": _with(lambda choice: choice.update(finish_reason=None)),
    "no text": _with(lambda choice: choice.update(text=None)),
    "words for ids": _with(lambda choice: choice.update(token_ids=["a"])),
    "no ids at all": _with(lambda choice: choice.update(token_ids=[], finish_reason="length")),
    "ids of another vocabulary": _with(lambda choice: choice["token_ids"].insert(0, 10_000)),
    "cut short": _with(lambda choice: choice.update(token_ids=choice["token_ids"][:3], finish_reason="length")),
    "on behind its end": _with(lambda choice: choice["token_ids"].insert(1, 258)),
    "too long": _with(lambda choice: choice.update(token_ids=[65] * 70)),
}


@pytest.mark.parametrize("kind", USELESS)
def test_an_answer_of_no_use_is_asked_for_again_with_another_seed(kind: str, server: Server) -> None:
    turn, producer = itertools.count(), _producer(server, concurrency=1)
    server.answer = lambda handler, body: (answer if next(turn) else USELESS[kind])(handler, body)
    first, second = producer.batch(ITEMS[:1])
    assert len(server.calls) == 3 and server.calls[0][1]["seed"] != server.calls[1][1]["seed"]
    assert first["completion_tokens"] > 0 and second["completion_tokens"] > 0


@pytest.mark.parametrize("kind", USELESS)
def test_a_server_that_is_of_no_use_ends_the_generation_and_nothing_is_recorded(
    kind: str, server: Server, topology: Topology, tmp_path: Path
) -> None:
    server.answer = USELESS[kind]
    with pytest.raises(UserError, match=r"`generate\.server`: an answer of http://127.* is of no use: its? "):
        _made(tmp_path / "corpus", _producer(server), topology)
    assert not (tmp_path / "corpus").exists() and not read_commits(tmp_path / "corpus.work")


def test_a_server_without_token_ids_is_read_by_its_text(server: Server) -> None:
    def plain(handler: Handler, body: dict[str, Any]) -> None:
        reply = written(body)
        del reply["choices"][0]["token_ids"]
        handler.send(200, reply)

    producer = _producer(server)
    by_ids = producer.batch(ITEMS[:3])
    server.answer = plain
    assert producer.batch(ITEMS[:3]) == by_ids


def test_an_outage_that_is_not_waited_for_ends_in_one_line_and_a_new_start_goes_on(
    server: Server, topology: Topology, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setenv("SERVER_KEY", SECRET)
    wanted, turn = _made(tmp_path / "wanted", _producer(server), topology), itertools.count()

    def half(handler: Handler, body: dict[str, Any]) -> None:
        (answer if next(turn) < 20 else FAULTS["500"])(handler, body)

    server.answer = half
    impatient = _producer(server, outage="give_up", tries=2, concurrency=2, api_key_env="SERVER_KEY")
    with pytest.raises(UserError, match=r"`generate\.server\.endpoint`: http.* does not answer .*what is done is kept"):
        _made(tmp_path / "corpus", impatient, topology)
    kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    said = capfd.readouterr()
    assert server.calls[-1][2]["authorization"] == f"Bearer {SECRET}"
    assert SECRET not in said.out + said.err and SECRET.encode() not in kept
    done, calls = len(read_commits(tmp_path / "corpus.work")), len(server.calls)
    assert 0 < done < 12
    server.answer = answer
    # Another address, key and patience are no other settings.
    assert _made(tmp_path / "corpus", _producer(server), topology) == wanted
    assert 0 < len(server.calls) - calls < len(wanted) - 3 * done


def test_a_prompt_that_is_refused_for_good_ends_the_generation(
    server: Server, topology: Topology, tmp_path: Path
) -> None:
    server.answer = lambda handler, body: handler.send(400, {"error": {"message": "prompt must be a string"}})
    with pytest.raises(UserError, match=r"`generate\.server`: .*refuses a prompt \(HTTP 400: prompt must be a string"):
        _made(tmp_path / "corpus", _producer(server), topology)


def test_an_outage_is_waited_for_until_the_job_is_to_stop(server: Server) -> None:
    server.answer = FAULTS["500"]
    producer = _producer(server)
    _generator(producer).service.asked_to_stop = lambda: len(server.calls) > 3
    with pytest.raises(Stopped, match=r"`generate\.server\.endpoint`"):
        producer.batch(ITEMS[:1])


def _config(endpoint: str, **settings: Any) -> ServerConfig:
    return load_config(ServerConfig, {"endpoint": endpoint, **settings})


def test_a_corpus_hangs_on_what_is_asked_and_not_on_where_or_how_patiently() -> None:
    assert "server" not in GenerateConfig().recorded(), "work that was begun before there were servers stays as it is"
    server = _config("http://gpu-7:8000/v1", model="m", api_key_env="KEY", patience_s=1.0, request={"min_p": 0.1})
    recorded = GenerateConfig(server=server).recorded()["server"]
    assert recorded == {"request": {"min_p": 0.1}, "api": "tokens"}


def test_what_can_be_known_of_a_server_is_told_before_it_is_needed(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SERVER_KEY", raising=False)
    assert check_server(_config(server.endpoint)) is None
    assert "does not answer" in str(check_server(_config("http://127.0.0.1:9/v1")))  # it may come yet
    with pytest.raises(UserError, match=r"`generate\.server\.api_key_env`: .*SERVER_KEY is not set"):
        check_server(_config(server.endpoint, api_key_env="SERVER_KEY"))
    with pytest.raises(UserError, match=r"`generate\.server\.endpoint`: .*no such host"):
        check_server(_config("http://no-such-host.invalid:8000/v1"))
    server.listing = (401, {"error": "who are you?"})
    with pytest.raises(UserError, match=r"`generate\.server\.api_key_env`: .*without a valid API key"):
        check_server(_config(server.endpoint))
    with pytest.raises(UserError, match="without /completions"):
        _config(f"{server.endpoint}/completions")


def test_the_server_is_waited_for_until_it_has_the_model(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    from synpro_engine.synth.served import opening

    monkeypatch.setattr(opening, "_LOOK_S", 0.01)
    told, asked_to_stop = list[str](), threading.Event()

    def wait(model: str, context: int = 4096) -> None:
        generator = _generator(_producer(server, patience_s=0.05))
        generator.model, generator.service.asked_to_stop = model, asked_to_stop.is_set
        wait_for_server(generator, least_context=context, tell=told.append)

    wait("bigram")
    assert not told
    with pytest.raises(UserError, match=r"`generate\.server\.endpoint`: .* does not serve `rephrase-1-abc` after"):
        wait("rephrase-1-abc")
    assert told == [f"waiting for {server.endpoint} to serve `rephrase-1-abc` (it serves 'bigram')"]
    with pytest.raises(UserError, match=r"context of 4096 tokens.*need 4097"):
        wait("bigram", 4097)
    server.listing = (500, {"error": "no list"})
    wait("another")  # it answers, and that will do
    server.answer = FAULTS["500"]
    asked_to_stop.set()
    with pytest.raises(Stopped):
        wait("another")


def _tiny(topology: Topology, seed: int, shift: float = 0.0) -> Sampler:
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


def _greedy(sampler: Sampler, *, logprobs: bool) -> Callable[[Handler, dict[str, Any]], None]:
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


@pytest.mark.parametrize("logprobs", [True, False])
def test_a_server_of_other_weights_is_refused(server: Server, topology: Topology, logprobs: bool) -> None:
    producer, sampler = _producer(server, tolerance=0.05), _tiny(topology, 1)
    prompter = Prompter(operation_named("rephrase"), TOKENIZER, JOB["PROMPT"])
    expected = expected_answers(sampler, prompter, TOKENIZER.vocab_size)

    def check() -> Any:
        return check_weights(_generator(producer), expected, prompter.stop_ids, TOKENIZER.vocab_size)

    server.answer = _greedy(sampler, logprobs=logprobs)
    agreement = check()
    assert agreement.equal == 1.0 and agreement.difference == (pytest.approx(0.0, abs=1e-6) if logprobs else None)
    server.answer = _greedy(_tiny(topology, 2), logprobs=logprobs)
    with pytest.raises(UserError, match=r"`generate\.server`: .* serves `bigram` with other weights"):
        check()
    if logprobs:  # weights of another step: much the same tokens, less surely
        server.answer = _greedy(_tiny(topology, 1, shift=0.01), logprobs=True)
        with pytest.raises(UserError, match="other weights"):
            check()


def test_weights_are_looked_at_again_when_calls_have_failed(server: Server, topology: Topology, tmp_path: Path) -> None:
    producer, loaded, cut = _producer(server), [_tiny(topology, 1)], threading.Event()
    generator, prompter = _generator(producer), Prompter(operation_named("rephrase"), TOKENIZER, JOB["PROMPT"])
    expected = expected_answers(loaded[0], prompter, TOKENIZER.vocab_size)
    generator.guard = lambda: check_weights(generator, expected, prompter.stop_ids, TOKENIZER.vocab_size)

    def say(handler: Handler, body: dict[str, Any]) -> None:
        if body["temperature"] == 0.0:
            _greedy(loaded[0], logprobs=True)(handler, body)
        elif cut.is_set():
            cut.clear()
            FAULTS["cut connection"](handler, body)
        else:
            answer(handler, body)

    def looks() -> int:
        return sum(body["temperature"] == 0.0 for _, body, _, _ in server.calls)

    server.answer = say
    assert producer.batch(ITEMS[:2]) and looks() == 0
    cut.set()
    assert producer.batch(ITEMS[:2]) and looks() == len(expected)  # it came back as it was
    loaded[0] = _tiny(topology, 2)
    cut.set()
    with pytest.raises(UserError, match="other weights"):
        _made(tmp_path / "corpus", producer, topology)
    assert not read_commits(tmp_path / "corpus.work")


def _asks(endpoint: str) -> list[list[Any]]:
    """What a rank of a tensor-parallel group of two gets, and how many calls it made."""
    with launched(ParallelConfig(tp=2)) as topology:
        producer = JOB["served_producer"](endpoint=endpoint)
        generator = _generator(producer)
        generator._share = lambda work: on_first(topology.tp, topology, work)
        return [producer.batch(ITEMS[:3]), [generator.service.counts["calls"]]]


def test_tensor_parallel_ranks_ask_once_and_have_the_same(server: Server) -> None:
    one, two = run_ranks(_asks, 2, endpoint=server.endpoint)
    assert one[0] == two[0] == _producer(server).batch(ITEMS[:3])
    assert one[1] == [6] and two[1] == [0], "the second rank asks nothing"


@pytest.mark.slow
def test_ten_kills_neither_double_nor_lose_a_completion(server: Server, topology: Topology, tmp_path: Path) -> None:
    wanted = _made(tmp_path / "wanted", _producer(server), topology)
    rng = random.Random(4)
    quick = [fault for name, fault in FAULTS.items() if name not in ("slow", "byte by byte", "huge")]

    def unlucky(handler: Handler, body: dict[str, Any]) -> None:
        time.sleep(0.02)
        with handler.server.lock:
            fault = rng.choice(quick) if rng.random() < 0.1 else answer
        fault(handler, body)

    server.answer, out, work = unlucky, tmp_path / "corpus", tmp_path / "corpus.work"
    path = os.pathsep.join((str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")))
    command = [sys.executable, str(SCRIPT), str(out), "0", server.endpoint]
    for _ in range(10):
        done, calls = len(read_commits(work)) if work.exists() else 0, len(server.calls)
        process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, stderr=subprocess.PIPE, text=True)
        # In the middle of a batch, wherever in it, and mostly after one that this start has finished.
        upto = calls + rng.randint(5, 10)
        while len(server.calls) < upto:
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert not out.exists() and done <= len(read_commits(work))
    assert subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, check=False).returncode == 0
    made = _records(out)
    too_long = {record["id"].rpartition(":")[0] for record in made if record.get("reason") == "prompt_too_long"}
    places = [(o["source"], o["start"], o["end"], o["operation"], o["member"]) for o in (r["provenance"] for r in made)]
    assert len(places) == len(set(places)) and set(places) == {
        (item.slice.doc_id, item.slice.start, item.slice.end, item.operation, member)
        for item in ITEMS
        for member in range(1 if item.key in too_long else JOB["CONFIG"].samples)
    }
    assert made == wanted and not work.exists()
