"""Repeated runs of words in a document, as Gopher measures them (Rae et al. 2021, table A1).

In: a document's words as hashes. Out: the characters in its commonest n-grams and in those that stood before.
Runs are sought only where the shorter ones repeat: running text costs two passes and not nine.
"""

from numba import uint64

from tasks.text.compiler import njit
from tasks.text.scan import GOLD, mixed

# W words of the longest document, S slots of a hash table (a power of two), F counts


@njit(inline="always")
def slot(table_S, h, mask):
    """Where a hash (never 0) stands in the table, or is to stand."""
    at = (h ^ (h >> uint64(32))) & mask
    while table_S[at] != 0 and table_S[at] != h:
        at = (at + uint64(1)) & mask
    return at


@njit(inline="always")
def mask_of(count):
    """Of a table with at least two slots for each of so many entries."""
    size = uint64(16)
    while size < uint64(2 * count):
        size <<= uint64(1)
    return size - uint64(1)


@njit(cache=True, nogil=True, boundscheck=False)
def repeated(n_words, hashes_W, sums_W, table_S, seen_S, rolled_W, places_W, slots_W, out_F):
    """Top 2- to 4-grams and duplicate 5- to 10-grams; `sums_W` are the characters before each word."""
    count = n_words
    for i in range(n_words):
        places_W[i], rolled_W[i] = i, hashes_W[i]
    for n in range(2, 11):
        mask, entries, best, best_chars = mask_of(count), 0, 0, 0
        table_S[: mask + uint64(1)] = 0
        seen_S[: mask + uint64(1)] = 0
        for p in range(count):
            i = places_W[p]
            # an n-gram comes twice only where both (n-1)-grams in it do
            if i + n > n_words or p + 1 >= count or places_W[p + 1] != i + 1:
                continue
            rolled_W[i] = rolled_W[i] * GOLD + hashes_W[i + n - 1]
            key = mixed(rolled_W[i]) | uint64(1)
            at = slot(table_S, key, mask)
            table_S[at] = key
            seen_S[at] += 1
            places_W[entries], slots_W[entries] = i, at
            entries += 1
            chars = sums_W[i + n] - sums_W[i] + n - 1
            if seen_S[at] > 1 and (seen_S[at] > best or (seen_S[at] == best and chars > best_chars)):
                best, best_chars = seen_S[at], chars
        if n <= 4:
            out_F[n - 2] = best * best_chars
        count, free = 0, 0
        for p in range(entries):
            i, at = places_W[p], slots_W[p]
            if seen_S[at] == 1:
                continue
            places_W[count] = i
            count += 1
            if n >= 5 and i >= free:
                if seen_S[at] < 0:
                    out_F[n - 2] += sums_W[i + n] - sums_W[i]
                    free = i + n
                else:
                    seen_S[at] = -seen_S[at]
        if count == 0:
            return
