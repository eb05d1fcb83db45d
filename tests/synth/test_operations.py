import dataclasses
import re

import pytest

from synpro_engine.config import UserError, load_config
from synpro_engine.synth import BUILT_IN, OPERATIONS, GenerateConfig, Operation, headings, operation_named

# Not the whole table: another test of this process may have put an operation of its own into it.
OURS = [OPERATIONS[name] for name in BUILT_IN]
EVERY = [*OURS, *(operation.without_prefill() for operation in OURS)]


@pytest.mark.parametrize("operation", EVERY)
def test_prompts_hold_no_bracketed_placeholder(operation: Operation) -> None:
    shown = " ".join(message.content for message in operation.messages("The text.")) + operation.prefill
    assert not re.search(r"[\[\]<>{}]", shown)


@pytest.mark.parametrize("operation", EVERY)
def test_a_prompt_ends_with_the_text_as_it_is(operation: Operation) -> None:
    text = "  Two lines,\n\n{name} and <tag>.\n"
    messages = operation.messages(text)
    assert messages[-1].role == "user"
    assert messages[-1].content == text


def test_the_headings_are_those_of_the_method() -> None:
    assert OPERATIONS["rephrase"].heading == "Here is a paraphrased version:"
    assert OPERATIONS["reformat"].heading == "Here are the structured entries based on the provided text:"
    assert {heading.text for heading in headings.BUILT_IN} == {operation.heading for operation in OURS}


def test_a_model_learns_the_heading_from_the_prefill_or_from_the_instructions() -> None:
    for operation in OURS:
        assert operation.prefill.startswith(operation.heading)
        bare = operation.without_prefill()
        assert bare.prefill == ""
        assert operation.heading in bare.messages("The text.")[0].content


@pytest.mark.parametrize("field", ["instructions", "prefill", "heading", "example"])
def test_the_prompt_version_follows_every_word_shown(field: str) -> None:
    operation = OPERATIONS["rephrase"]
    changed = dataclasses.replace(operation, **{field: ("a", "b") if field == "example" else "other"})
    assert changed.prompt_version != operation.prompt_version
    assert dataclasses.replace(operation).prompt_version == operation.prompt_version


def test_an_unknown_operation_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean `rephrase`"):
        operation_named("rephrse")
    with pytest.raises(UserError, match=r"`operations`: no operation `reformatt` \(did you mean `reformat`"):
        load_config(GenerateConfig, {"operations": ["reformatt"]})
    with pytest.raises(UserError, match="named twice"):
        load_config(GenerateConfig, {"operations": ["reformat", "reformat"]})
