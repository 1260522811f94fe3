"""Train a model of toxic lines on labelled texts and on lines of a corpus that is clean, and say what it can do.

In: labelled texts (CSV, parquet, JSONL: text, label, and lang where there is one), a Corpus of the kind to be filtered.
Out: Classifier, which `filter.toxicity.model` names; `report/` shows the clean lines that it takes for toxic.
Method: logistic regression (tasks/text/logistic.py). The threshold is the score that a stated share of clean lines, and
of texts labelled as clean, reaches: rows that were not learned from. The figures are taken on others again.
"""

import hashlib
import heapq
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from pydantic import Field

from gpt.errors import UserError
from tasks.artifacts import Classifier, Config, Corpus, Metrics
from tasks.corpus import tables
from tasks.records import rows
from tasks.runtime import progress, say
from tasks.sources import Source, find
from tasks.stage import stage
from tasks.text.logistic import fit
from tasks.text.scan import lowered
from tasks.text.toxicity import BITS, Model, hashed_lines, phrases, rate
from tasks.wordlists import SHIPPED, entries

# R rows, K rows that are held out
BATCH, CAP_BYTES, SHOWN = 4_096, 1_000_000, 200
LISTED_RATIO = 3
"""A line with a listed word is flagged from the score that this many times as many clean lines reach."""
SHARES = ("train", "train", "train", "limit", "test")
"""What becomes of each fifth of the clean sources."""
LEARNED, LIMITED = 0.65, 0.8
"""The share of the labelled texts that is learned from; what follows up to the second number sets the threshold."""


class Toxicity(Config):
    """What to learn from, and how often the model may take a clean line for toxic."""

    data: tuple[str, ...] = ()
    """Labelled files, folders or globs (.csv, .parquet, .jsonl), or hf:NAME[:CONFIG][:SPLIT]."""
    text_column: str = "text"
    """The column that holds the text."""
    label_column: str = "label"
    """The column that holds the label: a word, toxic if not in `clean_labels`, or a number, toxic from 0.5 on."""
    lang_column: str = "lang"
    """The column that holds the language, if there is one: figures are given for each."""
    clean_labels: tuple[str, ...] = ("clean", "neutral", "neither", "none", "normal", "not toxic", "non-toxic", "false")
    """Labels of what is not toxic. Where numbers are among them, all other numbers are toxic."""
    false_positives: float = Field(0.0005, gt=0, lt=0.5)
    """Share of the clean sample's lines that may be flagged."""
    false_positives_labelled: float = Field(0.02, gt=0, le=1)
    """Share of the texts labelled as clean that may be flagged: they are of the toxic ones' kind, and hard to tell."""
    max_rows: int = Field(200_000, ge=100)
    """Most labelled texts, and most clean lines, that are used: those of lowest hash."""
    epochs: int = Field(6, ge=1)
    """Passes over the rows."""
    rate: float = Field(0.25, gt=0)
    """Step size."""
    decay: float = Field(1e-5, ge=0)
    """How strongly weights are drawn to zero."""
    seed: int = 0
    """Of the order of the rows."""

    def sources(self) -> list[Source]:
        """The labelled sources; CSV is read by Hugging Face datasets."""
        return find([f"hf:csv:{entry}" if entry.lower().endswith(".csv") else entry for entry in self.data])

    def outside(self) -> dict[str, Any]:
        """The labelled sources by content."""
        return {"data": [source.identity for source in self.sources()]}


class Rows(NamedTuple):
    """Lines with what is known of them."""

    texts: list[str]
    toxic: np.ndarray
    groups: list[str]
    """Language of a labelled text, source of a clean line."""

    def take(self, mask: np.ndarray) -> "Rows":
        """Those of a mask, in order."""
        texts, groups = ([x for x, yes in zip(xs, mask, strict=True) if yes] for xs in (self.texts, self.groups))
        return Rows(texts, self.toxic[mask], groups)


@stage(Classifier, version="1")
def toxicity(out: Path, config: Toxicity, corpus: Corpus) -> Metrics:
    """Train on most rows of both kinds, set the threshold on some others and examine the model on the rest."""
    labelled, clean = read_labelled(out, config), read_clean(corpus, config.max_rows)
    place, part = np.array([_share(text) for text in labelled.texts]), parts_of(clean.groups)
    weights, bias = train(labelled.take(place < LEARNED), clean.take(part == "train").texts, config)
    blank = Model(weights, bias, 0, 0)
    hard = labelled.take((place >= LEARNED) & (place < LIMITED) & ~labelled.toxic)
    limits = limit(*(scores(blank, rows.texts)[0] for rows in (clean.take(part == "limit"), hard)), config)
    model = Model(weights, bias, *limits)
    figures = examine(model, labelled.take(place >= LIMITED), clean.take(part == "test"))
    model.save(out, {"figures": figures, "languages": dict(Counter(labelled.groups)), "clean_lines": len(clean.texts)})
    _report(out, model, clean.take(part == "test"))
    return figures


def train(labelled: Rows, clean: list[str], config: Toxicity) -> tuple[np.ndarray, float]:
    """(weights_B, bias), rounded to 16 bits as they are kept. Toxic, labelled clean and clean lines count 3 : 2 : 1."""
    ids_N, ends_R1 = features([*labelled.texts, *clean])
    toxic_R = np.concatenate([labelled.toxic, np.zeros(len(clean), bool)])
    kind_R = np.where(toxic_R, 0, np.where(np.arange(len(toxic_R)) < len(labelled.texts), 1, 2))
    share = np.array([3, 2, 1]) / np.maximum(1, np.bincount(kind_R, minlength=3))
    importance_R = share[kind_R] * len(kind_R) / 6
    given = ids_N, ends_R1, toxic_R, importance_R, 1 << BITS, config.epochs, config.rate, config.decay, config.seed
    weights, bias = fit(*given)
    return weights.astype(np.float16).astype(np.float32), round(bias, 6)


def features(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """(ids_N, ends_R1) of texts, each taken for one line."""
    flat = (text.replace("\n", " ") for text in texts)
    found = [hashed_lines(lowered(pa.chunked_array([batch]))) for batch in _batches(flat)]
    lengths = np.concatenate([np.diff(ends) for _, ends in found])
    return np.concatenate([ids for ids, _ in found]), np.concatenate([[0], np.cumsum(lengths)])


def scores(model: Model, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """(score, whether it is flagged) of each text: that of its worst line, beside the word lists that ship."""
    listed, found, flagged = phrases(entries(SHIPPED)), [np.zeros(0)], [np.zeros(0, bool)]
    for batch in _batches(iter(texts)):
        rating = rate(lowered(pa.chunked_array([batch])), model, listed)
        found.append(rating.per_document(rating.scores_L, np.maximum))
        flagged.append(rating.per_document(rating.flagged(model), np.logical_or))
    return np.concatenate(found), np.concatenate(flagged)


def limit(clean_K: np.ndarray, hard_K: np.ndarray, config: Toxicity) -> tuple[float, float]:
    """(threshold, threshold for lines with a listed word): the least that keep both promises on false positives."""
    if len(clean_K) * config.false_positives < 1:
        few = f"{len(clean_K):,} clean lines are held out to allow {config.false_positives:.3%} false positives"
        raise UserError(f"{few}, which takes {1 / config.false_positives:,.0f}; give more clean text or allow more")
    promises = ((clean_K, config.false_positives), (hard_K, config.false_positives_labelled))
    strict, loose = (max(_reached(found, share * ratio) for found, share in promises) for ratio in (1, LISTED_RATIO))
    return strict, loose


def _reached(scores_K: np.ndarray, share: float) -> float:
    """The least threshold that at most this share reaches."""
    falling, place = -np.sort(-scores_K), int(len(scores_K) * share)
    return float(np.nextafter(falling[place], np.inf)) if place < len(falling) else -np.inf


def examine(model: Model, labelled: Rows, clean: Rows) -> Metrics:
    """What the model can do, on texts and lines that it never saw; `neutral` are texts that are labelled as clean."""
    found, flagged = scores(model, labelled.texts)
    langs = np.array(labelled.groups)
    figures = {
        "eval/auc": auc(found, labelled.toxic),
        "eval/recall": float(flagged[labelled.toxic].mean()),
        "eval/false_positives": float(scores(model, clean.texts)[1].mean()),
        "eval/false_positives_neutral": float(flagged[~labelled.toxic].mean()),
        "eval/threshold": model.threshold,
    }
    for lang, _ in Counter(labelled.groups).most_common(8) if len({*labelled.groups}) > 1 else ():
        here = langs == lang
        figures |= {f"eval/{lang}_auc": auc(found[here], labelled.toxic[here])}
        figures |= {f"eval/{lang}_recall": float(flagged[here & labelled.toxic].mean())}
    return {name: value for name, value in figures.items() if np.isfinite(value)}


def auc(scores_K: np.ndarray, toxic_K: np.ndarray) -> float:
    """How often a toxic text has a higher score than a clean one, equals counting half; nan without either."""
    clean, toxic = np.sort(scores_K[~toxic_K]), scores_K[toxic_K]
    below, upto = (np.searchsorted(clean, toxic, side) for side in ("left", "right"))
    return float((below + upto).sum() / 2 / (len(clean) * len(toxic))) if len(clean) and len(toxic) else float("nan")


# -- reading ----------------------------------------------------------------------------------------------------------


def read_labelled(out: Path, config: Toxicity) -> Rows:
    """The labelled texts, each once, those of lowest hash if there are too many; says which label is taken for what."""
    found, meant = dict[str, tuple[bool, str]](), Counter[tuple[str, bool]]()
    noted = list[dict[str, Any]]()
    for source in config.sources():
        before = len(found)
        for row in progress(_labelled_rows(source, config), "labelled texts"):
            text, label = row[config.text_column], row[config.label_column]
            found[text] = is_toxic(label, config.clean_labels), str(row.get(config.lang_column) or "")
            meant[str(label), found[text][0]] += 1
        size = {"bytes": source.size_bytes, "documents": len(found) - before}
        noted.append({"path": source.path, "kind": source.kind, "digest": source.digest, **size})
    (out / "logs").mkdir(exist_ok=True)
    (out / "logs" / "sources.json").write_text(json.dumps(noted, indent=1))
    told = (f"{label!r} {n:,} {'toxic' if bad else 'clean'}" for (label, bad), n in meant.most_common(12))
    say(f"labels: {', '.join(told)}")
    if len({bad for _, bad in meant}) < 2:
        raise UserError(f"toxicity.data: all labels mean the same ({dict(meant)}); mend toxicity.clean_labels")
    texts = sorted(heapq.nsmallest(config.max_rows, found, key=_share), key=_share)
    return Rows(texts, np.array([found[text][0] for text in texts]), [found[text][1] for text in texts])


def _labelled_rows(source: Source, config: Toxicity) -> Iterator[Mapping[str, Any]]:
    columns = (config.text_column, config.label_column, config.lang_column)
    for row, reason in rows(source, columns, CAP_BYTES):
        if reason:
            continue
        if missing := {*columns[:2]} - row.keys():
            what = f"{source.path} has no column {min(missing)!r} (it has {', '.join(row)})"
            raise UserError(f"{what}; set toxicity.text_column and toxicity.label_column")
        if isinstance(row[columns[0]], str) and row[columns[0]].strip() and row[columns[1]] is not None:
            yield row


def is_toxic(label: Any, clean_labels: Iterable[str]) -> bool:
    """Whether a label is none of the clean ones; of numbers, where none of them is called clean, those from 0.5 on."""
    label = int(label) if isinstance(label, bool) else label
    clean, name = {known.lower() for known in clean_labels}, str(label).strip().lower()
    if name in clean or not _is_number(name):
        return name not in clean
    return any(map(_is_number, clean)) or float(label) >= 0.5


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdecimal()


def read_clean(corpus: Corpus, most: int) -> Rows:
    """Different lines of documents all over the corpus, each with its source, or its document where sources are few."""
    sizes = Counter[str]()
    for path in corpus.parts:
        for table in tables(path, ["source"]):
            sizes.update(table["source"].to_pylist())
    stride, column = max(1, sizes.total() * 4 // most), "source" if len(sizes) >= len(SHARES) else "id"
    found, number = dict[str, str](), 0
    for table in (table for path in corpus.parts for table in tables(path, ["text", column])):
        wanted = np.arange(-number % stride, len(table), stride)
        number += len(table)
        picked = table.take(wanted)
        for text, group in zip(picked["text"].to_pylist(), picked[column].to_pylist(), strict=True):
            for line in text.split("\n"):
                if any(map(str.isalpha, line)):
                    found.setdefault(line, group)
    texts = sorted(heapq.nsmallest(most, found, key=_share), key=_share)
    if len(texts) < 100:
        raise UserError(f"{corpus} has {len(texts)} different lines, too few for a clean sample; give more clean text")
    return Rows(texts, np.zeros(len(texts), bool), [found[text] for text in texts])


def parts_of(groups: list[str]) -> np.ndarray:
    """train, limit or test for each line, a source's lines together: the largest first to whoever has least."""
    filled, place = [0] * len(SHARES), dict[str, int]()
    for group, count in sorted(Counter(groups).items(), key=lambda item: (-item[1], _share(item[0]))):
        place[group] = min(range(len(SHARES)), key=filled.__getitem__)
        filled[place[group]] += count
    return np.array([SHARES[place[group]] for group in groups])


def _share(text: str) -> float:
    """A place in [0, 1) by hash, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest()) / 2**48


def _batches(texts: Iterator[str]) -> Iterator[pa.Array]:
    while batch := list(islice(texts, BATCH)):
        yield pa.array(batch, pa.large_string())


def _report(out: Path, model: Model, clean: Rows) -> None:
    """The clean lines with the highest scores, to be looked at: flagged ones first."""
    found, flagged = scores(model, clean.texts)
    top = [int(place) for place in np.argsort(-found, kind="stable")[:SHOWN]]
    data = [[round(float(found[n]), 3), bool(flagged[n]), clean.groups[n], clean.texts[n][:200]]
            for n in top]  # fmt: skip
    (out / "report").mkdir(exist_ok=True)
    table = json.dumps({"columns": ["score", "flagged", "source", "line"], "data": data}, ensure_ascii=False, indent=1)
    (out / "report" / "clean_lines.table.json").write_text(table, encoding="utf-8")
