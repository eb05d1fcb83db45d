"""Pages: memory goes with what is live, beginnings are read once, and who makes room for others draws the same."""

import random
from collections import Counter
from collections.abc import Callable

import pytest
import torch

from synpro_engine.model.model import Model
from synpro_engine.sampler import Completion, Sampler, SamplerConfig, SamplingConfig
from synpro_engine.sampler.batch import LiveBatch
from synpro_engine.sampler.cache import PAGE, CacheShape, PagePool, page_keys

SHAPE = CacheShape(layers=2, kv_heads=1, head_dim=4, dtype=torch.float32, device=torch.device("cpu"))
STOPS = frozenset(range(0, 90, 30))
Limit = Callable[[int], None]


@pytest.fixture
def limit_pages(monkeypatch: pytest.MonkeyPatch) -> Limit:
    """Sets how many pages there are, which `cache_mib` does by the million bytes."""

    def limit(pages: int) -> None:
        monkeypatch.setattr("synpro_engine.sampler.sampler.LiveBatch", lambda shape, _: LiveBatch(shape, pages))

    return limit


def prompts_of(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(90, (length,), generator=generator).tolist() for length in lengths]


def sample(
    sampler: Sampler, prompts: list[list[int]], size: int = 3, new: int = 70, first_seed: int = 0,
    stops: frozenset[int] = STOPS,
) -> list[Completion]:  # fmt: skip
    sampling = SamplingConfig(temperature=0.7, top_p=0.9, max_new_tokens=new)
    groups = sampler.generate(
        prompts, group_size=size, sampling=sampling, stop_ids=stops, seeds=range(first_seed, first_seed + len(prompts))
    )
    return [completion for group in groups for completion in group]


def assert_alike(ours: list[Completion], theirs: list[Completion]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert one.token_ids == other.token_ids
        torch.testing.assert_close(one.logprobs, other.logprobs, rtol=0, atol=2e-5)
        assert one.nuclei is not None and other.nuclei is not None and torch.equal(one.nuclei.ids, other.nuclei.ids)


@pytest.mark.parametrize("speculate", [0, 4])
@pytest.mark.parametrize("pages", [15, 9, 1])
def test_those_that_are_put_aside_draw_the_same_tokens(
    model: Model, limit_pages: Limit, pages: int, speculate: int
) -> None:
    """Down to a single page, with which one sequence lives at a time, and takes more pages than there are."""
    prompts = prompts_of(40, 3, 33, 17, 50)
    roomy, config = Sampler(model), SamplerConfig(speculate=speculate)
    few = frozenset({7})  # stop ids: most are as long as they may be, and want a third page
    expected = sample(roomy, prompts, stops=few)
    assert roomy.stats.put_aside == 0
    limit_pages(pages)
    tight = Sampler(model, config)
    assert_alike(sample(tight, prompts, stops=few), expected)
    assert tight.stats.put_aside > 0
    longest = max(len(prompts[index // 3]) + len(one.token_ids) for index, one in enumerate(expected))
    most = max(pages, longest // PAGE + 2)
    assert tight.stats.cache_bytes <= most * tight._decoder.cache_shape.bytes_per_page
    assert tight.stats.cache_bytes < roomy.stats.cache_bytes


def test_memory_follows_what_sequences_become_not_what_they_may(model: Model) -> None:
    sampler = Sampler(model)
    completions = sample(sampler, prompts_of(9, 9, 9, 9), size=8, new=100)
    shape = sampler._decoder.cache_shape
    lengths = [len(completion.token_ids) for completion in completions]
    assert max(lengths) > 2.5 * sum(lengths) / len(lengths), "lengths must differ for this to test much"
    rectangle = (4 * 9 + len(lengths) * max(lengths)) * shape.bytes_per_token
    assert sampler.stats.cache_bytes < 0.5 * rectangle


def test_what_prompts_begin_with_alike_is_read_once_and_changes_nothing(model: Model) -> None:
    """Two instructions, of which one goes on in two ways; a prompt that is all beginning; late ones find it too."""
    one, other, more = prompts_of(2 * PAGE + 5, PAGE + 20, PAGE)
    tails = prompts_of(7, 40, 3, 12, 9, 20)
    prompts = [one + tails[0], one + tails[1], other + tails[2], one[: 2 * PAGE] + more + tails[3]]
    prompts += [one[: 2 * PAGE] + more + tails[4], other + tails[5], one[: 2 * PAGE]]
    expected = [
        completion for at, prompt in enumerate(prompts) for completion in sample(Sampler(model), [prompt], 2, 12, at)
    ]
    sampler = Sampler(model)
    assert_alike(sample(sampler, prompts, 2, 12), expected)
    # Two pages of the first, of which the last prompt has but one without its last token; a page of the others.
    known = 4 * 2 * PAGE + 1 * PAGE + 2 * PAGE + 2 * PAGE
    assert sampler.stats.known_tokens == known
    read = sum(map(len, prompts)) - known + 2 * PAGE + PAGE + PAGE
    assert sampler.stats.prompt_tokens == read
    late = Sampler(model, SamplerConfig(max_batch=2))
    assert_alike(sample(late, prompts, 2, 12), expected)
    assert late.stats.known_tokens >= known - 4 * PAGE, "all but the first to come with a beginning"


def test_the_name_of_a_page_is_that_of_all_before_it_too() -> None:
    first, second, third = prompts_of(PAGE, PAGE, PAGE)
    keys = page_keys([*first, *second, *third])
    assert len(keys) == 2, "the last token is read for each prompt by itself"
    assert page_keys([*first, *second, 5])[:2] == keys
    assert page_keys([*second, *second, 5])[1] != keys[1]
    assert page_keys(first) == []


def test_a_pool_gives_no_page_twice_and_finds_what_was_published() -> None:
    """Against a plain count, through some thousand random steps."""
    rng, most = random.Random(3), 12
    pool = PagePool(SHAPE, most)
    held, content, names = list[list[int]](), dict[int, bytes](), [bytes([at]) for at in range(20)]
    for _ in range(3000):
        move = rng.random()
        if move < 0.4 and pool.available:
            held.append(pool.take(rng.randint(1, pool.available)))
            others = [page for pages in held[:-1] for page in pages]
            assert not set(held[-1]) & set(others) and len(set(held[-1])) == len(held[-1])
            for page in held[-1]:
                content.pop(page, None)
        elif move < 0.6 and held:
            pages = rng.choice(held)
            name = rng.choice(names)
            if not pool.knows(name) and pages[0] not in content:
                content[pages[0]] = name
                pool.publish([name], pages[:1])
        elif move < 0.75:
            name = rng.choice(names)
            before, cost = pool.available, pool.cost([name])
            if pool.knows(name) and cost <= before:
                found = pool.find([name, b"unknown"])
                assert [content[page] for page in found] == [name]
                assert pool.available == before - cost
                held.append(found)
        elif held:
            pool.release(held.pop(rng.randrange(len(held))))
        live = {page for pages in held for page in pages}
        assert pool.available == most - len(live)
        assert pool.bytes <= most * SHAPE.bytes_per_page
        assert all(pool.knows(content[page]) for page in live if page in content)
    for pages in held:
        pool.release(pages)
    assert pool.available == most and pool.peak == most
    assert Counter(pool.take(most)) == Counter(range(most))
    assert not any(map(pool.knows, names)), "the pages of what was known were taken"


def test_pages_keep_what_they_hold_while_the_pool_grows() -> None:
    pool = PagePool(SHAPE, 100)
    (page,) = pool.take(1)
    key = torch.randn(2, 1, 4)
    for layer in range(2):
        pool.write(layer, torch.tensor([page, page]), torch.tensor([3, 7]), key, -key)
    pool.take(60)
    for layer in range(2):
        keys, values = pool.of_layer(layer)
        assert torch.equal(keys[page, :, [3, 7]].transpose(0, 1), key)
        assert torch.equal(values[page, :, [3, 7]].transpose(0, 1), -key)
        assert int(keys.count_nonzero()) == key.numel()
