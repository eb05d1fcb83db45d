"""Judges that answer in probabilities, over HTTP: one request a text, what is missing asked again, and `auto`."""

import math
from typing import Any

import pytest

from synpro_engine.config import UserError, load_config
from synpro_engine.reward import Composer, RewardConfig
from synpro_engine.reward.judges import apis_of, ask_together, check_judges, opening
from synpro_engine.reward.judges import client as client_module
from tests.reward.judges.misbehaving import SOURCE, decide, entries, rephrased, share_of
from tests.reward.judges.server import FAULTS, client, texts

TYPED = ("decisions", "systemone")


@pytest.fixture(autouse=True)
def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "_TAKEN", {})


@pytest.mark.parametrize("api", TYPED)
def test_all_questions_about_a_text_go_in_one_request_with_the_source_first(server: Any, api: str) -> None:
    server.answer = decide
    candidate = entries(8)
    value = server.reward("faithfulness", api=api)([candidate])
    [(path, body, _, _)] = server.calls
    state = body["input"] if api == "decisions" else body["state"]
    assert path == f"/v1/{api}" and len(body["questions"]) == 8 and SOURCE in state
    asked = body["questions"] if api == "decisions" else list(body["questions"].values())
    expected = [share_of(body)(one["instructions"], ["Faithful", "b", "c"])[0] for one in asked]
    assert value == [pytest.approx(sum(expected) / 8)]
    for entry, one in zip(candidate.parsed.entries, asked, strict=True):
        assert str(entry) in one["instructions"] and str(entry) not in state


@pytest.mark.parametrize("api", TYPED)
def test_several_rewards_of_one_endpoint_share_a_request(server: Any, api: str) -> None:
    server.answer = decide
    structure, similarity, quality = server.rewards("structure", "similarity", "quality", api=api)
    candidate = rephrased("In spring the river came up, and those who worked in the town went away.")
    together = ask_together([(structure, [candidate]), (similarity, [candidate]), (quality, [candidate])])
    # Of structure and similarity one; of quality that of the text and that of the source, each alone in sight.
    assert sorted(len(body["questions"]) for _, body, _, _ in server.calls) == [1, 1, 2]
    apart = [server.reward(name, api=api)([candidate]) for name in ("structure", "similarity", "quality")]
    assert together == apart, "what else is asked changes no answer's value"
    assert structure.range == (0.0, 1.0) and quality.range == (-4.0, 4.0)


@pytest.mark.parametrize("api", TYPED)
def test_quality_is_a_difference_of_expectations_or_of_whole_numbers(server: Any, api: str) -> None:
    def answer(handler: Any, body: Any) -> None:
        state = body.get("input") or body["state"]
        of_source = [0.0, 0.4, 0.3, 0.2, 0.1]
        handler.decide(body, lambda asked, names: of_source if SOURCE in state else [0.0, 0.0, 0.0, 0.4, 0.6])

    server.answer = answer
    said = [rephrased(f"A text of some words, said {n} times.") for n in range(3)]
    assert server.reward("quality", api=api)(said) == [pytest.approx(4.6 - 3.0)] * 3
    assert len(server.calls) == 4, "the source is asked about once"
    assert server.reward("quality", api=api, hard=True)(said[:1]) == [5.0 - 2.0]


def test_more_questions_than_a_request_may_hold_are_split(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    server.answer = decide
    candidate = entries(8)
    whole = server.reward("faithfulness", api="systemone")([candidate])
    server.calls.clear()
    assert server.reward("faithfulness", api="systemone", max_questions=3)([candidate]) == whole
    assert [len(body["questions"]) for _, body, _, _ in server.calls] in ([3, 3, 2], [3, 2, 3], [2, 3, 3])
    monkeypatch.setitem(client_module.typed.MOST_QUESTIONS, "decisions", 5)
    server.calls.clear()
    server.reward("faithfulness", api="decisions", max_questions=100)([candidate])
    assert [len(body["questions"]) for _, body, _, _ in server.calls] in ([5, 3], [3, 5])


@pytest.mark.parametrize("status", [400, 500])
def test_a_request_that_is_refused_is_asked_in_parts_until_the_question_at_fault_is_alone(
    server: Any, status: int
) -> None:
    def answer(handler: Any, body: Any) -> None:
        if len(body["questions"]) > 3:
            handler.send(422, {"detail": "at most 3 questions"})
        elif any("in the year 1805" in one["instructions"].lower() for one in body["questions"].values()):
            handler.send(status, {"error": {"message": "content policy"}})
        else:
            decide(handler, body)

    server.answer = answer
    judge = server.reward("faithfulness", api="systemone", outage="wait", tries=2)
    judge.client.service.asked_to_stop = lambda: len(server.calls) > 100  # a question that is asked for ever
    values = judge.client.values(judge.judgements(entries(8)))
    assert [math.isnan(value) for value in values] == [n == 5 for n in range(8)]
    assert judge.client.service.counts["refused"] == judge.client.service.counts["missing"] == 1
    assert math.isnan(judge([entries(8)])[0]) and judge([entries(4)])[0] > 0, "missing is never 0"


@pytest.mark.parametrize("api", TYPED)
def test_what_a_reply_lacks_is_asked_for_again_alone(server: Any, api: str) -> None:
    turns = []

    def answer(handler: Any, body: Any) -> None:
        turns.append(len(body["questions"]))
        lacking = len(turns) == 1
        handler.decide(body, lambda asked, names: None if lacking and "1803" in asked else share_of(body)(asked, names))

    server.answer = answer
    candidate = entries(6)
    value = server.reward("faithfulness", api=api)([candidate])
    assert turns == [6, 1]
    server.answer = decide
    assert value == server.reward("faithfulness", api=api)([candidate])


@pytest.mark.parametrize("api", TYPED)
@pytest.mark.parametrize("spoil", ["refusal", "nan", "sum", "unknown"])
def test_an_answer_that_stays_bad_is_missing_and_tried_as_often_as_is_set(server: Any, api: str, spoil: str) -> None:
    changed = {"nan": [math.nan] * 3, "sum": [0.9, 0.9, 0.0], "refusal": None, "unknown": [1.0, 0.0, 0.0]}[spoil]

    def answer(handler: Any, body: Any) -> None:
        if spoil == "unknown":
            for one in body["questions"].values() if api == "systemone" else body["questions"]:
                for option in (one.get("choices") or [None])[:1]:
                    option["value"] = "Other"
                if "criteria" in one:
                    one["criteria"] = {"Other": None, **dict(list(one["criteria"].items())[1:])}
        handler.decide(body, lambda asked, names: changed)

    if spoil == "nan":
        changed = [math.nan, 0.5, 0.5]
    server.answer = answer
    judge = server.reward("faithfulness", api=api, unreadable_tries=3)
    assert math.isnan(judge([entries(2)])[0])
    assert len(server.calls) == 3 and judge.client.service.counts["missing"] == 2
    server.answer = decide
    assert judge([entries(2)])[0] > 0, "nothing bad was kept"


def test_tokens_are_counted_as_the_server_counts_them(server: Any) -> None:
    server.answer = decide
    judge = server.reward("faithfulness", api="decisions")
    judge([entries(3), entries(4, 1)])
    judge([entries(3)])
    counts = judge.client.service.take_counts()
    assert counts["input_tokens"] == 200 and counts["calls"] == 2 and counts["kept"] == 3 and counts["missing"] == 0


def test_auto_takes_the_first_interface_that_answers_and_asks_the_server_once(server: Any) -> None:
    def having(*routes: str) -> Any:
        def answer(handler: Any, body: Any) -> None:
            route = handler.path.removeprefix("/v1/")
            if route not in routes:
                handler.send(404, {"detail": "Not Found"})
            elif route in TYPED:
                decide(handler, body)
            elif route == "completions":
                handler.send(200, {"choices": [{"text": "4"}]})
            else:
                handler.write("4")

        return answer

    every = [*TYPED, "chat/completions", "completions"]
    for number, route in enumerate(every):
        opening._TAKEN.clear()
        server.answer, judges = having(*every[number:]), {"quality": server.judge(api="auto")}
        [told] = check_judges(judges)
        api = route.removesuffix("/completions")
        assert told == f"`reward.judges.quality`: {server.endpoint} is asked by {api}"
        asked = len(server.calls)
        assert apis_of(judges) == {"quality": api} and len(server.calls) == asked, "known by then"
    opening._TAKEN.clear()
    server.answer = having()
    with pytest.raises(
        UserError,
        match=r"`reward.judges.quality.endpoint`: .* answers at none of .* \(the last: HTTP 404: Not Found\)",
    ):
        check_judges({"quality": server.judge(api="auto")})
    bare = server.judge(api="auto", endpoint=server.endpoint.removesuffix("/v1"))
    with pytest.raises(
        UserError, match=r"Not Found; the address ends with no version such as /v1: add it, if the serv"
    ):
        check_judges({"quality": bare})


def test_auto_passes_over_an_interface_that_answers_in_another_form(server: Any) -> None:
    server.answer = lambda handler, body: handler.write("4")
    assert apis_of({"quality": server.judge(api="auto")}) == {"quality": "chat"}
    assert apis_of({"quality": server.judge(api="auto", prompt="Rate: {text}")}) == {"quality": "chat"}
    server.answer = FAULTS["500"]
    with pytest.raises(UserError, match="does not answer"):
        apis_of({"quality": server.judge(api="auto", max_tokens=9)})
    server.answer = FAULTS["a redirect"]
    with pytest.raises(UserError, match=r"does not answer \(HTTP 302, a redirect, which is not followed\)"):
        apis_of({"quality": server.judge(api="auto", max_tokens=9)})


@pytest.mark.parametrize("name", ["key refused", "a page"])
def test_auto_passes_over_what_a_key_or_a_front_end_makes_of_paths_that_are_not_for_judging(
    server: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def elsewhere(handler: Any) -> None:
        if name == "key refused":
            FAULTS[name](handler, {})
        else:
            handler.send(200, b"<html>Welcome</html>")

    server.answer = lambda handler, body: handler.write("4") if "chat" in handler.path else elsewhere(handler)
    monkeypatch.setattr(server.RequestHandlerClass, "do_GET", elsewhere)
    [told] = check_judges({"quality": server.judge(api="auto")})
    assert told.endswith("is asked by chat")
    opening._TAKEN.clear()
    server.answer = lambda handler, body: elsewhere(handler)
    lacking = "`reward.judges.quality.api_key_env`: .* takes no call without a valid API key"
    useless = "`reward.judges.quality.endpoint`: .* answers at none of .*its answer is no JSON"
    with pytest.raises(UserError, match=lacking if name == "key refused" else useless):
        check_judges({"quality": server.judge(api="auto")})


@pytest.mark.parametrize("api", TYPED)
def test_an_interface_that_a_server_lacks_is_told_by_its_key(server: Any, api: str) -> None:
    server.answer = lambda handler, body: handler.send(404, {"detail": "Not Found"})
    with pytest.raises(UserError, match=rf"`reward.judges.quality.api`: .* has no `{api}`, or no model") as caught:
        check_judges({"quality": server.judge(api=api)})
    assert "\n" not in str(caught.value)
    server.answer = lambda handler, body: handler.write("4")
    with pytest.raises(UserError, match=f"`reward.judges.quality.api`: .*/{api} answers, but not in the form of"):
        check_judges({"quality": server.judge(api=api)})
    server.answer = decide
    assert check_judges({"quality": server.judge(api=api)}) == []


def test_a_question_of_ones_own_needs_no_code(server: Any) -> None:
    judge = {
        "endpoint": server.endpoint, "model": "judge-1", "api": "systemone",
        "question": {"type": "score", "ask": "How useful is the text to a beginner?", "source": "hidden",
                     "levels": [{"name": "not"}, {"name": "somewhat"}, {"name": "very", "means": "it explains"}]},
    }  # fmt: skip
    given = {"judges": {"beginners": judge}, "rephrase": {"beginners": 0.5, "length": 1.0}, "reformat": {}}
    config = load_config(RewardConfig, given)
    assert config.remote.keys() == {"beginners"} and config.weights("rephrase")["beginners"] == 0.5
    assert config.recorded()["judges"]["beginners"]["question"]["levels"][2]["means"] == "it explains"
    assert load_config(RewardConfig, config.model_dump(mode="json")) == config
    server.answer = lambda handler, body: handler.decide(body, lambda asked, names: [0.0, 0.5, 0.5])
    from synpro_engine.reward.judges import open_judges

    [own] = open_judges(config.remote, {"beginners": "systemone"})
    assert own.range == (0.0, 2.0) and own([rephrased("The river came up in spring.")]) == [1.5]
    assert SOURCE not in server.calls[0][1]["state"]


@pytest.mark.parametrize(
    ("judges", "message"),
    [
        ({"mine": {"model": "m", "endpoint": "http://h/v1"}}, "mine: a judge of your own needs a `question`"),
        ({"qualty": {"model": "m"}}, r"qualty: a judge of your own needs a `question` \(did you mean `quality`"),
        ({"mine": 3}, "mine: a judge of your own needs a `question`"),
        ({"influence": {"question": {"type": "truth", "ask": "?"}, "model": "m", "endpoint": "http://h/v1"}},
         "judges.influence: is measured without a judge"),
        ({"mine": {"question": {"type": "score", "ask": "?"}, "model": "m", "endpoint": "http://h/v1"}},
         "`judges.mine.question`: levels: a score needs from 2 to 26 of them, got 0"),
        ({"mine": {"question": {"type": "truth", "ask": "?", "each_": "text"}, "model": "m", "endpoint": "http://h/v1"}},
         r"unknown key `judges.mine.question.each_` \(did you mean `each`"),
        ({"a b": {"question": {"type": "truth", "ask": "?"}, "model": "m", "endpoint": "http://h/v1"}},
         "names are letters, digits and `_`"),
        ({"similarity": {"endpoint": "http://h/v1"}}, "key `judges.similarity.model` is missing"),
        ({"similarity": {"encoder": "x", "layr": 2}}, r"unknown key `judges.similarity.layr` \(did you mean `layer`"),
        ({"quality": {"encoder": "x"}}, "`judges`: quality.encoder: measures `similarity` alone; give `endpoint`"),
        ({"quality": {"model": "m", "endpoint": "http://h/v1", "api": "systemone", "prompt": "{text}"}},
         "`judges.quality`: prompt: is for api chat or completions"),
        ({"faithfulness": {"model": "m", "endpoint": "http://h/v1", "prompt": "{text}"}},
         "faithfulness.prompt: {source} is missing"),
    ],
)  # fmt: skip
def test_a_judge_that_cannot_be_asked_is_refused_by_its_key(judges: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_config(RewardConfig, {"judges": judges})
    assert "\n" not in str(caught.value)


def test_counts_of_calls_are_those_of_a_client_however_many_judges_it_serves(server: Any) -> None:
    server.answer = decide
    judges = server.rewards("structure", "similarity", api="decisions")
    table = Composer(judges, {"rephrase": {"structure": 1.0, "similarity": 1.0}}).score(
        [rephrased("In spring the river came up.")]
    )
    assert table.asked["structure+similarity/calls"] == 1 and table.asked["structure+similarity/input_tokens"] == 100
    assert client(server.judge()).values(texts()) == []
