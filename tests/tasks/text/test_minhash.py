"""Signatures: those of datasketch, and estimates near the true Jaccard similarity."""

import random

import numpy as np
import pyarrow as pa
from datasketch import MinHash
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.text.minhash import BLOCK, shingles, sign, signature

ORACLE = MinHash(128, seed=1, scheme="affine32", hashfunc=int)
PERMUTATIONS = np.asarray(ORACLE.permutations)


def datasketch_signature(hashes: np.ndarray) -> np.ndarray:
    oracle = MinHash(128, seed=1, scheme="affine32", hashfunc=int)
    oracle.update_batch(hashes.tolist())
    return oracle.hashvalues


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=300))
def test_a_signature_is_that_of_datasketch(hashes):
    array = np.array(hashes, np.uint32)
    assert (signature(PERMUTATIONS, array) == datasketch_signature(array)).all()


def test_a_signature_over_several_blocks_is_that_of_datasketch():
    array = np.random.default_rng(0).integers(0, 2**32, 3 * BLOCK + 7, dtype=np.uint32)
    assert (signature(PERMUTATIONS, array) == datasketch_signature(array)).all()


def test_shingles_are_equal_exactly_where_the_words_are():
    one, two = shingles(list("abcdef"), 5), shingles(list("xbcdef"), 5)
    assert len(one) == 2
    assert one[0] != two[0]
    assert one[1] == two[1]
    assert len(shingles(["a", "b"], 5)) == 1
    assert shingles(["a", "b"], 5)[0] != shingles(["b", "a"], 5)[0]


def test_estimates_are_near_the_true_similarity():
    draw, errors = random.Random(0), []
    vocabulary = [f"word{n}" for n in range(2_000)]
    for _ in range(40):
        words = draw.choices(vocabulary, k=300)
        edited = [draw.choice(vocabulary) if draw.random() < 0.02 else word for word in words]
        sets = [{tuple(text[n : n + 5]) for n in range(len(text) - 4)} for text in (words, edited)]
        truth = len(sets[0] & sets[1]) / len(sets[0] | sets[1])
        rows = sign(PERMUTATIONS, 5, pa.table({"text": [" ".join(words), " ".join(edited)]}))
        errors.append(float((rows[0, :-4] == rows[1, :-4]).mean()) - truth)
    assert abs(np.mean(errors)) < 0.02, f"bias {np.mean(errors):.3f}"
    assert np.std(errors) < 0.06, f"standard deviation {np.std(errors):.3f}"


def test_the_exact_digest_overlooks_case_and_blanks_only():
    texts = ["One  two\nthree", "one two THREE", "one two, three", "!!!", "???"]
    rows = sign(PERMUTATIONS, 5, pa.table({"text": texts}))
    assert (rows[0] == rows[1]).all()
    assert (rows[0, :-4] == rows[2, :-4]).all()
    assert (rows[0, -4:] != rows[2, -4:]).any()
    assert (rows[3, :-4] != rows[4, :-4]).any(), "texts without words are not alike"
