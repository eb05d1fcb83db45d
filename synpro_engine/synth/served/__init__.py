"""Generation by an OpenAI-compatible server (vLLM, SGLang) in place of the sampler in this process.

Knows how a sampler's request is put to a server, how its answer is read, and how to tell whether it serves the weights
that it should. Refuses to know where these are exported to.
"""

from synpro_engine.synth.served.config import ServerConfig
from synpro_engine.synth.served.generator import ServedGenerator
from synpro_engine.synth.served.opening import check_server, wait_for_server, wait_for_weights
from synpro_engine.synth.served.weights import Expected, OtherWeights, check_weights, expected_answers

__all__ = [
    "Expected",
    "OtherWeights",
    "ServedGenerator",
    "ServerConfig",
    "check_server",
    "check_weights",
    "expected_answers",
    "wait_for_server",
    "wait_for_weights",
]
