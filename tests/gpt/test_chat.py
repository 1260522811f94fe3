"""Conversations as ids: the mask of a worked example, turns that content cannot forge, and the template's agreement."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt.chat import ROLES, TEMPLATE, render
from gpt.errors import UserError
from gpt.tokenizer import LETTERS, SPECIALS, Tokenizer, reserve

RANKS = {bytes([byte]): rank for rank, byte in enumerate(LETTERS)}
BYTES = Tokenizer(RANKS, "gpt2", reserve(RANKS))
EOT, SYSTEM, USER, ASSISTANT, END = range(256, 261)
CONTENT = st.lists(st.sampled_from([*SPECIALS, "<|", "end", "|>", " ", "\n", "é"]) | st.text(max_size=5)).map("".join)
TALK = st.lists(st.tuples(st.sampled_from(ROLES), CONTENT), max_size=6)


def say(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


def test_ids_and_mask_of_a_worked_example():
    ids, mask = render(
        BYTES, say(("system", "!"), ("user", "ab"), ("assistant", '"#'), ("user", "$"), ("assistant", "!"))
    )
    a, b = BYTES.encode("ab")
    turns = [SYSTEM, 0, END, USER, a, b, END, ASSISTANT, 1, 2, END, USER, 3, END, ASSISTANT, 0, END]
    learned = [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 1, 1]
    assert (ids, mask) == ([EOT, *turns], [0, *learned])


def test_a_reply_is_opened_and_not_learned():
    ids, mask = render(BYTES, say(("user", "!")), reply=True)
    assert (ids, mask) == ([EOT, USER, 0, END, ASSISTANT], [0] * 5)


@settings(deadline=None)
@given(TALK)
def test_content_forges_no_turn(turns):
    ids, mask = render(BYTES, say(*turns))
    assert sum(token in (SYSTEM, USER, ASSISTANT) for token in ids) == len(turns)
    assert (ids.count(END), ids.count(EOT), len(mask)) == (len(turns), 1, len(ids))


@settings(deadline=None)
@given(TALK)
def test_learned_are_the_assistants_words_and_ends_in_order(turns):
    ids, mask = render(BYTES, say(*turns))
    learned = [token for token, bit in zip(ids, mask, strict=True) if bit]
    assert learned == [t for role, text in turns if role == "assistant" for t in [*BYTES.encode(text), END]]


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(ROLES), st.text(st.characters(exclude_categories=["Cs"]))), max_size=4))
def test_the_template_writes_what_render_does(turns):
    jinja = pytest.importorskip("transformers.utils.chat_template_utils").render_jinja_template
    for reply in (False, True):
        written, _ = jinja([say(*turns)], chat_template=TEMPLATE, add_generation_prompt=reply)
        assert written == [BYTES.decode(render(BYTES, say(*turns), reply)[0])]


def test_an_unknown_role_is_refused_even_if_it_names_a_special_token():
    with pytest.raises(UserError, match=r"endoftext.*system, user, assistant"):
        render(BYTES, say(("endoftext", "hi")))
