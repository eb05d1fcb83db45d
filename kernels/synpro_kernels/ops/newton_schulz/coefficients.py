"""The polynomials of the iteration: each singular value goes through a x + b x^3 + c x^5 in a step of (a, b, c)."""

from collections.abc import Sequence
from typing import Literal

Step = tuple[float, float, float]
Coefficients = Literal["quintic", "polar_express"] | Sequence[Step]
"""By name, or the steps themselves: the last one is repeated where there are fewer than steps."""

QUINTIC: tuple[Step, ...] = ((3.4445, -4.7750, 2.0315),)
"""One polynomial for all steps, steep at 0 (Jordan et al., "Muon", 2024): values end within about 0.7 to 1.2."""

# By Remez's exchange from values in [1e-3, 1], the intervals cut below at 0.02407 of their end so that no polynomial
# falls too near to 0 within: the test derives them. What is left of the interval after a step is where the next begins.
_POLAR_EXPRESS: tuple[Step, ...] = (
    (8.287212018145626, -23.59588651909882, 17.30038731253092),
    (4.107059111542198, -2.947849916737908, 0.5448431082926598),
    (3.948690853482296, -2.908902115952963, 0.5518191394370134),
    (3.3184196573706015, -2.488488024314872, 0.5100489401237197),
    (2.30065201995482, -1.6689039845747526, 0.41880731195256793),
    (1.891301407787399, -1.2679958271945888, 0.3768040894852493),
    (1.8750014808760502, -1.2500016454452165, 0.3750001645700904),
    (1.875, -1.25, 0.375),
)
# Rounding may lift a value above 1, from where a polynomial that ends at 1 would throw it: each takes x / 1.01.
_SAFETY = 1.01

POLAR_EXPRESS: tuple[Step, ...] = (
    *((a / _SAFETY, b / _SAFETY**3, c / _SAFETY**5) for a, b, c in _POLAR_EXPRESS[:-1]),
    _POLAR_EXPRESS[-1],
)
"""The best polynomial of each step for what the steps before it left (Amsel et al., arXiv 2505.16932)."""

_NAMED = {"quintic": QUINTIC, "polar_express": POLAR_EXPRESS}


def polynomials(coefficients: Coefficients, steps: int) -> list[Step]:
    """(a, b, c) of each step. ValueError for a name that is not known, or steps that are no three numbers."""
    if isinstance(coefficients, str):
        if coefficients not in _NAMED:
            raise ValueError(f"coefficients: expected {' or '.join(_NAMED)}, or steps, got {coefficients!r}")
        given: Sequence[Step] = _NAMED[coefficients]
    else:
        given = coefficients
    if not given or any(len(step) != 3 for step in given):
        raise ValueError(f"coefficients: expected (a, b, c) of at least one step, got {given!r}")
    return [given[min(index, len(given) - 1)] for index in range(steps)]
