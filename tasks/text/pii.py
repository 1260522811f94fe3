"""Personal data in texts: e-mail addresses, public IPv4 addresses, phone numbers, IBANs, Spanish DNI and NIE numbers.

In: texts. Out: where such data stands, and the texts with a placeholder of its kind in each place.
A numba kernel looks at every byte and points to the few places worth a look; only there do patterns and checks work:
octets and `ipaddress`, E.164 and Spanish groups, ISO 7064's remainder and each country's length, the check letter.
E-mail addresses are RFC 5322's dot-atoms at a domain with a dot.
"""

import ipaddress
import re
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import lru_cache
from itertools import repeat
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numba import int64, uint64

from tasks.text.compiler import njit
from tasks.text.scan import Texts

# D documents, C candidates
EMAIL, IP, PHONE, IBAN, DNI = range(5)
KINDS = ("email", "ip", "phone", "iban", "dni")
PLACEHOLDERS = (b"[EMAIL]", b"[IP]", b"[PHONE]", b"[IBAN]", b"[DNI]")
REACH = 256
"""Bytes looked at on either side of an @."""
BLOCK = 4096
"""Bytes whose marks are collected before each is looked at."""

ATOM = r"[A-Za-z0-9_!#$%&'*+/=?^`{|}~-]"
LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
OCTET = r"(?:25[0-5]|2[0-4]\d|[01]?\d\d?)"
ADDRESS = rf"{OCTET}(?:\.{OCTET}){{3}}"
NINE = r"[6-9](?:\d{8}|\d\d(?: \d{3} |-\d{3}-)\d{3}|\d\d(?:[ .-]\d\d){3}|\d[ .-]\d{3}(?:[ .-]\d\d){2})"
"""A Spanish number; 612.345.678 is left out, which is how amounts are written."""
PATTERNS = (
    re.compile(rf"\b{ATOM}+(?:\.{ATOM}+)*@(?:(?:{LABEL}\.)+{LABEL}|\[{ADDRESS}\])"),
    re.compile(rf"(?<!\d){ADDRESS}(?!\d)", re.ASCII),
    re.compile(
        rf"(?<![\w)+])(?:\+|00)34[ .-]?{NINE}(?!\w)|(?<![\w)+])\+[1-9](?:[ .-]?\(?\d\)?){{7,14}}(?!\w)"
        rf"|(?<!\d[ ,:])(?<![\w)+./#=-]){NINE}(?![\w-]|[ .,/:]\d)",
        re.ASCII,
    ),
    re.compile(r"\b[A-Z]{2}\d\d(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?![a-z])", re.ASCII),
    re.compile(
        r"(?<![\w.,+-])(?:[XYZ][- ]?\d{7}|\d{8}|\d\d\.\d{3}\.\d{3})-?[A-HJ-NP-TV-Za-hj-np-tv-z](?![\w+]|-\w)", re.ASCII
    ),
)
LENGTHS = dict(
    re.findall(
        r"([A-Z]{2})(\d\d)",
        "AD24AE23AL28AT20AZ28BA20BE16BG22BH22BR29BY28CH21CR22CY28CZ24DE22DK18DO28EE20EG29ES24FI18FO18FR27GB22GE22GI23"
        "GL18GR27GT28HR21HU28IE22IL23IS26IT27JO30KW28KZ20LB28LI21LT20LU20LV21MC27MD24ME22MK19MR27MT31MU30NL18NO15PK24"
        "PL28PS29PT25QA29RO24RS22SA24SE24SI19SK24SM27TN24TR26UA29VA22VG24XK20",
    )
)
"""Country to the length of its IBANs."""
LETTERS = "TRWAGMYFPDXBNJZSQVHLCKE"
"""The check letter of a DNI, by its number mod 23."""


class Span(NamedTuple):
    """Bytes [start, stop) of the texts' data that are of a kind."""

    start: int
    stop: int
    kind: int


def spans(texts: Texts, kinds: Collection[str] = KINDS) -> list[Span]:
    """What there is of these kinds, in order. Where two overlap, the kind that stands first in KINDS counts."""
    size = len(texts.data) // 2 + 2  # no two candidates begin at the same byte or the next
    kinds_C, starts_C, stops_C = np.empty(size, np.uint8), np.empty(size, np.int64), np.empty(size, np.int64)
    eights = texts.data[: len(texts.data) // 8 * 8].view(np.uint64)
    wanted = np.isin(KINDS, [*kinds])
    count = _candidates(texts.data, eights, texts.ends_D1, ATOMS, wanted, kinds_C, starts_C, stops_C)
    kinds_C, starts_C, stops_C = (column[:count] for column in (kinds_C, starts_C, stops_C))
    exact_C = (kinds_C == EMAIL) & (stops_C > 0)
    found = [*map(Span, starts_C[exact_C].tolist(), stops_C[exact_C].tolist(), repeat(EMAIL))]
    order = np.flatnonzero(~exact_C)[np.argsort(kinds_C[~exact_C], kind="stable")]
    begins = texts.ends_D1[np.searchsorted(texts.ends_D1, starts_C[order], "right") - 1].tolist()
    columns = (column[order].tolist() for column in (kinds_C, starts_C, stops_C))
    data, free = texts.data.data, 0
    for begin, kind, start, stop in zip(begins, *columns, strict=True):
        start = max(start, free) if kind == EMAIL else start  # a local part may begin where an address ends
        for span in _look(data, kind, begin, start, abs(stop)):
            at = bisect_left(found, span)
            if (at == 0 or found[at - 1].stop <= span.start) and (at == len(found) or span.stop <= found[at].start):
                found.insert(at, span)
                free = span.stop
    return found


def replaced(texts: Texts, found: Sequence[Span]) -> pa.Array:
    """The texts with placeholders in place of what was found."""
    pieces, at, data = list[bytes | memoryview](), int(texts.ends_D1[0]), texts.data.data
    for start, stop, kind in found:
        pieces += [data[at:start], PLACEHOLDERS[kind]]
        at = stop
    pieces.append(data[at : int(texts.ends_D1[-1])])
    grown = np.array([len(PLACEHOLDERS[span.kind]) - (span.stop - span.start) for span in found], np.int64)
    before_D1 = np.searchsorted(np.array([span.start for span in found]), texts.ends_D1)
    shift_D1 = np.concatenate([[0], np.cumsum(grown)])[before_D1]
    ends = texts.ends_D1 - texts.ends_D1[0] + shift_D1
    buffers = [None, pa.py_buffer(ends.astype(np.int64).tobytes()), _joined(pieces)]
    return pa.Array.from_buffers(pa.large_string(), len(ends) - 1, buffers)


def _joined(pieces: list[bytes | memoryview]) -> pa.Buffer:
    """All in a row, in Arrow's memory, which is used again; that of bytes was new each time, a third of the work."""
    joined, end = pa.allocate_buffer(sum(map(len, pieces))), 0
    room = memoryview(joined).cast("B") if len(joined) else memoryview(bytearray())
    for piece in pieces:
        room[end : (end := end + len(piece))] = piece
    return joined


def documents_of(texts: Texts, found: Sequence[Span]) -> np.ndarray:
    """The document of each span."""
    return np.searchsorted(texts.ends_D1, np.array([span.start for span in found], np.int64), "right") - 1


# -- a closer look ----------------------------------------------------------------------------------------------------


def _look(data: memoryview, kind: int, begin: int, start: int, stop: int) -> Iterator[Span]:
    """The spans of a kind in a candidate's bytes; patterns look at the two characters before them as well."""
    first = max(begin, start - 2)
    text = str(data[first:stop], "latin-1")
    if not text[: start - first].isascii():
        before = bytes(data[max(begin, start - 8) : start]).decode(errors="ignore")
        text, first = before + text[start - first :], start - len(before)
    pattern, at = PATTERNS[kind], start - first
    for match in pattern.finditer(text, at) if kind in (EMAIL, IP, DNI) else [pattern.match(text, at)]:
        if match and (length := CHECKS[kind](match.group())):
            yield Span(first + match.start(), first + match.start() + length, kind)


@lru_cache(1 << 12)  # most stand there again and again, and ipaddress takes 6 us
def _public(address: str) -> int:
    try:
        return len(address) * ipaddress.ip_address(address).is_global
    except ValueError:  # an octet like 01
        return 0


def _iban(text: str) -> int:
    """The length of the IBAN with which the text begins, blanks included; 0 where the remainder is not 1."""
    length, chars = int(LENGTHS.get(text[:2], 0)), 0
    for at, character in enumerate(text, 1):
        chars += character != " "
        if chars == length and not text[at : at + 1].isalnum():
            plain = text[:at].replace(" ", "")
            return at * (int("".join(str(int(c, 36)) for c in plain[4:] + plain[:4])) % 97 == 1)
    return 0


def _spanish(text: str) -> int:
    digits = re.sub(r"[-. ]", "", text.upper())
    number = digits[:-1].translate(str.maketrans("XYZ", "012"))
    return len(text) * (LETTERS[int(number) % 23] == digits[-1])


CHECKS: tuple[Callable[[str], int], ...] = (len, _public, len, _iban, _spanish)
"""How much of what a pattern matched is such data: all or, failing its check, nothing."""


# -- the kernel -------------------------------------------------------------------------------------------------------

ATOMS = np.array(
    [bool(re.match(ATOM, chr(c), re.ASCII)) + 2 * chr(c).isalnum() * (c < 128) for c in range(256)], np.uint8
)
"""Bit 0: may stand in an e-mail's local part; bit 1: letter or digit."""


@njit(inline="always")
def _at(data, i, begin, end):
    """The byte there, 0 outside of the document."""
    return data[uint64(i)] if begin <= i < end else 0


@njit(inline="always")
def _digit(c):
    return 48 <= c <= 57


@njit(cache=True, nogil=True, boundscheck=False)
def _candidates(data, eights, ends_D1, atoms, wanted, kinds_C, starts_C, stops_C):
    """Where each kind that is wanted may stand; returns how many such places there are."""
    n, all_digits, marked = 0, wanted[PHONE] or wanted[IBAN] or wanted[DNI], np.empty(BLOCK, np.int64)
    d, begin, end, past, last, free, shaky = -1, ends_D1[0], ends_D1[0], ends_D1[0], ends_D1[-1], 0, 0
    for block in range(begin // BLOCK * BLOCK, last, BLOCK):
        for k in range(_marked(data, eights, block, min(block + BLOCK, last), all_digits, marked)):
            i = marked[k]
            if i < past or i >= last:  # in a number that was looked at, or outside of the texts
                continue
            while i >= end:
                d += 1
                begin, end = ends_D1[d], ends_D1[d + 1]
                free, shaky = begin, begin - 1  # where addresses end, and candidates for one
            past = i + 1
            if data[uint64(i)] == 64:
                if wanted[EMAIL]:
                    before = n
                    n = _email(data, i, begin, end, atoms, n, free, shaky, kinds_C, starts_C, stops_C)
                    if n > before:
                        free, shaky = max(free, stops_C[n - 1]), max(shaky, -stops_C[n - 1])
                continue
            while i > begin and _digit(data[uint64(i - 1)]):
                i -= 1
            n = _number(data, i, begin, end, atoms, wanted, n, kinds_C, starts_C, stops_C)
            while past < end and _digit(data[uint64(past)]):
                past += 1
    return n


@njit(inline="always")
def _marked(data, eights, at, end, all_digits, marked):
    """The places of a block's @ and digits that are worth a stop; how many there are."""
    n = 0
    while at < end:
        if (at >> 3) + 9 > eights.shape[0]:  # the last bytes of all, one by one
            marked[n] = at
            n += data[uint64(at)] == 64 or _digit(data[uint64(at)])
            at += 1
            continue
        if _any(eights, at >> 3, all_digits):
            for k in range(8):
                marks = _marks(eights, (at >> 3) + k, all_digits)
                while marks:
                    marked[n] = at + 8 * k + _first(marks)
                    n += 1
                    marks &= marks - uint64(1)
        at += 64
    return n


@njit(inline="always")
def _any(eights, at, all_digits):
    """Whether 64 bytes have a mark: all at one look, with wide registers."""
    marks = uint64(0)
    for k in range(8):
        marks |= _marks(eights, at + k, all_digits)
    return marks != 0


@njit(inline="always")
def _marks(eights, at, all_digits):
    """Of eight bytes at once the highest bit of those worth a stop: each @, and digits, all or those before a dot.

    No carry leaves a byte, as each has but seven bits when something is added to it (Warren, Hacker's Delight, 6-1).
    """
    x, ones, high = eights[uint64(at)], uint64(0x0101010101010101), uint64(0x8080808080808080)
    low = x & ~high
    digits = (low + ones * uint64(0x80 - 0x30)) & ~(low + ones * uint64(0x80 - 0x3A))
    sign = ~((low ^ ones * uint64(0x40)) + ones * uint64(0x7F))
    if not all_digits:
        follows = x >> uint64(8) | eights[uint64(at + 1)] << uint64(56)
        digits &= ~(((follows & ~high) ^ ones * uint64(0x2E)) + ones * uint64(0x7F))
    return (digits | sign) & ~x & high


@njit(inline="always")
def _first(marks):
    """The place of the lowest byte that is marked: its bit, moved to the byte's lowest, times 7, 6, ... 0 in bytes."""
    lowest = (marks & (~marks + uint64(1))) >> uint64(7)
    return int64((lowest * uint64(0x0001020304050607)) >> uint64(56))


@njit(inline="always")
def _put(kind, start, stop, n, kinds_C, starts_C, stops_C):
    kinds_C[n], starts_C[n], stops_C[n] = kind, start, stop
    return n + 1


@njit(inline="always")
def _email(data, i, begin, end, atoms, n, free, shaky, kinds_C, starts_C, stops_C):
    """The address around this @; where it begins is left to the pattern (stop < 0) if Unicode's letters decide it."""
    after = _at(data, i + 1, begin, end)
    if not atoms[_at(data, i - 1, begin, end)] & 1 or not (atoms[after] & 2 or after == 91):
        return n
    lo, least, most = i, max(begin, i - REACH, free), min(end, i + REACH)
    while lo > least and (atoms[data[uint64(lo - 1)]] & 1 or (data[uint64(lo - 1)] == 46 and data[uint64(lo)] != 46)):
        lo -= 1
    hi = _domain(data, i + 1, most, atoms)
    if after == 91 or _at(data, lo - 1, begin, end) > 127 or lo <= shaky:
        while hi < most and (atoms[data[uint64(hi)]] & 2 or data[uint64(hi)] in (45, 46, 91, 93)):
            hi += 1
        return _put(EMAIL, lo, -hi, n, kinds_C, starts_C, stops_C) if hi > i + 1 else n
    while lo < i and (data[uint64(lo)] == 46 or _wordy(data, lo - 1, begin, atoms) == _wordy(data, lo, begin, atoms)):
        lo += 1
    return _put(EMAIL, lo, hi, n, kinds_C, starts_C, stops_C) if lo < i and hi > i + 1 else n


@njit(inline="always")
def _wordy(data, i, begin, atoms):
    return i >= begin and (atoms[data[uint64(i)]] & 2 != 0 or data[uint64(i)] == 95)


@njit(inline="always")
def _domain(data, i, end, atoms):
    """Where the longest name of at least two labels from here ends; else here."""
    stop, dotted, at = i, False, i
    while at < end and atoms[data[uint64(at)]] & 2:
        last = at
        while at < end and (atoms[data[uint64(at)]] & 2 or data[uint64(at)] == 45):
            last = at if data[uint64(at)] != 45 else last
            at += 1
        stop = last + 1 if dotted else stop
        if last + 1 != at or at >= end or data[uint64(at)] != 46:
            break
        dotted, at = True, at + 1
    return stop


@njit(inline="always")
def _number(data, i, begin, end, atoms, wanted, n, kinds_C, starts_C, stops_C):
    """What begins with the digit here, the first one of a group; most groups are soon done with."""
    before, first, stop, dots = _at(data, i - 1, begin, end), data[uint64(i)], i + 1, 0
    while stop < end and _digit(data[uint64(stop)]):
        stop += 1
    group = stop - i
    after = _at(data, stop, begin, end)
    phone = before == 43 or group == 9 or (first == 48 and group >= 4)
    if first >= 54 and group in (2, 3) and after in (32, 45, 46):
        phone = True
    if phone and wanted[PHONE] and _free(data, i, begin, end, atoms):
        far = _phone(data, i, begin, end)
        if far:
            n = _put(PHONE, i - (before == 43), min(end, far + 2), n, kinds_C, starts_C, stops_C)
    if wanted[IBAN] and group >= 2 and 65 <= before <= 90 and 65 <= _at(data, i - 2, begin, end) <= 90:
        n = _put(IBAN, i - 2, min(end, i + 44), n, kinds_C, starts_C, stops_C)
    seen = before == 46 and _digit(_at(data, i - 2, begin, end))  # a chain is walked once, a DNI has eight digits
    while after == 46 and _digit(_at(data, stop + 1, begin, end)) and (not seen or stop - i - dots <= 8):
        dots, stop = dots + 1, stop + 2
        while stop < end and _digit(data[uint64(stop)]):
            stop += 1
        after = _at(data, stop, begin, end)
    if wanted[IP] and dots >= 3 and not seen:
        n = _put(IP, i, stop, n, kinds_C, starts_C, stops_C)
    if wanted[DNI] and (group == 7 or stop - i - dots == 8) and (after == 45 or atoms[after] & 2):
        lead = 1 if 88 <= before <= 90 else 2 if 88 <= _at(data, i - 2, begin, end) <= 90 else 0  # X to Z
        n = _put(DNI, i - lead * (group == 7), min(end, stop + 4), n, kinds_C, starts_C, stops_C)
    return n


@njit(inline="always")
def _free(data, i, begin, end, atoms):
    """Whether what stands before a number, or before its plus, lets it be a phone's."""
    before = _at(data, i - 1, begin, end)
    before = _at(data, i - 2, begin, end) if before == 43 else before
    return before != 41 and not atoms[before] & 2


@njit(inline="always")
def _phone(data, i, begin, end):
    """Where the digits from here end, parted by at most three of ` .-()`, if there are enough for a phone; else 0."""
    digits, last, parted = 0, i, 0
    while i < end and digits <= 16 and parted <= 3:
        c = data[uint64(i)]
        if _digit(c):
            digits, last, parted = digits + 1, i + 1, 0
        elif c in (32, 40, 41, 45, 46):
            parted += 1
        else:
            break
        i += 1
    return last if digits >= 8 else 0
