"""Random numbers as pure functions of (seed, purpose, number): no state, no order, no loader position.

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), vectorised in NumPy. The key is a
digest of seed and purpose, the counter is (block, sample number): so any batch, worker or resumed run that asks
for sample 1234 gets sample 1234's numbers.
"""

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_MULTIPLIER_0, _MULTIPLIER_1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL_0, _WEYL_1 = 0x9E3779B9, 0xBB67AE85
_LOW, _SHIFT = np.uint64(0xFFFFFFFF), np.uint64(32)


def philox4x32(
    counter: tuple[npt.NDArray[np.uint64], ...], key: tuple[int, int], rounds: int = 10
) -> tuple[npt.NDArray[np.uint64], ...]:
    """Return four words in [0, 2^32) for each of four broadcastable counter words and a two-word key."""
    c0, c1, c2, c3 = np.broadcast_arrays(*counter)
    k0, k1 = key
    for _ in range(rounds):
        p0, p1 = c0 * _MULTIPLIER_0, c2 * _MULTIPLIER_1
        c0, c1, c2, c3 = (
            (p1 >> _SHIFT) ^ c1 ^ np.uint64(k0),
            p1 & _LOW,
            (p0 >> _SHIFT) ^ c3 ^ np.uint64(k1),
            p0 & _LOW,
        )
        k0, k1 = (k0 + _WEYL_0) & 0xFFFFFFFF, (k1 + _WEYL_1) & 0xFFFFFFFF
    return c0, c1, c2, c3


def uniform(seed: int, purpose: str, numbers: Sequence[int] | npt.NDArray[np.int64], count: int) -> Tensor:
    """Return float64 values in [0, 1), shape [len(numbers), count], one row a number.

    A row depends on (seed, purpose, number) alone, and its first values do not depend on `count`.
    """
    numbers_B = np.asarray(numbers, dtype=np.uint64)[:, None]
    blocks = np.arange((count + 3) // 4, dtype=np.uint64)[None, :]
    words = philox4x32(
        (blocks, numbers_B & _LOW, numbers_B >> _SHIFT, np.zeros((1, 1), np.uint64)), _key(seed, purpose)
    )
    values = np.stack(words, axis=-1).reshape(len(numbers_B), 4 * blocks.size)[:, :count]
    return torch.from_numpy(values.astype(np.float64) / 2.0**32)


def integers(u: Tensor, n: int | Tensor) -> Tensor:
    """Return int64 values in {0..n-1} from uniform values in [0, 1); `n` may be a tensor that broadcasts."""
    return (u * n).long()


def derived_seed(seed: int, purpose: str, number: int) -> int:
    """Return a 63-bit seed for a library's own generator (dropout), a pure function of its arguments."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@lru_cache(maxsize=256)
def _key(seed: int, purpose: str) -> tuple[int, int]:
    digest = hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")


class Order:
    """Which item of a set of `length` each global sample number shows: every pass shows each item once.

    Pass p is a permutation keyed by (seed, purpose, p), so position needs no state.
    """

    def __init__(self, seed: int, purpose: str, length: int) -> None:
        self._seed, self._purpose, self._length = seed, purpose, length
        self._pass = lru_cache(maxsize=8)(self._permutation)

    def items(self, numbers: npt.NDArray[np.int64]) -> Tensor:
        """Return int64 item indices, shape [len(numbers)]."""
        passes, positions = np.divmod(numbers, self._length)
        result = np.empty(len(numbers), np.int64)
        for p in np.unique(passes):
            chosen = passes == p
            result[chosen] = self._pass(int(p))[positions[chosen]]
        return torch.from_numpy(result)

    def _permutation(self, number: int) -> npt.NDArray[np.int64]:
        keys = uniform(self._seed, self._purpose, [number], self._length)[0].numpy()
        return np.argsort(keys, kind="stable")
