"""Seeds that follow from several numbers, the same in every process, on every machine and in every Python."""

import numpy as np


def mixed_seed(*numbers: int) -> int:
    """Return a seed from 0 to 2**63 - 1 that depends on all the whole numbers and on their order.

    The numbers, such as (seed, step, batch, rank), are taken modulo 2**64 and handed to numpy's SeedSequence as 32-bit
    words: how many numbers there are, then the low and the high half of each. Its first 64-bit word, without the lowest
    bit, is the seed.
    """
    halves = [half for number in numbers for half in (number % 2**32, number // 2**32 % 2**32)]
    (word,) = np.random.SeedSequence([len(numbers), *halves]).generate_state(1, np.uint64)
    return int(word) >> 1
