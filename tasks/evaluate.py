"""Score the models beside trivial baselines, in a child process: this one never imports torch.

In: Checkpoints (final and base, perhaps the same), Shards, Chats, Tokenizer. Out: Scores: `scores.json`, `samples.txt`, and
in `report/` the same as tables and one figure. Method: gpt/evaluate.py.
"""

import json
import shutil
import sys
from itertools import groupby
from pathlib import Path
from typing import Any

from pydantic import Field

from tasks.artifacts import Chats, Checkpoint, Config, Metrics, Scores, Shards, Tokenizer
from tasks.runtime import runtime
from tasks.stage import stage
from tasks.trainer import launch


class Evaluate(Config):
    """How much is asked of the models."""

    tokens: int = Field(65_536, ge=1)
    """Held-out tokens to read, from the first on, in whole windows."""
    questions: int = Field(200, ge=1)
    """Held-out questions, and prompts of each kind, to ask at most."""
    reply_tokens: int = Field(48, ge=1)
    """Within so many tokens a reply must have come to its end."""
    prompts: tuple[str, ...] = ()
    """Texts to tabulate the likeliest next tokens after; none takes how held-out windows begin."""
    words: tuple[str, ...] = ()
    """Words to list the nearest embeddings of; none takes the longer words of the prompts."""
    samples: int = Field(3, ge=0)
    """Samples of each model from an empty start."""
    sample_tokens: int = Field(100, ge=1)
    """Tokens of each sample."""
    seed: int = 1337
    """Of the samples and of the untrained twin."""


@stage(Scores, version="1")
def evaluate(
    out: Path,
    config: Evaluate,
    model: Checkpoint,
    base: Checkpoint,
    shards: Shards,
    chats: Chats | None,
    tokenizer: Tokenizer,
) -> Metrics:
    """Score base and final model on held-out text, questions and prompts, beside an untrained twin and baselines."""
    models = {"base": base} if model.digest == base.digest else {"base": base, model.stage: model}
    run: dict[str, Any] = {"models": {who: str(of.path) for who, of in models.items()}, "out": str(out)}
    run |= {"shards": str(shards.path), "chats": str(chats.path) if chats else None, "tokenizer": str(tokenizer.path)}
    run |= {"config": config.model_dump(), "device": runtime().device, "threads": runtime().threads}
    (out / "logs").mkdir()
    (out / "logs" / "run.json").write_text(json.dumps(run, indent=1))
    launch([sys.executable, "-m", "gpt.evaluate", str(out / "logs" / "run.json")])
    tables = json.loads((out / "scores.json").read_text(encoding="utf-8"))
    report(out, tables)
    return metrics(tables["scores"], [*models][-1])


def metrics(scores: list[dict[str, Any]], final: str) -> Metrics:
    """`eval/bpb` and the like of the final model first; others carry their name: base_bpb, longest_answer_accuracy."""
    prefix = {who: f"{who.split()[0]}_" for who in (row["who"] for row in scores)} | {final: ""}
    ordered = sorted(scores, key=lambda row: (row["who"] != final, row["measure"] != "bpb"))
    return {f"eval/{prefix[row['who']]}{row['measure']}": row["value"] for row in ordered}


def report(out: Path, tables: dict[str, list[dict[str, Any]]]) -> None:
    """The tables one by one, the scores as Markdown and as a figure, the samples."""
    folder = out / "report"
    folder.mkdir()
    for name, rows in tables.items():
        (folder / f"{name}.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    (folder / "scores.md").write_text(markdown(tables["scores"]), encoding="utf-8")
    shutil.copyfile(out / "samples.txt", folder / "samples.txt")
    figure(folder / "scores.png", tables["scores"])


def markdown(scores: list[dict[str, Any]]) -> str:
    """The scores as one table with their intervals."""
    rows = [f"| {r['measure']} | {r['who']} | {r['value']:.3f} | {interval(r)} | {r['n']:,} |" for r in scores]
    return "\n".join(["| measure | who | value | 95 % interval | n |", "|---|---|---|---|---|", *sorted(rows), ""])


def interval(row: dict[str, Any]) -> str:
    """`1.812 to 1.903`, or nothing where there is none."""
    return "" if row["low"] is None else f"{row['low']:.3f} to {row['high']:.3f}"


def figure(path: Path, scores: list[dict[str, Any]]) -> None:
    """One panel a measure, one bar a model or baseline, with intervals."""
    from matplotlib.figure import Figure

    panels = [
        (name, list(rows)) for name, rows in groupby(sorted(scores, key=lambda r: r["measure"]), lambda r: r["measure"])
    ]
    sheet = Figure(figsize=(7, 1.0 + 0.35 * len(scores)), layout="constrained")
    grid = sheet.subplots(len(panels), height_ratios=[len(rows) + 1 for _, rows in panels], squeeze=False)[:, 0]
    for axes, (name, rows) in zip(grid, panels, strict=True):
        spread = [
            [max(0.0, abs(r["value"] - (r["value"] if r[end] is None else r[end]))) for r in rows]
            for end in ("low", "high")
        ]
        axes.barh([r["who"] for r in rows], [r["value"] for r in rows], xerr=spread, color="#5b7f9e", capsize=3)
        axes.set_title(name, loc="left", fontsize=10)
        axes.invert_yaxis()
    sheet.savefig(path, dpi=110)
