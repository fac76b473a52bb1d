"""`autotune sweep`: how far a model scales on machines one could book."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from autotune.commands.command import Command
from autotune.commands.job_file import instead_of_job, job_options, save_job_of
from autotune.commands.options import (
    CRITICAL_NORMS_HELP,
    MODEL_HELP,
    RESOURCES,
    bad_input,
    batch_rule_option,
    check_matmul_dtype,
    compile_option,
    compile_timeout,
    critical_tokens,
    default_dtype,
    fix_option,
    given_training,
    json_option,
    memory_option,
    only_of_a_model,
    parts_of,
    run_of_model,
    saved,
    scales_of,
    store_option,
    training_options,
    with_training_of,
    writable,
)
from autotune.commands.values import AXES, BATCH, MODEL, PATH, TARGET, Number, Suggested, axes_of
from autotune.meshes.fields import did_you_mean

if TYPE_CHECKING:
    from autotune.sweep.batch import BatchRule
    from autotune.sweep.budget import Budget
    from autotune.sweep.point import Question
    from autotune.sweep.sizes import Family
    from autotune.sweep.sweep import Sweep
    from autotune.workload.workload import Workload


@click.command(cls=Command)
@click.option("--model", type=MODEL, help=MODEL_HELP)
@training_options
@job_options
@click.option(
    "--workload",
    metavar="PACKAGE.MODULE:FUNCTION",
    help="Your own step, with its own batch, from its trace.",
)
@click.option(
    "--target",
    type=TARGET,
    help="One or several, e.g. v5p,h100,v6e; v5p:8x8x8 and h100:4 say what larger ones are made of.",
)  # noqa: E501
@click.option("--hardware", type=PATH, help="A hardware file of your own (TOML), for one target.")
@memory_option
@click.option("--chips", help="Powers of two in a range, 64..8192, or single sizes, 64,96,6144.")
@click.option("--batch-tokens", help="Tokens in one step over all chips: 4M, 4Mi, 4194304.")
@batch_rule_option(
    ("fixed", "paper", "deepseek", "critical"),
    "fixed: as --batch-tokens says; paper, deepseek: it grows with the run; critical: the critical batch [fixed].",
)
@click.option("--batch-scale", type=Number(2**-10, 2**10), default=1.0, help="Multiplies the batch.")
@click.option("--critical-batch-tokens", help="The critical batch, yours: adds what a batch costs in steps and tokens.")
@click.option("--critical-batch-norms", metavar="TOKENS=NORM2,TOKENS=NORM2", help=CRITICAL_NORMS_HELP)
@click.option("--seq", type=BATCH, help="Tokens in one sequence.")
@click.option("--dtype", help="Compute dtype: bfloat16 (bf16), float16, float32; default bfloat16 (float16 on V100).")
@click.option("--axes", type=AXES, help="Mesh axes to search, e.g. data,fsdp,tensor [all that the model can use].")
@fix_option
@click.option(
    "--depth-scale", type=Number(1 / 64, 64), default=1.0, help="As many parameters in so many times the layers."
)
@click.option(
    "--scale",
    multiple=True,
    metavar="RESOURCE=FACTOR",
    type=Suggested("scale", lambda: [f"{name}=" for name in RESOURCES], separators=","),
    help=f"Makes the machine so many times as good: {', '.join(RESOURCES)}, network:TIER.",
)  # noqa: E501
@click.option("--tokens", help="Tokens of the whole run, e.g. 15T: adds days and chip-hours.")
@click.option(
    "--price",
    multiple=True,
    metavar="TARGET=MONEY",
    help="Of one JAX device for an hour, e.g. v5p=4.2,h100=3.",
)  # noqa: E501
@click.option("--min-mfu", type=Number(-1e9, 1e9), help="The largest size that stays above this utilisation, 0 to 1.")
@click.option("--what-helps", is_flag=True, help="The same with one thing made better at a time, layouts chosen again.")
@click.option("--shapes", is_flag=True, help="Deep against fat at the largest size: equal parameters, equal FLOPs.")
@compile_option("How many of the points to compile, spread over the sizes.", 0, old={"--confirm": None})
@compile_timeout
@store_option
@click.option("--plot", type=PATH, help="Write a picture (.png, .svg) and its numbers (.csv).")
@json_option
def sweep(
    model, workload, target, hardware, memory_fraction, chips, batch_tokens, batch_rule, batch_scale,
    critical_batch_tokens, critical_batch_norms, seq, dtype, axes, fix, depth_scale, scale, tokens, price, min_mfu,
    what_helps, shapes, compile_count, timeout, store, plot, as_json,
):  # fmt: skip
    """The best layout against cluster size, and where the limit changes.

    \b
    autotune sweep --model llama3-70b --target v5p --chips 64..8192 --batch-tokens 4M --seq 4096 --min-mfu 0.4
    autotune sweep --model mixtral-8x7b --target v5p,h100 --chips 64..1024 --batch-tokens 4M --seq 4096 \\
        --tokens 1T --price v5p=4.2,h100=3.0
    autotune sweep --workload my_project.train:workload --target h100 --chips 8..256
    """
    from autotune.space import parse_fix
    from autotune.sweep.point import Question
    from autotune.sweep.shapes import shapes as shapes_of
    from autotune.sweep.sweep import sweep as sweep_of
    from autotune.sweep.what_helps import what_helps as helps_of

    if bool(model) == bool(workload):
        raise click.UsageError("give one of --model and --workload")
    for name, value in (("--target", target), ("--chips", chips)):
        if not value:
            raise click.UsageError(f"{name} is missing")
    if workload:
        only_of_a_model(given_training())
        said = {"--batch-tokens": batch_tokens, "--batch-rule": batch_rule, "--seq": seq, "--dtype": dtype,
                "--batch-scale": batch_scale != 1.0, "--depth-scale": depth_scale != 1.0, "--shapes": shapes,
                "--min-mfu": min_mfu}  # fmt: skip
        for name in (name for name, value in said.items() if value):
            raise click.UsageError(f"{name} does not go with --workload: your step has its own batch and shape")
    elif seq is None:
        raise click.UsageError("--seq is missing; write e.g. --seq 4096")
    if min_mfu is not None and not 0 < min_mfu < 1:
        raise click.UsageError(f"--min-mfu={min_mfu} must lie between 0 and 1")
    if plot is not None:
        from autotune.commands.frontier import _require_plotting as require_plotting

        require_plotting(plot)
        writable(plot, "--plot")
        writable(plot.with_suffix(".csv"), "--plot")
    if store is not None:
        from autotune.commands.run import open_store

        open_store(store)
    with bad_input():
        from autotune.sweep.sizes import parse_sizes

        families = _families(target, hardware, scale, memory_fraction)
        sizes = parse_sizes(chips)
        critical = critical_tokens(critical_batch_tokens, critical_batch_norms)
        budgets = _budgets(families, tokens, price, critical)
        if workload:
            from autotune.workload.from_name import load_workload

            own = load_workload(workload)
            questions = [Question(workload=own, axes=_axes(axes, own), fixed=parse_fix(fix)) for _ in families]
        else:
            rule = _rule(batch_rule, batch_tokens, critical, batch_scale)
            questions = [
                _question(family, sizes, model, rule, budgets[0].tokens, seq, dtype, axes, fix, depth_scale)
                for family in families
            ]
        found = [sweep_of(question, family, sizes) for question, family in zip(questions, families, strict=True)]
        if compile_count:
            found = [_confirm(one, compile_count, timeout, store) for one in found]
        helps = (
            {
                one.family.name: helps_of(one, _helped(one, min_mfu), budget, min_mfu)
                for one, budget in zip(found, budgets, strict=True)
            }
            if what_helps
            else {}
        )  # noqa: E501
        drawn = {one.family.name: shapes_of(one.question, one.points[-1].target) for one in found} if shapes else {}
    if as_json:
        from autotune.sweep.document import document

        click.echo(json.dumps(document(found, budgets, min_mfu=min_mfu, helps=helps, shapes=drawn), allow_nan=False))
    else:
        from autotune.commands.run import show
        from autotune.sweep.screen import render
        from autotune.tables import Prose

        instead = instead_of_job()
        if instead:
            show(Prose(f"in place of what the job file says: {', '.join(instead)}"), piped=200)
        show(render(found, budgets, min_mfu=min_mfu, helps=helps, shapes=drawn), piped=200)
    if plot is not None:
        from autotune.sweep.plot import picture

        if not saved(lambda path: picture(found, budgets, path), plot, "--plot"):
            return 2
        click.echo(f"wrote {plot} and {plot.with_suffix('.csv')}", err=True)
    if not save_job_of(click.get_current_context(), {}):
        return 2
    return 0 if any(one.feasible for one in found) else 1


def _families(text: str, hardware: Path | None, scale: tuple[str, ...], memory_fraction: float | None) -> list[Family]:
    """The machines that --target, --hardware, --memory-fraction and --scale name."""
    import dataclasses

    from autotune.meshes.hardware import read_hardware
    from autotune.meshes.hardware import scale as better
    from autotune.meshes.target import with_share
    from autotune.sweep.sizes import parse_family

    names = [part.strip() for part in text.split(",")]
    if not all(names):
        raise click.UsageError("--target names none, or none between two commas; write e.g. v5p,h100")
    if hardware and len(names) > 1:
        raise click.UsageError("--hardware describes one target; give one")
    families = [parse_family(name, read_hardware(hardware) if hardware else None) for name in names]
    families = [
        dataclasses.replace(family, hardware=with_share(family.hardware, memory_fraction, "--memory-fraction"))
        for family in families
    ]
    if len({family.name for family in families}) < len(families):
        raise click.UsageError(f"--target {text}: names a target twice")
    for resource, factor in scales_of(scale):
        for place, family in enumerate(families):
            tiers = [f"network:{tier.name}" for tier in family.hardware.tiers]
            named = tiers if resource == "network" else [resource]
            hardware_now = family.hardware
            for name in named:
                hardware_now = better(hardware_now, name, factor)
            families[place] = dataclasses.replace(family, hardware=hardware_now)
    return families


def _budgets(
    families: list[Family], tokens: str | None, price: tuple[str, ...], critical: float | None
) -> list[Budget]:
    """Tokens, prices and the critical batch, one budget a machine."""
    from autotune.sweep.budget import Budget
    from autotune.sweep.sizes import parse_tokens

    names = [family.name for family in families]
    prices: dict[str, float] = {}
    for part in parts_of("--price", price):
        name, _, value = part.partition("=")
        if name not in names:
            close = did_you_mean(name, names)
            raise click.UsageError(
                f"--price {part}: {name!r} is not among the targets asked for: {', '.join(names)}{close}"
            )
        try:
            prices[name] = float(value)
        except ValueError:
            raise click.UsageError(f"--price {part}: write TARGET=MONEY, e.g. {name}=4.2") from None
        if not 0 < prices[name] < float("inf"):
            raise click.UsageError(f"--price {part}: must be a finite number above 0")
    return [
        Budget(
            tokens=parse_tokens(tokens, "tokens") if tokens is not None else None,
            device_hour_price=prices.get(name),
            critical_tokens=critical,
        )
        for name in names
    ]


def _rule(rule: str | None, tokens: str | None, critical: float | None, factor: float) -> BatchRule:
    from autotune.sweep.batch import BatchRule
    from autotune.sweep.sizes import parse_tokens

    return BatchRule(
        rule=rule or "fixed",
        batch_tokens=parse_tokens(tokens, "batch_tokens") if tokens is not None else None,
        critical_tokens=critical,
        scale=factor,
    )


def _question(
    family: Family, sizes: tuple[int, ...], model: str, rule: BatchRule, tokens: float | None, seq: int,
    dtype: str | None, axes: str | None, fix: tuple[str, ...], depth_scale: float,
) -> Question:  # fmt: skip
    """The step, its axes and pins, on one machine."""
    from autotune.meshes.dtypes import dtype_of
    from autotune.meshes.training import training_of
    from autotune.reference_workload import reference_workload, transformer_of, transformer_workload
    from autotune.space import parse_fix
    from autotune.sweep.point import Question
    from autotune.sweep.shapes import reshaped

    told = given_training()
    settings = told.pop("settings", ())
    run = run_of_model(model, settings)
    dtype, training = dtype or run.get("dtype"), training_of(with_training_of(run, told))
    transformer = transformer_of(model, seq, settings)
    batch = rule.sequences(transformer, seq, tokens)
    offered = next((target for target in map(family.target, sizes) if target is not None), None)
    if offered is None:
        raise ValueError(f"chips: {family.name} comes in none of the sizes asked for: {', '.join(map(str, sizes))}")
    kind = dtype_of(dtype) if dtype else default_dtype(offered)
    family.hardware.peak(kind)
    check_matmul_dtype(training, family.hardware)
    if depth_scale == 1.0:
        workload = reference_workload(model, batch=batch, seq=seq, dtype=kind, settings=settings, training=training)
    else:
        shape = reshaped(transformer, depth_scale, lambda one: float(one.parameters))
        workload = transformer_workload(shape, batch=batch, seq=seq, dtype=kind, training=training)
    return Question(workload=workload, axes=_axes(axes, workload), fixed=parse_fix(fix))


def _axes(text: str | None, workload: Workload) -> tuple[str, ...]:
    """The axes that --axes names, all of which the step can use; those it can use where nothing is named."""
    wanted = axes_of(text)
    if wanted is None:
        return workload.axes
    for name in wanted:
        if name not in workload.axes:
            can = ", ".join(workload.axes)
            raise click.UsageError(f"--axes: {workload.name} makes no use of {name!r}; it can use {can}")
    return wanted


def _helped(found: Sweep, min_mfu: float | None) -> tuple[int, ...]:
    """Sizes for --what-helps: the smallest, the middle and the largest at which something runs; all to find how far a
    utilisation holds."""
    points = found.points if min_mfu is not None else found.feasible or found.points
    if min_mfu is None:
        points = (points[0], points[len(points) // 2], points[-1])
    return tuple(sorted({point.chips for point in points}))


def _confirm(found: Sweep, count: int, timeout: float, store: Path | None) -> Sweep:
    """Compile some of the points."""
    from autotune.commands.run import open_store
    from autotune.search import search
    from autotune.sweep.sweep import confirmed

    kept = open_store(store)

    def compiled(point):
        click.echo(f"compiling {point.layout} on {point.target.name}", err=True)
        report = search(
            found.question.workload, point.target, axes=None, layouts=(point.layout,), fix=(), compile_count=1,
            measure_count=0, probe=False, jobs=1, timeout_seconds=timeout, store=kept,
        )  # fmt: skip
        row = report.rows[0]
        return row.analysis if row.analysis is not None else f"{row.status}: {row.reason}"

    return confirmed(found, count, compiled)
