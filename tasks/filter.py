"""Drop documents that are no good: rules of quality, languages, evaluation texts; take out personal data, toxic lines.

In: Corpus. Out: Corpus without them; `dropped/` names each with its rule, the number measured and an excerpt;
`report/dropped.table.json` is a sample of each rule, `report/toxicity.table.json` one of lines.
Method: one visit to each row group (tasks/text/study.py); published limits by preset (tasks/text/presets.py).
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, model_validator

from gpt.errors import UserError
from tasks.artifacts import Corpus, Metrics
from tasks.corpus import Facts, Group, Sieve, groups, placed, settle, sift
from tasks.files import file_digest
from tasks.remote import fetched, is_url
from tasks.runtime import progress
from tasks.stage import stage
from tasks.text.presets import PRESETS
from tasks.text.words import COMMON
from tasks.wordlists import ToxicLines
from tasks.workers import spread

PII = ("email", "ip", "phone", "iban", "dni")
TOP_COUNTS = 12

Limits = dict[str, float | None]
WORD_RULES = ("min_words", "max_words", "min_mean_word", "max_mean_word", "min_stop_words")
PROSE: dict[Literal["en", "es", "other"], Limits] = {
    "es": {"min_words": 5, "min_stop_words": None},
    "other": dict.fromkeys(WORD_RULES),
}
"""Paragraphs of Spanish books are short; other languages have other words."""


class Filter(Sieve):
    """A limit a rule; null switches the rule off. Rules that are not set have the preset's limits."""

    preset: Literal["prose", "gopher", "fineweb", "c4"] = "prose"
    """Limits of the rules: prose lets books, plays and documentation pass; the others are as published."""
    languages: tuple[str, ...] = ()
    """Languages to keep, as ISO 639-1 codes (en, es), by py3langid; empty: all, and nothing is identified."""
    min_language_score: float = Field(0.5, ge=0, le=1)
    """Least certainty of a kept language, where `languages` are given."""
    min_words: int | None = 30
    """Fewest words."""
    max_words: int | None = 2_000_000
    """Most words. Gopher has 100,000, which forbids books."""
    min_mean_word: float | None = 3.0
    """Lowest mean word length in characters."""
    max_mean_word: float | None = 14.0
    """Highest mean word length in characters."""
    min_stop_words: int | None = 2
    """Fewest distinct words of Gopher's eight, FineWeb-2's sixteen in Spanish."""
    min_alphabetic: float | None = 0.4
    """Lowest share of words with a letter among words and symbols."""
    max_symbols: float | None = 0.1
    """Most `#`, or ellipses, per word or symbol."""
    max_bullet_lines: float | None = 0.9
    """Highest share of lines that begin with a bullet."""
    max_ellipsis_lines: float | None = 0.3
    """Highest share of lines that end with an ellipsis."""
    max_dup_lines: float | None = None
    """Highest share of lines that stood before in the document (dup_line_frac)."""
    max_dup_line_chars: float | None = 0.3
    """Highest share of characters in such lines (dup_line_char_frac, char_dup_ratio)."""
    max_dup_paragraphs: float | None = None
    """Highest share of paragraphs that stood before (dup_para_frac)."""
    max_dup_paragraph_chars: float | None = None
    """Highest share of characters in such paragraphs (dup_para_char_frac)."""
    max_top_2gram: float | None = None
    """Highest share of characters in the commonest pair of words (top_2_gram)."""
    max_top_3gram: float | None = None
    """The same of three words."""
    max_top_4gram: float | None = None
    """The same of four words."""
    max_dup_5gram: float | None = None
    """Highest share of characters in runs of five words that stood before (duplicated_5_n_grams)."""
    max_dup_6gram: float | None = None
    """The same of six words."""
    max_dup_7gram: float | None = None
    """The same of seven words."""
    max_dup_8gram: float | None = None
    """The same of eight words."""
    max_dup_9gram: float | None = None
    """The same of nine words."""
    max_dup_10gram: float | None = None
    """The same of ten words."""
    min_line_punct: float | None = None
    """Lowest share of lines that end in a sentence's mark (FineWeb's line_punct_thr)."""
    max_short_lines: float | None = None
    """Highest share of lines of at most 30 characters (FineWeb's short_line_thr)."""
    max_new_lines: float | None = None
    """Most line breaks per word or symbol (FineWeb's new_line_ratio)."""
    min_sentences: int | None = None
    """Fewest sentences in lines that C4 would keep: ended by a mark, of five words, no cookie notice."""
    max_lorem: int | None = None
    """Most times that `lorem ipsum` occurs (C4: 0)."""
    max_braces: int | None = None
    """Most `{` (C4: 0)."""
    max_policy_lines: float | None = None
    """Highest share of lines about javascript, cookies, privacy policies or terms of use."""
    by_language: dict[Literal["en", "es", "other"], Limits] = PROSE
    """Limits that differ in a language, which is told by its commonest words: {es: {max_dup_lines: 0.252}}, beside the
    preset's, which count no more for a rule that is set for all."""
    evaluation: tuple[str, ...] = ()
    """Files or URLs of evaluation texts: parquet, JSONL(.gz/.zst), JSON (every string) or text (every paragraph)."""
    max_overlap: int | None = 0
    """Most 13-grams that a document may share with them, each place counted."""
    pii: Literal["off", "replace", "drop"] = "off"
    """What becomes of personal data: a placeholder like [EMAIL] in its place, or the whole document goes."""
    pii_kinds: tuple[Literal["email", "ip", "phone", "iban", "dni"], ...] = PII
    """Which: e-mail, public IPv4, E.164 and Spanish phones, IBAN, Spanish DNI and NIE."""
    toxicity: ToxicLines | None = ToxicLines()
    """What becomes of toxic lines; null: they are not looked for."""

    @model_validator(mode="before")
    @classmethod
    def _with_preset(cls, given: Any) -> Any:
        """Fill in the preset's limits. A whole set, as forms and manifests send it, counts by what differs in it from
        the preset that it is nearest to."""
        if not isinstance(given, dict):
            return given
        if all(name in given for name in rules()):
            given = _changes(given)
        preset = defaults(given.get("preset", "prose"))
        usual, own = preset["by_language"], given.get("by_language", {})
        if isinstance(own, dict) and all(isinstance(limits, dict) for limits in own.values()):
            given = given | {"by_language": {**usual, **{name: usual.get(name, {}) | own[name] for name in own}}}
        return {**preset, **given}

    @model_validator(mode="after")
    def _known(self) -> "Filter":
        from tasks.text.language import unknown

        if odd := sorted({name for limits in self.by_language.values() for name in limits} - set(rules())):
            raise ValueError(f"filter.by_language: {odd[0]!r} is no rule; rules are {', '.join(rules())}")
        if self.languages and (odd := unknown(self.languages)):
            raise ValueError(f"filter.languages: {odd[0]!r} is no code that py3langid knows; English is en, Spanish es")
        return self

    def outside(self) -> dict[str, Any]:
        """The evaluation texts, the toxicity model and the word lists by content."""
        toxicity = {"toxicity": self.toxicity.outside()} if self.toxicity else {}
        return {"evaluation": [_digest(name) for name in self.evaluation], **toxicity}

    def refs(self) -> dict[str, str]:
        """The toxicity model."""
        return {"toxicity.model": self.toxicity.model} if self.toxicity and self.toxicity.model else {}

    def limits(self) -> dict[str, tuple[float | None, ...]]:
        """Each rule's limit for documents of no known language, then of each known one."""
        preset = defaults(self.preset)
        return {name: tuple(self._limit(name, language, preset) for language in ("other", *COMMON)) for name in rules()}

    def _limit(self, name: str, language: Any, preset: dict[str, Any]) -> float | None:
        overall, own = getattr(self, name), self.by_language.get(language, {})
        usual = preset["by_language"].get(language, {})
        overruled = overall != preset[name] and own.get(name, ...) == usual.get(name, ...)
        return overall if overruled else own.get(name, overall)


def rules() -> list[str]:
    """The names of the rules with a limit."""
    other = ("max_drop_share", "min_language_score")
    return [name for name in Filter.model_fields if name.startswith(("min_", "max_")) and name not in other]


def defaults(preset: Any) -> dict[str, Any]:
    """What a preset sets; `prose` is the fields' own defaults."""
    names = (*rules(), "by_language", "pii", "pii_kinds")
    usual = {name: Filter.model_fields[name].default for name in names}
    return usual if preset not in PRESETS else {**usual, **dict.fromkeys(rules()), "max_overlap": 0, **PRESETS[preset]}


def _changes(given: dict[str, Any]) -> dict[str, Any]:
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    tables = [defaults(name) for name in ("prose", *PRESETS)]
    nearest = max(tables, key=lambda table: sum(given.get(name) == value for name, value in table.items()))
    return {name: value for name, value in given.items() if name not in nearest or nearest[name] != value}


@stage(Corpus, version="4")
def filter(out: Path, config: Filter, corpus: Corpus) -> Metrics:
    """Drop documents that break a rule, each with its reason; put placeholders where personal data stands."""
    from tasks.text.study import Plan
    from tasks.text.toxic_lines import merged, table_of, tools

    grams, toxicity = _grams(out, config), config.toxicity
    limits, languages, pii = config.limits(), config.languages, config.pii
    lines = (toxicity, tools(toxicity)) if toxicity else None
    plan = Plan(limits, grams, languages, config.min_language_score, pii, config.pii_kinds, lines)
    known = [config.model_dump(mode="json", exclude={"max_drop_share", "toxicity", "evaluation"}), config.outside()]
    jobs = [([file_digest(path), *known], partial(_build, path, plan)) for path in corpus.parts]
    parts = list(progress(placed(out, jobs, gil=bool(languages)), "parts", len(jobs)))
    if grams:
        grams.unlink()
    metrics = settle(out, "filter", parts, config.max_drop_share, "loosen filter.{reason} (null switches it off)")
    audit = json.dumps(table_of(merged(facts["audit"] for _, facts in parts)), ensure_ascii=False, indent=1)
    (out / "report" / "toxicity.table.json").write_text(audit, encoding="utf-8")
    found = sum((Counter(facts["found"]) for _, facts in parts), Counter())
    return metrics | {f"data/{name}": float(n) for name, n in sorted(found.most_common(TOP_COUNTS))}


def _build(path: Path, plan: Any, folder: Path) -> Facts:
    from tasks.text.study import Studied, study
    from tasks.text.toxic_lines import Audit, merged, schema

    found, audits = Counter[str](), list[Audit]()

    def judged(studied: Iterable[tuple[Group, Studied]]) -> Iterator[tuple[pa.Table, list]]:
        for group, (table, verdicts, counts, audit) in studied:
            found.update(counts)
            audits[:] = [merged([*audits, audit])]
            yield group.table() if table is None else table, verdicts

    visits = progress(spread(partial(study, plan), groups(path), gil=bool(plan.languages)), "row groups")
    counted = sift(folder, schema(pq.read_schema(path), plan.toxicity and plan.toxicity[0]), judged(visits))
    return {**counted, "found": dict(found), "audit": merged(audits)}


def _grams(out: Path, config: Filter) -> Path | None:
    """The table of the evaluation texts' 13-grams, where workers find it."""
    if not config.evaluation:
        return None
    from tasks.text.overlap import NGRAM, table

    found = table(chain.from_iterable(map(_texts, config.evaluation)))
    if not len(found):
        raise UserError(
            f"filter.evaluation: no text there has {NGRAM} words, so nothing can be found; name longer ones"
        )
    (out / "logs").mkdir(exist_ok=True)
    np.save(out / "logs" / "grams.npy", found)
    return (out / "logs" / "grams.npy").absolute()


def _texts(name: str) -> Iterator[str]:
    from tasks.text.overlap import texts_of

    try:
        for path in _files(name):
            yield from texts_of(path)
    except (OSError, ValueError) as error:
        problem = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise UserError(f"filter.evaluation: {name!r} cannot be read ({problem}); mend it or leave it out") from error


def _files(name: str) -> list[Path]:
    return [path for _, path in fetched(name)] if is_url(name) else [Path(name).expanduser()]


def _digest(name: str) -> list[str]:
    try:
        return [file_digest(path) for path in _files(name)]
    except OSError as error:
        what = f"filter.evaluation: {name!r} cannot be read ({error.strerror})"
        raise UserError(f"{what}; mend it or leave it out") from error
