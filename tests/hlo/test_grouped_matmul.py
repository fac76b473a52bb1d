# ruff: noqa: E501 - instructions stand on one line, as the compilers write them
"""Grouped matmuls of compiled TPU programs (megablox, jax 0.10.2, v5e): work, bytes, and tiles that are visited twice."""

from __future__ import annotations

import dataclasses

import pytest
from hlo_fixtures import NO_MEMORY

from autotune.hlo.read import read_program
from autotune.meshes.hardware import load_hardware
from autotune.replay.op_seconds import core_seconds

ROWS, WIDTH, HIDDEN, GROUPS = 8192, 1024, 2048, 8
FLOPS = 2 * ROWS * WIDTH * HIDDEN
ROW_BYTES, MATRIX_BYTES = 2 * ROWS * (WIDTH + HIDDEN), 2 * GROUPS * WIDTH * HIDDEN


def kernel(result, operands, name, scope=""):
    """The one instruction of a program that calls a kernel on 16 tiles of 512 rows."""
    text = f"""HloModule m, is_scheduled=true, num_partitions=1

ENTRY %main () -> f32[] {{
  %n = s32[] parameter(0)
  %ends = s32[9]{{0}} parameter(1)
  %tiles = s32[23]{{0}} parameter(2)
  %first = s32[1]{{0}} parameter(3)
  %x = bf16[8192,1024]{{1,0}} parameter(4)
  %g = bf16[8192,2048]{{1,0}} parameter(5)
  %w = bf16[8,1024,2048]{{2,1,0}} parameter(6)
  ROOT %k = {result} custom-call(%n, %ends, %tiles, %tiles, %first, {operands}), custom_call_target="tpu_custom_call", metadata={{op_name="jit(step){scope}/jit({name})/pallas_call"}}, backend_config={{"custom_call_config":{{"body":"TUzvUg","cost_estimate":{{"flops":"{FLOPS}","transcendentals":"0","bytes_accessed":"163577856"}}}}}}
}}
"""
    found = read_program(text, platform="tpu", mesh_shape={"data": 1}, devices_per_group=1, memory=NO_MEMORY)
    assert not found.warnings
    return found.instructions[-1]


CALLS = [
    ("bf16[8192,2048]{1,0}", "%x, %w", "gmm"),
    ("bf16[8192,1024]{1,0}", "%g, %w", "gmm"),
    ("bf16[8,1024,2048]{2,1,0}", "%x, %g", "tgmm"),
]


@pytest.mark.parametrize("call", CALLS, ids=["forward", "of-rows", "of-matrices"])
def test_all_rows_count_once_and_not_for_each_group(call):
    op = kernel(*call)
    assert (op.flops, op.dtype, op.kernel) == (FLOPS, "bfloat16", "matmul")
    tables = 4 * (9 + 2 * 23 + 1 + 1)
    assert op.hbm_bytes == ROW_BYTES + MATRIX_BYTES + tables


@pytest.mark.parametrize("call", CALLS, ids=["forward", "of-rows", "of-matrices"])
def test_a_scope_says_how_much_of_the_buffer_is_filled(call):
    whole, quarter = kernel(*call), kernel(*call, scope="/jvp(balanced_rows_2_of_8)")
    assert quarter.flops == FLOPS / 4
    assert whole.hbm_bytes - quarter.hbm_bytes == 0.75 * ROW_BYTES


def test_the_tile_at_a_border_between_groups_is_computed_for_both():
    """16 tiles and 7 borders; of a buffer that is filled to a quarter, 4 tiles and 7 borders."""
    whole, quarter = kernel(*CALLS[0]), kernel(*CALLS[0], scope="/balanced_rows_2_of_8")
    assert (whole.visits, quarter.visits) == (23 / 16, 11 / 4)
    v5e = load_hardware("v5e")
    seconds = [sum(part for _, part in core_seconds(op, v5e)) for op in (whole, dataclasses.replace(whole, visits=1.0))]
    assert seconds[0] == pytest.approx(seconds[1] * 23 / 16)


def test_other_kernels_visit_each_tile_once():
    assert kernel(*CALLS[0][:2], "other").visits == 1.0
