"""Conversations as token ids: whose turn it is stands in ids that no text can spell, what is learned stands in a mask.

In: a tokenizer and messages {role, content}. Out: ids and mask; the same layout as a Jinja template for other software.
Method: one token a role and one end token, as in ChatML; roles are placed as ids, so content cannot forge a turn.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gpt.errors import UserError

if TYPE_CHECKING:
    from gpt.tokenizer import Tokenizer

Message = dict[str, str]
ROLES = ("system", "user", "assistant")
# What `render` does, for transformers, llama.cpp and servers; {% generation %} marks what an assistant mask covers.
# They tokenize the rendered text, so with them content that spells a special token does become that token.
TEMPLATE = (
    "{{ '<|endoftext|>' }}{% for message in messages %}{{ '<|' + message['role'] + '|>' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def render(tokenizer: "Tokenizer", messages: Sequence[Message], reply: bool = False) -> tuple[list[int], list[int]]:
    """Ids and mask of a conversation; the mask is 1 exactly on the assistant's words and the end token after them.

    `reply` opens the assistant's next turn. The mask marks targets: shift it with the ids. UserError: unknown role.
    """
    ids, mask = [tokenizer.eot], [0]
    for message in messages:
        if message["role"] not in ROLES:
            raise UserError(f"a message has role {message['role']!r}; roles are {', '.join(ROLES)}")
        spoken = [*tokenizer.encode(message["content"]), tokenizer.end]
        ids += [tokenizer.specials[f"<|{message['role']}|>"], *spoken]
        mask += [0, *[int(message["role"] == "assistant")] * len(spoken)]
    return ([*ids, tokenizer.specials["<|assistant|>"]], [*mask, 0]) if reply else (ids, mask)
