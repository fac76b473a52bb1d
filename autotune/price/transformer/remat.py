"""What each recomputation policy keeps and runs again, as shares of the parts of a layer. Rows follow `REMAT`."""

from __future__ import annotations

import numpy as np

from autotune.meshes.layout import REMAT

KEPT_PARTS = (
    "input", "stream", "whole", "heads", "context", "outputs", "mlp_outputs", "slots", "scores", "hidden_in",
    "hidden_rest",
)  # fmt: skip
"""Layer input; norm statistics and residuals; the matmuls' gathered inputs; queries, keys, values; attention's output;
its projection back to d_model; the MLP's (shared experts' of a mixture); what goes into routed experts or comes out of
them, each; scores; outputs of the MLP's first matmuls; the rest of the MLP."""

_KEPT = {
    "none": (1, 1, 1, 1, 1, 0, 0, 2, 1, 1, 1),
    # The MLP's output is on the policies' lists, but nothing reads it again: the next layer keeps its own input.
    "dots": (1, 0, 0, 1, 1, 1, 0, 2, 0, 1, 0),
    "attention": (1, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0),
    "minimal": (1, 0, 0, 1, 0, 1, 0, 2, 0, 1, 0),
    "full": (1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
    "offload": (0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
}

RUN_PARTS = ("heads", "context", "out", "hidden_in", "hidden_out", "elementwise", "gathers", "scatters")
"""Forward work: projections to heads, attention's core, projection back, the MLP's first and last matmuls, everything
elementwise, and of the collectives along `tensor` the gathers before and the reductions behind the matmuls (each half
of a layer's)."""

_RUN = {
    "none": (0, 0, 0, 0, 0, 0, 0, 0),
    "dots": (0, 0, 0, 0, 0, 1, 1, 0),
    "attention": (0, 0, 0, 1, 0, 1, 1, 0),
    "minimal": (0, 1, 0, 0, 0, 1, 1, 0),
    # XLA drops what nothing reads: the MLP's last matmul, and with it one of two reductions
    "full": (1, 1, 1, 1, 0, 1, 1, 0.5),
    "offload": (1, 1, 1, 1, 0, 1, 1, 0.5),
}


def kept() -> dict[str, np.ndarray]:
    """Part -> share kept, by policy."""
    table = np.array([_KEPT[name] for name in REMAT], dtype=np.float64)
    return dict(zip(KEPT_PARTS, table.T, strict=True))


def run_again(reruns_kernel: bool) -> dict[str, np.ndarray]:
    """Part of the forward pass -> share run again in the backward pass, by policy.

    `reruns_kernel`: the stack runs attention's core again wherever anything is recomputed.
    """
    rows: list[tuple[float, ...]] = [_RUN[name] for name in REMAT]
    if reruns_kernel:
        core = RUN_PARTS.index("context")
        rows = [(*row[:core], 1 if any(row) else 0, *row[core + 1 :]) for row in rows]
    return dict(zip(RUN_PARTS, np.array(rows, dtype=np.float64).T, strict=True))
