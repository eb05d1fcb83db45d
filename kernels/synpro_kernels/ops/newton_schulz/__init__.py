"""The nearest semi-orthogonal matrix by a few matrix products: what Muon takes of a momentum.

`orthogonalize` iterates Newton and Schulz's odd polynomials on stacks of matrices, or on shards of them. The maths, and
what is counted, is in README.md here.
"""

from synpro_kernels.ops.newton_schulz.coefficients import POLAR_EXPRESS, QUINTIC, Coefficients
from synpro_kernels.ops.newton_schulz.definition import orthogonalize_definition, polar_factor_definition
from synpro_kernels.ops.newton_schulz.op import orthogonalize

__all__ = [
    "orthogonalize",
    "orthogonalize_definition",
    "polar_factor_definition",
    "Coefficients",
    "QUINTIC",
    "POLAR_EXPRESS",
]
