"""Export and import, judged by transformers itself."""

import json
from dataclasses import asdict
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from gpt.config import ModelConfig
from gpt.errors import UserError
from gpt.generate import generate
from gpt.hf import from_hf, to_hf, write_release
from gpt.model import GPT
from gpt.tokenizer import Tokenizer, reserve

transformers = pytest.importorskip("transformers")
SMALL: dict[str, Any] = {"depth": 2, "width": 32, "heads": 4, "context": 96}
MODELS = {
    "gpt2 tied": ModelConfig(family="gpt2", **SMALL),
    "gpt2 untied, dropout": ModelConfig(family="gpt2", tied=False, dropout=0.1, **SMALL),
    "modern tied": ModelConfig(**SMALL),
    "modern untied, grouped heads, large theta": ModelConfig(tied=False, kv_heads=2, rope_theta=1e6, **SMALL),
}
VOCAB = 300


@pytest.fixture(params=MODELS.values(), ids=list(MODELS))
def model(request):
    """A model far from its initialisation: every vector is random too, and logits spread."""
    torch.manual_seed(0)
    model = GPT(request.param, VOCAB).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.2)
    return model


@pytest.fixture
def folder(model, tmp_path):
    return save(tmp_path, *to_hf(model))


def save(folder, config, tensors):
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def load(folder):
    found, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, local_files_only=True
    )
    return found.eval(), report


def test_transformers_loads_every_tensor_and_finds_none_missing(model, folder):
    judge, report = load(folder)
    assert type(judge).__name__ == ("GPT2LMHeadModel" if model.config.family == "gpt2" else "Qwen3ForCausalLM")
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), report


def test_transformers_computes_the_same_logits(model, folder):
    ids_BT = torch.randint(VOCAB, (2, model.config.context), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        ours, theirs = model(ids_BT), load(folder)[0](ids_BT).logits
    difference = (ours - theirs).abs().max().item()
    assert ours.std() > 0.5, f"logits hardly spread ({ours.std()}), so a difference would not show"
    assert difference <= 1e-5, f"logits differ by {difference}"


def test_transformers_writes_the_same_60_greedy_tokens(model, folder):
    prompt = torch.tensor([[5, 17, 250, 3]])
    judge = load(folder)[0]
    theirs = judge.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=60)
    ours = generate(model, prompt.tolist(), 60, temperature=0)[0]
    assert ours == theirs[0, 4:].tolist()


def test_what_is_written_is_read_back_bit_for_bit(model, folder):
    found = from_hf(folder)
    assert (found.config, found.vocab_size, found.training) == (model.config, VOCAB, False)
    state = found.state_dict()
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("kind", ["GPT2", "Qwen3"])
def test_a_folder_that_transformers_wrote_is_read(kind, tmp_path):
    torch.manual_seed(0)
    small = {"vocab_size": 50, "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2}
    only = {"n_positions": 32} if kind == "GPT2" else {"num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 48}
    judge = transformers.AutoModelForCausalLM.from_config(getattr(transformers, f"{kind}Config")(**small | only)).eval()
    judge.save_pretrained(tmp_path)
    model = from_hf(tmp_path)
    ids_BT = torch.arange(32)[None]
    with torch.inference_mode():
        difference = (model(ids_BT) - judge(ids_BT).logits).abs().max().item()
    assert difference <= 1e-5, f"logits differ by {difference}"


def test_half_precision_is_read_as_float32(model, tmp_path):
    config, tensors = to_hf(model)
    found = from_hf(save(tmp_path, config, {name: tensor.bfloat16() for name, tensor in tensors.items()})).state_dict()
    for name, tensor in model.state_dict().items():
        assert found[name].dtype == torch.float32
        assert torch.equal(found[name], tensor.bfloat16().float()), name


def test_openais_names_without_prefix_are_read_and_their_mask_buffers_ignored(tmp_path):
    model = GPT(MODELS["gpt2 tied"], VOCAB)
    config, tensors = to_hf(model)
    bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    state = from_hf(save(tmp_path, config, bare | {"h.0.attn.bias": torch.ones(1, 1, 96, 96)})).state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("family", "change"),
    [
        ("modern", {"model_type": "llama"}),
        ("modern", {"hidden_act": "gelu"}),
        ("modern", {"head_dim": 64}),
        ("modern", {"rms_norm_eps": 1e-5}),
        ("modern", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}),
        ("modern", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0}}),
        ("gpt2", {"activation_function": "relu"}),
    ],
)
def test_a_model_that_computes_something_else_is_refused(family, change, tmp_path):
    model = GPT(MODELS[f"{family} tied"], VOCAB)
    config, tensors = to_hf(model)
    with pytest.raises(UserError, match=next(iter(change))):
        from_hf(save(tmp_path, config | change, tensors))


def test_a_folder_whose_config_names_no_model_type_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model": {}, "vocab_size": 5}')
    with pytest.raises(UserError, match="model_type None cannot be read; gpt2 and qwen3 can"):
        from_hf(tmp_path)


def test_a_folder_that_lacks_a_tensor_is_refused_by_its_name(tmp_path):
    model = GPT(MODELS["modern tied"], VOCAB)
    config, tensors = to_hf(model)
    del tensors["model.layers.1.mlp.gate_proj.weight"]
    with pytest.raises(UserError, match=r"model\.layers\.1\.mlp\.gate_proj\.weight"):
        from_hf(save(tmp_path, config, tensors))


@pytest.fixture
def checkpoint(tmp_path):
    """A checkpoint folder with a tokenizer of single bytes."""
    ranks = {bytes([byte]): byte for byte in range(256)}
    tokenizer = Tokenizer(ranks, "gpt2", reserve(ranks))
    folder = tmp_path / "checkpoint"
    (folder / "tokenizer").mkdir(parents=True)
    tokenizer.save(folder / "tokenizer")
    model = GPT(ModelConfig(**SMALL), tokenizer.vocab_size)
    save_file(model.state_dict(), folder / "model.safetensors")
    config = {"model": asdict(model.config), "vocab_size": tokenizer.vocab_size}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_release_has_every_file_that_users_expect_and_the_same_bytes_twice(checkpoint, tmp_path):
    names = "config.json generation_config.json model.safetensors tokenizer.json tokenizer_config.json vocab.json "
    names += "merges.txt special_tokens_map.json chat_template.jinja ranks.tiktoken"
    written = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_release(tmp_path / name, checkpoint)
        written.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert set(written[0]) == set(names.split())
    assert written[0] == written[1]


def test_a_released_model_stops_at_the_end_of_its_turn(checkpoint, tmp_path):
    write_release(tmp_path, checkpoint)
    tokenizer = Tokenizer.load(checkpoint / "tokenizer")
    found = transformers.GenerationConfig.from_pretrained(tmp_path)
    assert found.eos_token_id == [tokenizer.end, tokenizer.eot]
    assert found.pad_token_id == found.bos_token_id == tokenizer.eot
