"""Does a checkpoint fit a plan, array by array? `python scripts/reshard.py plan.json checkpoints/` says so beforehand.

With `--out FOLDER` the newest good checkpoint is also written anew, cut for the plan's mesh. (`scripts/train.py` does
without: it restores any checkpoint under any plan.)
"""

from __future__ import annotations

import sys
from pathlib import Path

import click


@click.command()
@click.argument("plan_path", metavar="PLAN", type=click.Path(path_type=Path))
@click.argument("folder", metavar="CHECKPOINTS", type=click.Path(path_type=Path))
@click.option("--step", type=int, help="Of which step [the newest good one].")
@click.option("--out", type=click.Path(path_type=Path), help="Write the checkpoint here, cut for the plan.")
def main(plan_path: Path, folder: Path, step: int | None, out: Path | None) -> None:
    """Compare a checkpoint with a plan; exit 1 when it does not fit."""
    try:
        fits = reshard(plan_path, folder, step, out)
    except ValueError as error:
        click.echo(f"reshard: {' '.join(str(error).split())}", err=True)
        sys.exit(2)
    sys.exit(0 if fits else 1)


def reshard(plan_path: Path, folder: Path, step: int | None, out: Path | None) -> bool:
    """Print one line an array; True when all fit."""
    from train import planned, step_here

    from autotune.checkpoints import Checkpoints

    if not folder.is_dir():
        raise ValueError(f"checkpoints {folder}: no such folder")
    plan, workload = planned(plan_path)
    if out is not None and out.exists() and any(out.iterdir() if out.is_dir() else [out]):
        raise ValueError(f"out {out}: is there already; name a new folder")
    # Only writing needs the devices; whether it fits can be asked before they are there.
    wanted = step_here(plan, workload) if out is not None else workload.build(plan.layout, mesh_anywhere(plan))
    source = Checkpoints(folder, read_only=True)
    good = [one for one in source.steps() if source.damage(one) is None]
    for one in source.steps():
        if one not in good:
            click.echo(f"checkpoint {one} refused: {source.damage(one)}")
    if not good or (step is not None and step not in good):
        raise ValueError(f"checkpoints {folder}: no good checkpoint" + (f" of step {step}" if step is not None else ""))
    chosen = good[0] if step is None else step
    if not source.verified(chosen):
        click.echo(f"checkpoint {chosen} is unverified: nobody noted its digests")
    fits = source.fits(chosen, wanted.state)
    for fit in fits:
        click.echo(f"{fit.name}  {fit.saved or '-'}  {fit.problem or f'fits, cut as {fit.sharding}'}")
    bad = [fit for fit in fits if fit.problem]
    click.echo(f"step {chosen}: {len(fits) - len(bad)} of {len(fits)} arrays fit {plan.layout} on {plan.target}")
    if out is not None and not bad:
        restored = source.restore(wanted.state, only=chosen)
        assert restored is not None
        target = Checkpoints(out)
        target.save(restored.step, restored.state, {**restored.about, "layout": str(plan.layout)})
        target.close()
        click.echo(f"step {restored.step} written to {out}")
    return not bad


def mesh_anywhere(plan):
    """The plan's mesh on devices that need not be here, as its compiler has them."""
    from autotune.commands.run import require_compiler
    from autotune.meshes.topology import mesh_of

    machine = plan.machine()
    try:
        require_compiler(machine)
    except click.UsageError as error:
        raise ValueError(error.message) from None
    return mesh_of(plan.layout, machine)


if __name__ == "__main__":
    main()
