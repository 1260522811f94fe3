"""The journal survives kills, and a resume leaves each point once."""

import errno
import json
import os

import pytest

from gpt.journal import Journal


def steps(path):
    return [json.loads(line)[1] for line in path.read_text().splitlines()]


def test_a_line_is_time_step_and_values(tmp_path):
    Journal(tmp_path / "logs" / "m.jsonl").log(3, {"train/loss": 1.5})
    time_ms, step, values = json.loads((tmp_path / "logs" / "m.jsonl").read_text())
    assert time_ms > 1_600_000_000_000
    assert (step, values) == (3, {"train/loss": 1.5})


def test_a_torn_line_goes_and_the_next_one_is_whole(tmp_path):
    path = tmp_path / "m.jsonl"
    Journal(path).log(1, {"a": 1})
    with path.open("a") as file:
        file.write('[1, 2, {"a"')
    Journal(path).log(2, {"a": 2})
    assert steps(path) == [1, 2]


@pytest.mark.parametrize("written", [0, 9])
def test_a_full_disk_costs_a_line_and_leaves_the_others_whole(tmp_path, monkeypatch, written):
    journal, write = Journal(tmp_path / "m.jsonl"), os.write
    journal.log(1, {"a": 1})

    def full(fd, line):
        if not written:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(fd, line[:written])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        journal.log(2, {"a": 2})
    journal.log(3, {"a": 3})
    assert steps(tmp_path / "m.jsonl") == [1, 3]


def test_a_resume_drops_what_lies_beyond_its_checkpoint(tmp_path):
    path = tmp_path / "m.jsonl"
    first = Journal(path)
    for step in range(6):
        first.log(step, {"a": step})
    Journal(path, after_step=3).log(4, {"a": 4})
    assert steps(path) == [0, 1, 2, 3, 4]
    Journal(path, after_step=-1)
    assert steps(path) == []
