"""Settings of rewards: weights by operation, what a reward can be told, and who measures it."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Annotated, Any, ClassVar, Self

from pydantic import ConfigDict, Field, PrivateAttr, field_validator, model_validator

from synpro_engine.config import Config, nearest
from synpro_engine.config.own_code import own_reference
from synpro_engine.reward.judges import INPUT_TOKENS, AskedConfig, JudgeConfig, JudgesConfig, ModelJudgeConfig
from synpro_engine.storage.places import LocalPlace
from synpro_engine.synth.operations import OPERATIONS, PAPER, operation_named

REWARD_NAMES = (
    "influence", "quality", "similarity", "structure", "length", "format", "faithfulness", "anti_copy",
)  # fmt: skip
TOTAL = "total"
"""What the weighted sum is called beside them."""
OVERLONG = "overlong"
"""What tuning calls its punishment of length among a text's rewards."""
_SHARES = ("similarity", "structure", "length", "format", "faithfulness")
"""Yes or no, or a share: 1 is the most, where no judge says otherwise."""
Weight = Annotated[float, Field(ge=-1e6, le=1e6)]


class RewardConfig(Config):
    """Weights of rewards, and what the rewards can be told.

    Weights are given by operation, as `reward.OPERATION.REWARD`; rewards left out there weigh 0, and an operation that
    is left out has weights of its own (`Operation.rewards`).
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, dict[str, Weight]] = Field(init=False)  # pyright: ignore[reportIncompatibleVariableOverride]

    EXECUTION: ClassVar[frozenset[str]] = frozenset({"function_seconds"})  # no value hangs on it

    _also: frozenset[str] = PrivateAttr(default=frozenset())

    influence_min_chars: int = Field(default=500, ge=0)
    """Texts with fewer characters have the influence of their source."""
    influence_clip: float | None = Field(default=None, gt=0)
    """Bound on the absolute influence difference, in nats per token; none for no bound."""
    quality_low: float = Field(default=1.5, ge=0)
    """Nats per token below which a text counts as too predictable."""
    quality_high: float = Field(default=3.7, gt=0)
    """Nats per token above which a text counts as garbled."""
    similarity_threshold: float | None = Field(default=0.65, ge=0, le=1)
    """The similarity reward is 1 above it; none gives the graded score instead."""
    faithfulness_judge: LocalPlace | None = None
    """A file of `synpro train-judge`; none takes the judge that the package brings."""
    faithfulness_threshold: float | None = Field(default=None, ge=0, le=1)
    """An entry counts 1 whose probability of being supported reaches it, else 0; none gives the mean probability."""
    functions: dict[str, str] = Field(default={})
    """Rewards of your own by name: `path/to/file.py:NAME`, a function of a `synpro_engine.reward.Candidate` that
    returns a number."""
    function_seconds: float | None = Field(default=600.0, gt=0)
    """Longest time that such a function may take for one text, beyond which the job ends with a line; null has none."""
    judges: JudgesConfig = JudgesConfig()

    @field_validator("functions")
    @classmethod
    def _functions_are_of_files(cls, value: dict[str, str]) -> dict[str, str]:
        for name, reference in value.items():
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,60}", name):
                raise ValueError(f"`{name}`: names are letters, digits and `_`")
            if own_reference(reference) is None:
                raise ValueError(f"{name}: `{reference}` is no path/to/file.py:NAME")
        return value

    @model_validator(mode="before")
    @classmethod
    def _give_the_papers_operations_their_weights(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        for key, value in data.items():
            if key in PAPER and not isinstance(value, Mapping):
                raise ValueError(f"{key}: expected rewards with their weights")
            if key not in cls.model_fields and not isinstance(value, Mapping):
                raise ValueError(f"unknown key `{key}`{nearest(str(key), (*cls.model_fields, *PAPER))}")
        data = {name: dict(operation_named(name).rewards) for name in PAPER} | data
        # What a recipe has of its `base` goes by null: a weight, a function.
        functions, judges = data.get("functions"), data.get("judges")
        own = [name for given in (functions, judges) if isinstance(given, Mapping) for name in given]
        weights = {
            key: _weights(key, of, (*REWARD_NAMES, *own)) for key, of in data.items() if key not in cls.model_fields
        }
        return data | weights | ({"functions": without_nulls(functions)} if isinstance(functions, Mapping) else {})

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in self.functions:
            if name in (*REWARD_NAMES, TOTAL, OVERLONG):
                raise ValueError(f"functions.{name}: is the name of another reward; give yours another")
            if name in self.judges.own:
                raise ValueError(f"functions.{name}: judges.{name} goes by the same name")
        for name in self.judges.own:
            if name in (*REWARD_NAMES, TOTAL, OVERLONG):
                raise ValueError(f"judges.{name}: is measured without a judge; give your question another name")
        for operation, weights in self.by_operation.items():
            for name in weights:
                if name not in self.names:
                    raise ValueError(f"{operation}: no reward `{name}`{nearest(name, self.names)}")
        if self.quality_low >= self.quality_high:
            raise ValueError("quality_low must be below quality_high")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """Of all rewards that there are, the user's own functions and questions among them."""
        return (*REWARD_NAMES, *self.functions, *self.judges.own)

    def greatest(self, name: str) -> float | None:
        """The most that a reward can be of a text, unweighed; None where nothing bounds it, or a file of its own."""
        judge = self.judges.asked.get(name)
        if judge is not None:
            low, high = self.judges.question_of(name).range
            # A difference is of two such values; a question of shares, as of entries, is a mean of them.
            most = high - low if self.judges.question_of(name).source == "compared" else high
            return most if judge.calibration is None else None
        return 1.0 if name in _SHARES else None

    @property
    def by_operation(self) -> dict[str, dict[str, float]]:
        """The weights that are given, and those of the paper's operations in any case."""
        return self.__pydantic_extra__

    def weights(self, operation: str) -> dict[str, float]:
        """The weights of one operation; UserError where it has none and is not known."""
        given = self.by_operation.get(operation)
        return dict(operation_named(operation).rewards) if given is None else given

    def weighing(self, weights: Mapping[str, Mapping[str, float]], also: Collection[str] = ()) -> Self:
        """The same with weights for these operations and no others; also: measured though nothing weighs it."""
        fields: dict[str, Any] = {name: getattr(self, name) for name in type(self).model_fields}
        same = self.model_construct(None, **fields | {name: dict(of) for name, of in weights.items()})
        same._also = frozenset(also)
        return same

    def asking(self, own: Collection[str]) -> Self:
        """The same with these questions and functions of the user's own and no others, nor weights of others."""
        functions = {name: reference for name, reference in self.functions.items() if name in own}
        dropped = (self.judges.own.keys() | self.functions.keys()) - set(own)
        weights = {
            operation: {name: weight for name, weight in named.items() if name not in dropped}
            for operation, named in self.by_operation.items()
        }
        kept = {"judges": self.judges.only(own), "functions": functions}
        return self.model_copy(update=kept).weighing(weights, self.also)

    @property
    def also(self) -> frozenset[str]:
        """What is measured though nothing weighs it."""
        return self._also

    @property
    def unweighed(self) -> tuple[str, ...]:
        """Questions of the user's own that no operation weighs, which are no rewards."""
        return tuple(name for name in self.judges.own if not self._is_weighed(name))

    def recorded(self) -> dict[str, Any]:
        """The settings, and the weights by operation among them."""
        return super().recorded() | self.by_operation

    def uses(self, name: str) -> bool:
        """Whether any operation gives `name` a weight, or it is measured without one."""
        return name in self.also or self._is_weighed(name)

    def _is_weighed(self, name: str) -> bool:
        return any(weights.get(name, 0.0) != 0.0 for weights in self.by_operation.values())

    @property
    def remote(self) -> dict[str, JudgeConfig]:
        """The judges behind endpoints whose rewards have a weight, by the reward's name."""
        return {name: judge for name, judge in self.judges.remote.items() if self.uses(name)}

    @property
    def in_job(self) -> dict[str, ModelJudgeConfig]:
        """The judges that are models in the job, likewise."""
        return {name: judge for name, judge in self.judges.in_job.items() if self.uses(name)}

    @property
    def asked(self) -> dict[str, AskedConfig]:
        """Both of them."""
        return {name: judge for name, judge in self.judges.asked.items() if self.uses(name)}

    def cost(self, judges: str, asked: Mapping[str, int]) -> float | None:
        """What judges of one endpoint, as they are counted together (`RewardTable.asked`), took; None without a price.

        asked: what they were asked, by the names of counts.
        """
        judge = self.judges.remote.get(judges.partition("+")[0])
        tokens = asked.get(INPUT_TOKENS, 0)
        return None if judge is None or judge.price is None or not tokens else tokens * judge.price / 1e6

    def measures(self, name: str) -> bool:
        """Whether `name` has a weight and is measured in the embedded way."""
        return self.uses(name) and name not in self.asked


def _weights(operation: str, given: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """Without nulls. Where nothing else is given, it is from the operation's own weights that they take away.

    known: rewards, and what goes by null itself.
    """
    for name in (name for name in given if given[name] is None and name not in known):
        raise ValueError(f"{operation}: no reward `{name}` to take away{nearest(str(name), known)}")
    kept = without_nulls(given)
    if kept or not given or operation not in OPERATIONS:
        return kept
    return {name: weight for name, weight in OPERATIONS[operation].rewards.items() if name not in given}


def without_nulls(given: Mapping[str, Any]) -> dict[str, Any]:
    """What is given by name, without the names that are taken away."""
    return {name: value for name, value in given.items() if value is not None}
