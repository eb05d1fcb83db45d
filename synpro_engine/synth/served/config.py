"""Settings of the server that generates in place of this process."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from synpro_engine.remote import EndpointConfig

KEY = "generate.server"


class ServerConfig(EndpointConfig):
    """A server of OpenAI's protocol that takes prompts as token ids, as vLLM and SGLang do.

    It is started by the user, from the folder that the run names when it comes to a generation.
    """

    EXECUTION: ClassVar[frozenset[str]] = EndpointConfig.EXECUTION | {
        "model", "unreadable_tries", "patience_s", "tolerance",
    }  # fmt: skip

    model: str | None = Field(default=None, min_length=1)
    """The model's name there. Not given, it is the name of the exported folder, which has a part of the weights' hash
    in it: a server that still has older weights is then told by its name alone. Given, it is by its answers."""
    api: Literal["tokens", "text"] = "tokens"
    """How it is asked: with prompts as token ids and every setting of sampling by name, as vLLM and SGLang take them;
    or as `text` with OpenAI's own fields alone, for other servers. Where a document spells a special token, a server
    that is given text takes it for one, and what it draws hangs on the generation settings published with the model."""
    concurrency: int = Field(default=256, gt=0)
    """Completions under way at a time, over all ranks; a rank asks for those of one batch (`batch_prompts`)."""
    timeout_s: float = Field(default=1200.0, gt=0)
    """Longest wait for one completion, in seconds."""
    tries: int = Field(default=20, gt=0)
    """Calls for one completion before it is given up, where `outage` is `give_up`."""
    deadline_s: float = Field(default=3600.0, gt=0)
    """Longest wait for the completions of one batch, in seconds, likewise."""
    unreadable_tries: int = Field(default=4, gt=0)
    """Answers to one prompt that may be of another form than asked for before the generation ends."""
    outage: Literal["wait", "give_up"] = "wait"
    """What follows when the server does not answer: `wait` goes on asking, and says so once a minute; `give_up` ends
    the job after `tries` calls or `deadline_s`. What is done stays, and a new start goes on from there."""
    patience_s: float = Field(default=3600.0, ge=0)
    """Longest wait for the server to come up with the model and its weights, in seconds."""
    tolerance: float = Field(default=0.05, gt=0)
    """How far the server's log-probabilities of its own greedy answers may be from those that the model has in this
    process, in nats, in the mean. Rounding to bfloat16 is well below the default; quantised weights may not be."""
