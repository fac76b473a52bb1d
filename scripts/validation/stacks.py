"""Training stacks of published JAX runs that are not our own models as today's XLA compiles them."""

from __future__ import annotations

import dataclasses

from autotune.price.transformer.training_stack import XLA_GPU

ALPA = dataclasses.replace(
    XLA_GPU,
    name="alpa",
    flash=False,
    # XLA of 2021 has no asynchronous collectives
    hidden_share={},
)
"""Alpa (OSDI 2022): JAX on V100s as XLA of 2021 compiled it."""
