"""The champion's gate: a registered release becomes `champion` only if it is no worse than the one there, and says why.

In: a REF of a registered model. Out: a Verdict; the alias `champion`, and on the version the tags `gate`, `gate.reason`
and its description. Everything is read from MLflow: the release's scores are the table scores.json of `evaluate`.

The rule. A first champion beats every trivial baseline on what its stages were trained for (MUST_BEAT). A later one is
clearly worse on no measure and clearly better on one, both asked the same: equal held-out data, equal settings of
`evaluate`. Clearly: the 95 % intervals lie apart; bits per byte, which have none, are 2 % worse or 0.5 % better.
"""

import json
import math
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from flows.lineage import Walk, name_of, registered, release
from tasks.measures import LOWER_IS_BETTER, PORTS, TAKEN_ON
from tasks.notes import NAME

MUST_BEAT = {"base": "bpb", "prefer": "pair_accuracy", "rl": "arithmetic"}
"""What a model has to have learned, by the stages that it went through."""
NOT_TRIVIAL = ("xz -9",)
"""A strong compressor: to beat it is fine, but no condition."""
WORSE, BETTER = 1.02, 0.995
"""Bits per byte over the champion's: from where on they count as worse, up to where as better."""
IDLE = ("seed", "prompts", "words")
"""Settings of `evaluate` that change samples and tables, but no score."""
GATE = "\n\n**Gate:** "
Rows = dict[str, dict[str, Any]]
"""One contestant's rows of scores.json by measure."""


@dataclass(frozen=True)
class Verdict:
    """What became of a candidate."""

    promoted: bool
    """Whether it is the champion now."""
    version: str
    gate: str
    """champion (it was already), first, better, forced, or held."""
    reason: str

    def __str__(self) -> str:
        what = f"is the champion ({self.gate})" if self.promoted else "is held back"
        what = "is the champion already" if self.gate == "champion" else what
        return f"{NAME}, version {self.version}, {what}: {self.reason}"


@dataclass(frozen=True)
class Exam:
    """One evaluation of a version: what was asked, and where the answers are."""

    version: str
    who: str
    """The version's model among those that were scored."""
    asked: dict[str, str]
    """The held-out data as stage:key@digest, and the settings."""
    client: Any
    run: str

    @property
    def identity(self) -> dict[str, str]:
        """What two exams must have alike to be one: content, whatever it is called."""
        return {name: value.rpartition("@")[2] for name, value in self.asked.items()}

    @cached_property
    def scores(self) -> dict[str, Rows]:
        """scores.json by contestant and measure; the loss says again what bits per byte say."""
        with tempfile.TemporaryDirectory() as folder:
            file = self.client.download_artifacts(self.run, "report/scores.json", folder)
            rows = [row for row in json.loads(Path(file).read_text()) if row["measure"] != "loss"]
        return {who: {r["measure"]: r for r in rows if r["who"] == who} for who in {r["who"] for r in rows}}

    @property
    def own(self) -> Rows:
        """The version's scores."""
        return self.scores[self.who]


def promote(ref: str, uri: str, force: bool = False) -> Verdict:
    """Judge a registered release; if it passes or is forced, move `champion` to it. Again, it changes nothing."""
    client, version = registered(ref, uri)
    there = client.get_registered_model(version.name).aliases.get("champion")
    if there and int(there) == int(version.version):
        return Verdict(True, version.version, "champion", version.tags.get("gate.reason", "it was so already"))
    gate, reason = judge(client, version, there)
    if force and gate == "held":
        gate, reason = "forced", f"by hand (--force), although {reason}"
    about = f"{(version.description or '').split(GATE)[0]}{GATE}{gate}; {reason}"
    client.set_model_version_tag(version.name, version.version, "gate", gate)
    client.set_model_version_tag(version.name, version.version, "gate.reason", reason)
    client.update_model_version(version.name, version.version, about)
    if gate != "held":
        client.set_registered_model_alias(version.name, "champion", version.version)
    return Verdict(gate != "held", version.version, gate, reason)


def judge(client: Any, version: Any, there: str | None) -> tuple[str, str]:
    """(gate, reason): as the first champion, or against the one that is there."""
    mine = exams(client, version)
    if there is None:
        return first(mine[0])
    theirs = exams(client, client.get_model_version(version.name, there))
    alike = [(one, other) for one in mine for other in theirs if one.identity == other.identity]
    return against(*alike[0]) if alike else ("held", unlike(mine[0], theirs[0]))


def first(exam: Exam) -> tuple[str, str]:
    """The gate where there is no champion yet: better than all trivial baselines on what it was trained for."""
    measures = [m for port, m in MUST_BEAT.items() if port in exam.scores and m in exam.own]
    rivals = [
        (exam.own[m], exam.scores[who][m]) for m in measures for who in sorted(exam.scores) if trivial(who, m, exam)
    ]
    failed = [
        f"{said(own)} against {rival['who']} {rival['value']:.3f}" for own, rival in rivals if not beats(own, rival)
    ]
    if failed:
        return "held", f"it does not beat {'; '.join(failed)}"
    names = {m: ", ".join(f"{r['who']} {r['value']:.3f}" for own, r in rivals if own["measure"] == m) for m in measures}
    lines = [f"{said(exam.own[m])} beats {names[m]}" for m in measures]
    return "first", f"there was no champion; {'; '.join(lines)}"


def trivial(who: str, measure: str, exam: Exam) -> bool:
    """Whether a contestant is a trivial baseline of this measure."""
    return who not in (*PORTS, *NOT_TRIVIAL) and measure in exam.scores[who]


def beats(row: dict[str, Any], baseline: dict[str, Any]) -> bool:
    """Better than a baseline's value, with the whole interval where there is one."""
    if row["measure"] in LOWER_IS_BETTER:
        return (row["value"] if row["high"] is None else row["high"]) < baseline["value"]
    return (row["value"] if row["low"] is None else row["low"]) > baseline["value"]


def against(new: Exam, old: Exam) -> tuple[str, str]:
    """The gate beside a champion: nothing clearly worse, something clearly better."""
    pairs = [(new.own[m], old.own[m]) for m in sorted(new.own.keys() & old.own.keys())]
    lines = {sign: [f"{said(a)}, was {said(b, '')}" for a, b in pairs if clearly(a, b) == sign] for sign in (-1, 0, 1)}
    champion, same = f"version {old.version}", f"no clear difference on {len(lines[0])}"
    if lines[-1]:
        return "held", f"clearly worse than {champion}: {'; '.join(lines[-1])}"
    if not lines[1]:
        return "held", f"nothing clearly better than {champion}: {same} measures"
    return "better", f"clearly better than {champion}: {'; '.join(lines[1])}; nothing clearly worse, {same} other"


def clearly(new: dict[str, Any], old: dict[str, Any]) -> int:
    """1 better, -1 worse, 0 neither: by intervals that lie apart, for bits per byte by their ratio; NaN is worse."""
    if not math.isfinite(new["value"]):
        return -1
    if new["low"] is None or old["low"] is None:
        ratio = new["value"] / old["value"]
        return -1 if ratio > WORSE else 1 if ratio < BETTER else 0
    higher = int(new["low"] > old["high"]) - int(new["high"] < old["low"])
    return -higher if new["measure"] in LOWER_IS_BETTER else higher


def said(row: dict[str, Any], name: str | None = None) -> str:
    """As in `arithmetic 0.913 (0.888-0.933)`."""
    interval = "" if row["low"] is None else f" ({row['low']:.3f}-{row['high']:.3f})"
    return f"{row['measure'] if name is None else name} {row['value']:.3f}{interval}".strip()


def unlike(new: Exam, old: Exam) -> str:
    """Why two versions cannot be compared, and what makes it possible."""
    names = sorted(n for n in new.identity.keys() | old.identity.keys() if new.identity.get(n) != old.identity.get(n))
    parts = [f"{n}: {old.asked.get(n, 'nothing')[:40]} there, {new.asked.get(n, 'nothing')[:40]} here" for n in names]
    data = [f"{n}={new.asked[n].partition('@')[0]}" for n in names if "@" in new.asked.get(n, "")]
    more = [
        f"{n.removeprefix('evaluate.')}={new.asked[n]}" for n in names if n.startswith("evaluate.") and n in new.asked
    ]
    way_out = f"run the deployment `evaluate` in Prefect with recipe models:/{NAME}/{old.version}"
    way_out += f", inputs {' '.join(data)}" * bool(data) + f", changes {' '.join(more)}" * bool(more)
    what = f"it cannot be compared with the champion, version {old.version}, which was asked other things"
    return f"{what} ({'; '.join(parts)}); {way_out}, then promote again"


# -- what MLflow knows ------------------------------------------------------------------------------------------------


def exams(client: Any, version: Any) -> list[Exam]:
    """Every evaluation of a version's model, the one of its own release first; UserError where there is none."""
    model = release(client, version)
    walk = Walk(client, model.experiment_id)
    made = inputs(walk.run(name_of(model), model.tags["artifact.digest"]))
    own = walk.run(*made["scores"].split("@"))
    stage, content = made["model"].partition(":")[0], made["model"].rpartition("@")[2]
    port = {"pretrain": "base"}.get(stage, stage)
    query = f"tags.stage = 'evaluate' AND tags.`artifact.in.{port}` LIKE '%@{content}'"
    found = client.search_runs([model.experiment_id], query, order_by=["attributes.start_time DESC"])
    finished = [run for run in found if run.data.tags.get("cache") in ("hit", "miss")]
    return [exam(client, version.version, port, run) for run in (own, *finished)]


def exam(client: Any, version: str, who: str, run: Any) -> Exam:
    """One evaluation; its files lie with the run that built it."""
    asked = {port: named for port, named in inputs(run).items() if port in TAKEN_ON.values()}
    asked |= {f"evaluate.{name}": value for name, value in run.data.params.items() if name not in IDLE}
    return Exam(version, who, asked, client, run.data.tags.get("cache.source_run_id", run.info.run_id))


def inputs(run: Any) -> dict[str, str]:
    """What a run was given, as port: stage:key@digest."""
    head = "artifact.in."
    return {name.removeprefix(head): value for name, value in run.data.tags.items() if name.startswith(head)}
