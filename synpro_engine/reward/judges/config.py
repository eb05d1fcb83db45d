"""Settings of judges that are asked over HTTP."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

from synpro_engine.config import Config, json_text, nearest
from synpro_engine.remote import EndpointConfig
from synpro_engine.reward.judges.questions import QuestionConfig, built_in


class JudgeConfig(EndpointConfig):
    """A model behind an endpoint, which one question is put to."""

    EXECUTION: ClassVar[frozenset[str]] = EndpointConfig.EXECUTION | {"cache", "price", "calibration"}

    model: str = Field(min_length=1)
    """The model's name there."""
    api: Literal["auto", "decisions", "systemone", "chat", "completions"] = "auto"
    """How it is asked. `decisions` and `systemone` give the probability of each allowed answer, all questions about a
    text in one request; `chat` and `completions` (for models that were trained on plain text) write an answer, one
    request a question. `auto` asks the server once which it has, takes the first of these, and says so."""
    question: QuestionConfig | None = None
    """What is asked. Rewards that the engine knows have a question; any other name is a reward of your own, and needs
    one."""
    hard: bool = False
    """Take the most probable answer's worth, as the paper has it, and not the mean over the answers."""
    prompt: str | None = None
    """What is asked in writing, in place of our words: `{text}` stands for what is judged and `{source}` for the slice
    that it was made from. For judges that were trained on words of their own, by `chat` or `completions`."""
    top_logprobs: int = Field(default=20, ge=0, le=20)
    """Tokens of a written answer whose probabilities are asked for: the value is then the mean over the allowed
    answers, where the server gives them. 0 goes by the written answer alone."""
    max_tokens: int = Field(default=8, gt=0)
    """Longest written answer; models that think aloud first need many."""
    max_questions: int | None = Field(default=None, gt=0)
    """Most questions of one request, of which there are then several; what `api` allows by itself is 64 of `systemone`
    and 400 of `decisions`."""
    unreadable_tries: int = Field(default=6, gt=0)
    """Replies to a request that may lack an answer, or hold none, before what is missing is given up."""
    outage: Literal["wait", "give_up"] = "wait"
    """What follows when the endpoint does not answer: `wait` goes on asking, and says so once a minute; `give_up`
    leaves the value missing after `tries` calls or `deadline_s`, and `tune.OPERATION.bad_reward` says what becomes of
    its group. It is never a reward of 0."""
    cache: bool = True
    """Keep answers in the run's directory, so that no question is paid for twice."""
    calibration: str | None = Field(default=None, min_length=1)
    """A file of `synpro judge-check --calibrate` for this very judge: a monotone map that its values go through. It is
    recorded by its content."""

    price: float | None = Field(default=None, ge=0)
    """Of a million input tokens, in whatever money: what judging has cost is then told beside the tokens, which are
    counted as the server counts them."""

    @field_validator("prompt")
    @classmethod
    def _shows_the_text(cls, value: str | None) -> str | None:
        if value is not None and "{text}" not in value:
            raise ValueError("{text} is missing, which stands for what is judged")
        return value

    @model_validator(mode="after")
    def _a_prompt_is_answered_in_writing(self) -> Self:
        if self.prompt is not None and self.api in ("decisions", "systemone"):
            raise ValueError(f"prompt: is for api chat or completions; for {self.api} give `question` other words")
        return self

    @property
    def apis(self) -> tuple[str, ...]:
        """The interfaces that may be taken, the best first."""
        written = ("chat", "completions")
        if self.api != "auto":
            return (self.api,)
        return written if self.prompt is not None else ("decisions", "systemone", *written)

    @property
    def connection(self) -> str:
        """Equal for judges whose questions may share a request: all but what is asked."""
        return json_text(self.model_dump(mode="json", exclude={"question", "hard", "prompt", "cache", "calibration"}))


class EncoderConfig(Config):
    """An encoder on this machine whose token embeddings are matched (BERTScore, Zhang et al. 2020)."""

    encoder: str = Field(min_length=1)
    """A Hugging Face directory with safetensors: DeBERTa, RoBERTa, BERT or another encoder."""
    layer: int | None = Field(default=None, gt=0)
    """The layer whose output is matched, from 1; the last when not given. BERTScore names one for each model."""


_ENCODER, _ENDPOINT = "by an encoder", "by an endpoint"  # no keys, which a message would take them for


def _kind(value: Any) -> str:
    """Which of the two a judge of similarity is."""
    encoder = "encoder" in value if isinstance(value, Mapping) else isinstance(value, EncoderConfig)
    return _ENCODER if encoder else _ENDPOINT


class JudgesConfig(Config):
    """Rewards that are measured by another model than the embedded one, each if it is given.

    Any other name is a question of your own, whose value is a reward of that name.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, JudgeConfig] = Field(init=False)  # pyright: ignore[reportIncompatibleVariableOverride]

    quality: JudgeConfig | None = None
    """Scores text from 1 to 5, as DataMan does; the reward is the text's score less its source's."""
    faithfulness: JudgeConfig | None = None
    """Labels each entry as faithful to its slice or not; the reward is the share that is faithful."""
    structure: JudgeConfig | None = None
    """Says whether a paraphrase keeps its source's layout."""
    similarity: (
        Annotated[
            Annotated[EncoderConfig, Tag(_ENCODER)] | Annotated[JudgeConfig, Tag(_ENDPOINT)], Discriminator(_kind)
        ]
        | None
    ) = None
    """Behind an `endpoint`: says whether a paraphrase says what its source says. An `encoder` on this machine:
    BERTScore's F1 by another one than MiniLM; `reward.similarity_threshold` holds as it does there. Numbers and names
    are then not looked at apart."""

    @model_validator(mode="before")
    @classmethod
    def _own_questions_are_asked_of_endpoints(cls, data: Any) -> Any:
        for name, judge in data.items() if isinstance(data, Mapping) else ():
            if name in cls.model_fields:
                continue
            # A slip in one of the known names is far likelier than a judge without a question.
            lacks = (isinstance(judge, Mapping) and not judge.get("question")) or judge is None
            if not isinstance(judge, Mapping | JudgeConfig) or lacks:
                hint = nearest(str(name), cls.model_fields)
                raise ValueError(f"{name}: a judge of your own needs a `question`{hint}")
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,60}", str(name)):
                raise ValueError(f"`{name}`: names are letters, digits and `_`")
        return data

    @model_validator(mode="after")
    def _compare_with_the_source(self) -> Self:
        for name, judge in self.remote.items():
            shown = self.question_of(name).source == "shown"
            if judge.prompt is not None and shown and "{source}" not in judge.prompt:
                raise ValueError(f"{name}.prompt: {{source}} is missing, which the text is held against")
        return self

    def recorded(self) -> dict[str, Any]:
        """The settings, and those of the user's own questions among them."""
        return super().recorded() | {name: judge.recorded() for name, judge in self.own.items()}

    @property
    def own(self) -> dict[str, JudgeConfig]:
        """Those that answer a question of the user's own, by the name of the reward."""
        return self.__pydantic_extra__

    def only(self, own: Collection[str]) -> Self:
        """The same with these questions of the user's own and no others."""
        fields: dict[str, Any] = {name: getattr(self, name) for name in type(self).model_fields}
        return self.model_construct(None, **fields | {name: judge for name, judge in self.own.items() if name in own})

    def uncalibrated(self) -> Self:
        """The same with values as they are answered."""
        given = {name: judge.model_copy(update={"calibration": None}) for name, judge in self.remote.items()}
        fields: dict[str, Any] = {name: getattr(self, name) for name in type(self).model_fields}
        return self.model_construct(None, **fields | self.own | given)

    @property
    def remote(self) -> dict[str, JudgeConfig]:
        """Those behind endpoints that are given, by the reward's name."""
        judges = {name: getattr(self, name) for name in type(self).model_fields} | self.own
        return {name: judge for name, judge in judges.items() if isinstance(judge, JudgeConfig)}

    @property
    def encoder(self) -> EncoderConfig | None:
        """That of similarity, if it is measured by one."""
        return self.similarity if isinstance(self.similarity, EncoderConfig) else None

    def question_of(self, name: str) -> QuestionConfig:
        """What the judge of a reward is asked."""
        return question_of(name, self.remote[name])


def question_of(name: str, config: JudgeConfig) -> QuestionConfig:
    """What a judge is asked: its own question, or that of the engine's for the reward."""
    return built_in()[name] if config.question is None else config.question
