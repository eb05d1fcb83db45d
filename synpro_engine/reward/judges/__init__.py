"""Rewards measured by models behind OpenAI-compatible endpoints.

Knows a few questions and what an answer is worth. Refuses to know what a reward is for: an outage, an unreadable reply
and a refused question are all NaN, and what follows is the caller's.
"""

from synpro_engine.reward.judges.client import Client
from synpro_engine.reward.judges.config import EncoderConfig, JudgeConfig, JudgesConfig
from synpro_engine.reward.judges.opening import check_judge, open_judge
from synpro_engine.reward.judges.rewards import FaithfulnessJudge, Judge, QualityJudge, Share, StructureJudge

__all__ = [
    "Client",
    "EncoderConfig",
    "FaithfulnessJudge",
    "Judge",
    "JudgeConfig",
    "JudgesConfig",
    "QualityJudge",
    "Share",
    "StructureJudge",
    "check_judge",
    "open_judge",
]
