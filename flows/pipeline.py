"""The whole loom on one screen: a recipe with one field per stage, and a flow with one typed call per stage.

In: a `Recipe` (YAML over its defaults). Out: the artifacts of every stage in the store, the last one a Release.
A stage set to null is left out and its input passes on. Wrong wiring is a type error (tests/flows/test_wiring.py).
"""

from typing import Self

from prefect import flow
from pydantic import model_validator

from gpt.errors import UserError
from tasks.artifacts import Artifact, Config
from tasks.chats import Conversations, chats
from tasks.dedup import Dedup, dedup
from tasks.evaluate import Evaluate, evaluate
from tasks.export import Export, export
from tasks.filter import Filter, filter
from tasks.ingest import Ingest, ingest
from tasks.pairs import Preferences, pairs
from tasks.prefer import Prefer, prefer
from tasks.pretrain import Pretrain, pretrain
from tasks.prompts import Problems, prompts
from tasks.rl import Rl, rl
from tasks.runtime import Runtime
from tasks.sft import Sft, sft
from tasks.shard import Shard, shard
from tasks.stage import at_work
from tasks.tokenizer import Vocabulary, tokenizer


class Recipe(Config):
    """What to build: one field per stage; what a recipe does not state is the default."""

    name: str = "gptloom"
    """What the run is called in Prefect and MLflow."""
    ingest: Ingest = Ingest()
    """Sources to documents."""
    filter: Filter | None = Filter()
    """Documents to good documents."""
    dedup: Dedup | None = Dedup()
    """Documents to different documents."""
    tokenizer: Vocabulary = Vocabulary()
    """Documents to a vocabulary."""
    shard: Shard = Shard()
    """Documents to one stream of tokens."""
    pretrain: Pretrain = Pretrain()
    """Tokens to a base model."""
    chats: Conversations | None = Conversations()
    """Conversations to learn from and to be held out."""
    sft: Sft | None = Sft()
    """Base model to chat model."""
    pairs: Preferences | None = Preferences()
    """Pairs of a better and a worse answer."""
    prefer: Prefer | None = Prefer()
    """Chat model to one that prefers the better answers."""
    prompts: Problems | None = Problems()
    """Problems with checkable answers."""
    rl: Rl | None = Rl()
    """Practice on the problems."""
    evaluate: Evaluate = Evaluate()
    """What the models can do, beside trivial baselines."""
    export: Export = Export()
    """The model as a Hugging Face folder."""
    runtime: Runtime = Runtime()
    """How to run; outside every key."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for stage, data in (("sft", "chats"), ("prefer", "pairs"), ("rl", "prompts")):
            if getattr(self, stage) and not getattr(self, data):
                way_out = f"set {stage}: null too, or give {data}"
                raise UserError(f"{stage} is set but {data} is null, and it learns from {data}; {way_out}")
        if self.pretrain.init and self.tokenizer == Vocabulary():  # what goes on keeps its ids
            object.__setattr__(self, "tokenizer", Vocabulary(ref=self.pretrain.init))
        return self


@flow(name="gptloom", flow_run_name="{recipe.name}")
def gptloom(recipe: Recipe) -> Artifact:
    """Raw text in, chat model out.

    Args:
        recipe: What to build; every field has a default that runs on a laptop.
    """
    with at_work(recipe.name, recipe.model_dump(mode="json", exclude={"runtime"}), recipe.runtime):
        return weave(recipe)


def weave(recipe: Recipe) -> Artifact:
    """The DAG."""
    corpus = ingest(recipe.ingest)
    if recipe.filter:
        corpus = filter(recipe.filter, corpus)
    if recipe.dedup:
        corpus = dedup(recipe.dedup, corpus)
    vocabulary = tokenizer(recipe.tokenizer, corpus)
    shards = shard(recipe.shard, corpus, vocabulary)
    model = base = pretrain(recipe.pretrain, shards, vocabulary)
    talks = chats(recipe.chats, vocabulary) if recipe.chats else None
    tuned = preferred = practised = None
    if recipe.sft and talks:
        model = tuned = sft(recipe.sft, model, talks)
    choices = pairs(recipe.pairs, vocabulary) if recipe.pairs else None
    if recipe.prefer and choices:
        model = preferred = prefer(recipe.prefer, model, choices)
    problems = prompts(recipe.prompts, vocabulary) if recipe.prompts else None
    if recipe.rl and problems:
        model = practised = rl(recipe.rl, model, problems)
    scores = evaluate(recipe.evaluate, base, tuned, preferred, practised, shards, talks, choices, problems, vocabulary)
    return export(recipe.export, model, scores, vocabulary)
