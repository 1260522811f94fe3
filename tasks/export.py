"""Write the model as a Hugging Face folder, load it back with transformers, and publish it only if it is the same model.

In: Checkpoint, Scores, Tokenizer. Out: Release. Method: gpt/hf.py writes, AutoModelForCausalLM and AutoTokenizer judge by
logits, greedy tokens, token ids of adversarial texts and the chat template; a difference fails the stage.
"""

import json
from pathlib import Path
from typing import Any

from pydantic import Field

from gpt.chat import Message, render
from tasks.artifacts import Checkpoint, Config, Metrics, Release, Scores, Tokenizer
from tasks.runtime import say
from tasks.stage import stage

TEXTS = (  # what tokenizers disagree on: joiners, line ends, digits of several scripts, runs, special tokens as text
    "Return the number of items.",
    "👩‍👩‍👧‍👦 é é ﬁ",
    "a\r\nb\rc\n\n\n d",
    "1234567 ٠١٢٣٤ १२३",
    " " * 300 + "x",
    "\x00\t ~",
    "<|endoftext|> and <|assistant|> are text<|end|>",
    "aaaa" * 200,
    "el niño comió",
    "日本語のテキスト",
    "don't I'LL we've",
    "",
)
TALK: list[Message] = [{"role": "user", "content": "What is 2 + 2?"}]
LOGIT_TOLERANCE = 1e-4
CARD = """---
library_name: transformers
pipeline_tag: text-generation
---
# {title}

A language model made with gptloom: {shape}, a vocabulary of {vocabulary:,} tokens. transformers, vLLM and others load it:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # where this file lies
model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
messages = [{{"role": "user", "content": "What is 2 + 2?"}}]
inputs = {inputs}
print(tokenizer.decode(model.generate(**inputs)[0]))
```

## Scores

{scores}

## Lineage

| stage | artifact | sha256 of its content |
|---|---|---|
{lineage}
"""


class Export(Config):
    """How the release is named and checked."""

    title: str = "gptloom"
    """The model's name at the head of its card."""
    greedy_tokens: int = Field(60, ge=1)
    """Tokens that our engine and transformers write greedily after each of three prompts, and that must be equal."""


@stage(Release, version="1")
def export(out: Path, config: Export, model: Checkpoint, scores: Scores, tokenizer: Tokenizer) -> Metrics:
    """Write the Hugging Face folder and its model card, load it back with transformers and compare."""
    from gpt.hf import write_release

    write_release(out, model.path)
    (out / "README.md").write_text(card(config.title, model, scores, tokenizer), encoding="utf-8")
    say("loading it back with transformers")
    difference, parameters = compare(out, model.path, config.greedy_tokens)
    size = sum(path.stat().st_size for path in out.iterdir())
    return {"eval/max_logit_difference": difference, "data/parameters": parameters, "data/bytes": size}


def compare(release: Path, checkpoint: Path, greedy_tokens: int) -> tuple[float, int]:
    """Largest logit difference and number of parameters; RuntimeError where transformers has another model."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from gpt.checkpoint import load_model
    from gpt.generate import generate
    from gpt.tokenizer import Tokenizer as Loaded

    ours, our_tokenizer = load_model(checkpoint), Loaded.load(checkpoint / "tokenizer")
    theirs, loading = AutoModelForCausalLM.from_pretrained(release, output_loading_info=True, local_files_only=True)
    same("tensors not loaded", [], sorted(name for kind in loading.values() for name in kind))
    their_tokenizer = AutoTokenizer.from_pretrained(release, local_files_only=True)
    plain = {"add_special_tokens": False, "split_special_tokens": True}
    for text in TEXTS:
        same(f"ids of {text[:40]!r}", our_tokenizer.encode(text), their_tokenizer(text, **plain)["input_ids"])
    talk = their_tokenizer.apply_chat_template(TALK, tokenize=False, add_generation_prompt=True)
    prompts = [render(our_tokenizer, TALK, reply=True)[0], [our_tokenizer.eot], our_tokenizer.encode(TEXTS[0])]
    same("ids of a chat", prompts[0], their_tokenizer(talk, add_special_tokens=False)["input_ids"])
    for prompt in (ids[: ours.config.context // 2] for ids in prompts):
        ids, room = torch.tensor([prompt]), min(greedy_tokens, ours.config.context - len(prompt))
        written = theirs.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=room)
        own = generate(ours, [prompt], room, temperature=0, stop=(our_tokenizer.end, our_tokenizer.eot))[0]
        same(f"greedy text after {prompt}", own, written[0, len(prompt) :].tolist())
    ids_BT = torch.randint(ours.vocab_size, (2, ours.config.context), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        difference = (ours(ids_BT) - theirs(ids_BT).logits).abs().max().item()
    if not difference <= LOGIT_TOLERANCE:
        raise RuntimeError(f"transformers' logits differ by {difference}, more than {LOGIT_TOLERANCE}")
    return difference, theirs.num_parameters()


def same(what: str, ours: list[Any], theirs: list[Any]) -> None:
    """RuntimeError unless equal."""
    if ours != theirs:
        raise RuntimeError(
            f"the release is not the model that was trained: {what}: {ours} here, {theirs} in transformers"
        )


def card(title: str, model: Checkpoint, scores: Scores, tokenizer: Tokenizer) -> str:
    """The model card: what it is, how to load it, what it scored, what it was made from."""
    made = json.loads((model.path / "config.json").read_text())
    shape = "{depth} layers, {width} wide, {heads} heads, {context} tokens of context".format(**made["model"])
    chat = 'tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")'
    inputs = 'tokenizer("The", return_tensors="pt")' if model.stage == "pretrain" else chat
    lineage = [f"| {of.stage} | `{of}` | `{of.digest}` |" for of in (model, scores, tokenizer)]
    return CARD.format(
        title=title,
        shape=shape,
        vocabulary=made["vocab_size"],
        inputs=inputs,
        lineage="\n".join(lineage),
        scores=(scores.path / "report" / "scores.md").read_text(encoding="utf-8").strip(),
    )
