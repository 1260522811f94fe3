"""The pretraining loader: every token once an epoch, on any number of ranks, from any step, alone or mixed."""

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt.data import IGNORED, Stream, write_shard
from gpt.errors import UserError
from gpt.mixture import Turns
from gpt.packing import bfd, borders, pieces
from gpt.windows import Windows

FEW = settings(max_examples=40, deadline=None)
EOT = 60_000


def shards(folder, *parts, held_out=2):
    """A Shards folder with these token arrays as its train files; a number stands for that many running tokens."""
    folder.mkdir(exist_ok=True)
    numbers = itertools.count()
    for n, part in enumerate(parts):
        tokens = [next(numbers) for _ in range(part)] if isinstance(part, int) else part
        write_shard(folder / f"train-{n:05d}.bin", np.array(tokens, np.uint16))
    write_shard(folder / "val-00000.bin", np.arange(held_out, dtype=np.uint16))
    return folder


def targets(y):
    """The targets that count, row by row."""
    return [row[row != IGNORED].tolist() for row in y]


def batch(loader, *where):
    """x, y and what else there is, as int64."""
    parts = [part.astype(np.int64) for part in loader.batch(*where)]
    return parts if len(parts) > 1 else [parts[0][:, :-1], parts[0][:, 1:]]


@FEW
@given(st.integers(2, 12), st.lists(st.integers(0, 40), min_size=1, max_size=4), st.integers(0, 2**32), st.data())
def test_each_token_is_a_target_once_an_epoch(tmp_path_factory, context, lengths, seed, data):
    lengths = [*lengths, context + 1]  # at least one window
    loader, tokens = Windows(shards(tmp_path_factory.mktemp("s"), *lengths), context), sum(lengths)
    rows = -(-tokens // context)
    for epoch in range(data.draw(st.integers(1, 3))):
        x, y = batch(loader, seed, epoch, rows)
        assert sorted(itertools.chain(*targets(y))) == list(range(tokens)), f"epoch {epoch}"
        real = y != IGNORED
        assert ((x + 1) % tokens == y)[real].all(), "y is the token after each x, across files and the seam too"
        assert real.all(1).sum() >= rows - 1, "at most one row is short"


def test_the_grid_moves_between_epochs(tmp_path):
    loader = Windows(shards(tmp_path, 40, 0, 61), 10)
    starts = {tuple(sorted(batch(loader, 7, epoch, 11)[0][:, 0] % 10)) for epoch in range(8)}
    assert len(starts) > 3, starts


def test_steps_cut_the_same_order_whatever_the_batch(tmp_path):
    loader = Windows(shards(tmp_path, 500), 8)
    whole = batch(loader, 3, 0, 24)[0]
    assert (whole == np.concatenate([batch(loader, 3, step, 4)[0] for step in range(6)])).all()


@pytest.mark.parametrize("packing", ["stream", "bfd"])
@pytest.mark.parametrize("mixed", [False, True])
def test_any_number_of_ranks_reads_the_same_batches_from_any_step_on(tmp_path, packing, mixed, monkeypatch):
    dice = np.random.default_rng(0)
    one, two = (dice.integers(0, 300, 4_000) * 200 for _ in range(2))  # every 300th is EOT
    folder, other = shards(tmp_path / "a", one[:1900], one[1900:]), shards(tmp_path / "b", two)

    def fresh():
        return Windows(folder, 16, [(other, 0.3)] if mixed else [], EOT - 200 if packing == "bfd" else None)

    monkeypatch.setattr("gpt.windows.STEPS_AHEAD", 64)
    steps, one_rank = range(150), fresh()  # over several epochs and several readings ahead
    expected = [batch(one_rank, 5, step, 8) for step in steps]
    for world in (1, 2, 4, 8):
        for first in (0, 7, 64, 101):
            ranks = [fresh() for _ in range(world)]
            for step in steps[first : first + 5]:
                found = [np.concatenate(parts) for parts in zip(*(batch(loader, 5, step, 8, rank, world)
                         for rank, loader in enumerate(ranks)), strict=True)]  # fmt: skip
                assert all((a == b).all() for a, b in zip(found, expected[step], strict=True)), (world, step)


def test_a_batch_that_the_ranks_cannot_share_is_refused(tmp_path):
    with pytest.raises(UserError, match="a batch of 6 rows is no multiple of 4 ranks; try 8"):
        Windows(shards(tmp_path, 50), 8).batch(0, 0, 6, 0, 4)


def test_what_was_handed_out_stays_as_it_is(tmp_path):
    loader = Windows(shards(tmp_path, 5000), 8)
    (first,) = loader.batch(1, 0, 4)
    before = first.tolist()
    for step in range(1, 3000):
        loader.batch(1, step, 4)
    assert first.tolist() == before


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_tokens_keep_the_shards_dtype(tmp_path, dtype):
    folder = shards(tmp_path, 50)
    write_shard(folder / "train-00000.bin", np.arange(50).astype(dtype))
    assert {part.dtype for part in Windows(folder, 8).batch(0, 0, 2)} == {np.dtype(dtype)}


def test_evaluation_reads_the_first_windows_and_fewer_at_the_end(tmp_path):
    loader = Windows(shards(tmp_path, 9, held_out=25), 8)
    x, y = loader.held_out(10)
    assert x.tolist() == [list(range(8)), list(range(8, 16)), list(range(16, 24))]
    assert y[-1, -1] == 24
    assert loader.held_out(2)[0].shape == (2, 8)
    assert Windows(shards(tmp_path, 9, held_out=5), 8).held_out(10)[0].shape == (1, 4)


def test_too_little_text_is_an_error_with_the_way_out(tmp_path):
    with pytest.raises(UserError, match=r"train split of \S+ has 30 tokens but needs 65; add text or lower model"):
        Windows(shards(tmp_path, 30), 64)
    with pytest.raises(UserError, match=r"train split of \S+other has 30 tokens but needs 65"):
        Windows(shards(tmp_path, 90), 64, [(shards(tmp_path / "other", 30), 0.5)])


# -- several corpora ---------------------------------------------------------------------------------------------------

PARTS = st.lists(st.integers(1, 60), min_size=1, max_size=6)


@FEW
@given(PARTS)
def test_of_any_first_rows_each_corpus_has_its_share_within_one(parts):
    rows = 2 * sum(parts) + 3
    which, nth = Turns(parts).of(np.arange(rows))
    for corpus, part in enumerate(parts):
        count = np.cumsum(which == corpus)
        off = np.abs(count - np.arange(1, rows + 1) * part / sum(parts)).max()
        assert off < 1, f"corpus {corpus} of {parts} is off by {off}"
        assert nth[which == corpus].tolist() == list(range(count[-1])), "each corpus goes on where it was"


def test_each_corpus_goes_through_its_own_epochs(tmp_path):
    own, other = shards(tmp_path / "a", range(80)), shards(tmp_path / "b", range(1000, 1024))
    loader = Windows(own, 8, [(other, 0.25)])
    seen = Counter(itertools.chain(*(row for step in range(40) for row in targets(batch(loader, 9, step, 1)[1]))))
    assert [seen[token] for token in range(80)] == [3] * 80, "30 of 40 rows are 3 epochs of 10 windows"
    assert {seen[token] for token in range(1000, 1024)} <= {3, 4}, "10 rows of 3 windows an epoch"


# -- whole documents ---------------------------------------------------------------------------------------------------


@FEW
@given(st.lists(st.integers(1, 25), min_size=1, max_size=60), st.integers(25, 40))
def test_best_fit_decreasing_is_what_it_is_one_by_one(lengths, room):
    """Against the plain method; rows may be numbered otherwise, so what lies together is compared."""
    order = sorted(range(len(lengths)), key=lambda n: (-lengths[n], n))
    free = list[int]()
    for n in order:
        fits = [(space, row) for row, space in enumerate(free) if space >= lengths[n]]
        row = min(fits)[1] if fits else len(free)
        free += [room] * (row == len(free))
        free[row] -= lengths[n]
    row_of = bfd(np.array(lengths), room)
    filled = np.bincount(row_of, lengths)
    assert filled.max() <= room
    assert sorted(room - filled) == sorted(free)


@FEW
@given(st.lists(st.integers(0, 30), min_size=1, max_size=20), st.integers(2, 12), st.integers(0, 9), st.booleans())
def test_packed_each_token_is_a_target_once_an_epoch(tmp_path_factory, documents, context, seed, whole):
    number = itertools.count()
    stream = [EOT]
    for length in documents:
        stream += [*(next(number) for _ in range(length)), EOT]
    stream = [*stream[: None if whole else -1], *([] if whole else [59_999])]  # a stream may end in mid-document
    if len(stream) <= context:
        return
    middle = len(stream) // 2
    loader = Windows(shards(tmp_path_factory.mktemp("s"), stream[:middle], stream[middle:]), context, (), EOT)
    rows = loader.corpora[0][1].rows
    for epoch in range(2):
        x, y, document = batch(loader, seed, epoch, rows)
        assert sorted(itertools.chain(*targets(y))) == sorted(stream[1:])
        for row in range(rows):
            spans = [document[row] == n for n in np.unique(document[row][y[row] != IGNORED])]
            for here in spans:
                read, said = x[row][here].tolist(), y[row][here].tolist()
                assert read[1:] == said[:-1]
                assert EOT not in said[:-1], "a span lies in one document"
                assert len(said) == context or said[-1] in (EOT, 59_999), "cut only where longer than the context"


def test_a_document_is_cut_only_where_it_is_longer_than_the_context(tmp_path):
    write_shard(tmp_path / "a.bin", np.array([EOT, 1, 2, EOT, 3, 4, 5, 6, 7, EOT, EOT, 8], np.uint16))
    start, length = pieces(borders(Stream([tmp_path / "a.bin"]), EOT), 4)
    assert list(zip(start.tolist(), length.tolist(), strict=True)) == [(0, 3), (3, 4), (7, 2), (9, 1), (10, 1)]


def test_packing_tells_its_padding(tmp_path, capsys):
    Windows(shards(tmp_path, [EOT, 1, 2, EOT, 3, EOT, 4, 5, EOT]), 5, (), EOT)
    assert capsys.readouterr().out == "packing: 3 documents and parts of long ones in 2 rows, 20.00% padding\n"
