"""Laws of the limits model: what must hold whatever the figures."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autotune.frontier.assumptions import Assumptions
from autotune.frontier.batch import Overlap
from autotune.frontier.closed_forms import (
    DENSE_ALPHA,
    latency_wall_flop,
    linear_scaling_end_flop,
    node_balance,
    step_latency_seconds,
)
from autotune.frontier.critical_batch import effort, effort_over_minimum, measured_noise_scale
from autotune.frontier.curve import Curve, curve
from autotune.frontier.gpu import GPUS, Gpu, NetworkLevel
from autotune.frontier.limits import GROUPS, RESOURCES, binding, elasticities, time_shares
from autotune.frontier.mix import Mix
from autotune.frontier.run import TrainingRun, near, scaled_run
from autotune.frontier.search import evaluate, fastest_mix
from autotune.frontier.shapes import equal_parameters, shape
from autotune.frontier.what_helps import CHANGES, what_helps

RATES = ("network_bandwidth", "hbm_bandwidth", "l2_bandwidth", "arithmetic")
LATENCIES = ("network_latency", "matmul_latency")


@pytest.fixture(scope="module")
def h100() -> Curve:
    return curve(GPUS["h100"], Assumptions())


@settings(deadline=None, max_examples=40)
@given(
    what=st.sampled_from([*RATES, *LATENCIES, "memory"]),
    factor=st.floats(1.01, 20),
    d_model=st.sampled_from([12288, 36864, 98304]),
    sparse=st.booleans(),
    doublings=st.integers(11, 24),
)
def test_a_better_part_never_makes_a_batch_slower(what, factor, d_model, sparse, doublings):
    gpu, run = GPUS["h100"], scaled_run(d_model, sparse=sparse)
    gpus = run.experts * 2**doublings
    better = gpu.scaled(**{what: 1 / factor if what in LATENCIES else factor})
    before, after = fastest_mix(run, gpu, gpus, Overlap()), fastest_mix(run, better, gpus, Overlap())
    if before is not None:
        assert after is not None and after.batch_seconds <= before.batch_seconds


@pytest.mark.parametrize("name", ["v100", "a100", "h100", "h100-global-nvlink-low-latency"])
@pytest.mark.parametrize("sparse", [False, True])
def test_utilisation_never_exceeds_what_large_matmuls_reach(name, sparse):
    points = curve(GPUS[name], Assumptions(sparse=sparse)).points
    assert points
    assert all(0 < point.utilization <= GPUS[name].large_matmul_efficiency for point in points)


def test_sparse_with_one_expert_is_dense():
    assert scaled_run(1536, sparse=True).experts == 1
    for rule in ("default", "fixed", "deepseek"):
        assert scaled_run(1536, sparse=True, batch_rule=rule) == scaled_run(1536, batch_rule=rule)


def test_every_rate_doubled_and_every_latency_halved_halves_the_time(h100):
    gpu = GPUS["h100"]
    # Twice the clock doubles arithmetic and shared memory together.
    fast = replace(
        gpu.scaled(network_bandwidth=2, hbm_bandwidth=2, l2_bandwidth=2, network_latency=0.5, matmul_latency=0.5),
        clock_hz=2 * gpu.clock_hz,
    )
    for point in h100.points:
        again = evaluate(point.run, fast, point.found.mix, Overlap())
        assert again.batch_seconds == pytest.approx(point.found.batch_seconds / 2, rel=1e-12)


def test_near_breaks_ties_towards_the_smaller():
    assert [near(x) for x in (1, 3.5, 11, 13, 0.01, 1e30)] == [1, 3, 10, 12, 1, 9 * 2**59]


# ---- closed forms -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "alpha", "flop"),
    [
        ("v100", 0.0, 1.305e27),
        ("a100", 0.0, 2.622e28),
        ("h100", 0.0, 1.924e28),
        ("v100", 0.2, 2.190e29),
        ("a100", 0.2, 3.253e31),
        ("h100", 0.2, 1.942e31),
    ],
)
def test_the_published_end_of_linear_scaling(name, alpha, flop):
    assert linear_scaling_end_flop(GPUS[name], alpha=alpha) == pytest.approx(flop, rel=1e-3)


@pytest.mark.parametrize(("alpha", "flop"), [(0.0, 2.305e31), (0.2, 2.625e36)])
def test_the_published_latency_wall(alpha, flop):
    assert latency_wall_flop(9e-6, alpha=alpha) == pytest.approx(flop, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "nanobatch", "shard"), [("v100", 279.1, 26791), ("a100", 401.1, 16633), ("h100", 590.4, 26385)]
)
def test_the_published_node_balance(name, nanobatch, shard):
    balance = node_balance(GPUS[name])
    assert balance.nanobatch_tokens == pytest.approx(nanobatch, rel=2e-4)
    assert balance.activation_shard == pytest.approx(shard, rel=2e-5)


def test_how_the_closed_forms_scale():
    gpu = GPUS["h100"]
    end, wall = linear_scaling_end_flop(gpu, alpha=0), latency_wall_flop(9e-6, alpha=0)
    assert linear_scaling_end_flop(gpu, alpha=0, months=6) == pytest.approx(4 * end)
    assert latency_wall_flop(9e-6, alpha=0, months=6) == pytest.approx(4 * wall)
    assert latency_wall_flop(4.5e-6, alpha=0) == pytest.approx(4 * wall)
    assert linear_scaling_end_flop(gpu.scaled(arithmetic=2), alpha=0) == pytest.approx(end / 16)
    assert linear_scaling_end_flop(gpu.scaled(network_bandwidth=2), alpha=0) == pytest.approx(16 * end)
    assert linear_scaling_end_flop(gpu.scaled(hbm_bandwidth=2), alpha=0) == pytest.approx(4 * end)
    power = 1 / (1 - 2 * DENSE_ALPHA)
    ratio = linear_scaling_end_flop(gpu.scaled(network_bandwidth=2)) / linear_scaling_end_flop(gpu)
    assert ratio == pytest.approx(16**power)


def test_an_infinite_network_has_one_level_like_global_nvlink():
    infinite, global_nvlink = (GPUS[f"h100-{name}-low-latency"] for name in ("infinite-network", "global-nvlink"))
    (level,) = infinite.levels
    assert level == replace(global_nvlink.levels[0], bidirectional_bytes_per_second=math.inf)
    # Two levels would ask for both latencies where tensor parallelism spans nodes: never faster, here slower.
    two = replace(infinite, levels=(replace(level, size=8), level))
    run = scaled_run(196608)
    one_level, two_levels = (fastest_mix(run, gpu, 2**36, Overlap()).batch_seconds for gpu in (infinite, two))
    assert 1e-5 < two_levels / one_level - 1 < 1e-4


def test_closed_forms_without_a_limit_are_infinite():
    assert linear_scaling_end_flop(GPUS["h100-infinite-network-low-latency"]) == math.inf
    assert latency_wall_flop(step_latency_seconds(GPUS["h100"].scaled(network_latency=0, matmul_latency=0))) == math.inf
    with pytest.raises(ValueError, match="alpha=0.5 must be below 1/2"):
        latency_wall_flop(9e-6, alpha=0.5)


# ---- critical batch size ------------------------------------------------------------------------------------------


@given(steps=st.floats(1, 1e9), critical=st.floats(1, 1e9), batch=st.floats(1, 1e9))
def test_steps_against_examples(steps, critical, batch):
    examples = steps * critical
    reached = effort(steps, examples, batch)
    over = effort_over_minimum(batch, critical)
    assert reached.examples == pytest.approx(reached.steps * batch)
    assert (over.steps - 1) * (over.examples - 1) == pytest.approx(1, rel=1e-6)
    assert reached.steps == pytest.approx(steps * over.steps)


def test_at_the_critical_batch_both_cost_twice():
    over = effort_over_minimum(7.0, 7.0)
    assert (over.steps, over.examples) == (2, 2)


@given(gradient=st.floats(0.1, 10), trace=st.floats(1, 1e4), small=st.integers(1, 50), times=st.integers(2, 50))
def test_the_noise_scale_is_read_off_two_batch_sizes(gradient, trace, small, times):
    big = small * times
    found = measured_noise_scale(small, gradient + trace / small, big, gradient + trace / big)
    assert found == pytest.approx(trace / gradient, rel=1e-6)


def test_noise_alone_is_no_measurement():
    with pytest.raises(ValueError, match="average over more steps"):
        measured_noise_scale(1, 8.0, 4, 2.0)


# ---- what binds ---------------------------------------------------------------------------------------------------


def settings_to_check() -> list[tuple[str, Assumptions]]:
    return [
        ("h100", Assumptions()),
        ("v100", Assumptions(sparse=True)),
        ("a100", Assumptions(overlap=Overlap(tensor=False, pipeline=False))),
        ("h100-low-latency", Assumptions(overlap=Overlap(data=True), batch_rule="fixed")),
    ]


@pytest.mark.parametrize(("name", "assumptions"), settings_to_check(), ids=["plain", "sparse", "no overlap", "all"])
def test_shares_sum_to_one_and_are_derivatives(name, assumptions):
    """Elasticities against finite differences, mix kept. Shared memory has no knob of its own: the rest fixes it."""
    gpu, step = GPUS[name], 1e-7
    worse = {
        ("compute",): gpu.scaled(arithmetic=1 / (1 + step)),
        ("hbm",): gpu.scaled(hbm_bandwidth=1 / (1 + step)),
        ("l2",): gpu.scaled(l2_bandwidth=1 / (1 + step)),
        ("matmul-latency",): gpu.scaled(matmul_latency=1 + step),
        ("network-latency",): gpu.scaled(network_latency=1 + step),
        ("tensor-network", "data-network", "pipeline-expert-network"): gpu.scaled(network_bandwidth=1 / (1 + step)),
    }
    checked = 0
    for point in curve(gpu, assumptions).points:
        shares = time_shares(point.run, gpu, point.found, assumptions.overlap)
        assert set(shares) == set(RESOURCES)
        assert min(shares.values()) >= 0
        assert sum(shares.values()) == pytest.approx(1, rel=1e-12)
        weights = elasticities(shares, float(point.found.time.bubble[0]))
        for resources, slower in worse.items():
            time = evaluate(point.run, slower, point.found.mix, assumptions.overlap).batch_seconds
            measured = (time / point.found.batch_seconds - 1) / step
            assert measured == pytest.approx(sum(weights[name] for name in resources), abs=1e-5)
            checked += 1
    assert checked > 60


def test_elasticities_sum_to_one_where_nothing_hides(h100):
    for point in h100.points:
        shares = time_shares(point.run, h100.gpu, point.found, Overlap())
        assert sum(elasticities(shares, float(point.found.time.bubble[0])).values()) == pytest.approx(1, rel=1e-12)


def test_a_gpu_short_of_one_thing_is_bound_by_it():
    """Each verdict by construction: starve one resource and it must be named."""
    run, overlap = scaled_run(16384), Overlap()
    mix = Mix(
        data=(1, 64),
        tensor_model=(2, 1),
        tensor_ff=(4, 4),
        pipeline=(1, 4),
        expert=(1, 1),
        microbatches=8,
        interleave=1,
        zero_bubble=True,
    )

    def verdict(gpu: Gpu, one: Mix = mix) -> str:
        shares = time_shares(run, gpu, evaluate(run, gpu, one, overlap), overlap)
        resource = max(shares, key=lambda name: shares[name])
        return GROUPS.get(resource, resource)

    gpu = GPUS["h100"]
    assert verdict(gpu) == "compute"
    assert verdict(gpu.scaled(arithmetic=1e4, hbm_bandwidth=1e-3)) == "hbm"
    assert verdict(gpu.scaled(arithmetic=1e4, l2_bandwidth=1e-3)) == "l2"
    assert verdict(gpu.scaled(arithmetic=1e4)) in ("l2", "shared-memory", "tensor-network")
    assert verdict(gpu.scaled(matmul_latency=1e5)) == "latency"
    assert verdict(gpu.scaled(network_bandwidth=1e-3)) == "tensor-network"
    no_tensor = replace(mix, data=(8, 256), tensor_model=(1, 1), tensor_ff=(1, 1))
    assert verdict(gpu.scaled(network_bandwidth=1e-4), no_tensor) == "data-network"
    only_stages = replace(no_tensor, data=(1, 1), pipeline=(1, 256), microbatches=2**20)
    assert verdict(gpu.scaled(network_bandwidth=1e-4), only_stages) == "pipeline-expert-network"
    few = replace(no_tensor, data=(8, 1), pipeline=(1, 256), microbatches=256, zero_bubble=False)
    assert verdict(gpu, replace(few, microbatches=16)) == "bubble"


def test_memory_binds_when_it_keeps_the_better_mixes_out():
    run, overlap = scaled_run(12288), Overlap()
    # A slow network wants data parallelism, which replicates the parameters: 1.16 GB a GPU holds them only once.
    tight = GPUS["h100"].scaled(memory=0.0145, network_bandwidth=0.05)
    roomy = tight.scaled(memory=1e3)
    found, free = fastest_mix(run, tight, 2048, overlap), fastest_mix(run, roomy, 2048, overlap)
    kept_out = binding(run, tight, found, overlap)
    assert kept_out.memory_gain == pytest.approx(1 - free.batch_seconds / found.batch_seconds)
    assert kept_out.memory_gain > 0
    assert binding(run, roomy, free, overlap).memory_gain == 0


# ---- what would help, and shapes ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_helps_moves_what_it_should(h100):
    rows = {row.change: row for row in what_helps(h100)}
    base = rows["as it is"]
    assert set(rows) == {"as it is", *CHANGES}
    assert base.linear_scaling_ends_flop == h100.linear_scaling_end.run.flop
    assert base.first_infeasible_flop == h100.wall.flop
    for change in ("matmul latency /2", "network latency /2", "both latencies /2"):
        assert rows[change].last_feasible_flop > base.last_feasible_flop
    assert rows["both latencies /2"].closed_form_wall_flop == pytest.approx(
        base.closed_form_wall_flop * 4 ** (1 / (1 - 2 * DENSE_ALPHA))
    )
    assert rows["network bandwidth x2"].linear_scaling_ends_flop > base.linear_scaling_ends_flop
    assert rows["arithmetic x2"].linear_scaling_ends_flop < base.linear_scaling_ends_flop
    assert rows["memory x2"].closed_form_linear_end_flop == base.closed_form_linear_end_flop


def test_equal_parameters_are_equal_and_hold_the_point_they_came_from(h100):
    end = h100.linear_scaling_end
    shapes = equal_parameters(end.run, h100.gpu, h100.assumptions)
    assert [one.run.layers for one in shapes] == sorted(one.run.layers for one in shapes)
    for one in shapes:
        assert one.run.active_params == pytest.approx(end.run.active_params, rel=0.04)
    same = next(one for one in shapes if one.run.layers == end.run.layers)
    assert same.run == end.run
    assert same.point.months == end.months
    assert same.depth_over_rule == 1


def test_a_shape_too_deep_for_any_cluster_says_so():
    assumptions = Assumptions()
    deep = shape(assumptions.run(12288, 2**16), GPUS["h100"], assumptions)
    assert deep.point is None and deep.binding is None


# ---- borders ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Assumptions(months=0), "months=0 must be above 0"),
        (lambda: Assumptions(months=math.nan), "months=nan must be"),
        (lambda: Assumptions(batch_rule="big"), "batch_rule='big' must be one of default, fixed, deepseek"),
        (lambda: Assumptions(batch_tokens=0), "batch_tokens=0 must be from 1"),
        (lambda: Assumptions(batch_scale=-1), "batch_scale=-1 must be"),
        (lambda: Assumptions(depth_scale=0), "depth_scale=0 must be"),
        (lambda: TrainingRun(d_model=0, d_ff=1, layers=2, experts=1, batch_tokens=1), "d_model=0 must be at least 1"),
        (lambda: replace(GPUS["h100"], large_matmul_efficiency=1.2), "must be in"),
        (lambda: replace(GPUS["h100"], levels=()), "levels must end"),
        (lambda: NetworkLevel(size=6, bidirectional_bytes_per_second=1.0, latency_seconds=0.0), "power of two"),
    ],
)
def test_nonsense_is_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_model_needs_neither_jax_nor_a_plotting_library():
    code = (
        "import sys\n"
        "import autotune.commands.frontier as command\n"
        "command.frontier.main(['--months', '1', '--json'], standalone_mode=False)\n"
        "loaded = {'jax', 'matplotlib', 'flax', 'autotune.models'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
