"""What the numbers of linear_logprob and its rivals are held to. A row whose result is wrong reaches nothing."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.common.records import Ask, Row, find, ratio
from benchmarks.linear_logprob.run import BACKWARD, FORWARD


def asks(rows: Sequence[Row], device: str) -> list[Ask]:
    """The demands on this device. They are meant for its default shape, with entropy."""
    return _cuda_asks(rows) if device == "cuda" else _cpu_asks(rows)


def _cpu_asks(rows: Sequence[Row]) -> list[Ask]:
    ours, plain = (_right(rows, name, BACKWARD) for name in ("linear_logprob", "materialised"))
    forward, chunked = (_right(rows, name, FORWARD) for name in ("linear_logprob", "chunked"))
    memory = None
    if ours and plain and ours.extra_bytes is not None and plain.extra_bytes:
        memory = ours.extra_bytes / plain.extra_bytes
    return [
        Ask(text="forward+backward, speed-up over materialised", figure=ratio(plain, ours), limit=1.0, at_least=True),
        Ask(text="forward+backward, extra memory over that of materialised", figure=memory, limit=0.1, at_least=False),
        Ask(text="forward, speed-up over chunked PyTorch", figure=ratio(chunked, forward), limit=1.25, at_least=True),
    ]


def _cuda_asks(rows: Sequence[Row]) -> list[Ask]:
    forward = _right(rows, "linear_logprob", FORWARD)
    ours = _fastest(rows, "linear_logprob", "linear_cross_entropy")
    cce, liger = _fastest(rows, "cce", "cce_exact"), _fastest(rows, "liger", "liger_fp32")
    workspace = None
    if forward and forward.extra_bytes is not None and forward.result_bytes is not None:
        workspace = (forward.extra_bytes - forward.result_bytes) / 1e6
    rate = forward.tflops if forward else None
    milliseconds = ours.timing.median * 1e3 if ours and ours.timing else None
    return [
        Ask(text="forward, useful rate", figure=rate, limit=700, at_least=True, unit=" TFLOP/s"),
        Ask(text="forward, workspace", figure=workspace, limit=8, at_least=False, unit=" MB"),
        Ask(text="exact forward+backward", figure=milliseconds, limit=40, at_least=False, unit=" ms"),
        Ask(text="forward+backward, speed-up over CCE", figure=ratio(cce, ours), limit=1.3, at_least=True),
        Ask(text="forward+backward, speed-up over Liger", figure=ratio(liger, ours), limit=2.0, at_least=True),
    ]


def _right(rows: Sequence[Row], name: str, passes: str) -> Row | None:
    row = find(rows, name, passes)
    return row if row and row.right else None


def _fastest(rows: Sequence[Row], *names: str) -> Row | None:
    """The fastest of the named contenders' right rows with the backward pass."""
    found = [row for name in names if (row := _right(rows, name, BACKWARD))]
    return min(found, key=lambda row: row.timing.median if row.timing else float("inf"), default=None)
