"""What the measures of `evaluate` are: the held-out data each is taken on, which way is better, whose they are.

In: a stage's inputs and metrics. Out: for each model its final metrics with their data, as MLflow's model pages and
the champion's gate (flows/promote.py) show them.
"""

from collections.abc import Mapping

from tasks.artifacts import Artifact, Checkpoint, Metrics, Tokenizer

TAKEN_ON = {
    "bpb": "shards",
    "loss": "shards",
    "answer_accuracy": "chats",
    "format_rate": "chats",
    "refusal_harmful": "chats",
    "refusal_harmless": "chats",
    "pair_accuracy": "pairs",
    "arithmetic": "prompts",
}
"""Each measure's input of `evaluate`."""
LOWER_IS_BETTER = ("bpb", "loss", "refusal_harmless")
PORTS = ("base", "sft", "prefer", "rl")
"""The models `evaluate` may score, in training's order; `base` is pretrain's."""

Named = tuple[str, str]
"""An artifact's stage and digest."""


def headline(metrics: Metrics) -> str:
    """A stage's first metric as `data/documents 9,880`."""
    return next((f"{name} {value:,.{4 if value < 1e4 else 9}g}" for name, value in metrics.items()), "")


def own(metrics: Metrics, inputs: Mapping[str, Artifact]) -> dict[str, Named]:
    """A trainer's metrics, each with the data that it learned from and that holds a part out."""
    data = [a for a in inputs.values() if not isinstance(a, Checkpoint | Tokenizer)]
    return {name: (data[0].stage, data[0].digest) for name in metrics} if data else {}


def examined(metrics: Metrics, inputs: Mapping[str, Artifact]) -> dict[Named, dict[str, Named]]:
    """Each model that `evaluate` scored: its metrics, each with its data; the last model's names carry no prefix."""
    ports = [port for port in PORTS if port in inputs]
    prefixes = {port: "" if port == ports[-1] else f"{port}_" for port in ports}
    data = {m: (inputs[on].stage, inputs[on].digest) for m, on in TAKEN_ON.items() if on in inputs}
    names = {port: {f"eval/{prefix}{m}": data[m] for m in data} for port, prefix in prefixes.items()}
    known = {port: {name: on for name, on in named.items() if name in metrics} for port, named in names.items()}
    return {(inputs[port].stage, inputs[port].digest): known[port] for port in ports}
