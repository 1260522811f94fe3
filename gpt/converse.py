"""A conversation with a chat model: it remembers what was said and answers piece by piece.

In: a Checkpoint or release folder, what the user says. Out: the reply, streamed as text. When the conversation outgrows
half of the context, its oldest turns are forgotten, so that there is room for an answer.
"""

from collections.abc import Callable
from pathlib import Path

from gpt.chat import Message, render
from gpt.generate import Knobs, Speech, generate, laid_out


class Conversation:
    """A model, a tokenizer and the messages so far."""

    def __init__(
        self, folder: Path, device: str, system: str, knobs: Knobs, seed: int, weights: str = "float32"
    ) -> None:
        self.model, self.tokenizer = laid_out(folder, device, weights)
        self.knobs, self.seed = knobs, seed
        self.system: list[Message] = [{"role": "system", "content": system}] if system else []
        self.messages: list[Message] = []

    def say(self, text: str, piece: Callable[[str], object]) -> str:
        """The reply to what the user says; `piece` is told its text as it comes."""
        self.messages.append({"role": "user", "content": text})
        prompt, stop, speech = self._prompt(), self.tokenizer.stops, Speech(self.tokenizer, piece=piece)
        room, seeds = self.model.config.context - len(prompt), [self.seed + len(self.messages)]

        def heard(_: int, token: int) -> bool:
            return token not in stop and speech.hear(token)

        generate(self.model, [prompt], max(1, room), **self.knobs._asdict(), seeds=seeds, stop=stop, heard=heard)
        told = speech.end()
        self.messages.append({"role": "assistant", "content": told})
        return told

    def _prompt(self) -> list[int]:
        """The conversation as ids, without the oldest turns if it is too long."""
        while True:
            ids = render(self.tokenizer, [*self.system, *self.messages], reply=True)[0]
            if len(ids) <= self.model.config.context // 2 or len(self.messages) < 3:
                return ids[-self.model.config.context + 1 :]
            del self.messages[:2]
