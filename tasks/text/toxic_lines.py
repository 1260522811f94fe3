"""What is done about toxic lines: mark documents, take the lines out, or drop the documents; and what to look at.

In: a table of documents, the settings. Out: the table with columns more or lines less, a verdict a row, an `Audit`.
Without a model nothing is removed: a word list cannot tell an insult from a lesson on health, so it only counts.
"""

import heapq
from collections import Counter
from collections.abc import Iterable
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks.corpus import EXCERPT_CHARS, Verdict
from tasks.text.scan import lowered
from tasks.text.toxicity import BITS, SILENT, Model, Phrases, Rating, holding, load, phrases, rate
from tasks.wordlists import ToxicLines, entries

# D documents, L lines
SAMPLE = 200
COLUMNS = ("kind", "id", "line", "score", "listed", "text")
TAGS = {"tox_max": pa.float32(), "tox_frac": pa.float32(), "tox_lines": pa.int32(), "tox_listed": pa.int32()}
"""The highest score as a probability, share and number of flagged lines, number of listed entries."""
BLANK = Model(np.zeros(1 << BITS, np.float32), 0.0, np.inf, np.inf)

Audit = dict[str, list[list[Any]]]
"""`flagged`, `borderline`, `listed`: at most SAMPLE rows of (rank, id, line, score, listed, text) each, by rank."""


class Tools(NamedTuple):
    """What workers are handed, a megabyte."""

    model: Model
    listed: Phrases


def tools(settings: ToxicLines) -> Tools:
    """What `treat` works with: the model, if there is one, and the word lists."""
    folder = settings.folder()
    return Tools(load(folder) if folder else BLANK, phrases(entries(settings.wordlists)))


def treat(table: pa.Table, settings: ToxicLines, tools: Tools) -> tuple[pa.Table, list[Verdict], Counter[str], Audit]:
    """(table, verdict on each row, counts of lines and documents, lines to look at)."""
    texts = lowered(table["text"])
    if not settings.model and settings.action != "tag":
        return table, [None] * len(table), *_listed(table.filter(pa.array(holding(texts, tools.listed))), tools)
    rating = rate(texts, *tools)
    flagged_L = rating.flagged(tools.model)
    if settings.judge:
        flagged_L = _agreed(table, rating, flagged_L, settings.judge)
    flagged_D, spoken_D, listed_D = (
        rating.per_document(found_L.astype(np.int64))
        for found_L in (flagged_L, rating.scores_L > SILENT, rating.listed_L)
    )
    share_D = flagged_D / np.maximum(1, spoken_D)
    most = {"tag": 1.0, "strip": settings.max_share, "drop": 0.0}[settings.action]
    verdicts: list[Verdict] = [("toxicity", float(share), None) if share > most else None for share in share_D]
    found = {"toxic_lines": flagged_D, "toxic_documents": flagged_D > 0, "listed_documents": listed_D > 0}
    counts = Counter({name: int(of_D.sum()) for name, of_D in found.items()})
    audit = _audit(table, rating, flagged_L, tools.model)
    if settings.action == "tag":
        table = _tagged(table, rating, share_D, flagged_D, listed_D)
    elif settings.action == "strip" and flagged_D.any():
        table = _stripped(table, (flagged_D > 0) & (share_D <= most), flagged_L, rating.firsts_D1)
    return table, verdicts, counts, audit


def schema(before: pa.Schema, settings: ToxicLines | None) -> pa.Schema:
    """The schema of the table that `treat` returns."""
    tags = TAGS if settings and settings.action == "tag" else {}
    return pa.schema([*before, *(pa.field(*tag) for tag in tags.items())])


def merged(audits: Iterable[Audit]) -> Audit:
    """One audit of many: again the lowest ranks of each kind, whatever the order."""
    kinds = dict[str, list[list[Any]]]()
    for audit in audits:
        for kind, found in audit.items():
            kinds[kind] = heapq.nsmallest(SAMPLE, [*kinds.get(kind, ()), *found])
    return kinds


def table_of(audit: Audit) -> dict[str, Any]:
    """An audit as MLflow shows tables."""
    return {"columns": COLUMNS, "data": [[kind, *row[1:]] for kind, found in audit.items() for row in found]}


def _listed(table: pa.Table, tools: Tools) -> tuple[Counter[str], Audit]:
    """Of documents that may hold a listed word: how many do, and some of their lines."""
    rating = rate(lowered(table["text"]), *tools)
    count = int((rating.per_document(rating.listed_L) > 0).sum())
    audit = _audit(table, rating, np.zeros(len(rating.listed_L), bool), tools.model)
    return Counter({"listed_documents": count} if count else {}), audit


def _tagged(table: pa.Table, rating: Rating, *rest_D: np.ndarray) -> pa.Table:
    """The table with the columns of TAGS."""
    best_D = 1 / (1 + np.exp(-np.maximum(rating.per_document(rating.scores_L, np.maximum), -30)))
    for (name, kind), values in zip(TAGS.items(), (best_D, *rest_D), strict=True):
        table = table.append_column(name, pa.array(values, kind))
    return table


def _stripped(table: pa.Table, touched_D: np.ndarray, flagged_L: np.ndarray, firsts_D1: np.ndarray) -> pa.Table:
    """The texts of touched documents without their flagged lines. Lower case has as many newlines as the original."""
    texts = table["text"].filter(pa.array(touched_D)).to_pylist()
    left = list[str]()
    for text, first in zip(texts, firsts_D1[:-1][touched_D], strict=True):
        left.append("\n".join(line for n, line in enumerate(text.split("\n"), first) if not flagged_L[n]))
    new = pc.replace_with_mask(  # ty: ignore[missing-attribute]
        table["text"].combine_chunks(), pa.array(touched_D), pa.array(left, table.schema.field("text").type)
    )
    return table.set_column(table.schema.get_field_index("text"), table.schema.field("text"), new)


def _audit(table: pa.Table, rating: Rating, flagged_L: np.ndarray, model: Model) -> Audit:
    """Flagged lines by hash, a fair sample, and those nearest below the threshold; with no model, listed ones."""
    scores_L, listed_L = rating.scores_L, rating.listed_L
    if np.isinf(model.threshold):
        return merged([{"listed": _rows(table, rating, np.flatnonzero(listed_L))}])
    below = np.flatnonzero(~flagged_L & (scores_L > SILENT))
    near = below[np.argpartition(-scores_L[below], SAMPLE)[: SAMPLE + 1]] if len(below) > SAMPLE else below
    near = below[scores_L[below] >= scores_L[near].min(initial=np.inf)]
    rows = _rows(table, rating, near)
    ranked = [[-score, *row[1:]] for score, row in zip(scores_L[near].tolist(), rows, strict=True)]
    return merged([{"flagged": _rows(table, rating, np.flatnonzero(flagged_L)), "borderline": ranked}])


def _agreed(table: pa.Table, rating: Rating, flagged_L: np.ndarray, judge: str) -> np.ndarray:
    """The flagged lines of which a second classifier thinks the same."""
    from tasks.text.judge import CHARS, agrees

    lines, agreed_L = np.flatnonzero(flagged_L), np.zeros_like(flagged_L)
    agreed_L[lines] = agrees(judge, [row[-1] for row in _rows(table, rating, lines, CHARS)])
    return agreed_L


def _rows(table: pa.Table, rating: Rating, lines: np.ndarray, chars: int = EXCERPT_CHARS) -> list[list[Any]]:
    """(rank by hash, id, line, score, listed, text) of each of these lines."""
    places = np.searchsorted(rating.firsts_D1, lines, "right") - 1
    touched, rows = np.unique(places), list[list[Any]]()
    ids, texts = table["id"].take(pa.array(touched)).to_pylist(), table["text"].take(pa.array(touched)).to_pylist()
    known = {at: (name, text.split("\n")) for at, name, text in zip(touched.tolist(), ids, texts, strict=True)}
    for line, place in zip(lines.tolist(), places.tolist(), strict=True):
        (name, split), at = known[place], line - int(rating.firsts_D1[place])
        rank = blake2b(f"{name} {at}".encode(), digest_size=6).hexdigest()
        shown = split[at].strip()[:chars]
        rows.append([rank, name, at, round(float(rating.scores_L[line]), 3), int(rating.listed_L[line]), shown])
    return rows
