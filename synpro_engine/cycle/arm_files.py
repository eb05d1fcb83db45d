"""The settings that may be others in an arm and name files, which stages record by their content."""

from __future__ import annotations

from synpro_engine.cycle.sections import MixConfig, PretrainConfig
from synpro_engine.reward import RewardConfig


def judge_files(reward: RewardConfig) -> dict[str, str]:
    """By the keys of judges, and of their calibrations, that are files: the rewards that they measure."""
    keys = dict[str, str]()
    if reward.faithfulness_judge is not None:
        keys["reward.faithfulness_judge"] = "faithfulness"
    if reward.judges.encoder is not None:
        keys["reward.judges.similarity.encoder"] = "similarity"
    keys |= {f"reward.judges.{name}.model": name for name in reward.judges.in_job}
    calibrated = [name for name, judge in reward.judges.asked.items() if judge.calibration is not None]
    return keys | {f"reward.judges.{name}.calibration": name for name in calibrated}


def learnt_from(pretrain: PretrainConfig, mix: MixConfig) -> tuple[str, ...]:
    """The keys of what a training stage reads from outside."""
    teachers = ("pretrain.distill.teachers",) if pretrain.distill is not None else ()
    return (*teachers, "mix.organic.scores") if mix.from_file else teachers
