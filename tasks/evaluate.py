"""Score the models beside trivial baselines, in a child process: this one never imports torch.

In: Checkpoints (final and base, perhaps the same), Shards, Chats, Tokenizer. Out: Scores: `scores.json`, `samples.txt`,
and in `report/` the same as tables and a figure. Method: gpt/evaluate.py.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from pydantic import Field

from tasks.artifacts import Chats, Checkpoint, Config, Metrics, Scores, Shards, Tokenizer
from tasks.runtime import runtime
from tasks.stage import stage
from tasks.trainer import launch

Rows = list[dict[str, Any]]


class Evaluate(Config):
    """How much is asked of the models."""

    tokens: int = Field(65_536, ge=1)
    """Held-out tokens to read, from the first on, in whole windows."""
    questions: int = Field(200, ge=1)
    """Held-out questions, and prompts of each kind, to ask at most."""
    reply_tokens: int = Field(64, ge=1)
    """A reply must have ended by then; samples are as long."""
    samples: int = Field(3, ge=0)
    """Samples of each model from an empty start."""
    prompts: tuple[str, ...] = ()
    """Texts to tabulate the likeliest next tokens after; none takes how held-out windows begin."""
    words: tuple[str, ...] = ()
    """Words to list the nearest embeddings of; none takes the longer words of the prompts."""
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
    """Score base and final model on held-out text and questions, beside an untrained twin and trivial baselines."""
    models = {"base": str(base.path)} | ({model.stage: str(model.path)} if model.digest != base.digest else {})
    run: dict[str, Any] = {
        "models": models,
        "tokenizer": str(tokenizer.path),
        "shards": str(shards.path),
        "out": str(out),
    }
    run |= {"chats": str(chats.path) if chats else None, "config": config.model_dump()}
    (out / "logs").mkdir()
    file = out / "logs" / "run.json"
    file.write_text(json.dumps(run | {"device": runtime().device, "threads": runtime().threads}, indent=1))
    launch([sys.executable, "-m", "gpt.evaluate", str(file)])
    tables = json.loads((out / "scores.json").read_text(encoding="utf-8"))
    report(out, tables)
    return metrics(tables["scores"], list(models)[-1])


def metrics(scores: Rows, final: str) -> Metrics:
    """The final model's first, as `eval/bpb`; others with the first word of their name: `eval/xz_bpb`."""
    ordered = sorted(scores, key=lambda row: (row["who"] != final, row["measure"] != "bpb"))
    prefix = {row["who"]: f"{row['who'].split()[0]}_" for row in scores} | {final: ""}
    return {f"eval/{prefix[row['who']]}{row['measure']}": row["value"] for row in ordered}


def report(out: Path, tables: dict[str, Rows]) -> None:
    """The tables one by one, the scores also as Markdown and as a figure, the samples."""
    folder = out / "report"
    folder.mkdir()
    for name, rows in tables.items():
        (folder / f"{name}.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    lines = ["| measure | who | value | 95 % interval | n |", "|---|---|---|---|---|"]
    for r in sorted(tables["scores"], key=lambda r: (r["measure"], r["value"])):
        interval = "" if r["low"] is None else f"{r['low']:.3f} to {r['high']:.3f}"
        lines.append(f"| {r['measure']} | {r['who']} | {r['value']:.3f} | {interval} | {r['n']:,} |")
    (folder / "scores.md").write_text("\n".join([*lines, ""]), encoding="utf-8")
    shutil.copyfile(out / "samples.txt", folder / "samples.txt")
    figure(folder / "scores.png", tables["scores"])


def figure(path: Path, scores: Rows) -> None:
    """A panel for each measure, a bar for each model and baseline, with intervals."""
    from matplotlib.figure import Figure

    measures = sorted({row["measure"] for row in scores})
    sheet = Figure(figsize=(7, 2 * len(measures)), layout="constrained")
    for axes, measure in zip(sheet.subplots(len(measures), squeeze=False)[:, 0], measures, strict=True):
        rows = [row for row in scores if row["measure"] == measure]
        values = [row["value"] for row in rows]
        ends = (
            [v if row[end] is None else row[end] for v, row in zip(values, rows, strict=True)]
            for end in ("low", "high")
        )
        spread = [[abs(v - end) for v, end in zip(values, side, strict=True)] for side in ends]
        axes.barh([row["who"] for row in rows], values, xerr=spread, color="#5b7f9e", capsize=3)
        axes.set_title(measure, loc="left", fontsize=10)
    sheet.savefig(path, dpi=110)
