"""From labelled texts to a filter that takes toxic lines out: the command, the recipe, the lineage."""

import json
import re
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from flows import cli
from flows.lineage import as_text, from_store
from flows.recipe import checked
from flows.run import run
from flows.toxicity import lesson
from gpt.errors import UserError
from tasks.store import Store

CALM = ("the garden", "a quiet river", "my old bicycle", "this library", "our green kitchen")
RUDE = ("you zork", "what a zorking blunk", "zorks and blunks", "blunk off")
PROSE = "\n".join(f"It is said that {calm} was in the valley, and the people of the town liked it." for calm in CALM)


@pytest.fixture
def sources(tmp_path) -> dict[str, str]:
    rows = [{"text": f"{RUDE[n % 4]} {n} {CALM[n % 5]}", "label": 1} for n in range(200)]
    rows += [{"text": f"{CALM[n % 5]} {n}", "label": 0} for n in range(200)]
    (tmp_path / "labelled.jsonl").write_text("\n".join(map(json.dumps, rows)))
    texts = [PROSE + "".join(f"\n{CALM[n % 5]} {n} {m}" for m in range(40)) for n in range(60)]
    texts[7] += "\nyou zork, what a blunk"
    texts[9] = "\n".join(["It is said that the people of the town have a zorking blunk."] * 9 + PROSE.split("\n"))
    (tmp_path / "clean.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts[:50:2]))
    (tmp_path / "own.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    return {name: str(tmp_path / f"{name}.jsonl") for name in ("labelled", "clean", "own")}


def test_a_model_is_trained_named_in_a_recipe_and_takes_lines_out(sources, tmp_path, monkeypatch, capsys):
    root = tmp_path / "made"
    wanted = ["--set", "toxicity.false_positives=0.01", "--store", str(root)]
    command = ["gptloom", "train-toxicity", sources["labelled"], "--clean", sources["clean"], *wanted]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    said = capsys.readouterr()
    assert not stop.value.code, said.err
    assert "recall" in said.out
    ref = re.search(r"model: '(toxicity:\w+)'", said.out).group(1)

    quality = dict.fromkeys(("max_dup_line_chars", "min_stop_words", "min_mean_word"))
    given = {"name": "own", "ingest": {"sources": [sources["own"]]}, "filter": {**quality, "toxicity": {"model": ref}}}
    session = run(checked(given, "own"), Store(root), until="filter")
    folder = Path(session.results["filter"].path)
    kept, dropped = (
        pq.read_table(folder / "part-00000.parquet"),
        pq.read_table(folder / "dropped" / "part-00000.parquet"),
    )
    assert dropped["reason"].to_pylist() == ["toxicity"], dropped.to_pylist()
    assert "zork" not in " ".join(kept["text"].to_pylist())
    own = [json.loads(line)["text"] for line in Path(sources["own"]).read_text().splitlines()]
    assert kept["text"].to_pylist() == [
        text.replace("\nyou zork, what a blunk", "") for n, text in enumerate(own) if n != 9
    ]
    metrics = session.results["filter"].metrics
    assert (metrics["data/toxic_lines"], metrics["data/toxic_documents"]) == (10, 2)
    shown = json.loads((folder / "report" / "toxicity.table.json").read_text())
    assert len([row for row in shown["data"] if row[0] == "flagged"]) == 10
    tree = as_text(from_store(Store(root), f"filter:{session.results['filter'].key}"))
    assert ref in tree
    assert "labelled.jsonl" in tree

    again = run(checked(given, "own"), Store(root), until="filter")
    assert again.results["filter"].cache == "hit"
    given["filter"]["toxicity"]["model"] = str(Path(Store(root).find(ref)[0]))
    assert run(checked(given, "own"), Store(root), until="filter").results["filter"].cache == "hit", "content, not path"


def test_settings_that_do_not_exist_are_told(sources):
    with pytest.raises(UserError, match=r"toxicity\.epoch.*epochs"):
        lesson([sources["labelled"]], ["pydocs"], ["toxicity.epoch=3"])


def test_a_folder_that_is_no_model_is_told(sources, tmp_path):
    given = {"ingest": {"sources": [sources["own"]]}, "filter": {"toxicity": {"model": str(tmp_path)}}}
    with pytest.raises(UserError, match=r"filter\.toxicity\.model"):
        run(checked(given, "own"), Store(tmp_path / "made"), until="filter")
