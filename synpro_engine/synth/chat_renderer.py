"""Renders chat templates with transformers' own sandbox, as a program: JSON on stdin, JSON on stdout.

A template comes with a tokenizer from anywhere, so it runs here, in a process that can open no file any more and has
little time and memory. In: `template`, `variables`, `conversations` (each `messages`, `add_generation_prompt`). Out:
for each conversation `{"text": ...}` or `{"error": ...}`.
"""

from __future__ import annotations

import datetime
import json
import resource
import sys
from typing import Any

_CPU_SECONDS, _BYTES, _CHARS = 5, 2**30, 2**20
# So that prompts are the same every day: the date that Llama 3.1's template takes where it is given none.
_TODAY = datetime.datetime(2024, 7, 26)


def _main() -> None:
    # transformers keeps its sandbox to itself: apply_chat_template would bring the date and the vocabulary with it.
    from transformers.utils.chat_template_utils import _compile_jinja_template

    request = json.load(sys.stdin)
    # Jinja and the sandbox import modules when they are first used, which needs files.
    for warm_up in (r"{{ messages | tojson ~ '\n' }}", "{{ raise_exception('') }}"):  # no import works afterwards
        _rendered(_compile_jinja_template(warm_up), {}, {"messages": []})
    _restrict()
    try:
        template: Any = _compile_jinja_template(request["template"])
        template.environment.globals["strftime_now"] = lambda form: _TODAY.strftime(form)
    except Exception as error:  # a template may raise anything
        answers = [{"error": _line(error)}] * len(request["conversations"])
    else:
        answers = [_rendered(template, request["variables"], each) for each in request["conversations"]]
    json.dump(answers, sys.stdout)


def _rendered(template: Any, variables: dict[str, str], conversation: dict[str, Any]) -> dict[str, str]:
    try:
        # Answers are read by a program, which has no use for thoughts before them.
        text = template.render(tools=None, documents=None, enable_thinking=False, **variables, **conversation)
    except Exception as error:
        return {"error": _line(error)}
    return {"text": text} if len(text) <= _CHARS else {"error": "it writes too much"}


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _restrict() -> None:
    """From here on no file can be opened or written, and time and memory end the process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    # The limit counts from the start of the process, of which importing transformers takes several seconds.
    seconds = int(used.ru_utime + used.ru_stime) + _CPU_SECONDS
    with open("/proc/self/statm", encoding="ascii") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    # NOFILE 3 leaves the three open streams, so that not even a pipe can be made; NPROC 0 forbids threads as
    # well as programs, but not to root.
    limits = {"CPU": seconds, "AS": size + _BYTES, "FSIZE": 0, "NPROC": 0, "CORE": 0, "NOFILE": 3}
    for name, limit in limits.items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (limit, limit))


if __name__ == "__main__":
    _main()
