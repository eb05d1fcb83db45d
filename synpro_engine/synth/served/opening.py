"""What can be known of the server before it is needed, and the wait for it when it is."""

from __future__ import annotations

import time
from collections.abc import Callable

from synpro_engine.config import UserError, brief
from synpro_engine.config.errors import Stopped
from synpro_engine.remote import DENIED, NO_SUCH_HOST, CallFault, Service, listed_models
from synpro_engine.synth.served.config import KEY, ServerConfig
from synpro_engine.synth.served.generator import ServedGenerator
from synpro_engine.synth.served.weights import Agreement, OtherWeights

_LOOK_S, _TOLD_EVERY_S = 1.0, 60.0
_ASK_AGAIN_S = 10.0  # for weights: six answers each time
_CALL_S, _PROBE_S = 10.0, 60.0
_SHOWN = 5


def check_server(config: ServerConfig) -> str | None:
    """Ask for the server's list of models, long before it is needed; what is amiss, or None.

    It may come up only when there are weights to serve, so silence is no fault yet. UserError for an API key that is
    not in the environment or that it does not take, and for a host that nobody knows.
    """
    try:
        Service(KEY, config).endpoint.get("models", _CALL_S)
    except CallFault as fault:
        _refuse(config, fault)
        return f"{config.endpoint} does not answer ({fault})"
    return None


def _refuse(config: ServerConfig, fault: CallFault) -> None:
    if fault.status in DENIED:
        needed = f"set {config.api_key_env} to one" if config.api_key_env else "name the variable that holds one"
        raise UserError(
            f"`{KEY}.api_key_env`: {config.endpoint} takes no call without a valid API key ({fault}); {needed}"
        ) from None
    if fault.reason == NO_SUCH_HOST:
        raise UserError(f"`{KEY}.endpoint`: {config.endpoint}: {fault}") from None


def wait_for_server(server: ServedGenerator, *, least_context: int, tell: Callable[[str], None]) -> None:
    """Return once the server has the model; `tell` is told once a minute what is waited for.

    least_context: tokens that prompt and completion may take together. UserError after `patience_s`, for a key that is
    not taken, and for a context that the server says is shorter; Stopped when the job is asked to stop.
    """
    service, config, model = server.service, server.config, server.model
    begun, told_at = time.monotonic(), -1e9
    while True:
        try:
            listed = listed_models(service.endpoint.get("models", _CALL_S))
            if model in listed:
                break
            # As Python spells them: a terminal must not obey what a server calls its models.
            names = ", ".join(map(brief, list(listed)[:_SHOWN])) or "no model"
            amiss = f"it serves {names}"
        except CallFault as fault:
            _refuse(config, fault)
            amiss, listed = str(fault), {}
            # Not every server has a list; what it lacks shows in a call.
            if fault.status is not None and server.answers(_PROBE_S):
                break
        now = time.monotonic()
        if service.asked_to_stop():
            raise Stopped(f"`{KEY}.endpoint`: {config.endpoint} did not serve `{model}` yet when it was to stop")
        if now - begun >= config.patience_s:
            raise UserError(
                f"`{KEY}.endpoint`: {config.endpoint} does not serve `{model}` after {config.patience_s / 60:g} min"
                f" ({amiss}); start it, or give it longer (`patience_s`), and run this again"
            )
        if now - told_at >= _TOLD_EVERY_S:
            told_at = now
            tell(f"waiting for {config.endpoint} to serve `{model}` ({amiss})")
        time.sleep(_LOOK_S)
    context = listed.get(model, {}).get("max_model_len")
    if isinstance(context, int) and context < least_context:
        raise UserError(
            f"`{KEY}.endpoint`: {config.endpoint} serves `{model}` with a context of {context} tokens; prompts and"
            f" completions need {least_context} (vLLM: --max-model-len, SGLang: --context-length)"
        )


def wait_for_weights(
    server: ServedGenerator, check: Callable[[], Agreement], *, least_context: int, tell: Callable[[str], None]
) -> Agreement:
    """Return what `check` says of the weights once the server has the model, and with it these weights.

    Under a name of the user's own the model may be that of an earlier stage, until he starts the server anew: that is
    waited for as the model itself is. A name with the weights' hash in it is nobody else's, and other weights under it
    are a fault. Raises what `wait_for_server` does, and OtherWeights at once or after `patience_s`.
    """
    service, config = server.service, server.config
    begun, told_at = time.monotonic(), -1e9
    while True:
        wait_for_server(server, least_context=least_context, tell=tell)
        try:
            return check()
        except OtherWeights as other:
            now = time.monotonic()
            if config.model is None or now - begun >= config.patience_s:
                raise
            if now - told_at >= _TOLD_EVERY_S:
                told_at = now
                tell(f"waiting for this stage's weights: {str(other).removeprefix(f'`{KEY}`: ')}")
        if service.asked_to_stop():
            raise Stopped(f"`{KEY}.endpoint`: {config.endpoint} had other weights yet when it was to stop")
        time.sleep(_ASK_AGAIN_S)
