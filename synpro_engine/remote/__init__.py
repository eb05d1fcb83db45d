"""Models behind OpenAI-compatible endpoints: one call, and many of them at a time with patience.

Knows HTTP, keys, faults and outages. Refuses to know what is asked and what an answer is worth.
"""

from synpro_engine.remote.config import EndpointConfig
from synpro_engine.remote.endpoint import DENIED, NO_SUCH_HOST, CallFault, listed_models
from synpro_engine.remote.service import COUNTED, Calls, Service

__all__ = ["COUNTED", "DENIED", "NO_SUCH_HOST", "CallFault", "Calls", "EndpointConfig", "Service", "listed_models"]
