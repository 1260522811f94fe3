"""Write the model as a Hugging Face folder, load it back with transformers, publish it only if it is the same model.

In: Checkpoint, Scores, Tokenizer. Out: Release; in `report/` its lineage as a page. Method: gpt/hf.py writes;
AutoModelForCausalLM and AutoTokenizer judge by tensors, logits, greedy tokens, ids of adversarial texts and the chat
template. A difference fails the stage.
The model card is card.md with its $names filled in.
"""

import json
from pathlib import Path
from string import Template
from typing import Any

from pydantic import Field

from gpt.chat import Message, render
from tasks.artifacts import Checkpoint, Config, Metrics, Release, Scores, Tokenizer
from tasks.lineage import becoming, page
from tasks.runtime import say
from tasks.stage import stage

# What tokenizers disagree on: joiners, line ends, digits, blanks, special tokens as text.
TEXTS = "Return the number of items.¦👩‍👩‍👧‍👦 e\u0301 é ﬁ¦a\r\nb\rc\n\n\n d¦1234567 ٠١٢٣ १२३¦            x¦\x00\t¦"
TEXTS += "<|endoftext|> and <|user|> are text<|end|>¦El niño comió¦日本語の文¦don't I'LL we've ~" + "¦" + "a" * 999
TALK: list[Message] = [{"role": "user", "content": "What is 2 + 2?"}]
TOLERANCE = 1e-4  # of logits; float32 on one machine differs by about 1e-6


class Export(Config):
    """How the release is checked."""

    greedy_tokens: int = Field(60, ge=1)
    """Tokens that our engine and transformers each write after three prompts, and that must be equal."""


@stage(Release, version="2")
def export(out: Path, config: Export, model: Checkpoint, scores: Scores, tokenizer: Tokenizer) -> Metrics:
    """Write the Hugging Face folder and its model card, load it back with transformers and compare."""
    from gpt.hf import write_release

    write_release(out, model.path)
    (out / "README.md").write_text(card(model, scores, tokenizer), encoding="utf-8")
    say("loading the release with transformers")
    difference, parameters = compare(out, model.path, config.greedy_tokens)
    size = sum(path.stat().st_size for path in out.iterdir())
    (out / "report").mkdir()
    (out / "report" / "lineage.html").write_text(page(becoming(out, [model, scores, tokenizer])), encoding="utf-8")
    return {"eval/max_logit_difference": difference, "data/parameters": parameters, "data/bytes": size}


def compare(release: Path, checkpoint: Path, greedy_tokens: int) -> tuple[float, int]:
    """Largest logit difference and number of parameters; RuntimeError where transformers has another model."""
    import torch
    import transformers

    from gpt.generate import generate, load

    transformers.logging.disable_progress_bar()
    ours, words = load(checkpoint, "cpu")
    loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(release, output_loading_info=True)
    theirs, loading = loaded
    auto: Any = transformers.AutoTokenizer.from_pretrained(release)
    pairs = {"tensors": ([], [name for kind in loading.values() for name in kind])}
    for text in TEXTS.split("¦"):
        ids = auto.encode(text, add_special_tokens=False, split_special_tokens=True)
        pairs[f"ids of {text[:50]!r}"] = words.encode(text), ids
    chat = render(words, TALK, reply=True)[0]
    pairs["ids of a chat"] = chat, auto.apply_chat_template(TALK, add_generation_prompt=True, return_dict=False)
    for prompt in ([words.eot], words.encode("Return the"), chat):
        prompt = prompt[: ours.config.context // 2]
        ids, room = torch.tensor([prompt]), min(greedy_tokens, ours.config.context - len(prompt))
        there = theirs.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=room)
        here = generate(ours, [prompt], room, temperature=0, stop=(words.end, words.eot))[0]
        pairs[f"greedy tokens after {prompt}"] = here, there[0, len(prompt) :].tolist()
    ids_BT = torch.randint(ours.vocab_size, (2, ours.config.context), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        difference = (ours(ids_BT) - theirs(ids_BT).logits).abs().max().item()
    pairs["logits"] = [True], [difference <= TOLERANCE]
    for what, (here, there) in pairs.items():
        if here != there:
            raise RuntimeError(f"transformers loads another model than was trained: {what}: {here} here, {there} there")
    return difference, theirs.num_parameters()


def card(model: Checkpoint, scores: Scores, tokenizer: Tokenizer) -> str:
    """The model card: what it is, how to load it, what it scored, what it was made from."""
    made = json.loads((model.path / "config.json").read_text())
    prompt = 'tokenizer("The", return_tensors="pt")'
    chat = 'tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")'
    facts = {"inputs": prompt if model.stage == "pretrain" else chat, "vocabulary": f"{made['vocab_size']:,}"}
    facts["scores"] = (scores.path / "report" / "scores.md").read_text(encoding="utf-8")
    facts["lineage"] = "\n".join(f"| {of.stage} | `{of}` | `{of.digest}` |" for of in (model, scores, tokenizer))
    template = Template(Path(__file__).with_name("card.md").read_text(encoding="utf-8"))
    return template.substitute(made["model"], **facts)
