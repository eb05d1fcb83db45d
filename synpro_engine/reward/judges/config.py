"""Settings of judges that are asked over HTTP."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from synpro_engine.config import Config


class JudgeConfig(Config):
    """A model behind an OpenAI-compatible endpoint, which one reward asks."""

    EXECUTION: ClassVar[frozenset[str]] = frozenset(
        # Where the model answers and how patiently it is asked; what it answers hangs on none of it.
        "endpoint api_key_env concurrency timeout_s tries deadline_s outage cache".split()
    )

    endpoint: str
    """Its address up to the version, as in `http://127.0.0.1:8000/v1`."""
    model: str = Field(min_length=1)
    """The model's name there."""
    api: Literal["chat", "completions", "systemone"] = "chat"
    """What is called below `endpoint`: `chat/completions`; `completions`, for models that were trained on plain text;
    or `systemone`, which gives the probability of each allowed answer and writes no text."""
    api_key_env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """The environment variable that holds the API key. The key itself is written nowhere."""
    prompt: str | None = None
    """What is asked, in place of our words: `{text}` stands for what is judged and `{source}` for the slice that it was
    made from. For judges that were trained on words of their own."""
    top_logprobs: int = Field(default=20, ge=0, le=20)
    """Tokens whose probabilities are asked for: the value is then the mean over the allowed answers, where the server
    gives them. 0 goes by the written answer alone."""
    max_tokens: int = Field(default=8, gt=0)
    """Longest answer; models that think aloud first need many."""
    request: dict[str, Any] = Field(default={})
    """Further fields of the request, such as `{seed: 1}`; they replace ours (`temperature`), and null removes one."""
    concurrency: int = Field(default=64, gt=0)
    """Calls under way at a time, over all ranks."""
    timeout_s: float = Field(default=60.0, gt=0)
    """Longest wait for one answer, in seconds."""
    tries: int = Field(default=6, gt=0)
    """Calls for one value before it is given up, where `outage` is `give_up`."""
    deadline_s: float = Field(default=600.0, gt=0)
    """Longest wait for the values of one step or batch, in seconds, likewise."""
    unreadable_tries: int = Field(default=2, gt=0)
    """Answers to one question that may be unreadable before its value is given up."""
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

    @field_validator("endpoint")
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("expected an address such as http://127.0.0.1:8000/v1")
        _ = parts.port  # ValueError for what is no port
        for end in ("/chat/completions", "/completions", "/systemone"):
            if parts.path.rstrip("/").endswith(end):
                raise ValueError(f"without {end}, which `api` adds")
        return value.rstrip("/")

    @model_validator(mode="after")
    def _holds_no_secret(self) -> Self:
        parts = urlsplit(self.endpoint)
        # Of the whole section, because the message about a single field quotes it.
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError("endpoint: an address alone; a key goes into the variable that `api_key_env` names")
        return self


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
