"""Options that several commands share, and how bad values become one line."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from autotune.meshes.layout_words import words_help
from autotune.system.place import JOIN_SECONDS
from autotune.system.stdout import drop_stdout
from autotune.system.whole_file import check_writable

if TYPE_CHECKING:
    from autotune.meshes.layout import Layout
    from autotune.meshes.target import Target
    from autotune.plan.plan import Plan
    from autotune.workload.workload import Workload


MODEL_HELP = (
    "A preset (`autotune models`), a JSON file with a transformer's shape, a Hugging Face config.json or its folder, "
    "or a MaxText yml."
)


@contextmanager
def bad_input() -> Iterator[None]:
    """What our borders refuse with a ValueError is the user's input: one line, exit 2."""
    try:
        yield
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def workload_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--model, --workload, --batch, --seq, --dtype, and those of `training_options`."""
    command = training_options(command)
    for option in reversed(
        (
            click.option("--model", help=MODEL_HELP),
            click.option("--workload", metavar="PACKAGE.MODULE:FUNCTION", help="Your own: a function or a Workload."),
            click.option("--batch", type=int, help="Sequences in one step, over all devices."),
            click.option("--seq", type=int, help="Tokens in one sequence."),
            click.option("--dtype", default=None, help="Compute dtype; default bfloat16 (float16 on V100)."),
        )
    ):
        command = option(command)
    return command


TRAINING_WORDS = "autotune.training"
"""Where a command's context keeps what `training_options` were given."""


def training_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--optimizer, --weights-dtype, --moments-dtype and --set; `given_training` tells what they said."""
    from autotune.meshes.training import DTYPES, OPTIMIZERS

    def keep(context: click.Context, option: click.Parameter, value: Any) -> Any:
        if value:
            context.meta.setdefault(TRAINING_WORDS, {})[option.name] = value
        return value

    dtypes = click.Choice(tuple(DTYPES))
    for option in reversed(
        (
            click.option(
                "--optimizer", type=click.Choice(tuple(OPTIMIZERS)), expose_value=False, callback=keep,
                help="Of a --model, behind clipping of the gradients' norm [adamw].",
            ),
            click.option(
                "--weights-dtype", type=dtypes, expose_value=False, callback=keep,
                help="Dtype of weights and gradients between steps [float32].",
            ),
            click.option(
                "--moments-dtype", type=dtypes, expose_value=False, callback=keep,
                help="Dtype of the optimizer's state between steps [float32].",
            ),
            click.option(
                "--set", "settings", multiple=True, metavar="KEY=VALUE", expose_value=False, callback=keep,
                help="One key of the model file in place of what it says, as on MaxText's command line.",
            ),
        )
    ):  # fmt: skip
        command = option(command)
    return command


def given_training() -> dict[str, Any]:
    """What `training_options` of the running command were given, by the names of the options; `settings` is a tuple."""
    return dict(click.get_current_context().meta.get(TRAINING_WORDS, {}))


def target_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--target, --hardware, and the flags of jobs of several processes."""
    for option in reversed(
        (
            click.option("--target", help="v5e:16x16, v5p:4x4x4*2, h100:8x8, cpu:8, local (`autotune targets`)."),
            click.option("--hardware", type=click.Path(path_type=Path), help="A hardware file of your own (TOML)."),
            click.option(
                "--coordinator",
                metavar="HOST:PORT",
                help="Multi-process jobs: where process 0 listens; also on the port after it.",
            ),
            click.option("--processes", type=int, help="Multi-process jobs: how many."),
            click.option("--process-id", type=int, help="Multi-process jobs: which one this is."),
            click.option(
                "--join-timeout",
                type=float,
                default=JOIN_SECONDS,
                show_default=True,
                help="Multi-process jobs: seconds to wait for the others.",
            ),
        )
    ):
        command = option(command)
    return command


def memory_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """--memory-fraction."""
    return click.option(
        "--memory-fraction",
        type=float,
        help="Share of each GPU's memory that programs may use [0.75, JAX's own; of local: "
        "XLA_PYTHON_CLIENT_MEM_FRACTION].",
    )(command)


def fix_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """--fix."""
    return click.option(
        "--fix", multiple=True, metavar="NAME=VALUE", help=f"Pin one word of the layout, e.g. tensor=8. {words_help()}"
    )(command)


def store_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """--store."""
    return click.option(
        "--store", type=click.Path(path_type=Path), help="Where compiles and measurements are kept [~/.cache/autotune]."
    )(command)


def set_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """--set."""
    return click.option(
        "--set",
        "settings",
        multiple=True,
        metavar="KEY=VALUE",
        help="One key of the model file in place of what it says, as on MaxText's command line.",
    )(command)


def quiet_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """--quiet."""
    return click.option("--quiet", is_flag=True, help="No progress on stderr; warnings and errors stay.")(command)


def json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """--json."""
    return click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout and nothing else.")(
        command
    )


def target_of(target: str | None, hardware: Path | None, memory_fraction: float | None = None) -> Target:
    """The target that the flags name; one clear line when they do not.

    Of `local`, JAX is told the share of the memory too, before it takes the devices.
    """
    from autotune.meshes.hardware import read_hardware
    from autotune.meshes.target import parse_target, with_memory_fraction

    if not target:
        raise click.UsageError("--target is missing; write e.g. --target v5e:16x16 (`autotune targets` lists them)")
    with bad_input():
        chip = read_hardware(hardware) if hardware else None
        if target == "local":
            from autotune.meshes.topology import MEMORY_FRACTION, local_memory_fraction, local_target

            if memory_fraction is not None and 0 < memory_fraction <= 1:
                told = local_memory_fraction()
                os.environ[told[0] if told else MEMORY_FRACTION[-1]] = str(memory_fraction)
            found = local_target(chip)
        else:
            found = parse_target(target, chip)
        return with_memory_fraction(found, memory_fraction, "--memory-fraction")


def workload_of(
    model: str | None, workload: str | None, batch: int | None, seq: int | None, dtype: str | None, target: Target,
    training: Mapping[str, Any] | None = None,
) -> Workload:  # fmt: skip
    """The workload that the flags name: a reference model, or the user's own function.

    `training`: the words of `given_training` that a plan keeps; None: those of the running command's flags.
    """
    told = given_training() if training is None else dict(training)
    if bool(model) == bool(workload):
        raise click.UsageError("give one of --model and --workload")
    for name, value in (("--batch", batch), ("--seq", seq)):
        if value is not None and value < 1:
            raise click.UsageError(f"{name}={value} must be 1 or more")
    with bad_input():
        if workload and told:
            name = next(iter(told)).replace("_", "-").replace("settings", "set")
            raise click.UsageError(f"--{name} is of a --model; a --workload brings its own optimizer and dtypes")
        if workload:
            from autotune.workload.from_name import load_workload

            return load_workload(workload)
        from autotune.meshes.training import training_of
        from autotune.reference_workload import reference_workload

        if batch is None or seq is None:
            raise click.UsageError(f"--{'batch' if batch is None else 'seq'} is missing; --model needs both")
        assert model is not None
        return reference_workload(
            model, batch=batch, seq=seq, dtype=dtype or default_dtype(target), settings=told.pop("settings", ()),
            training=training_of(told),
        )  # fmt: skip


def machine_of(plan: Plan, target: str | None, memory_fraction: float | None) -> tuple[str, float | None]:
    """The words for `target_of` that name a plan's machine, less what flags say; a share of the memory is kept where
    the target is the plan's."""
    if memory_fraction is None and target in (None, plan.target):
        memory_fraction = plan.memory_fraction
    return target or plan.target, memory_fraction


def recipe_of(plan: Plan, path: Path, workload: str | None) -> dict[str, Any]:
    """The words for `workload_of` that build a plan's step again; `workload` where the plan names no function."""
    recipe: dict[str, Any] = {name: plan.recipe.get(name) for name in ("model", "workload", "batch", "seq", "dtype")}
    if workload:
        if recipe["model"]:
            raise click.UsageError(f"--workload {workload}: {path} is a plan of the reference model {recipe['model']}")
        recipe["workload"] = workload
    if not recipe["model"] and not recipe["workload"]:
        raise click.UsageError(
            f"plan {path}: was made from Python and names no function; say --workload package.module:function, "
            f"one that gives the Workload of {plan.workload}"
        )
    recipe["training"] = training_words(plan)
    return recipe


def training_words(plan: Plan) -> dict[str, Any]:
    """What a plan keeps of its training, for `workload_of`."""
    words: dict[str, Any] = {
        name: plan.recipe[name] for name in ("optimizer", "weights_dtype", "moments_dtype") if name in plan.recipe
    }
    return words | ({"settings": tuple(str(plan.recipe["set"]).splitlines())} if "set" in plan.recipe else {})


def critical_tokens(tokens: str | None, norms: str | None) -> float | None:
    """The critical batch in tokens: as given, or from squared gradient norms measured at two batch sizes."""
    from autotune.frontier.critical_batch import measured_noise_scale
    from autotune.sweep.sizes import parse_tokens

    if tokens is not None and norms is not None:
        raise click.UsageError("give one of --critical-batch-tokens and --critical-batch-norms")
    with bad_input():
        if tokens is not None:
            return parse_tokens(tokens, "critical_batch_tokens")
        if norms is None:
            return None
        pairs = []
        for part in norms.split(","):
            batch, equals, norm = part.partition("=")
            try:
                pairs.append((parse_tokens(batch, "critical_batch_norms"), float(norm)))
            except ValueError:
                raise click.UsageError(
                    f"--critical-batch-norms {norms}: write TOKENS=NORM2,TOKENS=NORM2, e.g. 0.5M=2.9,4M=1.2"
                ) from None
        if len(pairs) != 2:
            raise click.UsageError(f"--critical-batch-norms {norms}: needs two batch sizes, has {len(pairs)}")
        (small, small_norm), (big, big_norm) = sorted(pairs)
        return measured_noise_scale(small, small_norm, big, big_norm)


CRITICAL_NORMS_HELP = "The same, measured: mean squared norm of the gradient at two batch sizes, in tokens."


def default_dtype(target: Target) -> str:
    """bfloat16 wherever the chip multiplies it at full rate; float32 on the CPU, float16 on V100."""
    if target.platform == "cpu":
        return "float32"
    return "bfloat16" if "bfloat16" in target.hardware.flops_per_second else "float16"


def layouts_of(text: str | None) -> tuple[Layout, ...] | None:
    """`--layouts "fsdp=8;data=4,tensor=2"`."""
    if text is None:
        return None
    from autotune.meshes.layout import parse_layout

    with bad_input():
        return tuple(parse_layout(part) for part in text.split(";") if part.strip())


def writable(path: Path | None, option: str) -> None:
    """Refuse an output path that cannot be written before any work is done."""
    if path is None:
        return
    folder = path.parent
    if os.path.isdir(path):
        raise click.UsageError(f"{option} {path}: is a folder")
    if not os.path.isdir(folder):
        raise click.UsageError(f"{option} {path}: folder {folder} does not exist")
    try:
        check_writable(path)
    except OSError as error:
        raise click.UsageError(f"{option} {path}: cannot be written: {error.strerror}") from None


def saved(save: Callable[[Path], None], path: Path, option: str) -> bool:
    """Write a result that has been shown already; where that fails, one line and False."""
    try:
        save(path)
    except OSError as error:
        click.echo(f"autotune: {option} {path}: cannot be written: {error.strerror or error}", err=True)
        return False
    return True


def shown(text: str) -> bool:
    """Print a result; where stdout cannot take it (a full disk), one line on stderr and False.

    BrokenPipeError stays an exception: there the reader had enough.
    """
    try:
        click.echo(text)
    except BrokenPipeError:
        raise
    except OSError as error:
        click.echo(f"autotune: stdout cannot be written: {error.strerror or error}", err=True)
        drop_stdout()
        return False
    return True
