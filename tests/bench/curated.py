"""A corpus of real text with injected near-duplicates, and the exact truth about which of its documents are alike.

`python tests/bench/curated.py OUT [--mb 150] [--seed 11] [--files 1] [--plain]` writes into OUT
- corpus/part-*.parquet (id, text, source): a document's id is its place, its source `text` or the kind of copy it is;
- truth.parquet (a, b, jaccard): every pair of places a < b whose word 5-grams have a Jaccard similarity of 0.5 or more;
- copies.parquet (copy, original, kind): what was injected; with `--plain` there is nothing but the text's own corpus.
Text: documentation, manual pages, docstrings, messages in a hundred languages and books that this machine has, in
chunks of 0.8 to 8 KB. Words are those of tasks/text/scan.py, said once more by a regular expression. Truth: documents
that share one of their rarest 5-grams are compared whole (prefix filter, Bayardo et al. 2007), so no pair is missed.
"""

import argparse
import gzip
import hashlib
import random
import re
import struct
import sys
import sysconfig
import unicodedata
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numba import njit

# D documents, S shingles of all documents, P pairs
NGRAM, LEAST = 5, 0.5
SMALLEST, FILE_BYTES = 800, 400_000
BESIDE = Path(__file__).parents[3] / "shared" / "data"
ROOTS = (Path("/usr/share/doc"), Path("/usr/share/man"), Path("/usr/share/locale"), Path(sysconfig.get_path("purelib")),
         Path(sysconfig.get_path("stdlib")), BESIDE)  # fmt: skip
KINDS = {".md", ".txt", ".rst", ".html", ".gz", ".mo", ".py", ".pyi"}
EAST = re.compile(r"/(ja|ko|zh_\w+)(/|$)")
DOCSTRING = re.compile(r'"""(.+?)"""', re.DOTALL)
ALONE = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"


def _letters() -> str:
    """Letters, digits, marks and `_` as a class of a regular expression, but for kana and Han."""
    alone = re.compile(f"[{ALONE}]")
    codes = [c for c in range(0x20000) if c == 0x5F or unicodedata.category(chr(c))[0] in "LMN"]
    codes = np.array([code for code in codes if not alone.match(chr(code))])
    runs = np.split(codes, np.flatnonzero(np.diff(codes) > 1) + 1)
    return "".join(f"\\U{run[0]:08x}-\\U{run[-1]:08x}" for run in runs)


LETTERS = _letters()
WORD = re.compile(f"[{ALONE}]|[{LETTERS}]+")
BETWEEN = re.compile(f"[^{ALONE}{LETTERS}]+")

# -- text -------------------------------------------------------------------------------------------------------------


def plain(path: Path) -> str:
    """What a file says: of messages the translations, of sources the docstrings."""
    raw = path.read_bytes()
    if raw[:2] == b"\x1f\x8b":
        raw = gzip.decompress(raw)
    if path.suffix == ".mo":
        raw = b"\n".join(messages(raw))
    text = raw.decode(errors="strict").replace("\0", " ")
    return "\n\n".join(DOCSTRING.findall(text)) if path.suffix in (".py", ".pyi") else text


def messages(raw: bytes) -> list[bytes]:
    """The translations of a little-endian .mo file, its header left out."""
    count, _, table = struct.unpack_from("<3I", raw, 8)
    places = [struct.unpack_from("<2I", raw, table + 8 * n) for n in range(1, count)]
    return [raw[at : at + size] for size, at in places]


def chunks(text: str, draw: random.Random) -> Iterator[str]:
    """Pieces of 0.8 to 8 KB, most of them short, that end with a line or a word where one ends there."""
    data, at = text.encode()[:FILE_BYTES], 0
    while len(data) - at >= SMALLEST:
        stop = at + int(SMALLEST * 10 ** draw.random() ** 2)
        ends = [data.rfind(mark, at + SMALLEST, stop) for mark in (b"\n", b" ")]
        end = next((end for end in ends if end > 0), stop) if stop < len(data) else len(data)
        yield data[at:end].decode(errors="ignore")
        at = end


@cache
def listed() -> list[Path]:
    """All files of this machine that may hold text."""
    return sorted({path for root in ROOTS for path in root.rglob("*") if path.suffix in KINDS and path.is_file()})


def pieces(seed: int, wanted: re.Pattern | None = None) -> Iterator[str]:
    """Chunks of all files of this machine in a drawn order, of each content once."""
    draw, seen = random.Random(seed), set[bytes]()
    files = [path for path in listed() if not wanted or wanted.search(str(path.parent))]
    for path in draw.sample(files, len(files)):
        try:
            text = plain(path)
        except (UnicodeDecodeError, EOFError, OSError, struct.error):
            continue  # pictures, old encodings, archives
        if (name := hashlib.sha256(text.encode()).digest()) not in seen:
            seen.add(name)
            yield from chunks(text, draw)


def take(size: float, stream: Iterator[str], all_of_it: bool = True) -> list[str]:
    """The first `size` bytes of them; as many as there are where that will do."""
    taken = []
    for piece in stream:
        taken.append(piece)
        size -= len(piece.encode())
        if size < 0:
            return taken
    if all_of_it:
        raise SystemExit(f"this machine has {size / 1e6:.1f} MB less text; lower --mb")
    return taken


# -- copies -----------------------------------------------------------------------------------------------------------

MARKS = ("“", "” ", " — ", "… ", "; ", ": ", " « ", " » ", " / ", "、", "。", " • ")
SPACES = (" ", "  ", "\n", "\t", ", ", ". ", " - ")
SITES = [f"Home | Archive of volume {n} | Search this site | Sign in or register" for n in range(20)]
FOOTS = [f"Copyright of the collection {n}. All rights reserved. Terms of use, privacy and contact." for n in range(20)]


def edited(text: str, jaccard: float, donor: str, draw: random.Random) -> str:
    """Words replaced by another document's, left out or joined by one, as often as leaves about this similarity."""
    others, lost = WORD.findall(donor) or [""], 1 - (2 * jaccard / (1 + jaccard)) ** (1 / NGRAM)

    def edit(match: re.Match) -> str:
        if draw.random() >= lost:
            return match[0]
        other = draw.choice(others)
        return draw.choice((other, "", f"{match[0]} {other}"))

    return WORD.sub(edit, text)


def recased(text: str, _: str, draw: random.Random) -> str:
    """Other capitals, blanks and commas."""
    text = WORD.sub(lambda match: draw.choice((str.upper, str.title, str.lower))(match[0]), text)
    return BETWEEN.sub(lambda _: draw.choice(SPACES), text)


def remarked(text: str, _: str, draw: random.Random) -> str:
    """Every mark another one, from all over Unicode."""
    return BETWEEN.sub(lambda match: match[0] if match[0] == " " else draw.choice(MARKS), text)


def framed(text: str, _: str, draw: random.Random) -> str:
    """A site's header and footer around it."""
    site = draw.randrange(len(SITES))
    return f"{SITES[site]}\n{text}\n{FOOTS[site]}"


def accented(text: str) -> bool:
    """Whether a fiftieth of it are accented, Greek or Cyrillic letters that have capitals."""
    return sum(char > "\x7f" and char != char.upper() for char in text) > len(text) // 50


EASTERN = re.compile(f"[{ALONE}]")
KIND = {f"words {jaccard}": (23, None, lambda *of, jaccard=jaccard: edited(of[0], jaccard, *of[1:]))
        for jaccard in (0.95, 0.9, 0.8, 0.7, 0.6, 0.5)}  # fmt: skip
KIND |= {
    "exact": (15, None, lambda text, *_: text),
    "case, commas, blanks": (15, None, recased),
    "upper case, accents": (8, accented, lambda text, *_: text.upper()),
    "other marks": (8, None, remarked),
    "kana and Han, marks": (4, EASTERN.search, remarked),
    "kana and Han, words 0.9": (4, EASTERN.search, lambda *of: edited(of[0], 0.9, *of[1:])),
    "header and footer": (15, None, framed),
}
"""Kind of copy: how many to 1,000 documents, which documents it takes, what it does to (text, donor, draw)."""
CLUSTERS, EACH, SHORT = 3, 5, 15
"""Of 1,000 documents: so many have EACH copies with words changed; so many have ten words or less, each with a copy."""


def short(texts: list[str], count: int, draw: random.Random) -> list[str]:
    """Documents of one to ten words: beginnings of lines, no two with the same words."""
    found = dict[tuple[str, ...], str]()
    for text in texts:
        spans = list(WORD.finditer(draw.choice(text.splitlines() or [text])))[: draw.randint(1, 10)]
        if spans:
            line = spans[0].string[spans[0].start() : spans[-1].end()]
            found.setdefault(tuple(match[0].lower() for match in spans), line)
        if len(found) == count:
            break
    return list(found.values())


def injected(texts: list[str], draw: random.Random) -> list[tuple[str, str, int]]:
    """(text, kind, original) of every copy; no document is copied twice but those with clusters."""
    free, made = draw.sample(range(len(texts)), len(texts)), list[tuple[str, str, int]]()
    for kind, (share, suits, change) in sorted(KIND.items(), key=lambda item: item[1][1] is None):
        chosen = [place for place in free if not suits or suits(texts[place])][: share * len(texts) // 1000]
        free = [place for place in free if place not in set(chosen)] if suits else free[len(chosen) :]
        donors = draw.choices(texts, k=len(chosen))
        if "Han" in kind:
            donors = [texts[place] for place in chosen[1:] + chosen[:1]]
        made += [(change(texts[p], donor, draw), kind, p) for p, donor in zip(chosen, donors, strict=True)]
    for place in free[: CLUSTERS * len(texts) // 1000]:
        donors = draw.choices(texts, k=EACH)
        made += [(edited(texts[place], 0.9, donor, draw), "clusters of five", place) for donor in donors]
    return made


# -- truth ------------------------------------------------------------------------------------------------------------


def shingles(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Hashes (S,) of each document's different 5-grams, of all its words where there are fewer; where each ends."""
    lower = pc.utf8_lower(pc.replace_substring(pa.array(texts, pa.large_string()), "ς", "σ")).to_pylist()  # ty: ignore[unresolved-attribute]
    number, found = dict[str, int](), list[np.ndarray]()
    mix = np.random.default_rng(0).integers(1 << 64, size=NGRAM, dtype=np.uint64) | np.uint64(1)
    for text in lower:
        places = np.array([number.setdefault(word, len(number)) for word in WORD.findall(text)], np.uint64)
        size = min(NGRAM, len(places))
        count = len(places) - size + 1 if size else 0
        key = np.full(count, size, np.uint64)
        for n in range(size):  # each word mixed before it is added: sums of products alone would collide
            key = (key ^ (key >> np.uint64(31))) * mix[n] + places[n : n + count] * mix[0]
        found.append(np.unique(key ^ (key >> np.uint64(29))))
    return np.concatenate(found), np.cumsum([0, *map(len, found)])


def ranked(keys_S: np.ndarray, ends_D1: np.ndarray) -> tuple[np.ndarray, int]:
    """Every document's 5-grams as ranks, rarest first; and the first rank that two documents have."""
    _, places, counts = np.unique(keys_S, return_inverse=True, return_counts=True)
    rank = np.empty(len(counts), np.uint64)
    rank[np.argsort(counts, kind="stable")] = np.arange(len(counts), dtype=np.uint64)
    documents = np.repeat(np.arange(len(ends_D1) - 1, dtype=np.uint64), np.diff(ends_D1))
    return np.sort(documents << np.uint64(32) | rank[places]) & np.uint64(0xFFFFFFFF), int((counts == 1).sum())


@njit(cache=True)
def shared(ranks_S, a, a_end, b, b_end):
    """How many 5-grams two documents share."""
    count = 0
    while a < a_end and b < b_end:
        count += ranks_S[a] == ranks_S[b]
        step = ranks_S[a] <= ranks_S[b]
        b += ranks_S[b] <= ranks_S[a]
        a += step
    return count


@njit(cache=True)
def joined(ranks_S, ends_D1, heads_D, posts, post_ends, first, least):
    """All pairs (a, b, jaccard): each document beside those before it that share one of the 5-grams at its head."""
    pairs, values, n = np.empty((1 << 16, 2), np.int32), np.empty(1 << 16), 0
    seen = np.full(len(heads_D), -1, np.int64)
    for b in range(len(heads_D)):
        size_b = ends_D1[b + 1] - ends_D1[b]
        for place in range(ends_D1[b], ends_D1[b] + heads_D[b]):
            if ranks_S[place] < first:
                continue
            rank = ranks_S[place] - first
            for a in posts[post_ends[rank] : post_ends[rank + 1]]:
                if a >= b:
                    break
                size_a = ends_D1[a + 1] - ends_D1[a]
                if seen[a] == b or size_a < least * size_b or size_b < least * size_a:
                    continue
                seen[a] = b
                both = shared(ranks_S, ends_D1[a], ends_D1[a + 1], ends_D1[b], ends_D1[b + 1])
                if both < least * (size_a + size_b - both):
                    continue
                if n == len(values):
                    pairs, values = np.concatenate((pairs, pairs)), np.concatenate((values, values))
                pairs[n, 0], pairs[n, 1], values[n] = a, b, both / (size_a + size_b - both)
                n += 1
    return pairs[:n], values[:n]


def truth(texts: list[str]) -> pa.Table:
    """Every pair (a, b, jaccard) with a similarity of LEAST or more."""
    keys_S, ends_D1 = shingles(texts)
    ranks_S, first = ranked(keys_S, ends_D1)
    sizes = np.diff(ends_D1)
    heads_D = np.where(sizes, sizes - np.ceil(LEAST * sizes).astype(np.int64) + 1, 0)
    inside = np.arange(len(ranks_S)) - np.repeat(ends_D1[:-1], sizes) < np.repeat(heads_D, sizes)
    inside &= ranks_S >= first
    documents = np.repeat(np.arange(len(sizes), dtype=np.uint64), sizes)[inside]
    posts = np.sort((ranks_S[inside] - np.uint64(first)) << np.uint64(32) | documents)
    post_ends = np.searchsorted(posts >> np.uint64(32), np.arange(int(ranks_S.max(initial=0)) - first + 2))
    posts = (posts & np.uint64(0xFFFFFFFF)).astype(np.int64)
    pairs, values = joined(ranks_S.astype(np.int64), ends_D1, heads_D, posts, post_ends, first, LEAST)
    order = np.lexsort(pairs.T[::-1])
    return pa.table({"a": pairs[order, 0], "b": pairs[order, 1], "jaccard": values[order]})


# -- written ----------------------------------------------------------------------------------------------------------


def curate(out: Path, mb: float, seed: int = 11, files: int = 1) -> None:
    """Write the corpus, what was injected, and the truth."""
    draw = random.Random(seed)
    base = mb * 1e6 / 1.24  # copies are about a quarter more
    texts = take(base * 0.03, pieces(seed, EAST), all_of_it=False) + take(base * 0.97, pieces(seed))
    texts += (few := short(texts, SHORT * len(texts) // 1000, draw))
    copies = injected(texts[: len(texts) - len(few)], draw)
    first = len(texts) - len(few)
    copies += [(recased(text, "", draw), "ten words or less", first + n) for n, text in enumerate(few)]
    order = draw.sample(range(len(texts) + len(copies)), len(texts) + len(copies))
    place = {number: n for n, number in enumerate(order)}
    drawn = [(text, "text") for text in texts] + [(text, kind) for text, kind, _ in copies]
    drawn = [drawn[number] for number in order]
    write(out / "corpus", drawn, files)
    rows = [(place[len(texts) + n], place[original], kind) for n, (_, kind, original) in enumerate(copies)]
    pq.write_table(pa.table(list(zip(*rows, strict=True)), ["copy", "original", "kind"]), out / "copies.parquet")
    pq.write_table(truth([text for text, _ in drawn]), out / "truth.parquet")


def write(folder: Path, drawn: list[tuple[str, str]], files: int) -> None:
    """Parts with row groups of about 4 MiB, as a corpus has them."""
    folder.mkdir(parents=True)
    rows = [{"id": f"{n:08d}", "text": text, "source": source} for n, (text, source) in enumerate(drawn)]
    group = max(1, len(rows) * (4 << 20) // sum(len(text.encode()) for text, _ in drawn))
    for number in range(files):
        table = pa.Table.from_pylist(rows[len(rows) * number // files : len(rows) * (number + 1) // files])
        path = folder / f"part-{number:05d}.parquet"
        pq.write_table(table, path, row_group_size=group, compression="zstd", write_page_checksum=True)


def main() -> None:
    """Write one and say what is in it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--mb", type=float, default=150)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--files", type=int, default=1)
    parser.add_argument("--plain", action="store_true")
    asked = parser.parse_args()
    if asked.plain:
        texts = take(asked.mb * 1e6, pieces(asked.seed))
        return write(asked.out / "corpus", [(text, "text") for text in texts], asked.files)
    curate(asked.out, asked.mb, asked.seed, asked.files)
    values = pq.read_table(asked.out / "truth.parquet")["jaccard"].to_numpy()
    above = ", ".join(f"{(values >= least).sum():,} at {least} or more" for least in (0.5, 0.7, 0.8, 0.9))
    print(f"pairs: {above}", file=sys.stderr)


if __name__ == "__main__":
    main()
