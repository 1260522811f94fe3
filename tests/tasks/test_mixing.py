"""A part's files: pieces find their places whatever is read at a time, and what was read makes room."""

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt.data import read_shard
from tasks import mixing
from tasks.mixing import PAGE, give_back, write

EOT = 7


@given(
    lengths=st.lists(st.lists(st.integers(0, 40), max_size=12), min_size=1, max_size=4),
    order=st.randoms(use_true_random=False),
    most=st.integers(1, 200),
    first=st.integers(0, 1),
)
@settings(max_examples=60)
def test_each_piece_lies_where_the_order_puts_it_with_an_end_of_text_after_it(
    tmp_path_factory, lengths, order, most, first
):
    folder, draw = tmp_path_factory.mktemp("units"), np.random.default_rng(1)
    units = [[draw.integers(8, 60_000, n).astype(np.uint16) for n in sizes] for sizes in lengths]
    places = [(file, sum(sizes[:row])) for file, sizes in enumerate(lengths) for row in range(len(sizes))]
    bodies = [piece for unit in units for piece in unit]
    chosen = order.sample(range(len(bodies)), len(bodies))
    wanted = [EOT] * first + [token for n in chosen for token in [*bodies[n].tolist(), EOT]]
    for number, unit in enumerate(units):
        (folder / str(number)).write_bytes(b"".join(piece.tobytes() for piece in unit))
    files = [os.open(folder / str(number), os.O_RDWR) for number in range(len(units))]
    tokens = np.array([len(bodies[n]) for n in chosen], np.int64)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"BLOCK_TOKENS": most, "BUFFERS": 3, "GIVE_BACK": 2}.items():
            patch.setattr(mixing, name, value)
        where = np.array([places[n] for n in chosen], np.int64).reshape(-1, 2).T
        write(folder / "out.bin", "uint16", files, where, tokens, EOT, first)
    for file in files:
        os.close(file)
    assert read_shard(folder / "out.bin").tolist() == wanted


def test_a_units_file_that_lost_its_end_is_not_read_as_if_it_had_one(tmp_path):
    (tmp_path / "unit").write_bytes(bytes(100))
    places, tokens = np.array([[0, 0], [0, 40]]), np.array([40, 20])
    with (tmp_path / "unit").open("rb") as file, pytest.raises(OSError, match="lost its end; run the stage again"):
        write(tmp_path / "out.bin", "uint16", [file.fileno()], places, tokens, EOT, 0)


def test_what_was_read_of_a_units_file_makes_room_and_nothing_else_is_touched(tmp_path):
    path, raw = tmp_path / "unit", os.urandom(100 * PAGE)
    path.write_bytes(raw)
    with path.open("r+b") as file:
        os.fsync(file.fileno())
        before = os.fstat(file.fileno()).st_blocks
        # two that follow each other: their pages but the first and the last, which others have a share of
        give_back([file.fileno()], np.array([[0, 0], [40 * PAGE, 100], [19 * PAGE, 40 * PAGE - 100]]))
        room = (before - os.fstat(file.fileno()).st_blocks) * 512
    if not room:
        pytest.skip("this file system makes no holes")
    assert room == 58 * PAGE
    assert path.read_bytes() == raw[:PAGE] + bytes(58 * PAGE) + raw[59 * PAGE :]
