"""Rewards of the user's own: plain functions of a candidate."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from synpro_engine.config.own_code import calling, load_own, own_reference
from synpro_engine.reward.types import Candidate


class FunctionReward:
    """A number for each text by a function of one candidate. One that is not finite is a fault, as of a judge."""

    def __init__(
        self,
        name: str,
        function: Callable[[Candidate], float],
        *,
        range: tuple[float, float] = (-math.inf, math.inf),
    ) -> None:
        self.name, self.range, self._function = name, range, function

    def __call__(self, candidates: Sequence[Candidate]) -> list[float]:
        """One value for each candidate."""
        return [float(self._function(candidate)) for candidate in candidates]


class OwnReward(FunctionReward):
    """One whose function is named in settings, as `path/to/file.py:NAME`.

    UserError says what it raised, or where it hung.
    """

    def __init__(self, name: str, reference: str, seconds: float | None = None) -> None:
        """Run the file; UserError where it has no such function. seconds: for one text, or as long as it takes."""
        own, key = own_reference(reference), f"reward.functions.{name}"
        assert own is not None, "the settings were checked"
        function, digest = load_own(own, key, callable, "function")
        super().__init__(name, lambda candidate: calling(own, key, lambda: float(function(candidate)), seconds))
        self.version = f"{own.file.name}:{own.name}, sha256 {digest[:16]}"
