"""Post-training judged by TRL 1.16: the same losses on the same weights and batches over three optimiser steps.

TRL comes with the optional extra `oracle`; without it these tests skip. Every TRL default that hides the arithmetic is
switched off: bf16, gradient checkpointing, shuffling, clipping, learning rate schedules.
"""

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from gpt.chat import render
from gpt.config import ModelConfig, PreferConfig, TrainConfig
from gpt.data import IGNORED
from gpt.hf import from_hf, to_hf
from gpt.losses import advantages, grpo, log_probs
from gpt.model import GPT
from gpt.objectives import NextToken, Preference, padded
from gpt.tokenizer import Tokenizer

pytest.importorskip("trl", reason="TRL judges post-training: pip install -e '.[oracle]'")
pytestmark = pytest.mark.timeout(600)
RATE, STEPS = 1e-3, 3
QUESTIONS = ["hi", "who are you?", "2+2?", "a longer question, is it?", "bye", "why", "so what", "what is a list?"]
ANSWERS = [
    "Hello.",
    "A model.",
    "4",
    "It is, a little.",
    "Good bye, and thanks.",
    "Because.",
    "Nothing.",
    "A sequence.",
]
PLAIN = {"bf16": False, "gradient_checkpointing": False, "max_grad_norm": 1e9, "lr_scheduler_type": "constant",
         "learning_rate": RATE, "weight_decay": 0.0, "max_steps": STEPS, "logging_steps": 1, "report_to": "none",
         "save_strategy": "no", "disable_tqdm": True, "use_cpu": True, "seed": 1}  # fmt: skip


@pytest.fixture
def release(tmp_path, tokenizer: Tokenizer):
    """A GPT-2 folder of ours that transformers loads: two layers, every vector random."""
    torch.manual_seed(0)
    model = GPT(ModelConfig(family="gpt2", depth=2, width=64, heads=4, context=128), tokenizer.vocab_size)
    config, tensors = to_hf(model)
    from safetensors.torch import save_file

    folder = tmp_path / "release"
    folder.mkdir()
    special = {"bos_token_id": tokenizer.eot, "eos_token_id": tokenizer.end, "pad_token_id": tokenizer.eot}
    dropped = {name: 0.0 for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop")}
    (folder / "config.json").write_text(json.dumps(config | special | dropped))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    tokenizer.save(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(
        json.dumps(settings | {"eos_token": "<|end|>", "pad_token": "<|endoftext|>"})
    )
    return folder


def loaded(release) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(release, dtype=torch.float32), AutoTokenizer.from_pretrained(release)


def told(trainer) -> list[float]:
    """TRL's loss at each step, unrounded."""
    seen, inner = [], trainer.compute_loss

    def compute_loss(*args, **kwargs):
        loss = inner(*args, **kwargs)
        seen.append(float(loss[0] if isinstance(loss, tuple) else loss))
        return loss

    trainer.compute_loss = compute_loss
    trainer._get_train_sampler = lambda *_: torch.utils.data.SequentialSampler(trainer.train_dataset)
    trainer.train()
    return seen


def ours(objective, model: GPT) -> list[float]:
    """Our objective's loss over the same steps of AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    losses = []
    for step in range(STEPS):
        loss, _, _ = objective.backward(step)
        losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    return losses


def test_sft_losses_are_those_of_trl(release, tokenizer, tmp_path):
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    talks = [
        [{"role": "user", "content": q}, {"role": "assistant", "content": a}]
        for q, a in zip(QUESTIONS, ANSWERS, strict=True)
    ]
    judge, words = loaded(release)
    args = SFTConfig(
        str(tmp_path / "out"), per_device_train_batch_size=4, assistant_only_loss=True, max_length=128, **PLAIN
    )
    data = Dataset.from_list([{"messages": talk} for talk in talks * 2])
    theirs = told(SFTTrainer(judge, args, train_dataset=data, processing_class=words))

    rows = [render(tokenizer, talk) for talk in talks * 2]

    def batch(seed: int, step: int, size: int, *ranks: int):
        chosen = rows[step * size : step * size + size]
        time = max(len(ids) for ids, _ in chosen) - 1
        x_BT, y_BT = np.zeros((size, time), np.int64), np.full((size, time), IGNORED)
        for row, (ids, mask) in enumerate(chosen):
            x_BT[row, : len(ids) - 1] = ids[:-1]
            y_BT[row, : len(ids) - 1] = np.where(mask[1:], ids[1:], IGNORED)
        return x_BT, y_BT

    model = from_hf(release).train()
    objective = NextToken.__new__(NextToken)
    objective.config, objective.model, objective.data = TrainConfig(batch=4), model, SimpleNamespace(batch=batch)
    objective.waited_s = 0.0
    here = ours(objective, model)
    print("sft", theirs, here)
    assert max(abs(a - b) for a, b in zip(theirs, here, strict=True)) <= 1e-6, (theirs, here)


def test_dpo_losses_are_those_of_trl(release, tokenizer, tmp_path):
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    said = [(q, a, ANSWERS[n - 3]) for n, (q, a) in enumerate(zip(QUESTIONS, ANSWERS, strict=True))] * 2
    judge, words = loaded(release)
    args = DPOConfig(str(tmp_path / "out"), per_device_train_batch_size=4, beta=0.1, max_length=128, **PLAIN)
    rows = [
        {
            "prompt": [{"role": "user", "content": q}],
            "chosen": [{"role": "assistant", "content": c}],
            "rejected": [{"role": "assistant", "content": r}],
        }
        for q, c, r in said
    ]
    reference, _ = loaded(release)
    theirs = told(DPOTrainer(judge, reference, args, train_dataset=Dataset.from_list(rows), processing_class=words))

    asked = [render(tokenizer, [{"role": "user", "content": q}], reply=True)[0] for q, _, _ in said for _ in range(2)]
    answers = [[*tokenizer.encode(text), tokenizer.end] for _, c, r in said for text in (c, r)]
    model, first = from_hf(release).train(), from_hf(release)
    data = SimpleNamespace(
        padded=lambda chosen: padded([asked[n] for n in chosen], [answers[n] for n in chosen], 128),
        rows=lambda seed, step, pairs: np.arange(step * pairs, (step + 1) * pairs) * 2,
    )
    objective = Preference.__new__(Preference)
    objective.config, objective.model, objective.data = PreferConfig(batch=4, sft_weight=0.0), model, data
    objective.reference = objective._answers(first, np.arange(len(asked)))[0].numpy()
    here = ours(objective, model)
    print("dpo", theirs, here)
    assert max(abs(a - b) for a, b in zip(theirs, here, strict=True)) <= 1e-5, (theirs, here)


@pytest.mark.parametrize("variant", ["grpo", "dr_grpo", "dapo"])
def test_grpo_losses_are_those_of_trl_on_completions_of_unequal_length(release, tmp_path, variant):
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    captured: list[tuple[dict, float, dict]] = []

    class Capturing(GRPOTrainer):
        """Shortens completions at random (a random model always fills the maximum) and keeps what the loss was of."""

        def _compute_loss(self, model, inputs):
            mask = inputs["completion_mask"]
            keep = torch.randint(
                1, mask.shape[1] + 1, (len(mask), 1), generator=torch.Generator().manual_seed(len(captured))
            )
            inputs["completion_mask"] = mask * (torch.arange(mask.shape[1])[None] < keep)
            inputs["num_items_in_batch"] = inputs["completion_mask"].sum()
            weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
            loss = super()._compute_loss(model, inputs)
            captured.append(({k: v.clone() for k, v in inputs.items() if torch.is_tensor(v)}, loss.item(), weights))
            return loss

    _, words = loaded(release)
    args = GRPOConfig(
        str(tmp_path / "out"), per_device_train_batch_size=8, num_generations=4, max_completion_length=12, beta=0.04,
        loss_type=variant, scale_rewards=variant != "dr_grpo", temperature=1.0, **PLAIN,
    )  # fmt: skip
    # Of one length: transformers' GPT-2 counts left padding as positions, which only this family would show.
    equal = ["why?", "who?", "how?", "what", "when", "1+1?", "2+3?", "4-1?"]
    prompts = Dataset.from_list([{"prompt": [{"role": "user", "content": q}]} for q in equal])

    def reward(completions, **_):
        return [float(sum(map(ord, one[0]["content"])) % 7) for one in completions]

    Capturing(str(release), reward, args, train_dataset=prompts, processing_class=words).train()
    reference = from_hf(release)
    for inputs, theirs, weights in captured:
        here = recomputed(release, weights, reference, inputs, variant)
        print(variant, theirs, here)
        assert abs(theirs - here) <= 1e-6
    assert len(captured) == STEPS
    assert len({int(n) for inputs, _, _ in captured for n in inputs["completion_mask"].sum(1)}) > 3


def recomputed(release, weights, reference: GPT, inputs: dict, variant: str) -> float:
    """Our loss of what TRL's was of: left-padded prompts are shifted to the left, completions follow at once."""
    from safetensors.torch import save_file

    names = dict(to_hf(reference)[1])
    save_file({name: weights[name].contiguous() for name in names}, release / "model.safetensors", {"format": "pt"})
    model = from_hf(release)
    prompts = [ids[mask.bool()].tolist() for ids, mask in zip(inputs["prompt_ids"], inputs["prompt_mask"], strict=True)]
    masks = inputs["completion_mask"]
    replies = [ids[mask.bool()].tolist() for ids, mask in zip(inputs["completion_ids"], masks, strict=True)]
    x_BT, y_BT = map(torch.from_numpy, padded(prompts, replies, 128))
    logp = log_probs(model, x_BT, y_BT)
    size = {"grpo": len(replies), "dapo": int(masks.sum()), "dr_grpo": len(replies) * 12}[variant]
    there = log_probs(reference, x_BT, y_BT)
    return grpo(logp, logp.detach(), inputs["advantages"], y_BT != IGNORED, variant, size, there, 0.04).item()


def test_advantages_are_what_trl_passes_on():
    rewards_PG = torch.tensor([[1.0, 0.0, 0.0, 1.0], [2.0, 2.0, 2.0, 2.0]])
    assert advantages(rewards_PG, "grpo")[0].tolist() == pytest.approx([0.8659, -0.8659, -0.8659, 0.8659], abs=1e-3)
    assert advantages(rewards_PG, "dapo")[1].abs().max() == 0
    assert advantages(rewards_PG, "dr_grpo")[0].tolist() == [0.5, -0.5, -0.5, 0.5]
