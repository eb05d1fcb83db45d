"""Typed decisions: what is sent in either form, and that only what is a whole answer is read as one."""

import json
import math
from typing import Any

import pytest

from synpro_engine.config import UserError, validate
from synpro_engine.reward.judges.questions import QuestionConfig, built_in
from synpro_engine.reward.judges.typed import Asked, input_tokens, probabilities_of, questions_of, state_of

QUALITY, FAITHFUL, STRUCTURE = (built_in()[name] for name in ("quality", "faithfulness", "structure"))
ASKED = [Asked(QUALITY), Asked(FAITHFUL, "- Topic: a Content: b"), Asked(STRUCTURE)]
EXPECTED = [(0.0, 0.1, 0.2, 0.3, 0.4), (0.7, 0.1, 0.2), (0.25, 0.75)]


def replies() -> dict[str, Any]:
    """A right answer to `ASKED` in each form, in fields that nobody else holds."""
    decisions = [
        {"name": "q0", "type": "score", "score": 3.0, "confidence": 0.4, "probabilities": [
            {"value": n, "label": level.name, "probability": p}
            for n, (level, p) in enumerate(zip(QUALITY.levels, EXPECTED[0], strict=True))]},
        {"name": "q1", "type": "choice", "choice": "Faithful", "confidence": 0.5, "probabilities": [
            {"value": name, "probability": p} for name, p in zip(FAITHFUL.names, EXPECTED[1], strict=True)]},
        {"name": "q2", "type": "predicate", "probability": 0.75},
    ]  # fmt: skip
    systemone = {
        "q0": {"type": "score", "score": 3.0, "legend": {}, "confidence": 0.4,
               "probabilities": {str(n): p for n, p in enumerate(EXPECTED[0])}},
        "q1": {"type": "choice", "choice": "Faithful", "confidence": 0.5,
               "probabilities": dict(zip(FAITHFUL.names, EXPECTED[1], strict=True))},
        "q2": {"type": "noul", "noul": 0.75},
    }  # fmt: skip
    usage = {"input_tokens": 321, "output_tokens": 0}
    return {
        "decisions": {"answers": decisions, "usage": usage, "model": "m"},
        "systemone": {"answers": systemone, "usage": usage, "model": "m"},
    }


@pytest.mark.parametrize("api", ["decisions", "systemone"])
def test_answers_are_read_in_any_order_and_with_keys_that_nobody_knows(api: str) -> None:
    reply = replies()[api]
    assert probabilities_of(api, reply, ASKED) == EXPECTED and input_tokens(reply) == 321
    turned: Any = json.loads(json.dumps(reply))
    answers = turned["answers"]
    if api == "decisions":
        answers.reverse()
        for answer in answers:
            answer["later"] = {"added": [1]}
            if "probabilities" in answer:
                answer["probabilities"].reverse()
        answers.append({"name": "q9", "type": "predicate", "probability": 0.5})
    else:
        turned["answers"] = dict(reversed(answers.items())) | {"q9": {"type": "noul", "noul": 0.5}}
        for answer in turned["answers"].values():
            answer["later"] = {"added": [1]}
            if "probabilities" in answer:
                answer["probabilities"] = dict(reversed(answer["probabilities"].items()))
    assert probabilities_of(api, turned, ASKED) == EXPECTED


def test_answers_without_names_count_by_their_place_if_there_is_one_for_each() -> None:
    reply = replies()["decisions"]
    for answer in reply["answers"]:
        answer["name"] = None
    assert probabilities_of("decisions", reply, ASKED) == EXPECTED
    del reply["answers"][1]
    assert probabilities_of("decisions", reply, ASKED) == [None] * 3
    twice = replies()["decisions"]
    twice["answers"].append(dict(twice["answers"][2], probability=0.1))
    assert probabilities_of("decisions", twice, ASKED) == [*EXPECTED[:2], None]


def spoil(api: str, place: int, change: Any) -> Any:
    """The right reply, with `change` made to one answer; or with the answer that it returns."""
    reply = replies()[api]
    answers = reply["answers"]
    key = place if api == "decisions" else f"q{place}"
    answers[key] = change(answers[key]) or answers[key]
    return reply


def put(name: str, value: Any) -> Any:
    return lambda answer: answer.update({name: value})


def of_option(place: int, value: Any) -> Any:
    """Set the probability of one answer."""

    def change(answer: dict[str, Any]) -> None:
        probabilities = answer["probabilities"]
        if isinstance(probabilities, dict):
            probabilities[list(probabilities)[place]] = value
        else:
            probabilities[place]["probability"] = value

    return change


def renamed(answer: dict[str, Any]) -> None:
    probabilities = answer["probabilities"]
    if isinstance(probabilities, dict):
        probabilities["other"] = probabilities.pop(next(iter(probabilities)))
    else:
        probabilities[0].update(value="other", label="other")


def lacking(answer: dict[str, Any]) -> None:
    probabilities = answer["probabilities"]
    probabilities.popitem() if isinstance(probabilities, dict) else probabilities.pop()


SPOILT: dict[str, tuple[int, Any]] = {
    "refused": (1, lambda answer: {"name": answer.get("name"), "type": "refusal"}),
    "of another type": (1, put("type", "score")),
    "without a type": (1, lambda answer: answer.pop("type") and None),
    "NaN": (1, of_option(0, math.nan)),
    "infinite": (0, of_option(0, math.inf)),
    "below 0": (1, of_option(1, -0.1)),
    "sum above 1": (0, of_option(0, 0.1)),
    "sum below 1": (1, of_option(0, 0.2)),
    "a text": (1, of_option(0, "0.7")),
    "true": (1, of_option(0, True)),
    "null": (1, of_option(0, None)),
    "a huge number": (1, of_option(0, 10**400)),
    "an unknown option": (1, renamed),
    "an unknown level": (0, renamed),
    "an option less": (1, lacking),
    "no probabilities": (1, put("probabilities", None)),
    "a number for probabilities": (0, put("probabilities", 3)),
    "a list of numbers": (1, put("probabilities", [0.7, 0.1, 0.2])),
    "no object": (1, lambda answer: "Faithful"),
}


@pytest.mark.parametrize("api", ["decisions", "systemone"])
@pytest.mark.parametrize("name", SPOILT)
def test_what_is_no_whole_answer_is_missing_and_spoils_no_other(api: str, name: str) -> None:
    place, change = SPOILT[name]
    expected = [None if n == place else one for n, one in enumerate(EXPECTED)]
    assert probabilities_of(api, spoil(api, place, change), ASKED) == expected


@pytest.mark.parametrize("value", [math.nan, -0.2, 1.2, None, "0.5", True, [0.5], 10**400])
def test_a_truth_that_is_no_probability_is_missing(value: Any) -> None:
    for api, key in (("decisions", "probability"), ("systemone", "noul")):
        assert probabilities_of(api, spoil(api, 2, put(key, value)), ASKED) == [*EXPECTED[:2], None]


@pytest.mark.parametrize("answers", [None, [], {}, "q0", 4, [None] * 3, {"q0": None}, [[1]], {"answers": {}}])
def test_replies_of_another_form_are_missing_whole(answers: Any) -> None:
    for api in ("decisions", "systemone"):
        assert probabilities_of(api, {"answers": answers}, ASKED) == [None] * 3
        assert probabilities_of(api, {"choices": answers}, ASKED) == [None] * 3
    assert input_tokens({"usage": answers}) == input_tokens({"usage": {"input_tokens": "7"}}) == 0


def test_all_questions_about_a_state_stand_in_one_request_behind_the_source() -> None:
    state = state_of("The source.", "The text.")
    assert state.index("<source>\nThe source.") < state.index("<text>\nThe text.")
    assert "<source>" not in state_of("", "The text.")
    sent = questions_of("decisions", state, ASKED)
    assert sent["input"] == state and [one["type"] for one in sent["questions"]] == ["score", "choice", "predicate"]
    assert [level["label"] for level in sent["questions"][0]["levels"]] == list(QUALITY.names)
    assert [choice["value"] for choice in sent["questions"][1]["choices"]] == list(FAITHFUL.names)
    assert "Topic: a" in sent["questions"][1]["instructions"]
    sent = questions_of("systemone", state, ASKED)
    assert sent["state"] == state and [one["type"] for one in sent["questions"].values()] == ["score", "choice", "noul"]
    assert [level.partition(":")[0] for level in sent["questions"]["q0"]["criteria"]] == list(QUALITY.names)
    assert list(sent["questions"]["q1"]["criteria"]) == list(FAITHFUL.names)


def test_what_is_sent_and_answered_has_the_published_form_of_decisions() -> None:
    """By the types of the publisher's own package, where it is installed."""
    pydantic = pytest.importorskip("pydantic")
    decision = pytest.importorskip("openai.types.decision")
    params = pytest.importorskip("openai.types.decision_create_params")
    sent = {"model": "m"} | questions_of("decisions", state_of("S", "T"), ASKED)
    adapter = pydantic.TypeAdapter(params.DecisionCreateParams)
    assert adapter.validate_python(sent)["model"] == "m"
    answers = pydantic.TypeAdapter(list[decision.Answer]).validate_python(replies()["decisions"]["answers"])
    assert [answer.type for answer in answers] == ["score", "choice", "predicate"]


def test_what_is_sent_is_what_a_published_server_of_systemone_takes() -> None:
    """By the parser of transformers serve, where this transformers has it; it forbids further fields."""
    decision = pytest.importorskip("transformers.decision")
    sent = questions_of("systemone", state_of("S", "T"), ASKED)
    questions = decision.parse_questions(sent["questions"], decision.DecisionConfig())
    assert [len(question.options) for question in questions] == [5, 3, 2] and set(sent) == {"state", "questions"}
    answers = {
        question.name: question.answer(list(reversed(p)) if question.type == "noul" else list(p))
        for question, p in zip(questions, EXPECTED, strict=True)
    }
    assert probabilities_of("systemone", {"answers": answers}, ASKED) == EXPECTED


def test_a_value_is_the_expectation_or_the_worth_of_the_most_probable_answer() -> None:
    assert QUALITY.value(EXPECTED[0]) == pytest.approx(4.0) and QUALITY.value(EXPECTED[0], hard=True) == 5.0
    assert FAITHFUL.value(EXPECTED[1]) == pytest.approx(0.7) and FAITHFUL.value((0.3, 0.4, 0.3), hard=True) == 0.0
    assert STRUCTURE.value(EXPECTED[2]) == 0.75 and STRUCTURE.value(EXPECTED[2], hard=True) == 1.0
    assert QUALITY.range == (1.0, 5.0) and FAITHFUL.range == (0.0, 1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"type": "score"}, "levels: a score needs from 2 to 26 of them, got 0"),
        ({"type": "score", "levels": [{"name": "one"}]}, "levels: a score needs from 2 to 26 of them, got 1"),
        ({"type": "score", "levels": [{"name": "a"}, {"name": "b"}, {"name": "A "}]}, "levels: two are called `a`"),
        ({"type": "choice"}, "options: a choice needs from 2 to 26 of them, got 0"),
        ({"type": "choice", "options": [{"name": "x", "worth": 1.0}, {"name": "x"}]}, "options: two are called `x`"),
        ({"type": "choice", "options": [{"name": "x"}, {"name": "y"}]}, "options: all are worth the same"),
        ({"type": "choice", "options": [{"name": " "}, {"name": "y", "worth": 1.0}]}, "options: a name is blank"),
        ({"type": "truth", "levels": [{"name": "a"}, {"name": "b"}]}, "levels: are not of a question of type truth"),
        ({"type": "truth", "lowest": 2.0}, "lowest: is not of a question of type truth"),
        ({"type": "truth", "each": "entry", "source": "compared"}, "source: entries cannot be compared"),
        ({"type": "noul"}, "`type`"),
        ({"ask": ""}, "`ask`"),
        ({"option": []}, r"unknown key `option` \(did you mean `options`"),
    ],
)  # fmt: skip
def test_a_question_that_cannot_be_asked_is_refused_by_its_key(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        validate(QuestionConfig, {"type": "truth", "ask": "Is it?"} | changes, "mine.yaml")
    assert "\n" not in str(caught.value)


def test_each_question_has_a_version_of_its_own_that_its_words_and_worths_change() -> None:
    versions = {question.version for question in built_in().values()}
    assert len(versions) == len(built_in()) == 4
    changed = FAITHFUL.model_copy(update={"ask": FAITHFUL.ask + " Really?"})
    assert changed.version not in versions
