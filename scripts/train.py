"""Train a reference model on a text file under a plan: `python scripts/train.py plan.json --text corpus.txt`.

Shows loss, step time, tokens per second and MFU beside the plan's prediction. Checkpoints are saved in the background;
a run that was killed goes on from the last good one, also under another plan (another layout, another number of
devices): what step N sees depends on N alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np


@click.command()
@click.argument("plan_path", metavar="PLAN", type=click.Path(path_type=Path))
@click.option("--text", type=click.Path(path_type=Path), required=True, help="A file to train on, read as bytes.")
@click.option("--steps", type=click.IntRange(1), default=100, show_default=True, help="Train until so many are done.")
@click.option("--checkpoints", type=click.Path(path_type=Path), help="Folder of the checkpoints.")
@click.option("--every", type=click.IntRange(1), default=50, show_default=True, help="Steps between checkpoints.")
@click.option("--seed", default=0, show_default=True, help="Of the weights and of the order of the data.")
def main(plan_path: Path, text: Path, steps: int, checkpoints: Path | None, every: int, seed: int) -> None:
    """Train the plan's reference model under the plan."""
    try:
        train(plan_path, text, steps, checkpoints, every, seed)
    except ValueError as error:
        click.echo(f"train: {' '.join(str(error).split())}", err=True)
        sys.exit(2)


def train(plan_path: Path, text: Path, steps: int, folder: Path | None, every: int, seed: int) -> None:
    """Run until `steps` steps are done, printing one line a step."""
    import jax

    from autotune.compile.jit_step import lower_step
    from autotune.meshes.compiler_options import compiler_options

    plan, workload = planned(plan_path)
    corpus = read_bytes(text, plan.seq, workload.transformer.vocab)
    step = step_here(plan, workload)
    about = {
        "seed": seed, "text": int(corpus.size), "text_sha256": hashlib.sha256(corpus.tobytes()).hexdigest(),
        "layout": str(plan.layout), "model": plan.recipe["model"],
    }  # fmt: skip
    with contextlib.ExitStack() as closing:
        store, done, state = None, 0, None
        if folder is not None:
            from autotune.checkpoints import Checkpoints

            store = Checkpoints(folder)
            closing.callback(store.close)
            done, state = resumed(store, step, about)
        program = lower_step(step).compile(compiler_options=compiler_options(plan.layout, plan.machine().hardware))
        if state is None:
            state = step.initialise(seed)
        expected = plan.figures.step_seconds
        word = (
            "measured" if plan.figures.measured_seconds else "compiled" if plan.figures.compiled_seconds else "priced"
        )
        click.echo(f"{plan.workload}: {plan.layout} on {plan.target}; the plan says {_ms(expected)} a step ({word})")
        for number in range(done, steps):
            batch = batch_of(corpus, number, seed, step.batch, workload.training.packing)
            begin = time.perf_counter()
            state, metrics = program(state, batch)
            loss = float(metrics["loss"])
            seconds = time.perf_counter() - begin
            click.echo(report(plan, workload.dtype, number + 1, loss, seconds))
            if store is not None and ((number + 1) % every == 0 or number + 1 == steps):
                store.save(number + 1, state, about)
        jax.block_until_ready(state)


def resumed(store, step, about: Mapping[str, Any]) -> tuple[int, Any]:
    """Steps done and the state of the newest good checkpoint, and lines that say how good it is; (0, None) without."""
    restored = store.restore(step.state)
    if restored is None:
        return 0, None
    for line in restored.refused:
        click.echo(line)
    check_same(store.folder, restored.about, about)
    if not restored.verified:
        click.echo(
            f"checkpoint {restored.step} is unverified: nobody noted its digests, so damage to its files would not be "
            "seen"
        )
    click.echo(f"resumed after step {restored.step} (saved under {restored.about['layout']})")
    return restored.step, restored.state


def check_same(folder: Path, saved: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """ValueError where a checkpoint was trained on other data: another seed, or a text of other bytes.

    Checkpoints of earlier versions tell only how long their text was.
    """
    if saved.get("seed") != here["seed"]:
        raise ValueError(f"checkpoints {folder}: were trained with seed {saved.get('seed')}, this is {here['seed']}")
    if saved.get("text") != here["text"]:
        raise ValueError(
            f"checkpoints {folder}: were trained on a text of {saved.get('text')} bytes, this one has {here['text']}"
        )
    if saved.get("text_sha256", here["text_sha256"]) != here["text_sha256"]:
        raise ValueError(f"checkpoints {folder}: were trained on another text of the same {here['text']} bytes")


def planned(plan_path: Path):
    """The plan and the reference model it is for."""
    from autotune.plan.read import load_plan
    from autotune.reference_workload import workload_of_plan

    plan = load_plan(plan_path)
    if "model" not in plan.recipe:
        raise ValueError(f"plan {plan_path}: is for {plan.workload}, not for a reference model")
    return plan, workload_of_plan(plan)


def step_here(plan, workload):
    """The plan's step on the devices here; a `cpu:N` plan brings its own simulated ones."""
    from autotune.meshes.topology import devices_of

    machine = plan.machine()
    devices = devices_of(machine) if machine.platform == "cpu" else None
    return workload.build(plan.layout, plan.mesh(devices))


def read_bytes(path: Path, seq: int, vocab: int) -> np.ndarray:
    """The file as tokens; ValueError when it is too short for one sequence, or the vocabulary for a byte."""
    try:
        found = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise ValueError(f"text {path}: {error.strerror}") from None
    if found.size < seq + 2:
        raise ValueError(f"text {path}: has {found.size} bytes, one sequence needs {seq + 2}")
    if vocab < 256:
        raise ValueError(f"model: its vocabulary of {vocab} is too small for bytes (256)")
    return found


def batch_of(corpus: np.ndarray, number: int, seed: int, shapes: dict, packing: int = 0):
    """The batch of one step, a function of its number alone: sequences from random places of the text, in `packing`
    documents of random lengths.

    Every process makes only the rows that its devices hold; of packed documents it makes all rows.
    """
    import jax

    sequences, seq = shapes["tokens"].shape
    drawn = np.random.default_rng([seed, number])
    places = drawn.integers(0, corpus.size - seq - 1, size=sequences)
    windows = places[:, None] + np.arange(seq + 1)[None, :]

    def rows(offset: int):
        return lambda index: corpus[windows[:, offset : offset + seq][index]].astype(np.int32)

    if packing:
        from autotune.models.packing import in_documents

        rank = drawn.permuted(np.tile(np.arange(seq - 1), (sequences, 1)), axis=1)
        starts = np.pad(rank < packing - 1, ((0, 0), (1, 0)))
        packed = in_documents(corpus[windows[:, :-1]].astype(np.int32), starts)
        parts = {name: np.asarray(array).__getitem__ for name, array in packed.items()}
    else:
        parts = {"tokens": rows(0), "targets": rows(1)}
    return {
        name: jax.make_array_from_callback(shapes[name].shape, shapes[name].sharding, part)
        for name, part in parts.items()
    }


def report(plan, dtype: str, number: int, loss: float, seconds: float) -> str:
    """One step in words; the prediction beside what happened."""
    figures = plan.figures
    tokens = plan.sequences * plan.seq / seconds
    line = f"step {number}  loss {loss:.6f}  {_ms(seconds)} (plan {_ms(figures.step_seconds)})  {tokens:,.0f} tokens/s"
    if figures.model_flops is None:
        return line
    mfu = figures.model_flops / (seconds * plan.devices * plan.machine().hardware.peak(dtype))
    planned = f" (plan {100 * figures.mfu:.2f} %)" if figures.mfu is not None else ""
    return f"{line}  MFU {100 * mfu:.2f} %{planned}"


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e3 * seconds:.1f} ms"


if __name__ == "__main__":
    main()
