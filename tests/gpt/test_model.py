"""What the model promises beyond the numbers that tests/gpt/test_hf.py compares with transformers."""

import pytest
import torch

from gpt.config import ModelConfig
from gpt.model import GPT

SMALL = {"depth": 2, "width": 32, "heads": 4, "context": 16}
CONFIGS = [ModelConfig(family="gpt2", **SMALL), ModelConfig(kv_heads=2, tied=False, **SMALL)]


@pytest.fixture(params=CONFIGS, ids=["gpt2", "modern"])
def model(request):
    torch.manual_seed(0)
    return GPT(request.param, 50).eval()


def test_parameter_names_are_the_checkpoint_format(model):
    block = {"ln1", "attn.qkv", "attn.proj", "ln2", "mlp.up", "mlp.down"}
    names = {name.removeprefix("h.0.") for name in model.state_dict() if not name.startswith("h.1.")}
    if model.config.family == "gpt2":
        both = {f"{part}.{kind}" for part in {*block, "ln_f"} for kind in ("weight", "bias")}
        assert names == both | {"wte.weight", "wpe.weight"}
    else:
        vectors = {"attn.q_norm", "attn.k_norm", "wte", "ln_f", "lm_head"}
        assert names == {f"{part}.weight" for part in block | vectors}


def test_what_is_added_to_the_stream_starts_smaller(model):
    state = model.state_dict()
    assert state["h.0.attn.qkv.weight"].std().item() == pytest.approx(0.02, rel=0.1)
    assert state["h.1.mlp.down.weight"].std().item() == pytest.approx(0.02 / 2, rel=0.1), "1 / sqrt(2 x depth 2)"


def test_no_token_sees_what_comes_after_it(model):
    ids_BT = torch.randint(50, (2, 16))
    changed_BT = ids_BT.clone()
    changed_BT[:, 9:] = 1
    with torch.inference_mode():
        difference = (model(ids_BT) - model(changed_BT)).abs().amax((0, 2))
    assert difference[:9].max() < 1e-6, f"the future leaks: {difference}"
    assert difference[9:].min() > 1e-4, f"the change itself does not show: {difference}"


def test_dropout_acts_in_training_only():
    model = GPT(ModelConfig(dropout=0.5, **SMALL), 50)
    ids_BT = torch.randint(50, (1, 8))
    assert not torch.equal(model.train()(ids_BT), model(ids_BT))
    assert torch.equal(model.eval()(ids_BT), model(ids_BT))


def test_packed_documents_have_the_logits_that_each_has_alone(model):
    documents = [torch.randint(50, (1, length)) for length in (5, 1, 7)]
    number_BT = torch.tensor([[1] * 5 + [2] + [3] * 7 + [4] * 3])  # the last three are padding
    row_BT = torch.cat([*documents, torch.zeros((1, 3), dtype=torch.long)], dim=1)
    with torch.inference_mode():
        packed = model(row_BT, number_BT)
        alone = torch.cat([model(ids_BT) for ids_BT in documents], dim=1)
    assert packed.isfinite().all()
    difference = (packed[:, :13] - alone).abs().max().item()
    assert difference < 1e-5, f"logits differ by {difference}"
    assert (model(row_BT)[:, 5:13] - alone[:, 5:]).abs().max() > 1e-3, "without numbers a document sees the ones before"
