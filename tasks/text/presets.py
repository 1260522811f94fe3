"""Published limits of the filter rules, by the names that tasks/text/rules.py gives them.

In: nothing. Out: for each preset what differs from "no rule at all", and what differs again in one language.
Sources: Gopher, appendix A; C4, section 2.2; FineWeb's configuration; for Spanish FineWeb-2's configs/spa_Latn.yml.
"""

from typing import Any

GOPHER: dict[str, float | None] = {
    "min_words": 50,
    "max_words": 100_000,
    "min_mean_word": 3,
    "max_mean_word": 10,
    "min_stop_words": 2,
    "min_alphabetic": 0.8,
    "max_symbols": 0.1,
    "max_bullet_lines": 0.9,
    "max_ellipsis_lines": 0.3,
    "max_dup_lines": 0.3,
    "max_dup_paragraphs": 0.3,
    "max_dup_line_chars": 0.2,
    "max_dup_paragraph_chars": 0.2,
    "max_top_2gram": 0.2,
    "max_top_3gram": 0.18,
    "max_top_4gram": 0.16,
    "max_dup_5gram": 0.15,
    "max_dup_6gram": 0.14,
    "max_dup_7gram": 0.13,
    "max_dup_8gram": 0.12,
    "max_dup_9gram": 0.11,
    "max_dup_10gram": 0.1,
}
GOPHER_SPANISH: dict[str, float | None] = {
    "max_mean_word": 14,
    "min_alphabetic": 0.825,
    "max_dup_lines": 0.252,
    "max_top_2gram": 0.156,
    "max_top_3gram": 0.14,
    "max_top_4gram": 0.125,
    "max_dup_5gram": 0.145,
    "max_dup_6gram": 0.136,
    "max_dup_7gram": 0.127,
    "max_dup_8gram": 0.117,
    "max_dup_9gram": 0.108,
    "max_dup_10gram": 0.099,
}
FINEWEB: dict[str, float | None] = {
    "max_dup_line_chars": 0.01,
    "min_line_punct": 0.12,
    "max_short_lines": 0.67,
    "max_new_lines": 0.3,
    "max_lorem": 0,
    "max_braces": 0,
}
FINEWEB_SPANISH: dict[str, float | None] = {
    "max_dup_paragraphs": None,
    "max_dup_paragraph_chars": None,
    "max_dup_line_chars": 0.1,
    "min_line_punct": 0.182,
    "max_short_lines": None,
    "max_new_lines": 0.138,
    "max_lorem": None,
    "max_braces": None,
}
C4: dict[str, float | None] = {"min_sentences": 3, "max_lorem": 0, "max_braces": 0}

PRESETS: dict[str, dict[str, Any]] = {
    "gopher": {**GOPHER, "by_language": {"es": GOPHER_SPANISH}},
    "fineweb": {
        **GOPHER,
        **FINEWEB,
        "by_language": {"es": GOPHER_SPANISH | FINEWEB_SPANISH},
        "pii": "replace",
        "pii_kinds": ("email", "ip"),
    },
    "c4": {**C4, "by_language": {}},
}
