"""Export and import, judged by transformers itself."""

import json
from dataclasses import asdict
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from gpt.config import ModelConfig
from gpt.errors import UserError
from gpt.generate import generate
from gpt.hf import fingerprint, from_hf, start_from, to_hf, write_release
from gpt.model import GPT
from gpt.tokenizer import Tokenizer, reserve

transformers = pytest.importorskip("transformers")
SMALL: dict[str, Any] = {"depth": 2, "width": 32, "heads": 4, "context": 96}
MODELS = {
    "gpt2 tied": ModelConfig(family="gpt2", **SMALL),
    "gpt2 untied, dropout": ModelConfig(family="gpt2", tied=False, dropout=0.1, **SMALL),
    "modern tied": ModelConfig(**SMALL),
    "modern untied, grouped heads, large theta": ModelConfig(tied=False, kv_heads=2, rope_theta=1e6, **SMALL),
    "modern grouped heads wider than the stream": ModelConfig(kv_heads=2, head_dim=16, **SMALL),
    "modern relu2, grouped heads": ModelConfig(act="relu2", kv_heads=2, **SMALL),
}
VOCAB = 300
SIZES = [(config, VOCAB) for config in MODELS.values()]
SIZES += [(ModelConfig(family="gpt2", **SMALL), 4100), (ModelConfig(tied=False, **SMALL), 4100)]


@pytest.fixture(params=SIZES, ids=[*MODELS, "gpt2, padded vocabulary", "modern untied, padded vocabulary"])
def model(request):
    """A model far from its initialisation: every vector is random too, and logits spread."""
    torch.manual_seed(0)
    model = GPT(*request.param).eval()
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
    ids_BT = torch.randint(model.vocab_size, (2, model.config.context), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        ours, theirs = model(ids_BT), load(folder)[0](ids_BT).logits
    assert ours.shape == theirs.shape, "what pads the vocabulary stays here"
    assert ours.std() > 0.5, f"logits hardly spread ({ours.std()}), so a difference would not show"
    difference, allowed = (ours - theirs).abs().max().item(), 1e-5 if model.config.family == "gpt2" else 1e-6
    assert difference <= allowed, f"logits differ by {difference}"


def test_transformers_writes_the_same_60_greedy_tokens(model, folder):
    prompt = torch.tensor([[5, 17, 250, 3]])
    judge = load(folder)[0]
    theirs = judge.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=60)
    ours = generate(model, prompt.tolist(), 60, temperature=0)[0]
    assert ours == theirs[0, 4:].tolist()


def test_what_is_written_is_read_back_bit_for_bit(model, folder):
    found = from_hf(folder)
    assert (found.config, found.vocab_size, found.training) == (model.config, model.vocab_size, False)
    state = found.state_dict()
    assert state.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        real = model.vocab_size if name in ("wte.weight", "lm_head.weight") else len(tensor)
        assert torch.equal(tensor[:real], state[name][:real]), name
        assert not state[name][real:].any(), f"the padding of {name} is zeros"


def test_what_is_read_is_written_bit_for_bit(model, folder):
    config, tensors = to_hf(from_hf(folder))
    assert config == json.loads((folder / "config.json").read_text())
    given = load_file(folder / "model.safetensors")
    assert tensors.keys() == given.keys()
    assert all(torch.equal(tensor, given[name]) for name, tensor in tensors.items())


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
        real = model.vocab_size if name in ("wte.weight", "lm_head.weight") else len(tensor)
        assert found[name].dtype == torch.float32
        assert torch.equal(found[name][:real], tensor[:real].bfloat16().float()), name


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
        ("modern", {"use_sliding_window": True}),
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


def test_a_folder_whose_tensors_have_other_sizes_than_its_config_says_is_refused(tmp_path):
    config, tensors = to_hf(GPT(MODELS["modern tied"], VOCAB))
    with pytest.raises(UserError, match=r"q_proj\.weight gives \[96, 32\], config\.json \[768, 32\]"):
        from_hf(save(tmp_path, config | {"head_dim": 64}, tensors))


def test_a_relu_whose_gate_is_not_its_up_is_refused(tmp_path):
    config, tensors = to_hf(GPT(MODELS["modern relu2, grouped heads"], VOCAB))
    tensors["model.layers.0.mlp.gate_proj.weight"] += 1
    with pytest.raises(UserError, match="gate_proj differs from up_proj"):
        from_hf(save(tmp_path, config, tensors))


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


@pytest.mark.slow
def test_gpt2_at_its_real_size_comes_back_whole_and_has_its_real_size(tmp_path):
    torch.manual_seed(0)
    model = GPT(ModelConfig(family="gpt2", depth=12, context=1024), 50257).eval()
    assert model.wte.weight.shape == (50304, 768)
    folder = save(tmp_path, *to_hf(model))
    size = (folder / "model.safetensors").stat().st_size
    assert 0 < size - 4 * 124_439_808 < 20_000, "GPT-2's parameters in float32, and a header"
    found, ids_BT = from_hf(folder), torch.arange(40)[None] * 1000
    assert fingerprint(folder) == fingerprint(save(folder, *to_hf(found)))
    with torch.inference_mode():
        difference = (found(ids_BT) - load(folder)[0](ids_BT).logits).abs().max().item()
    assert difference <= 1e-5


@pytest.mark.parametrize("name", ["gpt2 tied", "modern untied, grouped heads, large theta"])
def test_a_warm_start_keeps_what_ids_mean_and_gives_new_ones_the_mean_row(name, tmp_path):
    torch.manual_seed(0)
    released = GPT(MODELS[name], 4098).eval()
    folder, wanted = save(tmp_path, *to_hf(released)), ModelConfig(context=40, dropout=0.1)
    for size in (4102, 4090):  # a tokenizer with more tokens, and a model with rows that no token has
        model, both, ids_BT = start_from(folder, wanted, size), min(size, 4098), torch.arange(40)[None]
        assert (model.vocab_size, model.config.context, model.config.dropout) == (size, 40, 0.1)
        with torch.inference_mode():
            ours, theirs = model(ids_BT), released(ids_BT)
        assert torch.allclose(ours[..., :both], theirs[..., :both], atol=1e-6)
        assert torch.allclose(ours[..., both:], theirs.mean(-1, keepdim=True), atol=1e-5)
        assert not model.head()[size:].any()
    assert start_from(folder, MODELS[name], 4098).state_dict().keys() == released.state_dict().keys()
