"""Signatures: those of datasketch, and estimates near the true Jaccard similarity."""

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from datasketch import MinHash, MinHashLSH
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.text.minhash import BLOCK, bands, permutations, sign, sketch
from tasks.text.runs import estimate
from tasks.text.scan import word_hash
from tests.tasks.text.twins import shingles

PERMUTATIONS = permutations(256)
UNICODE = st.text(
    st.sampled_from("aB1 _.,\n\tñÇßİΣ٣日本カ가ไ\u0301😀") | st.characters(exclude_categories=["Cs"]), max_size=80
)


def column(*texts: str) -> pa.ChunkedArray:
    return pa.chunked_array([list(texts)], pa.string())


def datasketch_signature(hashes: list[int]) -> np.ndarray:
    oracle = MinHash(256, seed=1, scheme="affine32", hashfunc=int)
    oracle.update_batch(hashes)
    return oracle.hashvalues


@pytest.mark.parametrize("count", [16, 128, 256])
def test_permutations_are_those_of_datasketch(count):
    assert (permutations(count) == np.asarray(MinHash(count, seed=1, scheme="affine32").permutations)).all()


@pytest.mark.parametrize("threshold", [0.5, 0.6, 0.7, 0.75, 0.8, 0.9])
@pytest.mark.parametrize("count", [64, 128, 256])
def test_bands_are_those_of_datasketch(threshold, count):
    oracle = MinHashLSH(threshold, count, (0.1, 0.9))
    assert bands(threshold, count) == (oracle.b, oracle.r)


@settings(max_examples=100, deadline=None)
@given(st.lists(UNICODE, min_size=1, max_size=5), st.integers(1, 6))
def test_a_signature_is_that_of_datasketch_over_the_twins_shingles(texts, ngram):
    signed = sign(column(*texts), PERMUTATIONS, ngram)
    for text, row in zip(texts, signed.signatures_DK, strict=True):
        if found := shingles(text, ngram):
            assert (row == datasketch_signature(found)).all()


def test_a_signature_over_several_blocks_is_that_of_datasketch():
    text = " ".join(f"w{n}" for n in range(3 * BLOCK + 7))
    assert (sign(column(text), PERMUTATIONS, 5).signatures_DK[0] == datasketch_signature(shingles(text, 5))).all()


def test_estimates_are_near_the_true_similarity():
    draw, errors = random.Random(0), []
    vocabulary = [f"word{n}" for n in range(2_000)]
    for _ in range(40):
        words = draw.choices(vocabulary, k=300)
        edited = [draw.choice(vocabulary) if draw.random() < 0.02 else word for word in words]
        sets = [{tuple(text[n : n + 5]) for n in range(len(text) - 4)} for text in (words, edited)]
        truth = len(sets[0] & sets[1]) / len(sets[0] | sets[1])
        rows = sign(column(" ".join(words), " ".join(edited)), PERMUTATIONS, 5).signatures_DK
        errors.append(float(estimate(sketch(rows), np.array([0]), np.array([1]))[0]) - truth)
    assert abs(np.mean(errors)) < 0.02, f"bias {np.mean(errors):.3f}"
    assert np.std(errors) < 0.05, f"standard deviation {np.std(errors):.3f}"


def test_the_words_hash_overlooks_case_blanks_and_punctuation_only():
    texts = ["One  two\nthree", "one two, THREE!", "one three two", "!!!", "???", "日本 ÑANDÚ", "日本ñandú"]
    hashes = sign(column(*texts), PERMUTATIONS, 5).content_D.tolist()
    assert hashes[0] == hashes[1]
    assert hashes[5] == hashes[6]
    assert len(set(hashes)) == 5


def test_texts_without_words_are_known_by_their_bytes():
    rows = sign(column("!!!", "???", "!!!"), PERMUTATIONS, 5).signatures_DK
    assert (rows[0] == rows[2]).all()
    assert (rows[0] != rows[1]).mean() > 0.9


def test_sketches_of_single_words_differ():
    rows = sketch(sign(column(*(f"w{n}" for n in range(1_000))), PERMUTATIONS, 5).signatures_DK)
    assert len({row.tobytes() for row in rows}) == 1_000
    assert max(float((rows[0] == row).mean()) for row in rows[1:]) < 0.05


def test_a_changed_scanner_is_compiled_anew_inside_the_kernels_that_call_it(tmp_path):
    """numba's own cache looks at the calling file alone: it went on with the old scanner."""
    root, code = (
        Path(__file__).parents[3],
        (
            "import pyarrow as pa; from tasks.text.minhash import permutations, sign;"
            "print(sign(pa.chunked_array([['one two']]), permutations(16), 5).content_D)"
        ),
    )
    for name in ("tasks", "gpt"):
        shutil.copytree(root / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    scanner, seen = tmp_path / "tasks" / "text" / "scan.py", list[str]()
    env = {**os.environ, "PYTHONPATH": str(tmp_path), "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    for text in (scanner.read_text(), scanner.read_text().replace("0xCBF29CE484222325", "0xCBF29CE484222327")):
        scanner.write_text(text)
        ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, check=True)
        seen.append(ran.stdout.decode())
    assert seen[0] != seen[1]
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_kernels_run_where_their_cache_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    env = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "file"), "TMPDIR": str(tmp_path)}
    code = "from tasks.text.scan import word_hash; print(word_hash('one'))"
    ran = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=True)
    assert int(ran.stdout) == word_hash("one")
    assert [path.name for path in tmp_path.iterdir()] == ["file"], "the folder for now is gone"
