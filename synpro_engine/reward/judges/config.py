"""Settings of judges that are asked over HTTP."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from synpro_engine.config import Config
from synpro_engine.remote import EndpointConfig


class JudgeConfig(EndpointConfig):
    """A model behind an OpenAI-compatible endpoint, which one reward asks."""

    EXECUTION: ClassVar[frozenset[str]] = EndpointConfig.EXECUTION | {"cache"}

    model: str = Field(min_length=1)
    """The model's name there."""
    api: Literal["chat", "completions", "systemone"] = "chat"
    """What is called below `endpoint`: `chat/completions`; `completions`, for models that were trained on plain text;
    or `systemone`, which gives the probability of each allowed answer and writes no text."""
    prompt: str | None = None
    """What is asked, in place of our words: `{text}` stands for what is judged and `{source}` for the slice that it was
    made from. For judges that were trained on words of their own."""
    top_logprobs: int = Field(default=20, ge=0, le=20)
    """Tokens whose probabilities are asked for: the value is then the mean over the allowed answers, where the server
    gives them. 0 goes by the written answer alone."""
    max_tokens: int = Field(default=8, gt=0)
    """Longest answer; models that think aloud first need many."""
    outage: Literal["wait", "give_up"] = "wait"
    """What follows when the endpoint does not answer: `wait` goes on asking, and says so once a minute; `give_up`
    leaves the value missing after `tries` calls or `deadline_s`, and `tune.OPERATION.bad_reward` says what becomes of
    its group. It is never a reward of 0."""
    cache: bool = True
    """Keep answers in the run's directory, so that no question is paid for twice."""

    @field_validator("prompt")
    @classmethod
    def _shows_the_text(cls, value: str | None) -> str | None:
        if value is not None and "{text}" not in value:
            raise ValueError("{text} is missing, which stands for what is judged")
        return value


class EncoderConfig(Config):
    """An encoder on this machine whose token embeddings are matched (BERTScore, Zhang et al. 2020)."""

    encoder: str = Field(min_length=1)
    """A Hugging Face directory with safetensors: DeBERTa, RoBERTa, BERT or another encoder."""
    layer: int | None = Field(default=None, gt=0)
    """The layer whose output is matched, from 1; the last when not given. BERTScore names one for each model."""


class JudgesConfig(Config):
    """Rewards that are measured by another model than the embedded one, each if it is given."""

    quality: JudgeConfig | None = None
    """Scores text from 1 to 5, as DataMan does; the reward is the text's score less its source's."""
    faithfulness: JudgeConfig | None = None
    """Labels each entry as faithful to its slice or not; the reward is the share that is faithful."""
    structure: JudgeConfig | None = None
    """Says whether a paraphrase keeps its source's layout."""
    similarity: EncoderConfig | None = None
    """BERTScore's F1 by another encoder than MiniLM; `reward.similarity_threshold` holds as it does there. Numbers and
    names are then not looked at apart."""

    @model_validator(mode="after")
    def _compare_with_the_source(self) -> Self:
        for name, judge in (("faithfulness", self.faithfulness), ("structure", self.structure)):
            if judge is not None and judge.prompt is not None and "{source}" not in judge.prompt:
                raise ValueError(f"{name}.prompt: {{source}} is missing, which the text is held against")
        return self

    @property
    def remote(self) -> dict[str, JudgeConfig]:
        """Those behind endpoints that are given, by the reward's name."""
        judges = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: judge for name, judge in judges.items() if isinstance(judge, JudgeConfig)}
