"""Choices that depend on a seed and a name, and on nothing else: no machine, order, process or library version."""

import hashlib

import numpy as np
from numpy.typing import NDArray


def stable_hash(seed: int, purpose: str, key: str) -> int:
    """Return 64 bits (an int in [0, 2**64)) of BLAKE2b over seed, purpose and key.

    `purpose` keeps decisions apart: two choices about one document must not share their bits, else capping a
    corpus to the smallest hashes would also put every document that is left into the same split.
    """
    # Zero bytes behind purpose and seed, which hold none: the three cannot be taken apart in another way.
    digest = hashlib.blake2b(f"{purpose}\0{seed}\0{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def stable_permutation(size: int, seed: int, purpose: str, key: str) -> NDArray[np.int64]:
    """Return a permutation of range(size), int64 [size].

    Sorting raw generator words rather than calling `Generator.permutation`: NumPy promises that a bit
    generator's raw stream never changes, and promises nothing about the methods built on it, while a resumed
    run must see the order it began with.
    """
    words = np.random.PCG64(stable_hash(seed, purpose, key)).random_raw(size)
    # Stable, so that equal words keep their order: which of them another sort puts first may change with NumPy.
    return np.argsort(words, kind="stable").astype(np.int64, copy=False)
