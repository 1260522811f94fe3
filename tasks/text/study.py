"""All that the filter does with a row group, in one visit: steps that say which documents go, and that edit them.

In: a row group and a plan. Out: the table where a step has changed it, a verdict a row, counts of what was found.
A new step is a function (plan, table) -> (table, verdicts, counts) in STEPS; each sees what those before it left.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from tasks.corpus import Group, Verdict
from tasks.text import language, pii, rules
from tasks.text.quality import counted
from tasks.text.scan import lowered, plain
from tasks.text.toxic_lines import Audit, Tools, treat
from tasks.wordlists import ToxicLines


class Plan(NamedTuple):
    """What workers need to know."""

    limits: rules.Limits
    grams: Path | None
    """The table of evaluation texts' 13-grams."""
    languages: tuple[str, ...]
    min_language_score: float
    pii: str
    pii_kinds: tuple[str, ...]
    toxicity: tuple[ToxicLines, Tools] | None


class Studied(NamedTuple):
    """What became of a row group."""

    table: pa.Table | None
    """None where no step has changed it."""
    verdicts: list[Verdict]
    counts: Counter[str]
    audit: Audit
    """Toxic lines to look at."""


Step = Callable[[Plan, pa.Table], tuple[pa.Table, Sequence[Verdict], Counter[str]]]


def study(plan: Plan, group: Group) -> Studied:
    """Every step over the rows of a group; the first verdict on a row counts."""
    given = table = group.table()
    verdicts: list[Verdict] = [None] * len(table)
    counts = Counter[str]()
    for step in STEPS:
        table, found, more = step(plan, table)
        verdicts = [before or now for before, now in zip(verdicts, found, strict=True)]
        counts += more
    audit: Audit = {}
    if plan.toxicity:  # last: lines are shown without personal data
        table, found, more, audit = treat(table, *plan.toxicity)
        verdicts = [before or now for before, now in zip(verdicts, found, strict=True)]
        counts += more
    return Studied(None if table is given else table, verdicts, counts, audit)


def by_language(plan: Plan, table: pa.Table) -> tuple[pa.Table, Sequence[Verdict], Counter[str]]:
    """Documents in other languages go; counts are of those languages."""
    if not plan.languages:
        return table, [None] * len(table), Counter()
    found = language.identify(plain(table["text"]))
    verdicts = [language.verdict(*each, plan.languages, plan.min_language_score) for each in found]
    gone = (name for (name, _), verdict in zip(found, verdicts, strict=True) if verdict)
    return table, verdicts, Counter(f"language/{name}" for name in gone)


def by_quality(plan: Plan, table: pa.Table) -> tuple[pa.Table, Sequence[Verdict], Counter[str]]:
    """Documents that break a rule go."""
    return table, rules.judge(counted(lowered(table["text"]), grams(plan.grams)), plan.limits), Counter()


def by_pii(plan: Plan, table: pa.Table) -> tuple[pa.Table, Sequence[Verdict], Counter[str]]:
    """Personal data gives way to placeholders, where documents that hold it go also in their excerpts."""
    texts = plain(table["text"])
    if plan.pii == "off" or not (spans := pii.spans(texts, plan.pii_kinds)):
        return table, [None] * len(table), Counter()
    counts_D = np.bincount(pii.documents_of(texts, spans), minlength=len(table)).tolist()
    verdicts = [("pii", float(n), None) if n and plan.pii == "drop" else None for n in counts_D]
    place, field = table.schema.get_field_index("text"), table.schema.field("text")
    edited = table.set_column(place, field, pii.replaced(texts, spans).cast(field.type))
    return edited, verdicts, Counter(f"pii/{pii.KINDS[span.kind]}" for span in spans)


STEPS: tuple[Step, ...] = (by_language, by_quality, by_pii)


@cache
def grams(path: Path | None) -> np.ndarray:
    """The table of 13-grams, mapped into memory once a process."""
    return np.load(path, mmap_mode="c") if path else np.zeros(0, np.uint64)
