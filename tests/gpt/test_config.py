"""Sizes follow from depth; contradictions name key, value, rule and way out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt.config import ModelConfig, PreferConfig, PretrainConfig, RlConfig, TrainConfig
from gpt.errors import UserError


@given(st.sampled_from(["gpt2", "modern"]), st.integers(1, 48))
def test_every_depth_gives_sizes_that_fit_each_other(family, depth):
    config = ModelConfig(family=family, depth=depth)
    assert config.width == 64 * depth
    assert config.heads * config.head_dim == config.width
    assert config.head_dim == 64
    assert config.heads % config.kv_heads == 0


def test_depth_12_is_gpt2_124m():
    config = ModelConfig(family="gpt2", depth=12, context=1024)
    assert (config.width, config.heads, config.hidden, config.eps) == (768, 12, 3072, 1e-5)


def test_a_swiglu_has_about_the_weights_of_a_gelu_mlp():
    config = ModelConfig(depth=12)
    assert config.hidden == 2048, "8/3 x 768: three matrices of 2048 weigh what two of 3072 do"


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"width": 100, "heads": 3}, ["model.width=100", "model.heads=3", "multiple", "model.width=102"]),
        ({"heads": 4, "kv_heads": 3}, ["model.heads=4", "model.kv_heads=3", "multiple"]),
        ({"width": 6, "heads": 2}, ["model.width / model.heads is 3", "even"]),
        ({"depth": 0}, ["model.depth=0", "at least 1"]),
        ({"context": 1}, ["model.context=1", "at least 2"]),
        ({"dropout": 1.0}, ["model.dropout=1.0", "[0, 1)"]),
        ({"family": "gpt2", "heads": 4, "kv_heads": 2}, ["model.kv_heads", "family=modern"]),
        ({"family": "gpt2", "rope_theta": 5e5}, ["model.rope_theta", "family=modern"]),
        ({"family": "gpt2", "act": "relu2"}, ["model.act=relu2", "model.family=gpt2"]),
        ({"rope_theta": 0.0}, ["model.rope_theta=0.0", "positive"]),
        ({"act": "foo"}, ["model.act=foo", "swiglu"]),
    ],
)
def test_a_contradiction_in_the_model_is_one_line_with_the_way_out(wrong, words):
    with pytest.raises(UserError) as caught:
        ModelConfig(**wrong)
    message = str(caught.value)
    assert "\n" not in message
    assert [word for word in words if word not in message] == [], message


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"batch": 10, "micro_batch": 4}, ["batch=10", "micro_batch=4", "batch=12"]),
        ({"steps": 0}, ["steps=0", "at least 1"]),
        ({"lr": 0.0}, ["lr=0.0", "positive"]),
        ({"beta2": 1.5}, ["beta2=1.5", "between 0 and 1"]),
        ({"beta1": 1.0}, ["beta1=1.0", "between 0 and 1"]),
        ({"seed": 2**65}, ["seed=", "below 2^63"]),
        ({"optimizer": "sgd"}, ["optimizer=sgd", "adamw, muon"]),
        ({"precision": "fp16"}, ["precision=fp16", "auto, float32, bfloat16"]),
    ],
)
def test_a_contradiction_in_training_is_one_line_with_the_way_out(wrong, words):
    with pytest.raises(UserError) as caught:
        TrainConfig(**wrong)
    assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)


def test_what_is_left_at_0_follows_from_the_model():
    tiny, gpt2 = ModelConfig(depth=4, width=128, context=128), ModelConfig(family="gpt2", depth=12, context=1024)
    small, large = (PretrainConfig().fitted(model, vocab) for model, vocab in ((tiny, 65), (gpt2, 50_257)))
    for model, config, vocab in ((tiny, small, 65), (gpt2, large, 50_257)):
        tokens = config.steps * config.batch * model.context
        assert tokens == pytest.approx(20 * model.products(vocab), rel=0.02)
    assert large.batch * 1024 == 2**19, "GPT-2 124M's half a million"
    assert small.batch * 128 in (2**13, 2**14, 2**15)
    assert (small.lr, large.lr) == (0.02, 0.02)
    assert large.adam_lr == 1.6e-3 < small.adam_lr
    assert PretrainConfig(optimizer="adamw").fitted(gpt2, 50_257).lr == pytest.approx(1e-3)


def test_stated_steps_keep_the_batch_small_unless_they_are_many():
    model = ModelConfig(depth=4)
    few, many = (PretrainConfig(steps=steps).fitted(model, 50_000) for steps in (400, 100_000))
    assert few.batch * model.context == 4096
    assert many.batch == PretrainConfig().fitted(model, 50_000).batch
    stated = PretrainConfig(steps=7, batch=6, micro_batch=3, lr=0.1, adam_lr=0.2)
    assert stated.fitted(model, 50_000) == stated


def test_a_unit_of_a_batch_brings_as_many_rows_as_it_needs():
    assert [TrainConfig().rows_each, PreferConfig().rows_each, RlConfig(group=5).rows_each] == [1, 2, 5]
