"""What each set of `remat` keeps, offloads and runs again, as shares of the parts of a layer."""

from __future__ import annotations

import numpy as np

from autotune.meshes.layout_words import LAYOUT_WORDS, RematWord
from autotune.meshes.remat_sets import DEVICE, HOST, RECOMPUTE, digits_of
from autotune.meshes.transformer import TransformerShape
from autotune.price.unique_rows import unique_rows

KEPT_PARTS = (
    "input", "stream", "whole", "heads", "context", "outputs", "mlp_outputs", "slots", "scores", "hidden_in",
    "hidden_rest",
)  # fmt: skip
"""Layer input; norm statistics and residuals; the matmuls' gathered inputs; queries, keys, values; attention's output;
its projection back to d_model; the MLP's (shared experts' of a mixture); what goes into routed experts or comes out of
them, each; scores; outputs of the MLP's first matmuls; the rest of the MLP."""

_KEPT_BY_NONE = dict(zip(KEPT_PARTS, (1, 1, 1, 1, 1, 0, 0, 2, 1, 1, 1), strict=True))
"""Without recomputation: all that the backward pass reads. Nothing reads the projection back and the MLP's output."""

RUN_PARTS = (
    "heads", "context", "out", "hidden_in", "hidden_out", "elementwise", "gathers", "scatters", "slots", "widened"
)  # fmt: skip
"""Forward work: projections to heads, attention's core, projection back, the MLP's first and last matmuls, everything
elementwise, and of the collectives along `tensor` the gathers before and the reductions behind the matmuls (each half
of a layer's). Of experts: the tokens' way to them, and the gather of their tokens along `tensor`."""


class Shares:
    """The shares of each row of a column of `remat`; arrays of its shape.

    `kept`, `offloaded`: part of `KEPT_PARTS` -> share of it that is kept for the backward pass on the device, in host
    memory; parts of which no row has any are left out. `again`: part of `RUN_PARTS` -> share that runs again. Queries,
    keys and values are shares of "heads" by their heads; the MLP's first matmuls have equal shares.
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
            "heads": self._heads(there),
            "context": there["attention"],
            "outputs": there["attention_out"],
            # Nothing reads the output of a dense MLP again: the next layer keeps its own input.
            "slots": there["expert_tokens"] + there["mlp_out"],
            "hidden_in": self._hidden(there),
        }

    def _run_again(self) -> dict[str, np.ndarray]:
        missing = {name: (digit == RECOMPUTE) * 1.0 for name, digit in self._digits.items()}
        every = np.ones(len(self._none))
        shape = self._shape
        # XLA drops what nothing reads: the last matmul of a dense MLP and of shared experts, and with it one of two
        # reductions. The gradient of the gates reads the outputs of the routed experts.
        routed = shape.routed_share if shape.experts else 0.0
        hidden = self._hidden(missing)
        return {
            "heads": self._heads(missing),
            "context": missing["attention"],
            "out": missing["attention_out"],
            "hidden_in": hidden,
            "hidden_out": routed * missing["mlp_out"],
            "elementwise": every,
            "gathers": every,
            "scatters": 0.5 * missing["attention_out"],
            "slots": missing["expert_tokens"],
            "widened": (hidden > 0) * 1.0,
        }

    def _heads(self, among: dict[str, np.ndarray]) -> np.ndarray:
        heads, groups = self._shape.heads, self._shape.kv_heads
        found = heads * among["query"] + groups * (among["key"] + among["value"])
        return found / (heads + 2 * groups)

    def _hidden(self, among: dict[str, np.ndarray]) -> np.ndarray:
        if self._shape.mlp_matrices == 2:
            return among["mlp_up"]
        return (among["mlp_gate"] + among["mlp_up"]) / 2.0
