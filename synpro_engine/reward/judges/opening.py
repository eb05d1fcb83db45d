"""Judges from their settings, and what can be known of an endpoint before anything expensive begins."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from synpro_engine.config import UserError, nearest
from synpro_engine.remote import DENIED, CallFault, listed_models
from synpro_engine.reward.judges.client import Client
from synpro_engine.reward.judges.config import JudgeConfig
from synpro_engine.reward.judges.rewards import JUDGES, Judge, Share, question_for

_SHOWN = 5
_TRIES = 3


def open_judge(
    name: str,
    config: JudgeConfig,
    *,
    share: Share = lambda work: work(),
    ranks: int = 1,
    cache: Path | None = None,
    asked_to_stop: Callable[[], bool] = lambda: False,
) -> Judge:
    """The reward `name` as its judge measures it; arguments as `Client` takes them.

    share: for ranks that would all ask the same. UserError for an API key that is not in the environment.
    """
    question = question_for(name, config)
    client = Client(name, config, question, ranks=ranks, cache=cache, asked_to_stop=asked_to_stop)
    return JUDGES[name](client, share)


def check_judge(name: str, config: JudgeConfig) -> None:
    """Ask a judge's endpoint once; UserError, naming the key, where it cannot be reached or refuses.

    A key that it does not take, a model that it lacks, and a request that it does not understand are told apart.
    """
    key = f"reward.judges.{name}"
    client = Client(name, config, question_for(name, config))
    try:
        listed = list(listed_models(client.models()))
    except CallFault as fault:
        if fault.status is None or fault.status in DENIED:
            raise UserError(_told(key, config, fault)) from None
        listed = []  # not every server has a list: what it lacks shows in the call below
    if listed and config.model not in listed:
        others = ", ".join(f"`{each}`" for each in listed[:_SHOWN]) + (", ..." if len(listed) > _SHOWN else "")
        raise UserError(
            f"`{key}.model`: {config.endpoint} has no model `{config.model}`{nearest(config.model, listed)}; it serves "
            + others
        )
    for attempt in range(_TRIES):
        try:
            client.probe()
            return
        except CallFault as fault:
            if fault.final or fault.status in {*DENIED, 404} or attempt == _TRIES - 1:
                raise UserError(_told(key, config, fault)) from None
            time.sleep(max(fault.retry_after_s, 0.5))


def _told(key: str, config: JudgeConfig, fault: CallFault) -> str:
    if fault.status in DENIED:
        needed = f"set {config.api_key_env} to one" if config.api_key_env else "name the variable that holds one"
        return f"`{key}.api_key_env`: {config.endpoint} takes no call without a valid API key ({fault}); {needed}"
    if fault.status == 404:
        return f"`{key}.endpoint`: {config.endpoint} has no such address, or no model `{config.model}` ({fault})"
    if fault.final:
        return f"`{key}`: {config.endpoint} refuses a call to model `{config.model}` ({fault}); `request` changes calls"
    return f"`{key}.endpoint`: {config.endpoint} does not answer ({fault}); is the server up?"
