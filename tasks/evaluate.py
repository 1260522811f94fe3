"""Score the models beside trivial baselines, in a child process: this one never imports torch.

In: Checkpoints, Shards, Chats, Pairs, Prompts, Tokenizer; what a recipe leaves out is not scored. Out: Scores:
`scores.json`, `samples.txt`, and in `report/` the same as tables and a figure. Method: gpt/evaluate.py, gpt/exams.py.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from tasks.artifacts import Chats, Checkpoint, Config, Metrics, Pairs, Prompts, Scores, Shards, Tokenizer
from tasks.stage import stage
from tasks.trainer import program

Rows = list[dict[str, Any]]
Model = Checkpoint | None  # a recipe may do without


class Evaluate(Config):
    """How much is asked of the models."""

    tokens: int = Field(65_536, ge=1)
    """Held-out tokens to read, from the first on, in whole windows."""
    questions: int = Field(200, ge=1)
    """Held-out questions, and prompts of each kind, to ask at most."""
    pairs: int = Field(1_000, ge=1)
    """Held-out pairs to judge at most."""
    problems: int = Field(600, ge=1)
    """Held-out problems to solve at most."""
    answer_tokens: int = Field(24, ge=1)
    """Tokens for the answer to a problem, at most half a context."""
    reply_tokens: int = Field(64, ge=1)
    """Tokens within which a reply must have come to its end."""
    prompts: tuple[str, ...] = ("Return the", "Return a new", "If the file", "The default value is", "Raise")
    """Texts to tabulate the likeliest next tokens after; say them in the language of the corpus."""
    words: tuple[str, ...] = ("string", "file", "list", "number", "error", "module")
    """Words to list the nearest tokens of, by embedding."""
    seed: int = 1337
    """Of the samples and of the untrained twin."""


@stage(Scores, version="2")
def evaluate(
    out: Path, config: Evaluate, base: Checkpoint, sft: Model, prefer: Model, rl: Model, shards: Shards,
    chats: Chats | None, pairs: Pairs | None, prompts: Prompts | None, tokenizer: Tokenizer,
) -> Metrics:  # fmt: skip
    """Score every model there is on held-out text, questions, pairs and problems, beside trivial baselines."""
    given = {"base": base, "sft": sft, "prefer": prefer, "rl": rl}
    models = {who: str(model.path) for who, model in given.items() if model}
    data = {"tokenizer": tokenizer, "shards": shards, "chats": chats, "pairs": pairs, "problems": prompts}
    paths = {name: str(artifact.path) if artifact else None for name, artifact in data.items()}
    program("gpt.evaluate", out, {"models": models, "config": config.model_dump(), **paths})
    tables = json.loads((out / "scores.json").read_text(encoding="utf-8"))
    report(out, tables, list(models))
    return metrics(tables["scores"], list(models))


def metrics(scores: Rows, models: list[str]) -> Metrics:
    """The final model's as `eval/bpb`, the first; others' as `eval/sft_bpb`; of the baselines `eval/xz_bpb` alone.

    The tables have all of them; MLflow charts at most 30 names well.
    """
    shown = [row for row in scores if row["who"] in (*models, "xz -9") and row["measure"] != "loss"]
    ordered = sorted(shown, key=lambda row: (row["who"] != models[-1], row["measure"] != "bpb"))
    prefix = {row["who"]: f"{row['who'].split()[0]}_" for row in scores} | {models[-1]: ""}
    return {f"eval/{prefix[row['who']]}{row['measure']}": row["value"] for row in ordered}


def report(out: Path, tables: dict[str, Rows], models: list[str]) -> None:
    """The tables one by one, the scores also as Markdown and as a figure, the samples."""
    folder = out / "report"
    folder.mkdir(exist_ok=True)
    for name, rows in tables.items():
        (folder / f"{name}.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    lines = ["| measure | who | value | 95 % interval | n |", "|---|---|---|---|---|"]
    for r in sorted(tables["scores"], key=lambda r: (r["measure"], r["value"])):
        interval = "" if r["low"] is None else f"{r['low']:.3f} to {r['high']:.3f}"
        lines.append(f"| {r['measure']} | {r['who']} | {r['value']:.3f} | {interval} | {r['n']:,} |")
    (folder / "scores.md").write_text("\n".join([*lines, ""]), encoding="utf-8")
    (folder / "samples.txt").write_bytes((out / "samples.txt").read_bytes())
    figure(folder / "scores.png", tables["scores"], models)


def figure(path: Path, scores: Rows, models: list[str]) -> None:
    """A panel for each measure, a bar for each model (blue) and baseline (grey), with intervals where there are any."""
    from matplotlib.figure import Figure

    measures = sorted({row["measure"] for row in scores})
    sheet = Figure(figsize=(7, 2 * len(measures)), layout="constrained")
    for axes, measure in zip(sheet.subplots(len(measures), squeeze=False)[:, 0], measures, strict=True):
        rows = [row for row in scores if row["measure"] == measure]
        names, values = [row["who"] for row in rows], [row["value"] for row in rows]
        colors = ["steelblue" if name in models else "silver" for name in names]
        ends = np.array([[row["low"], row["high"]] for row in rows], float).T  # None becomes NaN: no whiskers
        axes.barh(names, values, xerr=abs(ends - values), color=colors, capsize=3)
        axes.set_title(measure, loc="left", fontsize=10)
    sheet.savefig(path, dpi=110)
