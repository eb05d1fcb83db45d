"""Settings of judges: models behind endpoints, models in the job, and an encoder."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

from synpro_engine.config import Config, json_text, nearest
from synpro_engine.remote import EndpointConfig
from synpro_engine.reward.judges.questions import QuestionConfig, built_in
from synpro_engine.storage.places import LocalPlace
from synpro_engine.synth.chat import ChatFormat


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
    calibration: LocalPlace | None = None
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


class ModelJudgeConfig(Config):
    """A causal language model on the job's own ranks, which one question is put to. No server is needed."""

    # The content of files is recorded.
    EXECUTION: ClassVar[frozenset[str]] = frozenset({"model", "cache", "calibration", "prefill_tokens"})

    model: LocalPlace
    """`embedded:smollm2-135m`, a .gguf file or a Hugging Face directory, as `generator.source` takes them; divided as
    the generator is."""
    question: QuestionConfig | None = None
    """What is asked. Rewards that the engine knows have a question; any other name is a reward of your own, and needs
    one."""
    hard: bool = False
    """Take the most probable answer's worth, as the paper has it, and not the mean over the answers."""
    chat_format: ChatFormat = "auto"
    """Layout of the prompt; `auto` is the tokenizer's own chat template, or `plain` where it has none."""
    seq_len: int | None = Field(default=None, gt=0)
    """Longest prompt; the model's own limit where not given."""
    prefill_tokens: int = Field(default=4096, gt=0)
    """Most tokens read in one forward pass; a single prompt may be longer."""
    cache: bool = True
    """Keep answers in the run's directory, so that no question is asked twice."""
    calibration: LocalPlace | None = None
    """A file of `synpro judge-check --calibrate` for this very judge, as of one behind an endpoint."""

    @property
    def connection(self) -> str:
        """Equal for judges that are one model: all but what is asked."""
        return json_text(self.model_dump(mode="json", exclude={"question", "hard", "cache", "calibration"}))


class EncoderConfig(Config):
    """An encoder on this machine whose token embeddings are matched (BERTScore, Zhang et al. 2020)."""

    encoder: LocalPlace
    """A Hugging Face directory with safetensors: DeBERTa, RoBERTa, BERT or another encoder."""
    layer: int | None = Field(default=None, gt=0)
    """The layer whose output is matched, from 1; the last when not given. BERTScore names one for each model."""


# No keys, which a message would take them for.
_ENCODER, _ENDPOINT, _MODEL = "by an encoder", "by an endpoint", "by a model"


def _kind(value: Any) -> str:
    """What a judge is, by the keys that it is given or the settings that it has."""
    if isinstance(value, EncoderConfig | ModelJudgeConfig):
        return _ENCODER if isinstance(value, EncoderConfig) else _MODEL
    if not isinstance(value, Mapping):
        return _ENDPOINT
    if "encoder" in value:
        return _ENCODER
    # A key that only calls over HTTP have, without an `endpoint`, is a forgotten endpoint.
    remote = any(key in JudgeConfig.model_fields and key not in ModelJudgeConfig.model_fields for key in value)
    return _MODEL if "model" in value and not remote else _ENDPOINT


AskedConfig = JudgeConfig | ModelJudgeConfig
"""A judge that a question is put to."""
_Asked = Annotated[
    Annotated[JudgeConfig, Tag(_ENDPOINT)] | Annotated[ModelJudgeConfig, Tag(_MODEL)], Discriminator(_kind)
]


class JudgesConfig(Config):
    """Rewards that are measured by another model than the embedded one, each if it is given.

    A judge with an `endpoint` is asked there, one with a `model` alone is loaded into the job. Any other name is a
    question of your own, whose value is a reward of that name.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, _Asked] = Field(init=False)  # pyright: ignore[reportIncompatibleVariableOverride]

    quality: _Asked | None = None
    """Scores text from 1 to 5, as DataMan does; the reward is the text's score less its source's."""
    faithfulness: _Asked | None = None
    """Labels each entry as faithful to its slice or not; the reward is the share that is faithful."""
    structure: _Asked | None = None
    """Says whether a paraphrase keeps its source's layout."""
    similarity: (
        Annotated[
            Annotated[EncoderConfig, Tag(_ENCODER)]
            | Annotated[JudgeConfig, Tag(_ENDPOINT)]
            | Annotated[ModelJudgeConfig, Tag(_MODEL)],
            Discriminator(_kind),
        ]
        | None
    ) = None
    """A `model`: says whether a paraphrase says what its source says. An `encoder` on this machine:
    BERTScore's F1 by another one than MiniLM; `reward.similarity_threshold` holds as it does there. Numbers and names
    are then not looked at apart."""

    @model_validator(mode="before")
    @classmethod
    def _own_questions_are_asked(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        # A recipe with a `base` takes one of its questions away by null; a slip in the name of a judge that is there
        # takes nothing away. Many a good name is somewhat like a known one.
        there = [name for name in cls.model_fields if data.get(name) is not None]
        own = [name for name in data if name not in cls.model_fields]
        gone = {name for name in own if data[name] is None and not nearest(str(name), there, cutoff=0.85)}
        data = {name: judge for name, judge in data.items() if name not in gone}
        for name, judge in data.items():
            if name in cls.model_fields:
                if name != "similarity" and _kind(judge) == _ENCODER:
                    raise ValueError(f"{name}.encoder: measures `similarity` alone; give `endpoint` or `model`")
                continue
            # A slip in one of the known names is far likelier than a judge without a question.
            lacks = (isinstance(judge, Mapping) and not judge.get("question")) or judge is None
            if not isinstance(judge, Mapping | AskedConfig) or lacks:
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
    def own(self) -> dict[str, AskedConfig]:
        """Those that answer a question of the user's own, by the name of the reward."""
        return self.__pydantic_extra__

    def only(self, own: Collection[str]) -> Self:
        """The same with these questions of the user's own and no others."""
        fields: dict[str, Any] = {name: getattr(self, name) for name in type(self).model_fields}
        return self.model_construct(None, **fields | {name: judge for name, judge in self.own.items() if name in own})

    def uncalibrated(self) -> Self:
        """The same with values as they are answered."""
        given = {name: judge.model_copy(update={"calibration": None}) for name, judge in self.asked.items()}
        fields: dict[str, Any] = {name: getattr(self, name) for name in type(self).model_fields}
        return self.model_construct(None, **fields | self.own | given)

    @property
    def remote(self) -> dict[str, JudgeConfig]:
        """Those behind endpoints that are given, by the reward's name."""
        return {name: judge for name, judge in self.asked.items() if isinstance(judge, JudgeConfig)}

    @property
    def in_job(self) -> dict[str, ModelJudgeConfig]:
        """Those that are models on the job's ranks, likewise."""
        return {name: judge for name, judge in self.asked.items() if isinstance(judge, ModelJudgeConfig)}

    @property
    def asked(self) -> dict[str, AskedConfig]:
        """Those that a question is put to, wherever they are, likewise."""
        judges = {name: getattr(self, name) for name in type(self).model_fields} | self.own
        return {name: judge for name, judge in judges.items() if isinstance(judge, AskedConfig)}

    @property
    def encoder(self) -> EncoderConfig | None:
        """That of similarity, if it is measured by one."""
        return self.similarity if isinstance(self.similarity, EncoderConfig) else None

    def question_of(self, name: str) -> QuestionConfig:
        """What the judge of a reward is asked."""
        return question_of(name, self.asked[name])


def question_of(name: str, config: AskedConfig) -> QuestionConfig:
    """What a judge is asked: its own question, or that of the engine's for the reward."""
    return built_in()[name] if config.question is None else config.question
