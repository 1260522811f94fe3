"""Training on a CPU beside nanoGPT: the same shape, then the same number of parameters and the same CPU seconds.

`python tests/bench/pretrain.py --nanogpt DIR --text tinyshakespeare.txt [--seeds 3] [--only speed] [--figure FILE]`

nanoGPT: its train.py as its README runs it on a CPU (4 layers, 4 heads, 128 wide, context 64, batch 12, 2,000 steps,
no dropout), characters, its own split. Ours: `gpt2` of that shape with that optimiser, and `modern` with Muon in a
sixth of nanoGPT's CPU seconds and in all of them. Every run is a process of its own with one thread; its CPU seconds
are user + system from its start to its last step, imports and its own evaluations included. Losses are taken after
that, over the whole validation split in windows of the model's context. `speed` alone runs both sides in turns for 300
steps; `wall` does so with two threads, `budget` is the rest.
"""

import argparse
import json
import os
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from threading import Event

GPT2 = {"family": "gpt2", "depth": 4, "width": 128, "heads": 4, "context": 64}
SAME = {"batch": 12, "optimizer": "adamw", "lr": 1e-3, "min_lr_ratio": 0.1, "schedule": "cosine", "warmup_steps": 100,
        "beta2": 0.99, "weight_decay": 0.1, "clip": 1.0}  # fmt: skip
MODERN = {"family": "modern", "depth": 4, "width": 128, "heads": 2, "hidden": 344}  # 0.799 M parameters; nanoGPT 0.803
MUON = {"lr": 0.02, "adam_lr": 4e-3}
README = ["config/train_shakespeare_char.py", "--device=cpu", "--compile=False", "--eval_iters=20", "--log_interval=50",
          "--block_size=64", "--batch_size=12", "--n_layer=4", "--n_head=4", "--n_embd=128", "--max_iters=2000",
          "--lr_decay_iters=2000", "--dropout=0.0", "--always_save_checkpoint=True"]  # fmt: skip


# -- one run, in a process of its own ---------------------------------------------------------------------------------


def prepared(work: Path, checkout: Path, text: Path) -> None:
    """nanoGPT's own files, made by its own prepare.py, and the same ids as shards with a tokenizer of ours."""
    import numpy as np

    from gpt.data import write_shard
    from gpt.tokenizer import Tokenizer, reserve

    data = checkout / "data" / "shakespeare_char"
    (data / "input.txt").write_text(text.read_text())
    subprocess.run([sys.executable, data / "prepare.py"], check=True, capture_output=True)
    letters = {letter.encode(): n for n, letter in enumerate(sorted(set(text.read_text())))}
    tokenizer = Tokenizer(letters, "characters", reserve(letters))
    for folder in ("tokenizer", "shards"):
        (work / folder).mkdir()
    tokenizer.save(work / "tokenizer")
    for name in ("train", "val"):
        ids = np.fromfile(data / f"{name}.bin", np.uint16)
        write_shard(work / "shards" / f"{name}-00000.bin", ids)
        ids.tofile(work / f"{name}.bin")
    (work / "shards" / "shards.json").write_text(json.dumps({"tokenizer": tokenizer.digest}))
    (work / "letters.json").write_text(json.dumps(len(letters)))


def nanogpt(work: Path, checkout: Path, options: list[str], seed: int = 1337) -> dict:
    """Its own train.py; weights are noted where it saves them, and scored when it has ended."""
    import torch

    os.chdir(checkout)
    sys.path.insert(0, str(checkout))
    out, seen, save, sow = work / "nanogpt", [], torch.save, torch.manual_seed
    torch.manual_seed = lambda _: sow(seed)  # its seed is a constant
    torch.save = lambda what, path: seen.append((time.process_time(), what["iter_num"], clone(what["model"])))
    sys.argv[1:] = [*options, f"--out_dir={out}"]
    wall = time.perf_counter()
    ran = runpy.run_path("train.py")
    cpu_s, wall_s, torch.save = time.process_time(), time.perf_counter() - wall, save
    model, context = ran["model"], ran["block_size"]
    seen.append((cpu_s, ran["max_iters"], clone(model.state_dict())))
    curve = []
    for at_s, step, weights in seen if "--always_save_checkpoint=True" in options else seen[-1:]:
        model.load_state_dict(weights)
        curve.append([at_s, step, score(lambda x, y: model(x, y)[1].item() * y.numel(), work, context)])
    return {"cpu_s": cpu_s, "wall_s": wall_s, "curve": curve, "tokens": ran["max_iters"] * 12 * 64}


def ours(work: Path, model: dict, train: dict) -> dict:
    """gpt/loop.py; weights are noted at checkpoints, and scored when it has ended."""
    from gpt import checkpoint, loop

    out, seen, save = work / "ours", [], checkpoint.save
    out.mkdir()

    def noted(root: Path, training: checkpoint.Training, *how: int) -> None:
        seen.append((time.process_time(), training.state["step"], clone(training.model.state_dict())))
        save(root, training, *how)

    checkpoint.save = noted
    run = {"task": "pretrain", "out": str(out), "lock": "", "data": str(work / "shards"), "init": None, "device": "cpu",
           "tokenizer": str(work / "tokenizer"), "vocab_size": json.loads((work / "letters.json").read_text()),
           "model": model, "train": {"sample_every": 0, "eval_every": 250} | train,
           "threads": int(os.environ["OMP_NUM_THREADS"])}  # fmt: skip
    wall = time.perf_counter()
    assert loop.train(run, Event())
    cpu_s, wall_s = time.process_time(), time.perf_counter() - wall
    trained = checkpoint.load_model(out)
    trained.compute = loop.torch.bfloat16 if bf16(out) else None
    curve = []
    for at_s, step, weights in seen:
        trained.load_state_dict(weights)
        curve.append([at_s, step, score(lambda x, y: trained.costs(x, y).sum().item(), work, model["context"])])
    size = sum(p.numel() for p in trained.parameters())
    return {"cpu_s": cpu_s, "wall_s": wall_s, "curve": curve, "parameters": size,
            "tokens": train["steps"] * train["batch"] * model["context"]}  # fmt: skip


def bf16(out: Path) -> bool:
    return json.loads((out / "logs" / "numerics.json").read_text())["precision"] == "bfloat16"


def clone(weights: dict) -> dict:
    """A copy that training does not change."""
    return {name: value.detach().clone() for name, value in weights.items()}


def score(costs, work: Path, context: int) -> float:
    """Nats a character over the whole validation split."""
    import numpy as np
    import torch

    ids = torch.from_numpy(np.fromfile(work / "val.bin", np.uint16).astype(np.int64))
    count = (len(ids) - 1) // context
    x, y = (ids[at : at + count * context].view(count, context) for at in (0, 1))
    with torch.no_grad():
        total = sum(costs(a, b) for a, b in zip(x.split(64), y.split(64), strict=True))
    return total / (count * context)


# -- both sides -------------------------------------------------------------------------------------------------------


def child(work: Path, name: str, *arguments: object, threads: int = 1) -> dict:
    """What a run in a process of its own returned."""
    with tempfile.TemporaryDirectory(dir=work) as folder:
        for file in ("train.bin", "val.bin", "letters.json", "tokenizer", "shards"):
            (Path(folder) / file).symlink_to(work / file)
        env = os.environ | {"OMP_NUM_THREADS": str(threads), "GOMP_SPINCOUNT": "3000"} | TRAINER
        done = subprocess.run(
            [sys.executable, __file__, "--run", json.dumps([name, folder, *map(plain, arguments)])],
            env=env, capture_output=True, text=True, check=False,
        )  # fmt: skip
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return json.loads(done.stdout.splitlines()[-1])


TRAINER = {"MALLOC_MMAP_THRESHOLD_": str(1 << 33), "MALLOC_TRIM_THRESHOLD_": str(1 << 33)}
"""As tasks/trainer.py sets for ours; nanoGPT gets it too, and gains by it."""


def plain(value: object) -> object:
    return str(value) if isinstance(value, Path) else value


def speed(work: Path, checkout: Path, threads: int, rounds: int) -> None:
    """Tokens a second of both, in turns: CPU seconds with one thread, wall with two; start-up is subtracted."""
    rates: dict[str, list[float]] = {"nanoGPT": [], "gpt2": [], "modern": []}
    kind = "cpu_s" if threads == 1 else "wall_s"
    short, long = 20, 320
    for _ in range(rounds):
        for side, each in rates.items():
            taken = []
            for steps in (short, long):
                if side == "nanoGPT":
                    options = [*README[:-1], f"--max_iters={steps}", "--eval_interval=100000"]
                    taken.append(child(work, "nanogpt", checkout, options, threads=threads)[kind])
                else:
                    model = GPT2 if side == "gpt2" else MODERN | {"context": 64}
                    train = SAME if side == "gpt2" else MUON | {"batch": 12}
                    train = train | {"steps": steps, "eval_every": 10**6, "checkpoint_every": 10**6, "eval_windows": 1}
                    taken.append(child(work, "ours", model, train, threads=threads)[kind])
            each.append((long - short) * 12 * 64 / (taken[1] - taken[0]))
    for side, each in rates.items():
        ratio = statistics.median(a / b for a, b in zip(each, rates["nanoGPT"], strict=True))
        print(f"{side:8} {statistics.median(each):9,.0f} tokens per {kind[:-2]} second, {ratio:.2f}x", flush=True)


def budget(work: Path, checkout: Path, seeds: int, figure: Path | None) -> None:
    """Final losses: nanoGPT, the same shape of ours, modern in a sixth of its CPU seconds and in all of them."""
    curves: dict[str, list] = {}
    for seed in range(seeds):
        told = child(work, "nanogpt", checkout, README, 1337 + seed)
        line("nanoGPT", seed, told, told, curves)
        seeded = {"seed": 1337 + seed, "eval_windows": 64}
        line(
            "gpt2",
            seed,
            child(work, "ours", GPT2, SAME | {"steps": 2000, "checkpoint_every": 250} | seeded),
            told,
            curves,
        )
        for name, (model, train) in BUDGETS.items():
            line(name, seed, child(work, "ours", MODERN | model, train | seeded), told, curves)
    if figure:
        draw(curves, figure)


BUDGETS = {
    "modern, a sixth": (
        {"context": 64},
        {"batch": 16, "steps": 260, "lr": 0.02, "adam_lr": 4e-3, "checkpoint_every": 100},
    ),
    "modern, all": (
        {"context": 128},
        {"batch": 24, "steps": 800, "lr": 0.02, "adam_lr": 4e-3, "checkpoint_every": 100},
    ),
}
"""Steps as a quiet core of the machine in docs/results takes in those seconds."""


def line(name: str, seed: int, run: dict, peer: dict, curves: dict[str, list]) -> None:
    """One row of the table."""
    curves.setdefault(name, []).append(run["curve"])
    loss, share = run["curve"][-1][2], run["cpu_s"] / peer["cpu_s"]
    took = f"{run['cpu_s']:6.1f} CPU s ({share:.3f} of nanoGPT's), {run['tokens'] / 1e6:.2f} M tokens"
    print(f"{name:16} seed {seed}: loss {loss:.3f} after {took}, wall {run['wall_s']:.0f} s", flush=True)


def draw(curves: dict[str, list], file: Path) -> None:
    """Validation loss by CPU seconds."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for colour, (name, runs) in enumerate(curves.items()):
        for n, curve in enumerate(runs):
            points = [(cpu_s, loss) for cpu_s, step, loss in curve if step]
            axes.plot(*zip(*points, strict=True), color=f"C{colour}", label=name if n == 0 else None, linewidth=1)
    axes.set(xlabel="CPU seconds, start included", ylabel="validation loss, nats a character", ylim=(1.45, 2.8))
    axes.legend()
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--nanogpt", type=Path)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", choices=["speed", "budget", "wall"])
    parser.add_argument("--figure", type=Path)
    given = parser.parse_args()
    if given.run:
        name, folder, *rest = json.loads(given.run)
        told = nanogpt(Path(folder), Path(rest[0]), *rest[1:]) if name == "nanogpt" else ours(Path(folder), *rest)
        return print("\n" + json.dumps(told))
    with tempfile.TemporaryDirectory() as folder:
        checkout = given.nanogpt.resolve()
        prepared(Path(folder), checkout, given.text)
        if given.only in (None, "speed"):
            speed(Path(folder), checkout, 1, 3)
        if given.only in (None, "wall"):
            speed(Path(folder), checkout, 2, 3)
        if given.only in (None, "budget"):
            budget(Path(folder), checkout, given.seeds, given.figure)
    return None


if __name__ == "__main__":
    main()
