"""Warm starts: a released model goes on with other documents, an earlier one with newer ones; presets that train."""

import json
import random
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
import transformers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as HuggingFace

from flows.plan import plan
from flows.recipe import load, presets
from flows.run import run
from gpt.config import ModelConfig
from gpt.errors import UserError
from gpt.tokenizer import SPECIALS, Tokenizer
from tasks.pretrain import Pretrain
from tasks.store import Store

QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
WORDS = Path(__file__).read_text().split()
FEW = ["pretrain.steps=40", "pretrain.eval_windows=8", "runtime.threads=1", "runtime.device=cpu", "filter=null"]
FEW += ["evaluate.tokens=500", "pretrain.model={context: 48}"]


def texts(seed: int, words: list[str]) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(words, k=40)) + f" ñ {seed}{n}" for n in range(150)]


def documents(folder: Path, seed: int, words: list[str] = WORDS) -> Path:
    """Documents of random words."""
    folder.mkdir()
    rows = [json.dumps({"text": text}) for text in texts(seed, words)]
    (folder / "docs.jsonl").write_text("\n".join(rows))
    return folder


def release(folder: Path, kind: str, texts: Iterable[str]) -> Path:
    """What others publish, by transformers: random weights of a GPT2, or of a Qwen3 in bfloat16 and in several files,
    with wide heads and more rows than its tokenizer has ids."""
    words = bpe(kind, texts)
    words.save_pretrained(folder)
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "bos_token_id": 0, "eos_token_id": 0}
    only = {"num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 48, "max_position_embeddings": 128}
    sizes |= {"n_positions": 64} if kind == "GPT2" else only
    config = getattr(transformers, f"{kind}Config")(vocab_size=len(words) + 37 * (kind == "Qwen3"), **sizes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config)
    if kind == "GPT2":
        model.save_pretrained(folder)
    else:
        model.bfloat16().save_pretrained(folder, max_shard_size="30KB")
        assert len(list(folder.glob("model-*.safetensors"))) > 1
    return folder


def bpe(kind: str, texts: Iterable[str]) -> transformers.PreTrainedTokenizerFast:
    """Byte-level BPE of 300 tokens, `<|endoftext|>` the first of them, as the library's trainer numbers them."""
    made, letters = (
        HuggingFace(models.BPE()),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind == "GPT2"),
    )
    made.pre_tokenizer, made.decoder = letters, decoders.ByteLevel()
    if kind == "Qwen3":
        made.normalizer = normalizers.NFC()
        made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(QWEN), "isolated"), letters])
    first, alphabet = ["<|endoftext|>"], pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=first, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(texts, trainer)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, eos_token=first[0])


@pytest.fixture(params=["GPT2", "Qwen3"])
def released(request, tmp_path) -> Path:
    return release(tmp_path / "model", request.param, texts(0, WORDS))


def test_a_released_tokenizer_keeps_every_id_and_gains_the_chat_tokens(released, tmp_path):
    theirs, ours = transformers.AutoTokenizer.from_pretrained(released), Tokenizer.load(released)
    for text in [*texts(1, WORDS)[:20], "It's 12345\r\n\n  ¿qué? 日本", " x "]:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)
        assert ours.decode(ours.encode(text)) == text
    assert ours.eot == theirs.eos_token_id == 0
    assert [ours.specials[name] for name in SPECIALS[1:]] == [*range(len(theirs), len(theirs) + 4)]
    (tmp_path / "saved").mkdir()
    ours.save(tmp_path / "saved")
    assert Tokenizer.load(tmp_path / "saved").digest == ours.digest


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda saved: saved["model"]["merges"].reverse(), "its merges are in another order than its ids"),
        (lambda saved: saved["model"].update(type="Unigram"), "not byte-level BPE: {'model': 'Unigram'"),
        (lambda saved: saved.update(normalizer={"type": "Lowercase"}), "'normalizer': 'Lowercase'"),
        (lambda saved: saved["pre_tokenizer"].update(add_prefix_space=True), "it cuts text in another way"),
        (lambda saved: saved["pre_tokenizer"].update(use_regex=False), "it cuts text in another way"),
    ],
)
def test_a_tokenizer_that_works_otherwise_is_refused_in_one_line(change, words, tmp_path):
    file = release(tmp_path, "GPT2", texts(0, WORDS)) / "tokenizer.json"
    saved = json.loads(file.read_text())
    change(saved)
    file.write_text(json.dumps(saved))
    with pytest.raises(UserError, match="is no tokenizer that can be read") as caught:
        Tokenizer.load(tmp_path)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_released_model_adapts_to_own_documents_and_opens_in_transformers_again(released, tmp_path):
    own = documents(tmp_path / "documents", 2)
    given = [f"pretrain.init={released}", f"ingest.sources=[{own}]", "pretrain.lr=3e-3"]
    made = run(load("adapt", [*given, *FEW]), Store(tmp_path / "store")).results
    told = made["pretrain"].metrics
    assert told["val/bpb"] < told["val/bpb_before"] - 0.5, told
    state = json.loads((Path(made["pretrain"].path) / "state.json").read_text())
    assert state["parents"] == [{"task": "released", "step": 0, "tokens": 0}]
    before, after = (transformers.AutoTokenizer.from_pretrained(at) for at in (released, made["export"].path))
    assert after.encode("It's 12345 of them") == before.encode("It's 12345 of them")
    model = transformers.AutoModelForCausalLM.from_pretrained(made["export"].path)
    assert type(model).__name__ == json.loads((released / "config.json").read_text())["architectures"][0]
    assert len(after) == model.config.vocab_size == len(before) + 4, "rows without an id went, chat tokens came"
    again = run(load("adapt", [*given, *FEW]), Store(tmp_path / "store")).results
    assert {result.cache for result in again.values() if result.cache != "absent"} == {"hit"}


ANY = """
ingest: {sources: [FOLDER]}
filter: null
pretrain: {model: {context: 48}, batch: 8, steps: 60, eval_windows: 8, sample_every: 0}
chats: null
sft: null
pairs: null
prefer: null
prompts: null
rl: null
runtime: {threads: 1, device: cpu}
"""


def test_a_refreshed_corpus_goes_on_with_old_and_new_mixed_and_a_rate_that_rises_again(tmp_path):
    recipes, store = {}, Store(tmp_path / "store")
    for seed, name in enumerate(("old", "new")):
        folder = documents(tmp_path / name, seed, WORDS[seed::2])
        recipes[name] = str(tmp_path / f"{name}.yaml")
        Path(recipes[name]).write_text(ANY.replace("FOLDER", str(folder)))
    small = ["tokenizer.vocab_size=320", "pretrain.model={depth: 1, width: 32, context: 48}"]
    first = run(load(recipes["old"], small), store, until="pretrain").results
    base, shards = (f"{name}:{first[name].key}" for name in ("pretrain", "shard"))
    recipe = load(recipes["new"], [f"pretrain.init={base}", f"pretrain.mix={{'{shards}': 0.5}}", "pretrain.steps=40"])
    assert recipe.tokenizer.ref == base, "the tokenizer is the earlier model's"
    second = run(recipe, store, until="pretrain").results
    told = second["pretrain"].metrics
    assert told["val/bpb"] < told["val/bpb_before"]
    assert told["val/bpb_before"] < first["pretrain"].metrics["val/bpb_before"] - 1, "it begins where the first ended"
    for result, steps in ((first["pretrain"], 60), (second["pretrain"], 40)):
        rates = rates_of(Path(result.path))
        assert len(rates) == steps
        peak = rates.index(0.02)
        assert rates[: peak + 1] == sorted(rates[: peak + 1]), "up, to the rate that muon is given"
        assert rates[0] < 0.01
        assert rates[-1] < 0.002, "and down again"
        assert rates[peak:] == sorted(rates[peak:], reverse=True)


def rates_of(folder: Path) -> list[float]:
    points = [json.loads(line)[2] for line in (folder / "logs" / "metrics.jsonl").read_text().splitlines()]
    return [point["train/lr"] for point in points if "train/lr" in point]


def test_sizes_come_from_where_a_training_starts_and_what_differs_is_refused(tmp_path):
    folder = str(release(tmp_path, "GPT2", texts(0, WORDS)))
    sizes = ModelConfig(family="gpt2", depth=2, width=32, heads=4, context=64)
    assert Pretrain(init=folder).sizes() == sizes
    stated = Pretrain(init=folder, model=ModelConfig(context=48, dropout=0.1)).sizes()
    assert (stated.family, stated.context, stated.dropout) == ("gpt2", 48, 0.1)
    assert Pretrain(init=folder, model=sizes).sizes() == sizes
    with pytest.raises(UserError, match=r"has depth=2, pretrain\.model has depth=3; a model goes on as it is"):
        Pretrain(init=folder, model=ModelConfig(family="gpt2", depth=3, width=32, heads=4)).sizes()
    with pytest.raises(UserError, match=r"knows 64 positions, pretrain\.model has context=1024"):
        Pretrain(init=folder, model=ModelConfig(context=1024)).sizes()
    one = Pretrain(init=folder).outside()
    (tmp_path / "tokenizer.json").write_text("{}")
    assert Pretrain(init=folder).outside() != one, "what ids mean is part of the model"
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"it has no model\*\.safetensors; name a pretrain:KEY"):
        Pretrain(init=folder).outside()


@pytest.mark.parametrize("preset", presets())
def test_every_preset_can_be_planned_for_gpus_without_a_network(preset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "input.txt").write_text("Speak, speak.")
    documents(tmp_path / "documents", 0)
    release(tmp_path / "model", "Qwen3", texts(0, WORDS))
    told = "\n".join(plan(load(preset, ["pretrain.model.context=48"] * (preset == "adapt")), "8xH100"))
    assert "on 8xH100" in told
    parameters = {"adapt": "0.04 M", "fineweb-gpt2-124m": "124.32 M", "fineweb-modern-d12": "123.54 M"}
    assert f"model      {parameters.get(preset, '')}" in told, told
    assert ("is unknown" in told) == preset.startswith("fineweb")
