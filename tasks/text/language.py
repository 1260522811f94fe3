"""The language of a document, by its bytes, of about a hundred: py3langid's model, read by a kernel.

In: texts. Out: ISO 639-1 codes with scores from 0 to 1. Only 1 KiB from the middle is read, which is neither title nor
licence. Each document is judged alone, so batches change nothing.
Method: langid.py (Lui and Baldwin 2012) as py3langid 0.4 has it: a state machine finds the model's n-grams of bytes,
naive Bayes weighs each by log(1 + count), a softmax over the sums by the root of the length makes the score. py3langid
does so in Python, for which it needs up to a millisecond a document; its own answers are the tests' judge.
"""

import unicodedata
from collections.abc import Container, Sequence
from functools import cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from tasks.text.compiler import njit
from tasks.text.scan import Texts

# D documents, L labels, S states, F features
SLICE_BYTES = 1_024


class Model(NamedTuple):
    """A state machine over bytes, and what each n-gram that it finds says for each language."""

    moves: np.ndarray
    """The next state for each byte; states share rows of 256."""
    rows_S: np.ndarray
    """int64: where a state's row begins."""
    features_S: np.ndarray
    """int64: the n-gram that is found with a state, or -1."""
    weights_FL: np.ndarray
    """float32."""
    priors_L: np.ndarray
    labels: list[str]
    """Languages; one that is written in two scripts stands here twice."""


def verdict(language: str, score: float, kept: Container[str], least: float) -> tuple[str, float, None] | None:
    """Why a document of that language and score goes, if it does."""
    if language not in kept:
        return "languages", score, None
    return ("min_language_score", score, None) if score < least else None


def identify(texts: Texts) -> list[tuple[str, float]]:
    """The likeliest language of each document and how sure that is."""
    found, data = model(), texts.data.data
    pieces = [composed(middle(data[start:end])) for start, end in pairwise(texts.ends_D1.tolist())]
    ends_D1 = np.cumsum([0, *map(len, pieces)])
    scores_DL = np.zeros((len(pieces), len(found.labels)))
    logs = np.log1p(np.arange(max(map(len, pieces), default=0) + 1, dtype=np.float32))
    _score(np.frombuffer(b"".join(pieces), np.uint8), ends_D1, *found[:5], logs, scores_DL)
    scores_DL /= np.sqrt(np.maximum(np.diff(ends_D1), 1))[:, None]
    scores_DL = np.exp(scores_DL - scores_DL.max(axis=1, initial=-np.inf, keepdims=True))
    scores_DL /= scores_DL.sum(axis=1, keepdims=True)
    for place, label in enumerate(found.labels):
        if (first := found.labels.index(label)) < place:
            scores_DL[:, first] += scores_DL[:, place]
            scores_DL[:, place] = 0
    best_D = scores_DL.argmax(axis=1)
    sure_D = scores_DL[np.arange(len(best_D)), best_D]
    return [(found.labels[best], round(sure, 4)) for best, sure in zip(best_D.tolist(), sure_D.tolist(), strict=True)]


def middle(text: bytes | memoryview) -> str:
    """At most SLICE_BYTES in whole characters from the middle."""
    start = max(0, len(text) - SLICE_BYTES) // 2
    return str(text[start : start + SLICE_BYTES], "utf-8", "ignore")


def composed(text: str) -> bytes:
    """As the model was trained: letters with their accents as one (NFC), capitals alone in lower case."""
    return unicodedata.normalize("NFC", text.lower() if text.isupper() else text).encode()


@cache
def model() -> Model:
    """The model, read once a process (0.3 s)."""
    from py3langid.langid import MODEL_DIR, MODEL_FILE
    from py3langid.modelio import load_model

    weights_FL, priors_L, labels, moves, rows_S, features_S = load_model(MODEL_DIR / MODEL_FILE)
    places = np.asarray(rows_S, np.int64) << 8, np.asarray(features_S, np.int64)
    return Model(np.asarray(moves), *places, np.asarray(weights_FL, np.float32), np.asarray(priors_L), labels)


def unknown(languages: Sequence[str]) -> list[str]:
    """Those that the model has no name for."""
    return sorted(set(languages) - set(model().labels))


@njit(cache=True, nogil=True, boundscheck=False)
def _score(data, ends_D1, moves, rows_S, features_S, weights_FL, priors_L, logs, scores_DL):
    """Each document's sum of what its n-grams say, in float64: of 500 terms float32 loses the fourth decimal."""
    counts_F, found = np.zeros(weights_FL.shape[0], np.int64), np.empty(weights_FL.shape[0], np.int64)
    for doc in range(ends_D1.shape[0] - 1):
        state, kinds, scores_L = 0, 0, scores_DL[doc]
        for i in range(ends_D1[doc], ends_D1[doc + 1]):
            state = int(moves[rows_S[state] + data[i]])
            feature = features_S[state]
            if feature >= 0:
                if counts_F[feature] == 0:
                    found[kinds] = feature
                    kinds += 1
                counts_F[feature] += 1
        for k in range(kinds):
            feature = found[k]
            log, weights_L = logs[counts_F[feature]], weights_FL[feature]
            for label in range(scores_L.shape[0]):
                scores_L[label] += log * weights_L[label]
            counts_F[feature] = 0
        if kinds:  # else every language is as likely
            scores_L += priors_L
