"""Judges from their settings, and what can be known of an endpoint before anything expensive begins."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from synpro_engine.config import UserError, brief, json_text, nearest
from synpro_engine.remote import DENIED, CallFault, listed_models
from synpro_engine.reward.judges import written
from synpro_engine.reward.judges.calibration import Calibration, calibration_for
from synpro_engine.reward.judges.client import PATHS, Client, Inquiry
from synpro_engine.reward.judges.config import JudgeConfig
from synpro_engine.reward.judges.judge import Judge, Share

_SHOWN = 5
_TRIES = 3
_NO_ROUTE = {404, 405, 501}
_OTHER = {200, *DENIED, *_NO_ROUTE}
"""What may come of an interface that is not there: a key is of some alone, and a front end answers any path."""
_TAKEN: dict[str, str] = {}
"""By connection: what `auto` found in this process, which a server that is away for a while does not change."""


def connections(judges: Mapping[str, JudgeConfig]) -> list[dict[str, JudgeConfig]]:
    """The judges, together those whose questions may share a request."""
    together: dict[str, dict[str, JudgeConfig]] = {}
    for name, config in judges.items():
        # A prompt of one's own leaves fewer interfaces to choose from.
        together.setdefault(config.connection + json_text(config.apis), {})[name] = config
    return list(together.values())


def apis_of(judges: Mapping[str, JudgeConfig]) -> dict[str, str]:
    """The interface by which each judge is asked; where `auto` has to find it, its server is asked once a process.

    UserError, naming the key, for a server that does not answer, or not in any way that is known.
    """
    return {name: _api_of(together) for together in connections(judges) for name in together}


def open_judges(
    judges: Mapping[str, JudgeConfig],
    apis: Mapping[str, str],
    *,
    share: Share = lambda work: work(),
    ranks: int = 1,
    cache: Path | None = None,
    asked_to_stop: Callable[[], bool] = lambda: False,
) -> list[Judge]:
    """The rewards by these names as their judges measure them; arguments as `Client` takes them.

    apis: of `apis_of`. share: for ranks that would all ask the same. UserError for an API key that is not in the
    environment, and for a calibration that is none of the judge's.
    """
    calibrations = _calibrations(judges, apis)
    opened: dict[str, Judge] = {}
    for together in connections(judges):
        api = apis[next(iter(together))]
        client = Client(together, api, ranks=ranks, cache=cache, calibrations=calibrations, asked_to_stop=asked_to_stop)
        opened |= {name: Judge(name, client, share) for name in together}
    return [opened[name] for name in judges]


def check_judges(judges: Mapping[str, JudgeConfig]) -> list[str]:
    """Ask each endpoint once; in a line each, how those that `auto` left open will be asked.

    UserError, naming the key, where one cannot be reached or refuses: a key that it does not take, a model that it
    lacks, an interface that it has not, and a request that it does not understand are told apart. So is a calibration
    that is none of the judge's.
    """
    _calibrations(judges, {})  # before anything is asked
    told = []
    for together in connections(judges):
        name, config = next(iter(together.items()))
        _check_model(f"reward.judges.{name}", Client(together, config.apis[0]), config)
        api = _api_of(together)
        if config.api == "auto":
            names = ", ".join(f"`reward.judges.{name}`" for name in together)
            told.append(f"{names}: {config.endpoint} is asked by {api}")
        else:
            _probe(together, api)
        _calibrations(together, dict.fromkeys(together, api))
    return told


def _calibrations(judges: Mapping[str, JudgeConfig], apis: Mapping[str, str]) -> dict[str, Calibration]:
    """The maps that the settings name, by judge; UserError for one that was fitted to another judge.

    apis: where these are known, they are looked at, too.
    """
    found: dict[str, Calibration] = {}
    for name, config in judges.items():
        if config.calibration is not None:
            here = {"model": config.model, "question": Inquiry(name, config).version}
            here |= {"api": apis[name]} if name in apis else {}
            found[name] = calibration_for(config.calibration, name, **here)
    return found


def _check_model(key: str, client: Client, config: JudgeConfig) -> None:
    try:
        listed = list(listed_models(client.service.endpoint.get("models", config.timeout_s)))
    except CallFault as fault:
        if fault.status is None:
            raise UserError(_told(key, config, fault)) from None
        # Not every server has a list, nor is every key one for it: what is amiss shows in the call below.
        listed = []
    if listed and config.model not in listed:
        others = ", ".join(f"`{each}`" for each in listed[:_SHOWN]) + (", ..." if len(listed) > _SHOWN else "")
        raise UserError(
            f"`{key}.model`: {config.endpoint} has no model `{config.model}`{nearest(config.model, listed)}; it serves "
            + others
        )


def _api_of(together: Mapping[str, JudgeConfig]) -> str:
    """The first interface that the server has, of those that the settings allow."""
    name, config = next(iter(together.items()))
    if len(config.apis) == 1:
        return config.apis[0]
    known = config.connection + json_text(config.apis)
    if known not in _TAKEN:
        faults: list[CallFault] = []
        for api in config.apis:
            fault = _probe(together, api, or_next=True)
            if fault is None:
                _TAKEN[known] = api
                break
            faults.append(fault)
        else:
            raise UserError(_told_of_all(f"reward.judges.{name}", config, faults))
    return _TAKEN[known]


def _probe(together: Mapping[str, JudgeConfig], api: str, *, or_next: bool = False) -> CallFault | None:
    """Ask one small question of each judge, as far as one request holds them; UserError where it is not answered.

    or_next: in place of it what is amiss, where another interface may be there. A written answer that cannot be read is
    told, and no more: it may be small talk about this text alone.
    """
    name, config = next(iter(together.items()))
    key, client = f"reward.judges.{name}", Client(together, api)
    for asked in client.samples():
        try:
            reply = _patiently(client, client.body(asked), or_next=or_next)
        except CallFault as fault:
            if or_next and (fault.final or fault.status in _OTHER):
                return fault
            raise UserError(_told(key, config, fault, api)) from None
        readable = bool(client.read(reply, asked))
        if not (readable or (api in written.PATHS and isinstance(reply.get("choices"), list))):
            if or_next:
                return CallFault("an answer of another form", 200)
            raise UserError(f"`{key}.api`: {config.endpoint}/{PATHS[api]} answers, but not in the form of `{api}`")
        if not readable:
            said = f"`reward.judges.{asked[0].judge}`: a first answer of {config.endpoint}/{PATHS[api]} cannot be read"
            tqdm.write(f"{said} ({brief(reply['choices'])}); such values are missing", file=sys.stderr)
    return None


def _patiently(client: Client, body: Mapping[str, Any], *, or_next: bool) -> dict[str, Any]:
    request, service = json_text(body).encode(), client.service
    for attempt in range(_TRIES):
        try:
            return service.endpoint.post(PATHS[client.api], request, service.config.timeout_s)
        except CallFault as fault:
            lost = fault.final or fault.status in {*DENIED, 404} or (or_next and fault.status in _NO_ROUTE)
            if lost or attempt == _TRIES - 1:
                raise
            time.sleep(max(fault.retry_after_s, 0.5))
    raise AssertionError("the last try raises")


def _told_of_all(key: str, config: JudgeConfig, faults: Sequence[CallFault]) -> str:
    """What is said where none of the interfaces can be used; faults: of each."""
    denied = [fault for fault in faults if fault.status in DENIED]
    if denied and all(fault.status in _OTHER for fault in faults):
        return _told(key, config, denied[-1])
    tried = ", ".join(PATHS[api] for api in config.apis)
    return f"`{key}.endpoint`: {config.endpoint} answers at none of {tried} (the last: {faults[-1]})"


def _told(key: str, config: JudgeConfig, fault: CallFault, api: str = "") -> str:
    if fault.status in DENIED:
        needed = f"set {config.api_key_env} to one" if config.api_key_env else "name the variable that holds one"
        return f"`{key}.api_key_env`: {config.endpoint} takes no call without a valid API key ({fault}); {needed}"
    if fault.status in _NO_ROUTE:
        where = f"{config.endpoint} has no `{PATHS.get(api, 'models')}`, or no model `{config.model}` ({fault})"
        return f"`{key}.api`: {where}; `auto` takes what there is"
    if fault.final:
        return f"`{key}`: {config.endpoint} refuses a call to model `{config.model}` ({fault}); `request` changes calls"
    return f"`{key}.endpoint`: {config.endpoint} does not answer ({fault}); is the server up?"
