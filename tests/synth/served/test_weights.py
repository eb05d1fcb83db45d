"""Whether a server has the weights that it should: when it is opened, and after faults."""

import itertools
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from synpro_engine.config import UserError
from synpro_engine.config.errors import Stopped
from synpro_engine.dist import Topology
from synpro_engine.synth import Prompter, operation_named
from synpro_engine.synth.ledger import read_commits
from synpro_engine.synth.served import OtherWeights, check_weights, expected_answers, opening
from tests.reward.judges.server import FAULTS, Handler, Server
from tests.synth.served.job import (
    ITEMS,
    JOB,
    TOKENIZER,
    all_made,
    answer,
    generator_of,
    greedy_answers,
    producer_for,
    tiny_sampler,
)


@pytest.mark.parametrize("logprobs", [True, False])
def test_a_server_of_other_weights_is_refused(server: Server, topology: Topology, logprobs: bool) -> None:
    producer, sampler = producer_for(server, tolerance=0.05), tiny_sampler(topology, 1)
    prompter = Prompter(operation_named("rephrase"), TOKENIZER, JOB["PROMPT"])
    expected = expected_answers(sampler, prompter, TOKENIZER.vocab_size)

    def check() -> Any:
        return check_weights(generator_of(producer), expected, prompter.stop_ids, TOKENIZER.vocab_size)

    server.answer = greedy_answers(sampler, logprobs=logprobs)
    agreement = check()
    assert agreement.equal == 1.0 and agreement.difference == (pytest.approx(0.0, abs=1e-6) if logprobs else None)
    server.answer = greedy_answers(tiny_sampler(topology, 2), logprobs=logprobs)
    with pytest.raises(UserError, match=r"`generate\.server`: .* serves `bigram` with other weights"):
        check()
    if logprobs:  # weights of another step: much the same tokens, less surely
        server.answer = greedy_answers(tiny_sampler(topology, 1, shift=0.01), logprobs=True)
        with pytest.raises(UserError, match="other weights"):
            check()


def test_weights_are_looked_at_again_when_calls_have_failed(server: Server, topology: Topology, tmp_path: Path) -> None:
    producer, loaded, cut = producer_for(server), [tiny_sampler(topology, 1)], threading.Event()
    generator, prompter = generator_of(producer), Prompter(operation_named("rephrase"), TOKENIZER, JOB["PROMPT"])
    expected = expected_answers(loaded[0], prompter, TOKENIZER.vocab_size)
    generator.guard = lambda: check_weights(generator, expected, prompter.stop_ids, TOKENIZER.vocab_size)

    def say(handler: Handler, body: dict[str, Any]) -> None:
        if body["temperature"] == 0.0:
            greedy_answers(loaded[0], logprobs=True)(handler, body)
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
    loaded[0] = tiny_sampler(topology, 2)
    cut.set()
    with pytest.raises(UserError, match="other weights"):
        all_made(tmp_path / "corpus", producer, topology)
    assert not read_commits(tmp_path / "corpus.work")


@pytest.mark.parametrize("named", [True, False])
def test_other_weights_are_waited_out_under_a_name_of_ones_own_alone(
    named: bool, server: Server, topology: Topology, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "_ASK_AGAIN_S", 0.01)
    mine, others, told = tiny_sampler(topology, 1), tiny_sampler(topology, 2), list[str]()
    prompter = Prompter(operation_named("rephrase"), TOKENIZER, JOB["PROMPT"])
    expected = expected_answers(mine, prompter, TOKENIZER.vocab_size)
    generator = generator_of(producer_for(server, model="bigram" if named else None, patience_s=60.0))
    generator.model = "bigram"
    answered = itertools.count()

    def started_anew(handler: Handler, body: dict[str, Any]) -> None:
        stale = next(answered) < 2 * len(expected)
        greedy_answers(others if stale else mine, logprobs=True)(handler, body)

    def wait() -> Any:
        check = partial(check_weights, generator, expected, prompter.stop_ids, TOKENIZER.vocab_size)
        return opening.wait_for_weights(generator, check, least_context=1, tell=told.append)

    server.answer = started_anew
    if not named:
        with pytest.raises(OtherWeights, match="with other weights"):
            wait()
        return
    assert wait().equal == 1.0
    assert len(told) == 1 and f"waiting for this stage's weights: {server.endpoint} serves `bigram` with" in told[0]
    server.answer = greedy_answers(others, logprobs=True)
    generator.config = generator.config.model_copy(update={"patience_s": 0.0})
    with pytest.raises(OtherWeights, match="with other weights"):
        wait()
    generator.config = generator.config.model_copy(update={"patience_s": 60.0})
    generator.service.asked_to_stop = lambda: True
    with pytest.raises(Stopped):
        wait()
