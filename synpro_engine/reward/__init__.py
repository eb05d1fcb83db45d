"""Rewards for generated texts, and how they are weighted and added up."""

from synpro_engine.reward.compose import NO_JUDGES, Composer, build_composer
from synpro_engine.reward.config import REWARD_NAMES, RewardConfig
from synpro_engine.reward.embedder import Embedder, Match, greedy_match
from synpro_engine.reward.influence import InfluenceReward
from synpro_engine.reward.own import FunctionReward
from synpro_engine.reward.quality import QualityReward, band_pass
from synpro_engine.reward.similarity import FaithfulnessReward, SimilarityReward
from synpro_engine.reward.structure import StructureReward, structure_match
from synpro_engine.reward.text_rewards import AntiCopyReward, FormatReward, LengthReward
from synpro_engine.reward.types import Candidate, Reward, RewardFault, RewardTable
from synpro_engine.reward.words import (
    distinct_ngrams,
    placed_words,
    rouge_l_precision,
    unsupported_places,
    unsupported_share,
)

__all__ = [
    "NO_JUDGES",
    "REWARD_NAMES",
    "AntiCopyReward",
    "Candidate",
    "Composer",
    "Embedder",
    "FaithfulnessReward",
    "FormatReward",
    "FunctionReward",
    "InfluenceReward",
    "LengthReward",
    "Match",
    "QualityReward",
    "Reward",
    "RewardConfig",
    "RewardFault",
    "RewardTable",
    "SimilarityReward",
    "StructureReward",
    "band_pass",
    "build_composer",
    "distinct_ngrams",
    "greedy_match",
    "structure_match",
    "placed_words",
    "rouge_l_precision",
    "unsupported_places",
    "unsupported_share",
]
