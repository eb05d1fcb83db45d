"""Judges that are causal language models on the job's own ranks: the probabilities of labels, from one prefill.

Nothing is generated. All questions of a batch are one tree of prompts, so that what they begin with (a slice, a text, a
question about many entries) is read once, and the output layer is evaluated where labels stand and for them alone.
"""

from __future__ import annotations

import hashlib
import math
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor
from tqdm import tqdm

from synpro_engine.config import json_text
from synpro_engine.data import Tokenizer
from synpro_engine.dist import broadcast_in
from synpro_engine.model.model import Model
from synpro_engine.reward.judges.cache import AnswerCache
from synpro_engine.reward.judges.calibration import Calibration
from synpro_engine.reward.judges.client import INPUT_TOKENS, Judgement
from synpro_engine.reward.judges.config import ModelJudgeConfig, question_of
from synpro_engine.reward.judges.labels import Labelled, chat_format_of
from synpro_engine.reward.judges.questions import QuestionConfig
from synpro_engine.sampler.tree import READING, TreeReader, passes, prompt_tree

COUNTED = ("judged", "kept", "missing", INPUT_TOKENS, "plain_tokens")
"""questions answered; values that were there already; prompts that the model's window does not hold, and answers that
are no numbers; tokens read; tokens that each question's own whole prompt would have taken."""
IN_JOB = "in the job"
"""Stands where a judge behind an endpoint has its interface."""
_TOLD_EVERY_S = 60.0


def name_of(config: ModelJudgeConfig, version: str) -> str:
    """Of a judge's model in records: that of its file, and the first digits of the hash that tells it from others."""
    return f"{Path(config.model).name} {version[:16]}"


class ModelClient:
    """One model as a job's judge. Tensor-parallel ranks ask the same and get the same."""

    def __init__(
        self,
        judges: Mapping[str, ModelJudgeConfig],
        model: Model,
        tokenizer: Tokenizer,
        *,
        version: str,
        cache: Path | None = None,
        calibrations: Mapping[str, Calibration] = MappingProxyType({}),
    ) -> None:
        """judges: by the reward's name, all of one `connection`. version: tells this model from all others.

        cache: answers of each judge are kept in a directory of its name there. calibrations: by judge, maps that values
        go through; what is kept is the answer before. UserError for labels that the tokenizer cannot tell apart, and
        for a model in pipeline stages.
        """
        self.name = "+".join(judges)
        self._key, self._config = f"reward.judges.{next(iter(judges))}", next(iter(judges.values()))
        self._judges, self._model, self._reader = judges, model, TreeReader(model)
        self._calibrations = calibrations
        chat_format = chat_format_of(tokenizer, self._config.chat_format)
        self._asked = {
            name: Labelled(question_of(name, config), tokenizer, chat_format) for name, config in judges.items()
        }
        # Weights of one file are other numbers in another type, and were others where they were read otherwise.
        self._version = f"{version} {model.dtype}, reading {READING}"
        self._name = name_of(self._config, version)
        self._caches = {
            name: AnswerCache(cache / name if cache is not None and config.cache else None, about=self.version(name))
            for name, config in judges.items()
        }
        self._counts: Counter[str] = Counter()
        self._told_at = -math.inf

    @property
    def model(self) -> Model:
        """What answers."""
        return self._model

    def question(self, judge: str) -> QuestionConfig:
        """What a judge is asked."""
        return self._asked[judge].question

    def version(self, judge: str) -> str:
        """What the values of a judge hang on: model and hash, versions of question and calibration."""
        asked = f"{self._name} {IN_JOB}, question {self._shown(judge)}"
        calibration = self._calibrations.get(judge)
        return asked if calibration is None else f"{asked}, calibration {calibration.version}"

    def belongs_to(self, judge: str) -> dict[str, str]:
        """What a calibration of a judge belongs to, by the fields of `Calibration`."""
        return {"judge": judge, "model": self._name, "api": IN_JOB, "question": self._shown(judge)}

    def _shown(self, judge: str) -> str:
        return self._asked[judge].version(hard=self._judges[judge].hard)

    def take_counts(self) -> dict[str, int]:
        """The counts since the last call, by the names of `COUNTED`."""
        counts, self._counts = self._counts, Counter()
        return {name: counts[name] for name in COUNTED}

    def values(self, judgements: Sequence[Judgement]) -> list[float]:
        """The value of each, NaN where its prompt is longer than the model's window or its logits are no numbers.

        Collective over the tensor-parallel ranks.
        """
        prompts = {one: self._asked[one.judge].prompt(one.state, one.entry) for one in dict.fromkeys(judgements)}
        keys = {one: self._cache_key(one.judge, prompt) for one, prompt in prompts.items()}
        values = self._known(keys)
        wanted = [one for one in prompts if one not in values]
        fits = [one for one in wanted if len(prompts[one]) + self._longest(one.judge) <= self._model.config.seq_len]
        if len(fits) < len(wanted):
            self._tell_too_long(max(len(prompts[one]) for one in wanted))
        found = dict(zip(fits, self._read(fits, [prompts[one] for one in fits]), strict=True))
        for one, value in found.items():
            if math.isfinite(value):
                self._caches[one.judge].put(keys[one], value)
        missing = len(wanted) - sum(map(math.isfinite, found.values()))
        self._counts.update(kept=len(values), judged=len(found), missing=missing)
        values |= found
        return [self._calibrated(one, values.get(one, math.nan)) for one in judgements]

    def _calibrated(self, one: Judgement, value: float) -> float:
        calibration = self._calibrations.get(one.judge)
        return value if calibration is None else calibration(value, self.question(one.judge).range)

    def _known(self, keys: Mapping[Judgement, bytes]) -> dict[Judgement, float]:
        """As the first tensor-parallel rank has them: ranks that saw other files would read other trees."""
        for cache in self._caches.values():
            cache.refresh()
        kept = broadcast_in(self._reader.tp, [self._caches[one.judge].get(key) for one, key in keys.items()])
        return {one: value for one, value in zip(keys, kept, strict=True) if value is not None}

    def _cache_key(self, judge: str, prompt: Sequence[int]) -> bytes:
        asked = json_text([self._version, self._shown(judge), list(prompt)])
        return hashlib.sha256(asked.encode()).digest()[:16]

    def _longest(self, judge: str) -> int:
        """Tokens of a label that are read behind a prompt: all but its last."""
        return max(map(len, self._asked[judge].tails)) - 1

    def _read(self, wanted: Sequence[Judgement], prompts: Sequence[list[int]]) -> list[float]:
        """The value of each, pass by pass."""
        values = [math.nan] * len(wanted)
        for part in passes(prompts, self._config.prefill_tokens):
            judges = [wanted[index].judge for index in part]
            scores = self.label_logprobs([prompts[index] for index in part], [self._asked[one].tails for one in judges])
            for index, judge, score_L in zip(part, judges, scores, strict=True):
                probabilities = torch.softmax(score_L.double(), -1).tolist()
                if all(map(math.isfinite, probabilities)):
                    values[index] = self.question(judge).value(probabilities, hard=self._judges[judge].hard)
        # Equal on all ranks but for a device's last bit, which must not train them apart.
        return broadcast_in(self._reader.tp, values)

    def label_logprobs(
        self, prompts: Sequence[Sequence[int]], labels: Sequence[Sequence[Sequence[int]]]
    ) -> list[Tensor]:
        """For each prompt the log-probabilities [L] of its labels, fp32, up to what all of them share. One pass.

        labels: the ids of each of a prompt's labels; of several tokens, the sum counts.
        """
        rows, places, targets = dict[tuple[int, ...], int](), list[int](), list[int]()
        for prompt, tails in zip(prompts, labels, strict=True):
            for tail in tails:
                for at, target in enumerate(tail):  # behind the label's own beginning
                    places.append(rows.setdefault((*prompt, *tail[:at]), len(rows)))
                    targets.append(target)
        tree = prompt_tree(list(rows))
        self._counts[INPUT_TOKENS] += len(tree.token_N)
        self._counts["plain_tokens"] += sum(map(len, prompts))
        hidden_RH = self._reader.hidden(tree)[torch.tensor(places, device=self._reader.device)]
        lengths = [[len(tail) for tail in tails] for tails in labels]
        single = all(length == 1 for of_prompt in lengths for length in of_prompt)
        score_R = self._scores(hidden_RH, torch.tensor(targets), single=single)
        of_labels = iter(score_R.cpu().split([length for of_prompt in lengths for length in of_prompt]))
        return [torch.stack([next(of_labels).sum() for _ in of_prompt]) for of_prompt in lengths]

    def _scores(self, hidden_RH: Tensor, target_R: Tensor, *, single: bool) -> Tensor:
        """What each target adds to its label's log-probability."""
        if single:
            # All labels of a prompt stand in one place, so that the sum over the vocabulary cancels.
            return self._reader.logits(hidden_RH, target_R)
        with torch.no_grad():
            return self._model.logprobs_from_hidden(hidden_RH, target_R.to(hidden_RH.device)).logprob

    def _tell_too_long(self, longest: int) -> None:
        now = time.monotonic()
        if self._reader.tp.rank or now - self._told_at < _TOLD_EVERY_S:
            return  # the log counts them all
        self._told_at = now
        window = self._model.config.seq_len
        tqdm.write(f"`{self._key}`: prompts of up to {longest} tokens pass its window of {window}", file=sys.stderr)
