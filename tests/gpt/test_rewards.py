"""Rewards read numbers as people write them, and run nothing."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt.rewards import REWARDS, exact, form, number, numeric


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("34 + 52 = 86.", "86"),
        ("so it is 1,234.50.", "1234.5"),
        ("#### -7", "-7"),
        ("3 apples, 4 pears", "4"),
        ("1.000,5", "5"),
        ("3 - 5", "5"),
        ("minus is −7", "-7"),
        (".5", "0.5"),
        ("about 1e+20", "1e20"),
        ("version v2", None),
        ("nothing", None),
        ("__import__('os').system('false')", None),
    ],
)
def test_the_last_number_counts(text, value):
    assert number(text) == (value and Decimal(value))


@given(st.text())
def test_no_text_breaks_a_reward(text):
    assert all(0 <= reward(text, "86", True) <= 1 for reward in REWARDS.values())


def test_rewards_of_worked_replies():
    assert [numeric(reply, "#### 1,086", True) for reply in ("1086", "it is 1,086.0.", "86", "")] == [1, 1, 0, 0]
    assert [exact(reply, "86", True) for reply in (" 86\n", "86.")] == [1, 0]
    assert [form("86", "0", True), form("86", "0", False), form("eighty", "0", True)] == [1, 0, 0]
