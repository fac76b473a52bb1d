"""The opcodes that are known against XLA's own list, and against programs that use rare ones."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import pytest
from hlo_fixtures import NAMES, saved
from jax import lax

from autotune.hlo.collectives import KIND_OF_OPCODE
from autotune.hlo.opcodes import FREE, KNOWN

XLA = frozenset(
    """abs acos acosh add add-dependency after-all all-gather all-gather-done all-gather-start all-reduce
    all-reduce-done all-reduce-start all-to-all and asin asinh async-done async-start async-update atan atan2 atanh
    batch-norm-grad batch-norm-inference batch-norm-training bitcast bitcast-convert broadcast call cbrt ceil cholesky
    clamp collective-broadcast collective-permute collective-permute-done collective-permute-start collective-reduce
    compare complex concatenate conditional constant convert convolution copy copy-done copy-start cosh cosine
    count-leading-zeros custom-call divide domain dot dynamic-reshape dynamic-slice dynamic-update-slice erf
    exponential exponential-minus-one fft floor fusion gather get-dimension-size get-tuple-element imag infeed iota
    is-finite log log-plus-one logistic map maximum minimum mulhi multiply negate not opt-barrier or outfeed pad
    parameter partition-id popcnt power ragged-all-to-all ragged-dot real recv recv-done reduce reduce-precision
    reduce-scatter reduce-window remainder replica-id reshape reverse rng rng-bit-generator rng-get-and-update-state
    round-nearest-afz round-nearest-even rsqrt scaled-dot scan scatter select select-and-scatter send send-done
    set-dimension-size shift-left shift-right-arithmetic shift-right-logical shuffle sign sine sinh slice sort sqrt
    stochastic-convert subtract tan tanh topk transpose triangular-solve tuple while xor""".split()
)
"""HLO_OPCODE_LIST of xla/hlo/ir/hlo_opcode.h (openxla/xla, commit 0725a3a)."""

READ_BY_NAME = frozenset("while conditional call send recv send-done recv-done".split())
WARNED = frozenset("infeed outfeed ragged-dot scaled-dot collective-reduce".split())
"""What these cost is not counted rightly (host transfers, FLOPs, links), so a program with one must say so."""
CALLS_OF_A_SPARSE_CORE = {"call-start", "call-done"}
"""How the printer writes an asynchronous call: no opcode of their own."""


def base(opcode):
    return opcode.removesuffix("-start").removesuffix("-done").removesuffix("-update")


def test_every_name_is_an_opcode_of_xla():
    assert KNOWN | FREE <= XLA | CALLS_OF_A_SPARSE_CORE


def test_every_opcode_of_xla_is_known_or_is_warned_of():
    handled = KNOWN | FREE | READ_BY_NAME | set(KIND_OF_OPCODE) | {"async"}
    assert {opcode for opcode in XLA if opcode not in handled and base(opcode) not in handled} == WARNED


ELEMENTWISE = {
    name: getattr(lax, name)
    for name in (
        "abs acos acosh asin asinh atan atanh cbrt ceil cos cosh digamma erf erfc erf_inv exp exp2 expm1 floor "
        "is_finite lgamma log log1p logistic neg round rsqrt sign sin sinh sqrt square tan tanh"
    ).split()
}
OTHERS = {
    "elu": jax.nn.elu, "softplus": jax.nn.softplus, "gelu": jax.nn.gelu, "cumsum": jnp.cumsum, "sort": jnp.sort,
    "atan2": lambda x: lax.atan2(x, x), "pow": lambda x: lax.pow(x, x), "rem": lambda x: lax.rem(x, x),
    "top_k": lambda x: lax.top_k(x, 2), "clz": lambda x: lax.clz(x.astype(jnp.int32)),
    "population_count": lambda x: lax.population_count(x.astype(jnp.int32)), "fft": jnp.fft.fft,
    "reduce_precision": lambda x: lax.reduce_precision(x, 5, 2), "dot": lambda x: x @ x,
    "random": lambda x: x + jax.random.normal(jax.random.key(0), x.shape), "reverse": lambda x: x[::-1],
}  # fmt: skip


def opcodes(text):
    """Opcodes of the instructions of an HLO text: the word before the operands."""
    return set(re.findall(r"^\s+(?:ROOT )?%?[\w.-]+ = .*? ([a-z][a-z0-9-]*)\(", text, re.M))


@pytest.mark.parametrize("name", {**ELEMENTWISE, **OTHERS})
def test_what_jax_writes_is_known(name):
    lowered = jax.jit({**ELEMENTWISE, **OTHERS}[name]).lower(jnp.ones(8))
    found = opcodes(lowered.compiler_ir("hlo").as_hlo_text()) | opcodes(lowered.compile().as_text())
    assert len(found) > 1 and "parameter" in found
    assert not {op for op in found if op not in KNOWN | FREE | READ_BY_NAME and base(op) not in KNOWN}, name


def test_expm1_is_written_as_one_known_opcode():
    text = jax.jit(lax.expm1).lower(jnp.ones(8)).compiler_ir("hlo").as_hlo_text()
    assert "exponential-minus-one" in opcodes(text) & KNOWN


@pytest.mark.parametrize("name", NAMES)
def test_what_saved_programs_hold_is_known(name):
    found = opcodes(saved(name)["compilation"]["text"])
    handled = KNOWN | FREE | READ_BY_NAME | set(KIND_OF_OPCODE) | {"async"}
    assert len(found) > 10
    assert not {op for op in found if op not in handled and base(op) not in handled}
