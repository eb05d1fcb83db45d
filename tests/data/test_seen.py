"""The compact set of keys agrees with a set, and takes as little memory as it says."""

import random

import numpy as np
import pytest

from synpro_engine.data import SeenKeys
from synpro_engine.data import seen as module


def test_seen_keys_agree_with_a_set() -> None:
    rng, seen, plain = random.Random(0), SeenKeys(), set()
    for _ in range(40_000):
        key = b"%d" % rng.randrange(25_000)
        assert seen.add(key) == (key not in plain)
        plain.add(key)
    assert seen.count == len(plain)
    assert seen._hashes.nbytes < 25 * seen.count


@pytest.mark.parametrize("crowd", [0, 2**64 - 1], ids=["first home", "last home"])
def test_a_crowd_of_hashes_in_one_home_is_kept(monkeypatch: pytest.MonkeyPatch, crowd: int) -> None:
    monkeypatch.setattr(module, "_SLICE", 100)
    hashes = np.sort(np.random.default_rng(0).integers(1, 2**40, 3000, dtype=np.uint64))
    hashes = np.unique(hashes if crowd == 0 else np.uint64(crowd) - hashes)
    seen = SeenKeys()
    seen._place(hashes, bits=12)
    assert np.array_equal(np.sort(seen._hashes[seen._hashes != 0]), hashes) and seen._hashes[-1] == 0
