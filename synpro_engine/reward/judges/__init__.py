"""Rewards measured by models that are asked declared questions, behind endpoints or in the job.

Knows how a question is put and what an answer is worth. Refuses to know what a reward is for: an outage, an unreadable
reply and a refused question are all NaN, and what follows is the caller's.
"""

from synpro_engine.reward.judges.calibration import Calibration, load_calibration, log_odds
from synpro_engine.reward.judges.client import INPUT_TOKENS, Client, Judgement
from synpro_engine.reward.judges.config import AskedConfig, EncoderConfig, JudgeConfig, JudgesConfig, ModelJudgeConfig
from synpro_engine.reward.judges.judge import Judge, Share, ask_together
from synpro_engine.reward.judges.opening import apis_of, check_judges, open_judges
from synpro_engine.reward.judges.questions import QuestionConfig, built_in

__all__ = [
    "INPUT_TOKENS",
    "AskedConfig",
    "Calibration",
    "Client",
    "EncoderConfig",
    "Judge",
    "JudgeConfig",
    "Judgement",
    "JudgesConfig",
    "ModelJudgeConfig",
    "QuestionConfig",
    "Share",
    "apis_of",
    "ask_together",
    "built_in",
    "check_judges",
    "load_calibration",
    "log_odds",
    "open_judges",
]
