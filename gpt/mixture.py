"""Whose turn it is: several corpora take turns so that each has its share of the rows, exactly and at every moment.

In: shares as whole numbers. Out: for any row of an endless sequence its corpus, and which of that corpus's rows it is.
Method: Tijdeman, The chairman assignment problem (1980): no corpus is ever a whole row off its share.
"""

from collections.abc import Sequence
from fractions import Fraction
from math import gcd

import numpy as np

# R rows, P rows of a period
SHARES = 10_000
"""A share is a multiple of one in so many: then the turns repeat themselves after at most so many rows."""


class Turns:
    """Which corpus each row comes from: of any first N rows each corpus has its share, within less than one row.

    Among the corpora that are behind, that one goes which would be the first to be too far behind.
    """

    def __init__(self, parts: Sequence[int]) -> None:
        self.count = np.array(parts) // gcd(*parts)
        period, twice, given = int(self.count.sum()), 2 * len(parts) - 2, [0] * len(parts)
        self.which_P, self.nth_P = np.zeros(period, np.int64), np.arange(period)
        for place in range(period if twice else 0):
            behind = [int(c) * (place + 1) - period * g for c, g in zip(self.count, given, strict=True)]
            due = [Fraction((g + 1) * twice - 1, int(c)) for c, g in zip(self.count, given, strict=True)]
            self.which_P[place] = n = min((due[n], n) for n, b in enumerate(behind) if twice * b >= period)[1]
            self.nth_P[place], given[n] = given[n], given[n] + 1

    def of(self, number_R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Each row's corpus, and which of that corpus's rows it is."""
        cycle_R, place_R = np.divmod(number_R, len(self.which_P))
        which_R = self.which_P[place_R]
        return which_R, cycle_R * self.count[which_R] + self.nth_P[place_R]
