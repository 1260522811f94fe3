"""The second opinion: a real, tiny classifier in a folder; and what is said where there is no network."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from gpt.errors import UserError
from tasks.corpus import DOCUMENT
from tasks.text.judge import agrees, content
from tasks.text.toxic_lines import tools, treat
from tasks.text.toxicity import BITS, Model
from tasks.wordlists import ToxicLines


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> str:
    """A BERT of one layer that looks at one word: `nasty` is toxic, all else is not."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    folder = tmp_path_factory.mktemp("classifier")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "nasty", "calm"]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    labels = {0: "not_toxic", 1: "toxic"}
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    model = BertForSequenceClassification(BertConfig(vocab_size=len(words), id2label=labels, **sizes)).eval()
    with torch.no_grad():
        ids = torch.tensor([[2, word, 3] for word in (5, 6)])
        nasty, calm = model.bert(ids).pooler_output
        way = (nasty - calm) / (nasty - calm).norm() ** 2
        model.classifier.weight.copy_(torch.stack([-way, way]) * 20)
        middle = way @ (nasty + calm) / 2 * 20
        model.classifier.bias.copy_(torch.stack([middle, -middle]))
    model.save_pretrained(folder)
    return str(folder)


def test_a_line_is_flagged_only_if_the_classifier_agrees(classifier, tmp_path):
    assert agrees(classifier, ["nasty", "calm"]) == [True, False]
    Model(np.zeros(1 << BITS, np.float32), 5.0, 0.0, 0.0).save(tmp_path, {})  # takes every line for toxic
    asked = ToxicLines(model=str(tmp_path), judge=classifier, max_share=0.5)
    table = pa.Table.from_pylist([{"id": "a", "text": "calm\nnasty\ncalm", "source": "s"}], DOCUMENT)
    made, verdicts, counts, audit = treat(table, asked, tools(asked))
    assert made["text"].to_pylist() == ["calm\ncalm"]
    assert verdicts == [None]
    assert counts["toxic_lines"] == 1
    assert [row[-1] for row in audit["flagged"]] == ["nasty"]


def test_the_classifier_is_named_by_its_content(classifier, tmp_path):
    for path in Path(classifier).iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert content(str(tmp_path)) == content(classifier)
    asked = [ToxicLines(judge=name).outside() for name in (classifier, str(tmp_path))]
    assert asked[0] == asked[1] != ToxicLines().outside()
    (tmp_path / "config.json").write_text((tmp_path / "config.json").read_text() + " ")
    assert content(str(tmp_path)) != content(classifier)


def test_without_a_network_the_way_out_is_told(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"filter\.toxicity\.judge='no/such-model'.*check the name and the network"):
        content("no/such-model")
