"""`autotune calibrate`: this machine's own rates, into a hardware file."""

from __future__ import annotations

import click

from autotune.commands.catalogue import figures_table
from autotune.commands.command import Command
from autotune.commands.options import bad_input, json_option, saved, shown, target_of, target_options, writable
from autotune.commands.run import in_job, leave_job, require_same, showed
from autotune.commands.values import PATH
from autotune.system.host_memory import keep_freed_memory
from autotune.system.whole_file import write_whole


@click.command(cls=Command)
@target_options
@click.option("--out", type=PATH, help="Write the hardware file here (TOML) [print it].")
@json_option
def calibrate(target, hardware, coordinator, processes, process_id, join_timeout, out, as_json):
    """Measure matmul rates, memory bandwidth, launches and every collective; write them as a hardware file.

    \b
    autotune calibrate --target local --out mine.toml
    autotune tune ... --target local --hardware mine.toml
    """
    writable(out, "--out")
    keep_freed_memory()
    from autotune.calibrate.calibrate import calibrate as measured
    from autotune.calibrate.hardware_file import hardware_toml
    from autotune.calibrate.together import calibrate_together
    from autotune.commands.follow import follow
    from autotune.system import job

    def say(line: str) -> None:
        click.echo(line, err=True)

    with in_job(coordinator, processes, process_id, join_timeout) as leads:
        machine = target_of(target or "local", hardware)
        if not machine.measurable:
            raise click.UsageError(
                f"--target {machine.name}: has no devices here; only local and cpu:N can be measured"
            )
        require_same(machine, None)
        if not leads:
            return follow(None, machine)
        together = job.current()
        with bad_input():
            if together is None:
                found = measured(machine, on_progress=say)
            else:
                found = calibrate_together(together, machine, on_progress=say)
        leave_job()
    text = hardware_toml(found, f"Calibrated by `autotune calibrate`: {machine.name}")
    kept = True
    if as_json:
        import dataclasses
        import json

        plain = {name: getattr(found, name) for name in found.__slots__ if name != "tiers"}
        plain["tiers"] = [dataclasses.asdict(tier) for tier in found.tiers]
        kept = shown(json.dumps(plain, indent=1, default=dict))
    elif not out:
        kept = shown(text)
    if out and saved(lambda path: write_whole(path, text), out, "--out"):
        say(f"hardware file written to {out}")
        if not as_json:
            kept = showed(figures_table(found, f"{machine.name}: figures per JAX device, SI units")) and kept
    elif out:
        kept = False
        if not as_json:
            shown(text)  # minutes of measuring are not lost with the disk
    return 0 if kept else 2
