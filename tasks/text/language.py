"""The language of a document, by its bytes, of about a hundred (py3langid).

In: texts. Out: ISO 639-1 codes with scores from 0 to 1. Only 1 KiB from the middle is read: py3langid does 2 MB a
second, and the middle is neither title nor licence. Each document is judged alone, so batches change nothing.
"""

from collections.abc import Container, Sequence
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING

from tasks.text.scan import Texts

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

SLICE_BYTES = 1_024


def verdict(language: str, score: float, kept: Container[str], least: float) -> tuple[str, float, None] | None:
    """Why a document of that language and score goes, if it does."""
    if language not in kept:
        return "languages", score, None
    return ("min_language_score", score, None) if score < least else None


def identify(texts: Texts) -> list[tuple[str, float]]:
    """The likeliest language of each document and how sure that is."""
    ends = texts.ends_D1.tolist()
    found = (identifier().classify(middle(texts.data[start:end].tobytes())) for start, end in pairwise(ends))
    return [(language, round(score, 4)) for language, score in found]


def middle(text: bytes) -> bytes:
    """At most SLICE_BYTES whole characters from the middle."""
    start = max(0, len(text) - SLICE_BYTES) // 2
    piece = text[start : start + SLICE_BYTES]
    return piece.decode(errors="ignore").encode()


@cache
def identifier() -> "LanguageIdentifier":
    """The model, read once a process (0.3 s)."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def unknown(languages: Sequence[str]) -> list[str]:
    """Those that the model has no name for."""
    return sorted(set(languages) - set(identifier().labels))
