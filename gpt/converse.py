"""A conversation with a chat model: it remembers what was said and answers piece by piece.

In: a Checkpoint or release folder, what the user says. Out: the reply, streamed as text. When the conversation outgrows
half of the context, its oldest turns are forgotten, so that there is room for an answer.
"""

from collections.abc import Callable
from pathlib import Path

from gpt.chat import Message, render
from gpt.generate import generate, load, pick_device


class Conversation:
    """A model, a tokenizer and the messages so far."""

    def __init__(self, folder: Path, device: str, system: str, temperature: float, top_k: int, seed: int) -> None:
        self.model, self.tokenizer = load(folder, pick_device(device))
        self.temperature, self.top_k, self.seed = temperature, top_k, seed
        self.system: list[Message] = [{"role": "system", "content": system}] if system else []
        self.messages: list[Message] = []

    def say(self, text: str, piece: Callable[[str], object]) -> str:
        """The reply to what the user says; `piece` is told its text as it comes."""
        self.messages.append({"role": "user", "content": text})
        prompt, told, ids = self._prompt(), "", list[int]()

        def heard(_: int, token: int) -> None:
            nonlocal told
            ids.extend([token] if token not in self.tokenizer.stops else [])
            whole = self.tokenizer.decode(ids).rstrip("\ufffd")  # the bytes of a character may come one by one
            piece(whole[len(told) :])
            told = whole

        room, seeds = self.model.config.context - len(prompt), [self.seed + len(self.messages)]
        stop = self.tokenizer.stops
        generate(self.model, [prompt], max(1, room), temperature=self.temperature, top_k=self.top_k, seeds=seeds,
                 stop=stop, heard=heard)  # fmt: skip
        self.messages.append({"role": "assistant", "content": told})
        return told

    def _prompt(self) -> list[int]:
        """The conversation as ids, without the oldest turns if it is too long."""
        while True:
            ids = render(self.tokenizer, [*self.system, *self.messages], reply=True)[0]
            if len(ids) <= self.model.config.context // 2 or len(self.messages) < 3:
                return ids[-self.model.config.context + 1 :]
            del self.messages[:2]
