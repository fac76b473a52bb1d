"""What each set of `remat` keeps, offloads and runs again, as shares of the parts of a layer."""

from __future__ import annotations

import numpy as np

from autotune.meshes.layout_words import LAYOUT_WORDS, RematWord
from autotune.meshes.remat_sets import DEVICE, HOST, RECOMPUTE, digits_of
from autotune.meshes.transformer import TransformerShape
from autotune.price.unique_rows import unique_rows

KEPT_PARTS = (
    "input",  # the layer's input
    "stream",  # norm statistics and residuals
    "whole",  # the matmuls' inputs, gathered along `tensor`
    "qkv",
    "attention",  # the result of attention's core
    "attention_out",  # its projection back to d_model
    "mlp_out",  # of a dense MLP, and of shared experts
    "slots",  # tokens of routed experts, and their results: 2 where both are kept
    "scores",
    "mlp_in",  # results of the MLP's first matmuls
    "mlp_rest",  # the rest of the MLP
)
"""What a layer may keep for its backward pass."""

_KEPT_BY_NONE = dict.fromkeys(KEPT_PARTS, 1) | {"attention_out": 0, "mlp_out": 0, "slots": 2}
"""Without recomputation: all that the backward pass reads. Nothing reads the projection back and the MLP's output."""

RUN_PARTS = (
    "qkv",
    "attention",  # attention's core
    "attention_out",
    "mlp_in",
    "mlp_out",
    "elementwise",
    "gathers",  # along `tensor`, before the matmuls: each half of a layer's
    "scatters",  # the reductions along `tensor` behind the matmuls
    "slots",  # the tokens' way to their experts
    "widened",  # the gather along `tensor` of the experts' tokens
)
"""Forward work that the backward pass may run again."""


class Shares:
    """The shares of each row of a column of `remat`; arrays of its shape.

    `kept`, `offloaded`: part of `KEPT_PARTS` -> share of it that is kept for the backward pass on the device, in host
    memory; parts of which no row has any are left out. `again`: part of `RUN_PARTS` -> share that runs again. Queries,
    keys and values are shares of "qkv" by their heads; the MLP's first matmuls have equal shares.
    """

    def __init__(self, column: np.ndarray, shape: TransformerShape) -> None:
        word = LAYOUT_WORDS["remat"]
        assert isinstance(word, RematWord)
        first, of_row = unique_rows([column.ravel()])
        codes, of_row = column.ravel()[first], of_row.reshape(column.shape)
        self._of_row, self._shape = of_row, shape
        self._digits = digits_of(word.set_codes(codes))
        self._none = codes == word.code("none")
        kept = {part: np.where(self._none, _KEPT_BY_NONE[part], share) for part, share in self._parts(DEVICE).items()}
        self.kept = {part: share[of_row] for part, share in kept.items() if share.any()}
        self.offloaded = {part: share[of_row] for part, share in self._parts(HOST).items() if share.any()}
        self.again = {part: np.where(self._none, 0.0, share)[of_row] for part, share in self._run_again().items()}

    def _parts(self, place: int) -> dict[str, np.ndarray]:
        """The share of each part that is in a place."""
        there = {name: (digit == place) * 1.0 for name, digit in self._digits.items()}
        nothing = np.zeros(len(self._none))
        return dict.fromkeys(KEPT_PARTS, nothing) | {
            "input": there["layer_input"],
            "qkv": self._qkv(there),
            "attention": there["attention"],
            "attention_out": there["attention_out"],
            # Nothing reads the output of a dense MLP again: the next layer keeps its own input.
            "slots": there["expert_tokens"] + there["mlp_out"],
            "mlp_in": self._mlp_in(there),
        }

    def _run_again(self) -> dict[str, np.ndarray]:
        missing = {name: (digit == RECOMPUTE) * 1.0 for name, digit in self._digits.items()}
        every = np.ones(len(self._none))
        shape = self._shape
        # XLA drops what nothing reads: the last matmul of a dense MLP and of shared experts, and with it one of two
        # reductions. The gradient of the gates reads the outputs of the routed experts.
        routed = shape.routed_share if shape.experts else 0.0
        mlp_in = self._mlp_in(missing)
        return {
            "qkv": self._qkv(missing),
            "attention": missing["attention"],
            "attention_out": missing["attention_out"],
            "mlp_in": mlp_in,
            "mlp_out": routed * missing["mlp_out"],
            "elementwise": every,
            "gathers": every,
            "scatters": 0.5 * missing["attention_out"],
            "slots": missing["expert_tokens"],
            "widened": (mlp_in > 0) * 1.0,
        }

    def _qkv(self, among: dict[str, np.ndarray]) -> np.ndarray:
        heads, groups = self._shape.heads, self._shape.kv_heads
        found = heads * among["query"] + groups * (among["key"] + among["value"])
        return found / (heads + 2 * groups)

    def _mlp_in(self, among: dict[str, np.ndarray]) -> np.ndarray:
        if self._shape.mlp_matrices == 2:
            return among["mlp_up"]
        return (among["mlp_gate"] + among["mlp_up"]) / 2.0
