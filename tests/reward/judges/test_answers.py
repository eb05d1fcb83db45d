"""What is read from a judge's answer, and what three judges make of it."""

import math
import threading
import time
from typing import Any

import pytest

from synpro_engine.config import UserError, load_config
from synpro_engine.reward import RewardConfig
from synpro_engine.reward.judges import JudgeConfig, built_in, check_judges
from synpro_engine.reward.judges.questions import LevelConfig, OptionConfig, QuestionConfig
from synpro_engine.reward.judges.written import fill, written_form
from synpro_engine.synth import REFORMAT, REPHRASE, Candidate
from tests.reward.judges.server import client, texts

FORMS = {name: written_form(question) for name, question in built_in().items()}

SOURCE = "The river rose in spring and the workers of the town left their homes."


def _rephrased(text: str, source: str = SOURCE) -> Candidate:
    return Candidate(
        operation="rephrase", source=source, raw=text, parsed=REPHRASE.parse(f"{REPHRASE.heading}\n{text}")
    )


def _entries(*contents: str) -> Candidate:
    raw = REFORMAT.heading + "".join(f"\n- Topic: The {n}th flood. Content: {c}" for n, c in enumerate(contents))
    return Candidate(operation="reformat", source=SOURCE, raw=raw, parsed=REFORMAT.parse(raw))


@pytest.mark.parametrize(
    ("name", "reply", "value"),
    [
        ("quality", "4", 4), ("quality", " 5\n", 5), ("quality", "Score: 3", 3), ("quality", "**2**", 2),
        ("quality", "4/5", 4), ("quality", "Overall score: 4 / 5.", 4), ("quality", "The final score is 1.", 1),
        ("quality", "<think>Perhaps 2, or\n3?</think>\n5", 5), ("quality", "It reads well.\n\nScore: 4", 4),
        ("quality", "6", None), ("quality", "0", None), ("quality", "4.5", None), ("quality", "-4", None),
        ("quality", "44", None), ("quality", "4 5", None), ("quality", "4/10", None), ("quality", "four", None),
        ("quality", "<think>It is a 4", None), ("quality", "5 is too much, so 4", None), ("quality", " " * 10**6, None),
        ("quality", "Ignore the scale. Score: 5. Just kidding", None), ("quality", "score " * 10**5 + "4", None),
        ("faithfulness", "A", 1), ("faithfulness", "(a)", 1), ("faithfulness", "B: Unfaithful_Topic", 0),
        ("faithfulness", "Faithful", 1), ("faithfulness", "C. Unfaithful_Content.", 0),
        ("faithfulness", "Answer: C", 0),
        ("faithfulness", "A: Unfaithful_Topic", None), ("faithfulness", "A or B", None), ("faithfulness", "D", None),
        ("faithfulness", "Unfaithful", None), ("faithfulness", "A faithful entry", None),
        ("structure", "Yes.", 1), ("structure", "no", 0), ("structure", "yes and no", None), ("structure", "not", None),
    ],
)  # fmt: skip
def test_an_answer_is_read_only_where_it_is_one(name: str, reply: str, value: float | None) -> None:
    assert FORMS[name].read(reply) == value


def test_what_is_no_answer_is_refused_at_once_however_long_its_runs_of_blanks_and_marks_are() -> None:
    runs = [f"Score{' ' * 190}high", f"{'*' * 60}4{'.' * 130}x", f"4{').' * 97}x", f"score{' ' * 90}is{'.' * 90}x"]
    began = time.process_time()
    assert [FORMS["quality"].read(run) for run in runs] == [None] * len(runs)
    assert time.process_time() - began < 1.0, "it took a minute"
    assert FORMS["quality"].read(f"**Score**{' ' * 90}{'*' * 60}4{'.' * 30}") == 4.0


def _chat(text: str, *places: dict[str, float]) -> dict[str, Any]:
    content = [
        {"token": next(iter(top)), "top_logprobs": [{"token": t, "logprob": math.log(p)} for t, p in top.items()]}
        for top in places
    ]
    return {"choices": [{"message": {"content": text}, "logprobs": {"content": content}}]}


def test_a_value_is_the_mean_over_the_allowed_answers_where_there_are_probabilities() -> None:
    quality, faithful, structure = (FORMS[name] for name in ("quality", "faithfulness", "structure"))
    assert quality.value_of("chat", _chat("4", {"4": 0.5, "5": 0.25, " 3": 0.05, "a": 0.2})) == pytest.approx(3.4 / 0.8)
    # The place of the digit counts, and not the words before it.
    prefixed = _chat("Score: 2", {"Score": 0.9, "2": 0.1}, {":": 1.0}, {" 2": 0.75, " 4": 0.25})
    assert quality.value_of("chat", prefixed) == pytest.approx(2.5)
    assert faithful.value_of("chat", _chat("A", {"A": 0.6, "B": 0.1, "C": 0.3})) == pytest.approx(0.6)
    begun = _chat("Unfaithful_Topic", {"Un": 0.7, "F": 0.3}, {"faithful": 1.0})
    assert faithful.value_of("chat", begun) == pytest.approx(0.3)
    assert structure.value_of("chat", _chat("Yes", {"Yes": 0.5, "yes": 0.25, "No": 0.25})) == pytest.approx(0.75)
    # With little of them on allowed answers they say nothing about the one that was written.
    assert quality.value_of("chat", _chat("4", {"4": 0.3, "The": 0.7})) == 4.0
    assert quality.value_of("chat", _chat("I say 4 or 5", {"4": 1.0})) is None
    written = {
        "text": " 4",
        "logprobs": {"tokens": [" 4"], "top_logprobs": [{" 4": math.log(0.5), " 2": math.log(0.5)}]},
    }
    assert quality.value_of("completions", {"choices": [written]}) == pytest.approx(3.0)
    assert quality.value_of("completions", {"choices": [{"text": "4", "logprobs": None}]}) == 4.0
    assert quality.value_of("chat", _chat("4", {"4": 0.5, "5": 0.5}), hard=True) == 4.0


GRADES = QuestionConfig(
    type="choice",
    ask="How good is the text?",
    options=(OptionConfig(name="good", worth=1.0), OptionConfig(name="average", worth=0.5), OptionConfig(name="bad")),
)


@pytest.mark.parametrize(
    ("places", "value"), [({"A": 0.30, "B": 0.15, "C": 0.55}, 0.375), ({" a": 0.51, "b": 0.09, "C": 0.40}, 0.555)]
)
def test_a_token_that_begins_a_label_is_no_beginning_of_another_answers_name(
    places: dict[str, float], value: float
) -> None:
    """`A` is good, though `average` begins so; `B` is average, though `bad` does."""
    form = written_form(GRADES)
    for token in places:
        first = {token: places[token]} | places  # the one that was written
        assert form.value_of("chat", _chat(token.strip(), first)) == pytest.approx(value)
    assert form.value_of("chat", _chat("Average", {"Av": 0.6, "G": 0.3, "Bad": 0.1})) == pytest.approx(0.6)


def test_a_token_that_begins_several_labels_counts_where_these_are_worth_the_same() -> None:
    levels = tuple(LevelConfig(name=f"level {n}") for n in range(1, 13))
    form = written_form(QuestionConfig(type="score", ask="How good is the text?", lowest=1.0, levels=levels))
    assert form.weigh({"1": 0.9, "2": 0.1}) is None and form.weigh({"10": 0.5, "2": 0.5}) == pytest.approx(6.0)


DATAMAN = ["Education", *"43543432435"]
"""As DataMan answers: the domain, thirteen scores by criterion, and the overall one, each on a line (here: some)."""


def test_of_several_scores_the_last_one_counts_and_its_own_probabilities() -> None:
    places = [place for line in DATAMAN for place in ({line: 1.0}, {"\n": 1.0})]
    reply = _chat("\n".join([*DATAMAN, "2"]), *places, {"2": 0.75, "4": 0.25})
    assert FORMS["quality"].value_of("chat", reply) == pytest.approx(2.5)
    thoughts = _chat("<think>\n4?\n</think>\n\n5/5", {"<think>\n": 1.0}, {"4": 1.0}, {"?\n": 1.0},
                     {"</think>\n\n": 1.0}, {"5": 0.5, "3": 0.5}, {"/": 1.0}, {"5": 1.0})  # fmt: skip
    assert FORMS["quality"].value_of("chat", thoughts) == pytest.approx(4.0)


@pytest.mark.parametrize("text", ["\n".join(DATAMAN), "<think>\nCriteria:\n1. It is clear.\n2"])
def test_a_reply_that_was_cut_off_has_no_last_line(text: str) -> None:
    """What stands last is then the score of a criterion, or the number of a thought."""
    whole = _chat(text)
    [choice] = whole["choices"]
    assert FORMS["quality"].value_of("chat", whole) is not None
    for api, one in (("chat", choice), ("completions", {"text": text})):
        cut = {"choices": [one | {"finish_reason": "length"}]}
        assert FORMS["quality"].value_of(api, cut) is None
    short = {"choices": [_chat("4")["choices"][0] | {"finish_reason": "length"}]}
    assert FORMS["quality"].value_of("chat", short) == 4.0, "a longest length of one token is as good as any"


@pytest.mark.parametrize("logprob", ["x", None, float("nan"), float("-inf")])
def test_probabilities_that_are_none_never_become_a_value_of_their_own(logprob: Any) -> None:
    content = [{"token": "4", "top_logprobs": [{"token": "5", "logprob": logprob}]}]
    reply = {"choices": [{"message": {"content": "4"}, "logprobs": {"content": content}}]}
    broken = logprob is None or logprob != float("-inf")  # which some servers give for what cannot be
    assert FORMS["quality"].value_of("chat", reply) == (None if broken else 4.0)


@pytest.mark.parametrize("rest", [{}, {"top_logprobs": None}, {"top_logprobs": []}])
def test_what_is_written_counts_where_no_other_token_has_a_probability(rest: dict[str, Any]) -> None:
    content = [{"token": "4", "logprob": -0.1, **rest}]
    reply = {"choices": [{"message": {"content": "4"}, "logprobs": {"content": content}}]}
    assert FORMS["quality"].value_of("chat", reply) == 4.0


def test_a_first_answer_that_cannot_be_read_is_told_before_anything_begins(
    server: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    check_judges({"quality": server.judge()})
    assert "cannot be read" not in capfd.readouterr().err
    server.answer = lambda handler, body: handler.write("A fine text!\x1b[2J")
    check_judges({"quality": server.judge()})
    said = capfd.readouterr().err
    assert "`reward.judges.quality`: a first answer of " in said and "A fine text!" in said and "\x1b" not in said


def test_a_text_cannot_put_another_text_into_the_question() -> None:
    asked = fill("Is {text} like {source}?", "mine {source}", "theirs {text}")
    assert asked == "Is mine {source} like theirs {text}?"


def test_quality_is_the_difference_to_the_source_which_is_asked_about_once(server: Any) -> None:
    server.answer = lambda handler, body: handler.write("2" if SOURCE in body["messages"][0]["content"] else "5")
    judge = server.reward("quality")
    said = [f"A text of some words, said {n} times." for n in range(3)]
    assert judge([_rephrased(text) for text in said]) == [3.0] * 3 and len(server.calls) == 4
    assert judge([_rephrased(SOURCE)]) == [0.0] and len(server.calls) == 4


def test_faithfulness_is_the_share_of_entries_each_held_against_the_whole_slice(server: Any) -> None:
    def answer(handler: Any, body: Any) -> None:
        asked = body["messages"][0]["content"]
        assert SOURCE in asked
        handler.write("C" if "mayor" in asked else "A")

    server.answer = answer
    told, invented = "People left before the river came.", "The mayor drowned in it."
    judge = server.reward("faithfulness", top_logprobs=0)
    asked = [_entries(told), _entries(told, invented), _entries(invented), _rephrased("Words without any entry.")]
    assert judge(asked) == [1.0, 0.5, 0.0, 0.0]
    assert all("logprobs" not in body for _, body, _, _ in server.calls)


def test_structure_is_a_yes_or_no_by_its_probability(server: Any) -> None:
    server.answer = lambda handler, body: handler.write("Yes", {"Yes": math.log(0.9), "No": math.log(0.1)})
    assert server.reward("structure")([_rephrased(SOURCE)]) == [pytest.approx(0.9)]
    [(path, body, _, _)] = server.calls
    assert path == "/v1/chat/completions" and body["logprobs"] is True and body["top_logprobs"] == 20
    assert body["temperature"] == 0.0 and body["max_tokens"] == 8


def test_the_request_can_be_changed(server: Any) -> None:
    server.answer = lambda handler, body: handler.send(200, {"choices": [{"text": "4"}]})
    changes = {"max_tokens": None, "max_completion_tokens": 900, "temperature": 1.0}
    config = server.judge(api="completions", top_logprobs=5, request=changes, prompt="{text}")
    assert client(config).values(texts("A text.")) == [4.0]
    [(path, body, _, _)] = server.calls
    assert path == "/v1/completions" and body["logprobs"] == 5 and "max_tokens" not in body
    assert body["max_completion_tokens"] == 900 and body["temperature"] == 1.0


def test_concurrency_is_shared_out_over_ranks_and_is_never_exceeded(server: Any) -> None:
    under_way, most, lock = [0], [0], threading.Lock()

    def answer(handler: Any, body: Any) -> None:
        with lock:
            under_way[0] += 1
            most[0] = max(most[0], under_way[0])
        time.sleep(0.05)
        with lock:
            under_way[0] -= 1
        handler.write("4")

    server.answer = answer
    client(server.judge(concurrency=8), ranks=2).values(texts(*map(str, range(20))))
    assert most[0] == 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"endpoint": "127.0.0.1:8000"}, "`judges.quality.endpoint`: expected an address"),
        ({"endpoint": "http://u:hunter2@host/v1"}, "`judges.quality`: endpoint: an address alone"),
        ({"endpoint": "http://host/v1?key=hunter2"}, "`judges.quality`: endpoint: an address alone"),
        ({"endpoint": "http://host/v1/chat/completions"}, "without /chat/completions"),
        ({"endpoint": "http://host:99999/v1"}, "`judges.quality.endpoint`: Port out of range"),
        ({"prompt": "Rate it."}, "{text} is missing"),
        ({"api_key_env": "sk-abc"}, "`judges.quality.api_key_env`"),
        ({"modell": "x"}, r"unknown key `judges.quality.modell` \(did you mean `model`"),
    ],
)  # fmt: skip
def test_settings_that_cannot_work_are_refused_without_a_secret(settings: dict[str, Any], message: str) -> None:
    judge = {"endpoint": "http://127.0.0.1:1/v1", "model": "m"} | settings
    with pytest.raises(UserError, match=message) as caught:
        load_config(RewardConfig, {"judges": {"quality": judge}})
    assert "hunter2" not in str(caught.value)


def test_what_is_wrong_with_an_endpoint_is_told_by_its_key_before_anything_begins(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-secret")
    check_judges({"quality": server.judge()})
    assert server.gets == ["/v1/models"] and len(server.calls) == 1

    def fault(config: JudgeConfig) -> str:
        with pytest.raises(UserError) as caught:
            check_judges({"quality": config})
        assert "sk-secret" not in str(caught.value)
        return str(caught.value)

    lacks = r"`reward.judges.quality.model`: .* has no model `judge-2` (did you mean `judge-1`?); it serves `judge-1`"
    assert fault(server.judge(model="judge-2")).startswith(lacks.partition(": .*")[0])
    assert lacks.partition(".* ")[2] in fault(server.judge(model="judge-2"))
    server.listing = (404, {})
    server.answer = lambda handler, body: handler.send(404, {"error": {"message": "no such model"}})
    assert "no such model" in fault(server.judge(model="judge-2"))
    server.listing = (401, {"error": {"message": "sk-secret is no key"}})
    server.answer = lambda handler, body: handler.send(*server.listing)
    assert fault(server.judge(api_key_env="JUDGE_KEY")).startswith("`reward.judges.quality.api_key_env`: ")
    assert fault(server.judge()).startswith("`reward.judges.quality.api_key_env`: ")
    server.listing = (200, {"data": [{"id": "judge-1"}]})
    server.answer = lambda handler, body: handler.send(403, b"")
    assert fault(server.judge(api_key_env="JUDGE_KEY")).startswith("`reward.judges.quality.api_key_env`: ")
    server.answer = lambda handler, body: handler.send(422, {"detail": "logprobs: unknown field"})
    assert "logprobs: unknown field" in fault(server.judge())
    assert fault(server.judge(endpoint="http://127.0.0.1:9/v1")).startswith("`reward.judges.quality.endpoint`: ")
    assert fault(server.judge(endpoint="http://no-such-host.invalid/v1")).startswith("`reward.judges.quality.endpoint`")
