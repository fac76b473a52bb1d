"""`autotune calibrate`: this machine's own rates, into a hardware file."""

from __future__ import annotations

import click

from autotune.commands.options import bad_input, json_option, target_of, target_options, writable
from autotune.commands.run import join_job
from autotune.commands.values import PATH
from autotune.host_memory import keep_freed_memory
from autotune.whole_file import write_whole


@click.command()
@target_options
@click.option("--out", type=PATH, help="Write the hardware file here (TOML) [print it].")
@json_option
def calibrate(target, hardware, coordinator, processes, process_id, out, as_json):
    """Measure matmul rates, memory bandwidth, launches and every collective; write them as a hardware file.

    \b
    autotune calibrate --target local --out mine.toml
    autotune tune ... --target local --hardware mine.toml
    """
    writable(out, "--out")
    keep_freed_memory()
    leads = join_job(coordinator, processes, process_id)
    machine = target_of(target or "local", hardware)
    if not machine.measurable:
        raise click.UsageError(f"--target {machine.name}: has no devices here; only local and cpu:N can be measured")
    from autotune.calibrate.calibrate import calibrate as measured
    from autotune.calibrate.hardware_file import hardware_toml
    from autotune.calibrate.together import calibrate_together
    from autotune.commands.follow import follow
    from autotune.system import job

    if not leads:
        return follow(None, machine)

    def say(line: str) -> None:
        click.echo(line, err=True)

    together = job.current()
    with bad_input():
        if together is None:
            found = measured(machine, on_progress=say)
        else:
            found = calibrate_together(together, machine, on_progress=say)
    if together is not None:
        job.leave()
    text = hardware_toml(found, f"Calibrated by `autotune calibrate`: {machine.name}")
    if out:
        write_whole(out, text)
        say(f"hardware file written to {out}")
    if as_json:
        import dataclasses
        import json

        plain = {name: getattr(found, name) for name in found.__slots__ if name != "tiers"}
        plain["tiers"] = [dataclasses.asdict(tier) for tier in found.tiers]
        click.echo(json.dumps(plain, indent=1, default=dict))
    elif not out:
        click.echo(text)
    return 0
