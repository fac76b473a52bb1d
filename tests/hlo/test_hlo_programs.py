"""Programs of the three compilers against hand counts of the model they were compiled from."""

import re
import time
from collections import Counter

import pytest
from hlo_fixtures import NAMES, NO_MEMORY, fixture, saved

from autotune.hlo.read import read_program
from autotune.hlo.versions import CHECKED_VERSIONS, unchecked
from autotune.program import Compute, CopyStart, Done, Loop, Start, WorkStart, by_collective, by_kernel, walk

FULL = [name for name in NAMES if saved(name)["layout"].partition("remat=")[2].split(",")[0] in ("full", "offload")]
KEPT = [name for name in NAMES if name not in FULL]


def flops(read, kernel):
    """FLOPs of one step of one class of work, all devices."""
    ops = [(op, trips) for op, trips in walk(read.program.instructions) if isinstance(op, Compute)]
    return read.devices * sum(op.flops * trips for op, trips in ops if (op.kernel == "attention") == kernel)


def tokens(read):
    return read.batch * read.seq


def attention_forward(read):
    """FLOPs of the two matmuls of attention in one layer, every score counted."""
    return 4 * read.batch * read.model.heads * read.seq**2 * read.model.head_dim


@pytest.mark.parametrize("name", FULL)
def test_flops_of_full_recomputation(name):
    """Forward, again, and twice that backwards; but the last matmul of a layer need not be done again.

    Attention: plain matmuls (CPU, V100) once forward, once again, twice backwards. cuDNN: 2 + 2 + 5 matmuls, half of
    each under the causal mask. Splash: 2 + 2 + 3 + 4 matmuls over whole blocks, here one block of all 1024 positions.
    """
    read = fixture(name)
    model = read.model
    layer = 2 * tokens(read) * (4 * (model.attention_parameters + model.mlp_parameters) - model.d_model * model.d_ff)
    expected = model.layers * layer + 6 * tokens(read) * model.d_model * model.vocab
    one = model.layers * attention_forward(read) / 2
    if read.target.hardware.name in ("cpu", "v100-16"):
        expected += 8 * one
        kernels = 0.0
    else:
        kernels = {"cuda": 9 / 2, "tpu": 11}[read.target.platform] * one
    assert flops(read, False) == pytest.approx(expected, rel=1e-9)
    assert flops(read, True) == pytest.approx(kernels, rel=1e-9)


@pytest.mark.parametrize("name", KEPT)
def test_flops_where_matmuls_are_kept(name):
    read = fixture(name)
    model = read.model
    layer = 6 * tokens(read) * (model.attention_parameters + model.mlp_parameters)
    expected = model.layers * layer + 6 * tokens(read) * model.d_model * model.vocab
    if read.target.platform == "cpu":
        expected += 3 * model.layers * attention_forward(read)
    assert flops(read, False) == pytest.approx(expected, rel=1e-9)


def elements(read, kind, axis, crossing=1):
    """Elements of the arrays that one kind of collective moves along one axis in a step; masks and indices apart."""
    moved = 0.0
    for op, trips in walk(read.program.instructions):
        if isinstance(op, Start) and op.collective.kind == kind and op.collective.payload_bytes > 2**13:
            collective = op.collective
            width = {"bfloat16": 2, "float16": 2, "float32": 4}.get(collective.dtype)
            if width and collective.axes == (axis,) and collective.crosses_groups == crossing:
                moved += trips * collective.payload_bytes / width
    return moved


def layer_parameters(read):
    return read.model.layers * (read.model.attention_parameters + read.model.mlp_parameters)


def embedding(read):
    return read.model.vocab * read.model.d_model


@pytest.mark.parametrize(("name", "crossing"), [("cpu-data", 1), ("h100-data", 2), ("v5e-data", 1)])
def test_pure_data_parallel_reduces_every_gradient_once(name, crossing):
    read = fixture(name)
    expected = layer_parameters(read) + 2 * embedding(read)
    assert elements(read, "all_reduce", "data", crossing) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "crossing"),
    [
        *(("cpu-fsdp", 1), ("h100-fsdp", 2), ("v100-fsdp", 1), ("v5e-fsdp", 1), ("v5e-windowed", 1)),
        *(("cpu-fsdp-jax0.11", 1), ("h100-fsdp-jax0.11", 2), ("v5e-fsdp-jax0.11", 1)),
    ],
)
def test_pure_fsdp_gathers_weights_twice(name, crossing):
    """Forward and backward in every layer; the embedding and the output projection once each."""
    read = fixture(name)
    expected = 2 * layer_parameters(read) + 2 * embedding(read)
    assert elements(read, "all_gather", "fsdp", crossing) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "kind", "crossing"),
    [
        ("h100-fsdp", "reduce_scatter", 2),
        ("v100-fsdp", "reduce_scatter", 1),
        ("cpu-fsdp", "all_reduce", 1),  # the CPU backend has no reduce-scatter
        ("v5e-fsdp", "all_reduce", 1),  # and libtpu takes an all-reduce and a slice here
        ("h100-fsdp-jax0.11", "reduce_scatter", 2),
        ("cpu-fsdp-jax0.11", "all_reduce", 1),
        ("v5e-fsdp-jax0.11", "all_reduce", 1),
    ],
)
def test_pure_fsdp_reduces_gradients_once(name, kind, crossing):
    """Of the layers and the output projection; the embedding's rows are exchanged by an all-to-all before."""
    read = fixture(name)
    expected = layer_parameters(read) + embedding(read)
    assert elements(read, kind, "fsdp", crossing) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("name", ["h100-tensor", "v5e-tensor"])
def test_pure_tensor_parallel_gathers_and_scatters_activations(name):
    """Gathers of a layer: input of attention and of the MLP forward, again, and as many of gradients backwards: 6.

    Scatters: after each forwards, after attention again, and of the two inputs' gradients backwards: 5. Once a step:
    the hidden state before the logits and its gradient, the embedding and its gradient.
    """
    read = fixture(name)
    activation = tokens(read) * read.model.d_model
    gathers = (6 * read.model.layers + 1) * activation + embedding(read)
    scatters = (5 * read.model.layers + 1) * activation + embedding(read)
    assert elements(read, "all_gather", "tensor") == pytest.approx(gathers, rel=1e-3)
    assert elements(read, "reduce_scatter", "tensor") == pytest.approx(scatters, rel=1e-3)


def test_slices_exchange_what_each_has_left():
    """Data parallel over two slices: gradients are reduced inside, and one device's 1/16 of them crosses the DCN."""
    read = fixture("v5e-slices")
    expected = (layer_parameters(read) + 2 * embedding(read)) / 16
    assert elements(read, "all_reduce", "data", crossing=2) == pytest.approx(expected, rel=1e-3)
    crossing = [
        op.collective for op, _ in walk(read.program.instructions)
        if isinstance(op, Start) and op.collective.crosses_groups > 1
    ]  # fmt: skip
    assert {(found.axes, found.group_size) for found in crossing} == {(("data",), 2)}


@pytest.mark.parametrize(
    ("name", "inside"), [("v5e-slices-fsdp", 16), ("v5e-slices-both", 4), ("v5p-slices-tensor", 8)]
)
def test_weights_sharded_over_slices_are_gathered_across_first(name, inside):
    """The DCN brings one device both slices' halves of its share of the slice, then the ICI gathers the rest."""
    read = fixture(name)
    gathered = (2 * layer_parameters(read) + 2 * embedding(read)) / inside
    assert elements(read, "all_gather", "fsdp", crossing=2) == pytest.approx(gathered, rel=1e-3)


def test_four_slices_are_told_apart_by_axis():
    """data and fsdp cross two slices each: gradients of one fsdp half meet along data, and some sums in all four."""
    spans = {
        (op.collective.axes, op.collective.crosses_groups)
        for op, _ in walk(fixture("v5e-slices-both").program.instructions)
        if isinstance(op, Start) and op.collective.crosses_groups > 1
    }
    assert spans == {(("data",), 2), (("fsdp",), 2), (("data", "fsdp"), 4)}


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_left_unread(name):
    """No warnings: every opcode and custom call is known, all trip counts read, all groups run along mesh axes."""
    assert fixture(name).program.warnings == ()


@pytest.mark.parametrize("name", NAMES)
def test_every_start_has_its_done(name):
    instructions = fixture(name).program.instructions
    started, ended = Counter(), Counter()
    for op, trips in walk(instructions):
        if isinstance(op, (Start, CopyStart, WorkStart)):
            started[op.token] += trips
        elif isinstance(op, Done):
            ended[op.token] += trips
    assert started == ended


@pytest.mark.parametrize("name", NAMES)
def test_axes_and_group_sizes_agree(name):
    read = fixture(name)
    for op, _ in walk(read.program.instructions):
        if isinstance(op, Start) and op.collective.kind != "permute":
            size, spanned = 1, op.collective.crosses_groups
            for axis in op.collective.axes:
                size *= read.layout.mesh_shape[axis]
            assert size % op.collective.group_size == 0 and op.collective.group_size % spanned == 0


@pytest.mark.parametrize("name", NAMES)
def test_most_work_is_traced_to_a_line_of_the_model(name):
    ops = [(op, trips) for op, trips in walk(fixture(name).program.instructions) if isinstance(op, Compute)]
    total = sum(op.flops * trips for op, trips in ops)
    traced = sum(op.flops * trips for op, trips in ops if op.source and op.source.startswith("autotune/models/"))
    assert traced == total


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("v5")])
def test_tpu_matmuls_carry_the_compilers_cycles(name):
    """At least the time that the matmul unit needs at its peak: 4 (v5e) or 8 (v5p) times 128 x 128 products a cycle."""
    per_cycle = {"v5e": 4, "v5p": 8}[fixture(name).target.hardware.name] * 128 * 128 * 2
    matmuls = [op for op, _ in walk(fixture(name).program.instructions) if getattr(op, "kernel", "") == "matmul"]
    assert matmuls and all(op.cycles is not None for op in matmuls)
    assert sum(op.cycles for op in matmuls) > sum(op.flops for op in matmuls) / per_cycle


def test_overlap_is_what_the_compiler_scheduled():
    """On a GPU work lies between start and done; on TPU async fusions do, and the gathers of a chain count once."""
    for name in ("h100-fsdp", "v5e-fsdp"):
        covered = 0.0
        for loop in fixture(name).program.instructions:
            if isinstance(loop, Loop):
                open_gathers = set()
                for op in loop.body:
                    if isinstance(op, Start) and op.collective.kind == "all_gather":
                        open_gathers.add(op.token)
                    elif isinstance(op, Done):
                        open_gathers.discard(op.token)
                    elif isinstance(op, Compute) and open_gathers:
                        covered += op.flops
        assert covered > 0


def test_reading_costs_little_more_than_splitting_into_words():
    """4 times here; in seconds of this process, so that other work on the machine does not count."""
    read = fixture("v5e-slices-fsdp")
    text = read.compilation.text
    begin = time.process_time()
    read_program(
        text,
        platform="tpu",
        mesh_shape=read.layout.mesh_shape,
        devices_per_group=16,
        dcn=read.layout.dcn_axes,
        memory=NO_MEMORY,
    )
    between = time.process_time()
    assert len(re.findall(r"[\w.-]+", text)) > 1e5
    assert between - begin < 12 * (time.process_time() - between)


@pytest.mark.parametrize("name", [name for name in NAMES if saved(name)["compilation"]["cost"]])
def test_xlas_own_count_with_loops_taken_once(name):
    """XLA's cost analysis counts a loop's body once, elementwise FLOPs too, and no Pallas kernels.

    Its bytes include those of collectives and, on TPU, of vector memory: only the CPU's compare.
    """
    read = fixture(name)

    def once(instructions):
        for op in instructions:
            if isinstance(op, Loop):
                yield from once(op.body)
            elif isinstance(op, Compute) and op.kernel != "attention":
                yield op

    ops = list(once(read.program.instructions))
    assert 0.97 < sum(op.flops for op in ops) / read.compilation.cost["flops"] <= 1.0
    if read.target.platform == "cpu":
        assert 0.8 < sum(op.hbm_bytes for op in ops) / read.compilation.cost["bytes accessed"] < 1.0


def test_the_versions_said_to_be_checked_are_those_of_the_fixtures():
    found: dict[str, set[str]] = {}
    for name in NAMES:
        for package, version in fixture(name).compilation.versions.items():
            found.setdefault(package, set()).add(version)
    assert {package: set(checked) for package, checked in CHECKED_VERSIONS.items()}.items() <= found.items()
    assert all(unchecked(fixture(name).compilation.versions) == () for name in NAMES)
    assert unchecked({"jaxlib": "0.9.0"}) and not unchecked({"numpy": "1.0"})


@pytest.mark.parametrize("name", NAMES)
def test_totals_by_class_add_up_to_the_program(name):
    program = fixture(name).program
    work = by_kernel(program)
    assert sum(total.flops for total in work.values()) == pytest.approx(program.flops(), rel=1e-12)
    copied = sum(
        trips * op.copy.bytes * (op.copy.from_memory, op.copy.to_memory).count("hbm")
        for op, trips in walk(program.instructions) if isinstance(op, CopyStart)
    )  # fmt: skip
    assert sum(total.bytes for total in work.values()) + copied == pytest.approx(program.hbm_bytes(), rel=1e-12)
    started = [(op, trips) for op, trips in walk(program.instructions) if isinstance(op, Start)]
    assert sum(total.count for total in by_collective(program).values()) == sum(trips for _, trips in started)
