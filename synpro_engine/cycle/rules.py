"""What sections of a recipe must have in common. Each rule is handed the sections that it is about.

It raises ValueError with a line that begins with the key. What a section owes to itself alone stands in the section.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from synpro_engine.config import nearest
from synpro_engine.cycle.sections import (
    IN_RUN,
    ContinueConfig,
    CorpusConfig,
    MixConfig,
    PretrainConfig,
    ReferenceConfig,
    TaskConfig,
)
from synpro_engine.influence import EstimatorConfig, ProbeConfig
from synpro_engine.reward import NO_JUDGES, RewardConfig
from synpro_engine.reward.config import TOTAL
from synpro_engine.rl.config import TuneConfig
from synpro_engine.synth import BUILT_IN, FilterConfig, GenerateConfig

Tunings = Mapping[str, TuneConfig]

# Pretraining, and what is measured of it.


def there_are_questions_to_ask(pretrain: PretrainConfig, held_out: Mapping[str, TaskConfig]) -> None:
    """Asking on the way takes a set of held-out tasks with choices."""
    if pretrain.tasks_every and not any(tasks.choices_field for tasks in held_out.values()):
        raise ValueError("pretrain.tasks_every: no set of `held_out` has a `choices_field`, so there is none to ask")


def the_split_that_is_used_has_text(corpus: CorpusConfig, references: Mapping[str, ReferenceConfig]) -> None:
    """A reference without a source is the reference split."""
    if corpus.split.reference == 0 and any(reference.source is None for reference in references.values()):
        raise ValueError("corpus.split.reference: is 0, but a reference without `source` is that split")


def scores_that_the_mix_goes_by_are_made(mix: MixConfig, pretrain: PretrainConfig) -> None:
    """Scores of the run's own pretraining are of influence, and made where that is asked for."""
    if mix.organic is None or mix.organic.scores != IN_RUN:
        return
    if pretrain.in_run is None:
        raise ValueError("mix.organic.scores: in_run are those of `pretrain.in_run`, which is not set")
    if mix.organic.by != "influence":
        raise ValueError(f"mix.organic.by: in_run has scores `influence`, not `{mix.organic.by}`")


def the_mask_is_a_token(pretrain: PretrainConfig, vocab_size: int) -> None:
    """The embedding has a row for what dropout of tokens puts in their place."""
    mask = pretrain.dropout.mask_token
    if pretrain.dropout.tokens and mask is not None and mask >= vocab_size:
        raise ValueError(f"pretrain.dropout.mask_token: {mask} is not below model.vocab_size ({vocab_size})")


def layers_that_wait_are_there(pretrain: PretrainConfig, layers: int) -> None:
    """No more of the model's layers have their activations on the host than there are."""
    if pretrain.offload_layers > layers:
        raise ValueError(f"pretrain.offload_layers: {pretrain.offload_layers} is above model.layers ({layers})")


def influence_suits_the_probe(influence: EstimatorConfig, probe: ProbeConfig) -> None:
    """Estimators that go all the way need a probe that is a displacement of the weights."""
    far = influence.estimator in ("two_forward", "finite_difference") or influence.at == "midpoint"
    # These go to theta less the whole displacement; a gradient's length is none, and its scores
    # would be of an arbitrary step.
    if far and probe.kind == "next_step":
        wanted = f"influence.estimator {influence.estimator} at {influence.at}"
        raise ValueError(f"{wanted} wants probe.kind walk: a gradient is no displacement of the weights")
    try:
        influence.resolved(tangent=probe.kind == "next_step")
    except ValueError as error:
        raise ValueError(f"influence.{error}") from None


def arms_begin_with_weights_that_are_kept(continued: ContinueConfig, pretrain: PretrainConfig) -> None:
    """Averages can be gone on from where pretraining makes them."""
    if continued.train_from not in ("raw", *pretrain.averages):
        raise ValueError(f"continued.train_from: pretrain.{continued.train_from} is not given, so that there is none")


# Operations, and what their texts earn.


def operations_that_are_tuned_are_generated_with(tune: Tunings, generate: GenerateConfig) -> None:
    """Tuned and never used, one would cost hours: a slip in one of two lists."""
    for operation in tune:
        if operation not in generate.names:
            known = nearest(operation, generate.names)
            raise ValueError(f"tune.{operation}: is not among generate.operations{known}")


def rewards_of_operations_that_there_are(reward: RewardConfig, names: Sequence[str]) -> None:
    """What `reward` has by operation is of a known one; names: those that are generated with."""
    for operation in names:
        if operation in RewardConfig.model_fields:  # its weights would stand in that one's place
            raise ValueError(f"generate.operations: `reward.{operation}` is a setting; give yours another name")
    known = (*BUILT_IN, *names)
    for operation in reward.by_operation:
        if operation not in known:
            raise ValueError(f"reward.{operation}: no such operation{nearest(operation, known)}")


def there_is_a_reward_to_tune_by(tune: Tunings, reward: RewardConfig) -> None:
    """Without a weight every completion is as good as another, and tuning would go by nothing."""
    for operation in tune:
        # What an operation of the user's own weighs is not known where its file need not be there.
        if operation in BUILT_IN and not _weighed(reward, operation):
            raise ValueError(f"tune.{operation}: reward.{operation} gives no reward a weight to tune by")


def no_judge_ends_a_tuning(tune: Tunings, reward: RewardConfig) -> None:
    """Found out after hours otherwise: one reply that cannot be read would end it."""
    for operation, config in tune.items():
        asked = [name for name in reward.asked if reward.weights(operation).get(name)]
        if asked and config.bad_reward == "stop":
            raise ValueError(
                f"tune.{operation}.bad_reward: must be drop_group, for reward.judges.{asked[0]} may fail to answer"
            )


def canaries_have_judges(tune: Tunings, reward: RewardConfig) -> None:
    """Judges that are looked at while tuning are among those that it goes by."""
    for operation, config in tune.items():
        if config.judge_canary.every:
            judges = [name for name in _weighed(reward, operation) if name not in NO_JUDGES]
            out = [name for name in judges if name in config.without]
            if fault := config.judge_canary.fault([name for name in judges if name not in out]):
                because = f" (tune.{operation}.without takes out `{'`, `'.join(out)}`)" if out else ""
                raise ValueError(f"tune.{operation}.judge_canary.{fault}{because}")


def tuning_leaves_out_what_there_is(tune: Tunings, reward: RewardConfig) -> None:
    """Only what has a weight can be shuffled or left out, and not all of it left out."""
    for operation, config in tune.items():
        weighed = _weighed(reward, operation)
        for key, names in (("shuffled", config.shuffled), ("without", config.without)):
            for name in (name for name in names if name not in weighed):
                known = nearest(name, weighed)
                raise ValueError(f"tune.{operation}.{key}: reward.{operation} gives `{name}` no weight{known}")
        if weighed and set(weighed) <= set(config.without):
            raise ValueError(f"tune.{operation}.without: no reward is left to tune by")


def _weighed(reward: RewardConfig, operation: str) -> list[str]:
    """The rewards that count for an operation's texts."""
    return [name for name, weight in reward.weights(operation).items() if weight]


# Texts, and by what they are chosen.


def rewards_that_are_measured_have_a_weight(generate: GenerateConfig, reward: RewardConfig) -> None:
    """Generation measures what some operation weighs, or what is asked for itself."""
    weighed = {name for operation in generate.names for name in _weighed(reward, operation)} | set(reward.unweighed)
    for name in () if generate.rewards == "all" else generate.rewards:
        if name not in weighed:
            raise ValueError(f"generate.rewards: no operation gives `{name}` a weight{nearest(name, weighed)}")


def rewards_that_texts_are_chosen_by_are_there(
    filters: FilterConfig, generate: GenerateConfig, mix: MixConfig, reward: RewardConfig
) -> None:
    """What texts are filtered, mixed or ordered by is a reward that every operation's texts have."""
    for name in filters.least:
        if name not in reward.names:
            raise ValueError(f"filter.least: no reward `{name}`{nearest(name, reward.names)}")
        if (most := reward.greatest(name)) is not None and filters.least[name] > most:
            raise ValueError(f"filter.least.{name}: {filters.least[name]:g} is above {most:g}, the most it can be")
    by = None if filters.best is None else filters.best.by
    if by is not None and by not in (TOTAL, *reward.names):
        raise ValueError(f"filter.best.by: no reward `{by}`{nearest(by, reward.names)}")
    for key, name in _choices(filters, generate, mix):
        for operation in generate.names:
            if name not in reward.unweighed and not reward.weights(operation).get(name):
                raise ValueError(f"{key}: reward.{operation} gives `{name}` no weight to go by")
        if not generate.measures(name):
            raise ValueError(f"{key}: generate.rewards leaves `{name}` out, which it goes by")


def _choices(filters: FilterConfig, generate: GenerateConfig, mix: MixConfig) -> Iterator[tuple[str, str]]:
    """The settings by which texts are chosen, each with the reward that it goes by."""
    yield from ((f"filter.{name}_quantile", name) for name in filters.quantiles)
    yield from ((f"filter.least.{name}", name) for name in filters.least)
    if filters.best is not None and filters.best.by not in (None, TOTAL):
        yield "filter.best.by", filters.best.by
    if generate.mixture == "influence":
        yield "generate.mixture", "influence"
    if mix.synthetic is not None and mix.synthetic.wants_scores:
        yield "mix.synthetic.by", mix.synthetic.by


def there_are_several_to_take_the_best_of(filters: FilterConfig, generate: GenerateConfig) -> None:
    """The best of a slice's texts are fewer than those, and told apart by what is measured of each."""
    best = filters.best
    if best is None:
        return
    if best.keep >= generate.samples:
        raise ValueError(
            f"filter.best.keep: {best.keep} of each slice, of which generate.samples makes {generate.samples}"
        )
    if generate.join:
        raise ValueError("filter.best: compares texts of one slice, which generate.join puts together with others")
    if best.by == TOTAL and generate.rewards != "all":
        raise ValueError("filter.best.by: without all of generate.rewards there is no total")
