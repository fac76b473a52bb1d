"""Options that several commands share, and how bad values become one line."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from autotune.commands.command import Option
from autotune.commands.values import (
    BATCH,
    COUNT,
    DOCUMENTS,
    LAYOUT,
    MODEL,
    PATH,
    PROCESS,
    RANK,
    TARGET,
    TIMEOUT,
    LoraTargets,
    Number,
    OneOf,
    TrueOrFalse,
)
from autotune.compile.compilation import COMPILE_SECONDS
from autotune.meshes.fields import one_line
from autotune.meshes.layout_words import words_help
from autotune.system.place import JOIN_SECONDS
from autotune.system.stdout import drop_stdout
from autotune.system.whole_file import check_writable

if TYPE_CHECKING:
    from autotune.meshes.hardware import Hardware
    from autotune.meshes.layout import Layout
    from autotune.meshes.target import Target
    from autotune.meshes.training import Training
    from autotune.plan.plan import Plan
    from autotune.workload.workload import Workload


MODEL_HELP = (
    "A preset (`autotune models`), a JSON file with a transformer's shape, a Hugging Face config.json or its folder, "
    "or a MaxText yml."
)
TARGET_HELP = "v5e:16x16, v5p:4x4x4*2, h100:8x8, cpu:8, local (`autotune targets`)."


compile_timeout = click.option(
    "--timeout", type=TIMEOUT, default=COMPILE_SECONDS, show_default=True, help="Seconds one compile may take."
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
            click.option("--model", type=MODEL, help=MODEL_HELP),
            click.option("--workload", metavar="PACKAGE.MODULE:FUNCTION", help="Your own: a function or a Workload."),
            click.option("--batch", type=BATCH, help="Sequences in one step, over all devices."),
            click.option("--seq", type=BATCH, help="Tokens in one sequence."),
            click.option(
                "--dtype",
                help="Compute dtype: bfloat16 (bf16), float16, float32; default bfloat16 (float16 on V100).",
            ),
        )
    ):
        command = option(command)
    return command


TRAINING_WORDS = "autotune.training"
"""Where a command's context keeps what `training_options` were given."""


def training_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--optimizer, the dtypes of what is kept, adapters, and --set; `given_training` tells what they said."""
    from autotune.meshes.dtypes import ALIASES
    from autotune.meshes.lora import BASE_DTYPES
    from autotune.meshes.training import DTYPES, MATMUL_DTYPES, OPTIMIZERS

    def keep(context: click.Context, option: click.Parameter, value: Any) -> Any:
        if value not in (None, "", ()):
            context.meta.setdefault(TRAINING_WORDS, {})[option.name] = value
        return value

    command = setting_option(expose_value=False, callback=keep)(command)
    more = (
        ("lora-rank", RANK, "Train adapters of this rank beside frozen weights (LoRA) [0: all weights are trained]."),
        ("lora-targets", LoraTargets(),
         "Matrices that have adapters [all seven: those of attention and of MLPs, experts among them]."),
        ("base-dtype", OneOf(BASE_DTYPES, {other: name for name in BASE_DTYPES for other in ALIASES.get(name, ())}),
         "Dtype of the frozen weights; nf4 is priced only [bfloat16]."),
        ("packing", DOCUMENTS,
         "Documents packed into each sequence; attention stays inside a document [0: a sequence is one document]."),
        ("scan-layers", TrueOrFalse(),
         "Whether layers run in a loop over stacked weights, or each has a program of its own [true]."),
    )  # fmt: skip
    for word, kind, help_text in reversed(more):
        command = click.option(f"--{word}", type=kind, expose_value=False, callback=keep, help=help_text)(command)
    for word, choices, help_text in reversed(
        (
            ("optimizer", OPTIMIZERS, "Of a --model, behind clipping of the gradients' norm [adamw]."),
            ("weights-dtype", DTYPES, "Dtype of the weights between steps [float32]."),
            ("moments-dtype", DTYPES, "Dtype of the optimizer's state between steps [float32]."),
            ("gradients-dtype", DTYPES,
             "Dtype in which gradients are summed over passes and handed to the optimizer [the weights']."),
            ("master-dtype", DTYPES, "Dtype of a master copy of the weights in the optimizer's state [none is kept]."),
            ("matmul-dtype", MATMUL_DTYPES,
             "Dtype to which both operands of the layers' linear matmuls are quantised [none: the compute dtype]."),
        )
    ):  # fmt: skip
        others = {other: name for name in choices for other in ALIASES.get(name, ())}
        kind = OneOf(choices, others)
        option = click.option(f"--{word}", type=kind, expose_value=False, callback=keep, help=help_text)
        command = option(command)
    return command


def given_training() -> dict[str, Any]:
    """What `training_options` of the running command were given, by the names of the options; `settings` is a tuple."""
    context = click.get_current_context(silent=True)  # None where no command runs
    return dict(context.meta.get(TRAINING_WORDS, {})) if context is not None else {}


def only_of_a_model(told: Mapping[str, Any]) -> None:
    """Refuse the words of `given_training` beside a --workload."""
    for word in told:
        name = word.replace("_", "-").replace("settings", "set")
        raise click.UsageError(f"--{name} is of a --model; a --workload brings its own optimizer and dtypes")


def settings_given() -> tuple[str, ...]:
    """--set of the running command."""
    return tuple(given_training().get("settings", ()))


def target_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--target, --hardware, and the flags of jobs of several processes."""
    for option in reversed(
        (
            click.option("--target", type=TARGET, help=TARGET_HELP),
            click.option("--hardware", type=PATH, help="A hardware file of your own (TOML)."),
            click.option(
                "--coordinator",
                metavar="HOST:PORT",
                help="Multi-process jobs: where process 0 listens; also on the port after it.",
            ),
            click.option("--processes", type=PROCESS, help="Multi-process jobs: how many."),
            click.option("--process-id", type=PROCESS, help="Multi-process jobs: which one this is."),
            click.option(
                "--join-timeout",
                type=TIMEOUT,
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
        type=Number(0, 1, above=True),
        help="Share of each GPU's memory that programs may use [0.75, JAX's own; of local: "
        "XLA_PYTHON_CLIENT_MEM_FRACTION].",
    )(command)


def fix_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """--fix."""
    return click.option(
        "--fix",
        multiple=True,
        type=LAYOUT,
        metavar="NAME=VALUE",
        help=f"Pin one word of the layout, e.g. tensor=8. {words_help()}",
    )(command)


def store_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """--store."""
    return click.option("--store", type=PATH, help="Where compiles and measurements are kept [~/.cache/autotune].")(
        command
    )


def timeline_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """--timeline."""
    return click.option(
        "--timeline",
        type=PATH,
        help="Write the chosen layout's step here, lane by lane, as a Chrome trace (opens in ui.perfetto.dev).",
    )(command)


def setting_option(**how: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """--set; `how` is for click, where a command does not take it as an argument of its own."""
    return click.option(
        "--set",
        "settings",
        multiple=True,
        metavar="KEY=VALUE",
        help="One key of the model file in place of what it says, as on MaxText's command line.",
        **how,
    )


def compile_option(
    help_text: str, default: int, old: Mapping[str, str | None] | None = None
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """--compile, as `compile_count`: how many layouts to compile, the best-priced ones; 0: prices alone."""
    return click.option(
        "--compile", "compile_count", cls=Option, old=old, type=COUNT, default=default, show_default=True,
        help=help_text,
    )  # fmt: skip


def measure_option(
    help_text: str, old: Mapping[str, str | None] | None = None, bare: str | None = None
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """--measure, as `measure_count`: how many layouts to run, the best-compiled ones; 0: none."""
    return click.option("--measure", "measure_count", cls=Option, old=old, bare=bare, type=COUNT, help=help_text)


def option_sets_option(default: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """--option-sets: whether the best layout is compiled again under the chip's recommended sets of XLA options."""
    from autotune.meshes.option_sets import TRYING

    return click.option(
        "--option-sets", type=OneOf(TRYING), default=default, show_default=True,
        help="Compile the best layout again under the sets of XLA options that the chip's hardware file recommends. "
        "auto: with compiles of --compile that no layout needs; try: beyond --compile; off: never.",
    )  # fmt: skip


def batch_rule_option(rules: tuple[str, ...], help_text: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """--batch-rule: how large the batch is. The rule of arXiv 2411.01137 is `paper`; `default` was its name once."""
    return click.option("--batch-rule", type=OneOf(rules, {"default": "paper"}), help=help_text)


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
        if target.strip().lower() == "local":
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
    if workload:
        only_of_a_model(told)
    with bad_input():
        if workload:
            for name, value in (("--batch", batch), ("--seq", seq), ("--dtype", dtype)):
                if value is not None:
                    raise click.UsageError(f"{name} does not go with --workload: your step has its own batch and shape")
            from autotune.workload.from_name import load_workload

            return load_workload(workload)
        from autotune.meshes.dtypes import dtype_of
        from autotune.meshes.training import training_of
        from autotune.reference_workload import reference_workload

        assert model is not None
        if training is None:  # what a MaxText file says of its run, under the flags
            run = run_of_model(model, told.get("settings", ()))
            batch = batch if batch is not None else _batch_of(run, model, target)
            seq, dtype = seq if seq is not None else run.get("seq"), dtype or run.get("dtype")
            told = with_training_of(run, told)
        if batch is None or seq is None:
            raise click.UsageError(f"--{'batch' if batch is None else 'seq'} is missing; --model needs both")
        kind = dtype_of(dtype) if dtype else default_dtype(target)
        target.hardware.peak(kind)
        settings, trained = told.pop("settings", ()), training_of(told)
        check_matmul_dtype(trained, target.hardware)
        return reference_workload(model, batch=batch, seq=seq, dtype=kind, settings=settings, training=trained)


def check_matmul_dtype(training: Training, hardware: Hardware) -> None:
    """Refuse matmuls in a dtype that a chip has no peak of, or for which its compiler has no kernel."""
    from autotune.meshes.training import matmul_dtype_problem

    if problem := matmul_dtype_problem(training, hardware):
        raise click.UsageError(f"--matmul-dtype={training.matmul_dtype}: {problem}")


def run_of_model(model: str, settings: Sequence[str]) -> dict[str, Any]:
    """What a model file says of its job and layout (MaxText), under the words of flags; empty of any other."""
    from autotune.model_files.read import read_model

    with bad_input():
        return dict(read_model(model, settings).run)


def with_training_of(run: Mapping[str, Any], told: Mapping[str, Any]) -> dict[str, Any]:
    """The words of `given_training` over those that a model file's run says of its training."""
    from autotune.meshes.training import WORDS

    return {word: run[word] for word in WORDS if word in run} | dict(told)


def _batch_of(run: Mapping[str, Any], model: str, target: Target) -> int | None:
    from autotune.model_files.maxtext_run import devices_batch

    return devices_batch(run, target, f"model file {one_line(model)}")


def layout_of_model(model: str, target: Target) -> tuple[Layout, ...]:
    """The layout that the mesh, remat and pipeline keys of a MaxText file say on a target."""
    from autotune.model_files.maxtext_run import layout_of_run
    from autotune.model_files.read import read_model

    with bad_input():
        found = read_model(model, settings_given())
        layers = len(found.architecture.layers)
        return (layout_of_run(found.run, layers, target, f"model file {one_line(model)}"),)


def machine_of(plan: Plan, target: str | None, memory_fraction: float | None) -> tuple[str, float | None]:
    """The words for `target_of` that name a plan's machine, less what flags say; a share of the memory is kept where
    the target is the plan's."""
    if memory_fraction is None and target in (None, plan.target):
        memory_fraction = plan.memory_fraction
    return target or plan.target, memory_fraction


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a plan and the flags beside it ask for: a flag that is given wins.

    `words`: for `workload_of`. `target`, `memory_fraction`: for `target_of`. `instead`: what differs from the plan, a
    phrase each, for the heading.
    """

    words: dict[str, Any]
    target: str
    memory_fraction: float | None
    instead: tuple[str, ...]


def asked_of(
    plan: Plan, path: Path, *, model: str | None = None, workload: str | None = None, batch: int | None = None,
    seq: int | None = None, dtype: str | None = None, target: str | None = None, hardware: Path | None = None,
    memory_fraction: float | None = None,
) -> Asked:  # fmt: skip
    """The step and the machine of a plan, with the flags that are given in place of the plan's own words.

    A plan is data: the function that it names is imported only where --workload names it too.
    """
    from autotune.meshes.dtypes import dtype_of

    if model and workload:
        raise click.UsageError("give one of --model and --workload")
    with bad_input():
        flags = {"model": model, "workload": workload, "batch": batch, "seq": seq,
                 "dtype": dtype_of(dtype) if dtype else None}  # fmt: skip
        said = {name: plan.recipe.get(name) for name in flags}
        words = {name: value if value is not None else said[name] for name, value in flags.items()}
        if workload:
            words = flags
        elif model:
            words["workload"] = None
        given: dict[str, tuple[Any, Any]] = {
            f"--{name}": (value, said[name]) for name, value in flags.items() if value is not None
        }
        if target:
            given["--target"] = (target_of(target, hardware).name, plan.target)
        if hardware:
            given["--hardware"] = (_differs(hardware, plan), plan.hardware)
        if memory_fraction is not None:
            given["--memory-fraction"] = (memory_fraction, plan.memory_fraction)
    if words["workload"] and not workload:
        raise click.UsageError(
            f"plan {one_line(path)}: names the function {words['workload']} as its workload; a plan is data, and "
            f"running that code is for you to say: --workload {words['workload']}"
        )
    if not words["model"] and not words["workload"]:
        raise click.UsageError(
            f"plan {one_line(path)}: was made from Python and names no function; say --workload "
            f"package.module:function, one that gives the Workload of {plan.workload}"
        )
    kept = training_words(plan) if words["model"] == said["model"] and words["model"] else None
    if kept is not None:  # what the flags say wins
        words["training"] = kept | given_training()
    instead = tuple(
        f"{flag} {one_line(value)} ({one_line(path)} says {one_line(before)})"
        if before is not None
        else f"{flag} {one_line(value)} ({one_line(path)} names none)"
        for flag, (value, before) in given.items()
        if value != before and not (flag == "--workload" and before is None and not plan.recipe)
    )
    machine, fraction = machine_of(plan, target, memory_fraction)
    return Asked(words=words, target=machine, memory_fraction=fraction, instead=instead)


def _differs(hardware: Path, plan: Plan) -> str:
    """What --hardware is called in a heading: the chip's name where the file says what the plan's own chip has."""
    from autotune.meshes.hardware import load_hardware, read_hardware

    return plan.hardware if read_hardware(hardware) == load_hardware(plan.hardware) else str(hardware)


def training_words(plan: Plan) -> dict[str, Any]:
    """What a plan keeps of its training, for `workload_of`."""
    from autotune.meshes.training import WORDS

    words: dict[str, Any] = {name: plan.recipe[name] for name in WORDS if name in plan.recipe}
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


RESOURCES = ("matmul", "hbm", "capacity", "latency", "network")
"""What --scale makes better, in every command; `network` is every tier of links."""


def parts_of(option: str, given: tuple[str, ...]) -> list[str]:
    """What stands between the commas of an option that may be given several times; nowhere nothing."""
    parts = [part.strip() for text in given for part in text.split(",")]
    if not all(parts):
        raise click.UsageError(f"{option} has nothing between two commas; write NAME=NUMBER,NAME=NUMBER")
    return parts


def scales_of(given: tuple[str, ...]) -> list[tuple[str, float]]:
    """`--scale matmul=2,latency=4` as (name, factor); which names there are is for the command to say."""
    found = []
    for part in parts_of("--scale", given):
        name, _, factor = part.rpartition("=")
        try:
            found.append((name.strip(), float(factor)))
        except ValueError:
            raise click.UsageError(f"--scale {part}: write RESOURCE=FACTOR, e.g. latency=2") from None
    return found


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
        raise click.UsageError(f"{option} {one_line(path)}: is a folder")
    if not os.path.isdir(folder):
        raise click.UsageError(f"{option} {one_line(path)}: folder {one_line(folder)} does not exist")
    try:
        check_writable(path)
    except OSError as error:
        raise click.UsageError(f"{option} {one_line(path)}: cannot be written: {error.strerror}") from None


def saved(save: Callable[[Path], None], path: Path, option: str) -> bool:
    """Write a result that has been shown already; where that fails, one line and False."""
    try:
        save(path)
    except OSError as error:
        click.echo(f"autotune: {option} {one_line(path)}: cannot be written: {error.strerror or error}", err=True)
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
