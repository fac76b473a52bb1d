"""What happens once a step, and between stages: gradients over repeated weights, the optimizer, ZeRO, transfers.

Whatever is recomputed: so a chunk of a table has a few of these for many rows. Gradients whose reduction over `data`
the layers hide are the exception (`price.transformer.pricer`).
"""

from __future__ import annotations

import numpy as np

from autotune.price.terms import TermRows
from autotune.price.transformer.embedding_gradient import INNER_FIRST, Embedding
from autotune.price.transformer.peak_memory import stage_of
from autotune.price.transformer.rows import Rows, hides
from autotune.price.unique_rows import unique_rows


class StepTerms(Rows):
    """Entries of the units "pass" and "step" of some layouts, and what the steps made of them need.

    `one_way`: seconds of one transfer to the next stage. `hidden_later`: lines of each reduction of gradients over
    `data` that the layers' backward pass may hide, no entries yet. `stage`: their memory.
    """

    one_way: np.ndarray
    hidden_later: list[list[TermRows]]

    def enter(self) -> None:
        """Everything beside the passes, in the order of a step."""
        if self.used["stage"]:
            self._transfers()
        self._gradients()
        self._weights()
        self._optimizer()
        self.stage = stage_of(self)
        self.book.memory = self.stage.fixed

    def _transfers(self) -> None:
        """What stages send each other in every pass."""
        payload = self.stream_bytes / np.where(self.parallel, self.size["tensor"], 1.0)
        self._around_the_loop(payload)
        waits = np.where(self.staged, 2.0 * self.table.virtual_stages, 0.0)
        parts, latency = self.prepared.costs["stage", "permute"].seconds(self.mesh, payload)
        self.one_way = sum(parts.values()) + latency
        self.move("stage", "permute", "pass", payload, waits)

    def _around_the_loop(self, payload: np.ndarray) -> None:
        """What `autotune.models.pipeline` does around its loop: every stage has all microbatches' inputs and hands
        back its share of the results, forward and backward; the tables' gradients are summed over the stages. Thin
        slices are dealt to their stages, one of each stage at a time for every distance, and their gradients back.
        Weights are gathered over fsdp, and their gradients reduced, once for all microbatches."""
        size, table, state = self.size, self.table, self.stack.state
        once = np.where(self.staged, table.accumulate, 0.0)
        twice = np.where(self.staged, 2.0, 0.0)
        batch = payload * table.accumulate * table.microbatches
        self.move("stage", "all_gather", "step", batch, twice)
        self.move("stage", "reduce_scatter", "step", batch, twice)
        self.move("stage", "all_reduce", "step", self._table_gradients("stage"), once)
        virtual, stages = table.virtual_stages, size["stage"]
        turns = (stages - 1.0) * np.ceil((virtual - 1.0) / stages)
        slices = state.compute * self.parameters.layer * self.layers / virtual / size["fsdp"]
        self.move("stage", "permute", "step", slices, 2.0 * turns * once)
        if self.used["fsdp"]:
            layers, vocabulary = self.parameters.layer * self.layers, self.parameters.sent_vocabulary
            self.gather("step", state.compute * layers, once)
            self.scatter("step", state.reduced * layers, once)
            self.gather("step", state.compute * vocabulary, once)
            self.scatter("step", state.reduced * (vocabulary - self.parameters.embedding), once)

    def _gradients(self) -> None:
        """Gradients over `data`."""
        layers, tables = self._layer_gradients("data"), self._table_gradients("data") * self.table_share()
        cut_layers, cut_tables = self._scatters_layers, self._scatters_tables
        whole = np.where(cut_layers, 0.0, layers) + np.where(cut_tables, 0.0, tables)
        scattered = np.where(cut_layers, layers, 0.0) + np.where(cut_tables, tables, 0.0)
        self.hidden_later = []
        for kind, payload in (("all_reduce", whole), ("reduce_scatter", scattered)):
            lines = self.lines("data", kind, "step", payload, np.where(payload > 0, self.reductions(), 0.0))
            if lines and hides(self.stack, "data"):
                self.hidden_later.append(lines)
            else:
                self.book.entries += lines

    def _weights(self) -> None:
        """Gradients over the axes along which weights are repeated, and what ZeRO gathers again."""
        state, zero = self.stack.state, self.table.zero
        own, routed = self._own_parameters()
        if self.used["data"] and (zero > 0).any():
            self.move("data", "all_gather", "step", state.compute * (own + routed), np.where(zero > 0, 1.0, 0.0))
        for axis in ("context", "expert"):
            payload = self._layer_gradients(axis) + self._table_gradients(axis) * self.table_share()
            self.move(axis, "all_reduce", "step", payload, self.reductions(), outer_share=self._outer_share(axis))
        first, of = unique_rows([self.piece, self.table.zero, self.table.microbatches])
        self.book.parts = ((self.some(Embedding, first).book, of),)

    def _optimizer(self) -> None:
        """The update, and what of the memory's traffic gradients cause outside the passes."""
        book, size, state, table = self.book, self.size, self.stack.state, self.table
        each = sum(self._own_parameters())
        cut = np.where(table.zero > 0, size["data"], 1.0)
        book.add("optimizer", "hbm", "step", state.update_traffic * each / cut / self.hbm_rate)
        if (table.offload > 0).any():
            moments = 2.0 * state.optimizer * each / cut * (table.offload > 0)
            book.add("offload.optimizer", "host", "step", moments / self.host_rate)
        if state.accumulate_traffic:
            sums = state.accumulate_traffic * each / np.where(table.zero > 0, size["data"], 1.0)
            # The sums of microbatches are the pipeline's own.
            passes = np.where(table.accumulate > 1, table.accumulate, 0)
            book.add("accumulation", "hbm", "step", passes * sums / self.hbm_rate)

    # Gradients along the axes that repeat the weights

    def _own_parameters(self) -> tuple[np.ndarray, np.ndarray]:
        """(all but routed experts', routed experts') parameters of the fullest stage on one fsdp shard."""
        fsdp = self.size["fsdp"]
        return self.parameters.dense(self.layers) / fsdp, self.parameters.routed(self.layers) / fsdp

    def _layer_gradients(self, axis: str) -> np.ndarray:
        """Bytes of the layers' gradients, of the fullest stage, as they are reduced along an axis that repeats them."""
        dense = self.layers * self.parameters.layer_dense / self._shards(axis, self._scatters_layers, INNER_FIRST)
        if axis != "expert":
            inside = self._shards(axis, self._scatters_layers, INNER_FIRST[1:])
            dense = dense + self.layers * self.parameters.layer_routed / inside
        return self.stack.state.reduced * dense / self.size["fsdp"]

    def _table_gradients(self, axis: str) -> np.ndarray:
        """The same of the vocabulary's tables, without an embedding whose gradient is reduced by itself
        (`embedding_gradient`)."""
        sent = self.parameters.sent_vocabulary - self.parameters.embedding
        shards = self.size["fsdp"] * self._shards(axis, self._scatters_tables, INNER_FIRST)
        return self.stack.state.reduced * sent / shards

    def _shards(self, axis: str, scattered: np.ndarray, axes: tuple[str, ...]) -> np.ndarray:
        """How often gradients that are reduced along all of `axes` are cut when an axis has its turn: one collective
        reduces along all, inner axes first; where gradients are scattered over `data`, that comes first."""
        inside = np.where(scattered, self.size["data"] if axis != "data" else 1.0, 1.0)
        for name in axes[: axes.index(axis)]:
            inside = inside * np.where(scattered & ((axis == "data") | (name == "data")), 1.0, self.size[name])
        return inside

    @property
    def _scatters_tables(self) -> np.ndarray:
        """Rows that reduce gradients onto shards over `data`."""
        return (self.size["data"] > 1) & (self.table.zero == 2)

    @property
    def _scatters_layers(self) -> np.ndarray:
        """Rows that do so with the layers' too: `autotune.models.pipeline` sums these, and where it sums them along
        `data` alone, the compiler makes that a reduce-scatter."""
        return self._scatters_tables & ~(self.staged & (self.size["context"] > 1))

    def _outer_share(self, axis: str) -> np.ndarray:
        """Of what an axis sends over the outer tier, the share left when all axes outside it that reduce with it have
        done so inside their domains: one collective along several axes goes over the inner tier first."""
        outside = np.ones(len(self.table))
        for name in INNER_FIRST[INNER_FIRST.index(axis) + 1 : -1]:
            outside = outside * self.size[name] / getattr(self.table, f"dcn_{name}")
        return np.where(self._scatters_layers, 1.0, 1.0 / outside)
