"""The time of what happens once a step (reductions of gradients, the optimizer, ZeRO's gathers) and between stages.

Recomputation does not change it, so many rows of a table share one. The exception: the backward pass of the layers can
hide reductions of gradients along `data`; `pricer` adds these row by row.
"""

from __future__ import annotations

import numpy as np

from autotune.price.terms import TermRows
from autotune.price.transformer.adapters import Adapters
from autotune.price.transformer.embedding_gradient import INNER_FIRST, Embedding
from autotune.price.transformer.orthogonalisation import Orthogonalisation, orthogonalisation_of
from autotune.price.transformer.peak_memory import Stage, optimizer_bytes, stage_of
from autotune.price.transformer.rows import Rows, hidden_beside, hides
from autotune.price.unique_rows import unique_rows


class StepTerms(Rows):
    """Terms of the units "microbatch" and "step" for some layouts, and what `pricer` needs to know of them."""

    one_way: np.ndarray
    """Seconds of one transfer of a microbatch to the next stage."""
    hidden_later: list[TermRows]
    """Terms of reductions of gradients along `data` that the backward pass may hide; not yet among the entries."""
    hidden_most: np.ndarray | None
    """The most of `hidden_later` that is hidden, as a share; None: all of it can be."""
    stage: Stage
    """Memory of a pipeline stage."""

    def add_terms(self) -> None:
        """Every term, in the order in which a step runs them."""
        if self.used["stage"]:
            self._transfers()
        if self.adapters is not None:
            self._adapters(self.adapters)
        else:
            self._gradients()
            self._weights()
        if self.stack.state.orthogonalises:
            self.orthogonalised = orthogonalisation_of(
                self.shape, self.hardware, self.size, self.table.zero, self.layers
            )
        self._optimizer()
        if self.orthogonalised is not None:
            self._orthogonalisation(self.orthogonalised)
        self.stage = stage_of(self)
        self.terms.memory = self.stage.fixed

    def _transfers(self) -> None:
        """Add the transfers between pipeline stages."""
        payload = self.stream_bytes / np.where(self.parallel, self.size["tensor"], 1.0)
        self._around_the_loop(payload)
        waits = np.where(self.staged, 2.0 * self.table.virtual_stages, 0.0)
        parts, latency = self.prepared.costs["stage", "permute"].seconds(self.mesh, payload)
        self.one_way = sum(parts.values()) + latency
        self.add_collective("stage", "permute", "microbatch", payload, waits)

    def _around_the_loop(self, payload: np.ndarray) -> None:
        """Add what `autotune.models.pipeline` does before and after its loop over microbatches.

        The inputs of all microbatches are gathered to every stage and the results are scattered, in both passes. The
        gradients of the vocabulary's tables are summed over the stages. With virtual stages, slices of the weights
        travel to their stages, one distance at a time, and their gradients travel back. Weights are gathered along
        fsdp, and their gradients reduced, once for all microbatches."""
        size, table, state = self.size, self.table, self.stack.state
        passes = np.where(self.staged, table.accumulate, 0.0)
        batch = payload * table.microbatches
        self.add_collective("stage", "all_gather", "step", batch, 2.0 * passes)
        # A frozen embedding has no gradient for which those of the inputs would be scattered.
        self.add_collective("stage", "reduce_scatter", "step", batch, passes * (2.0 if self.adapters is None else 1.0))
        if self.adapters is None:
            self.add_collective("stage", "all_reduce", "step", self._table_gradients("stage"), passes)
        virtual, stages = table.virtual_stages, size["stage"]
        turns = (stages - 1.0) * np.ceil((virtual - 1.0) / stages)
        if self.adapters is not None:
            self._frozen_around_the_loop(self.adapters, turns * passes, passes)
            return
        slices = state.compute * self.parameters.layer * self.layers / virtual / size["fsdp"]
        self.add_collective("stage", "permute", "step", slices, 2.0 * turns * passes)
        if self.used["fsdp"]:
            layers, vocabulary = self.parameters.layer * self.layers, self.parameters.sent_vocabulary
            self.add_gather("step", state.compute * layers, passes)
            self.add_scatter("step", state.reduced * layers, passes)
            self.add_gather("step", state.compute * vocabulary, passes)
            self.add_scatter("step", state.reduced * (vocabulary - self.parameters.embedding), passes)

    def _frozen_around_the_loop(self, adapters: Adapters, turns: np.ndarray, passes: np.ndarray) -> None:
        """Add what it does with weights there: frozen ones travel and are gathered, and have no gradients."""
        state, fsdp, virtual = self.stack.state, self.size["fsdp"], self.table.virtual_stages
        base, cut = state.base, adapters.cut + adapters.routed_cut
        assert base is not None
        share = self.layers / virtual
        self.add_collective("stage", "permute", "step", base.sent * self.parameters.layer * share / fsdp, turns)
        self.add_collective("stage", "permute", "step", state.compute * adapters.local(fsdp) * share, 2.0 * turns)
        if self.used["fsdp"]:
            weights = (base.sent * self.parameters.layer + state.compute * cut) * self.layers
            self.add_gather("step", weights, passes)
            self.add_gather("step", base.sent_beside * self.parameters.sent_vocabulary, passes)
            self.add_scatter("step", state.reduced * cut * self.layers, passes)
            whole = adapters.whole + adapters.routed_whole
            self.add_collective("fsdp", "all_reduce", "step", state.reduced * whole * self.layers, passes)

    def _adapters(self, adapters: Adapters) -> None:
        """Add the reductions of the gradients of adapters along the axes that repeat them, and ZeRO's gathers.

        The backward pass has little to send of them, so none of it is taken to be hidden."""
        state, size, zero = self.stack.state, self.size, self.table.zero
        self.hidden_later, self.hidden_most = [], None
        for axis in ("data", "context", "expert"):
            if not self.used[axis]:
                continue
            sent = state.reduced * self.layers * adapters.local(size["fsdp"], routed=axis != "expert")
            scattered = self.nothing
            if axis == "data":
                cut = state.reduced * self.layers * (adapters.cut + adapters.routed_cut) / size["fsdp"]
                scattered = np.where(zero == 2, cut, 0.0)
                gathered = state.compute / state.reduced * cut
                self.add_collective("data", "all_gather", "step", gathered, np.where(zero > 0, 1.0, 0.0))
                self.add_collective("data", "reduce_scatter", "step", scattered, self.reductions("data") * (zero == 2))
            self.add_collective(axis, "all_reduce", "step", sent - scattered, self.reductions(axis))

    def _gradients(self) -> None:
        """Add the reductions of gradients along `data`."""
        layers, tables = self._layer_gradients("data"), self._table_gradients("data") * self.table_share("data")
        cut_layers, cut_tables = self._scatters_layers, self._scatters_tables
        whole = np.where(cut_layers, 0.0, layers) + np.where(cut_tables, 0.0, tables)
        scattered = np.where(cut_layers, layers, 0.0) + np.where(cut_tables, tables, 0.0)
        lines: list[TermRows] = []
        for kind, payload in (("all_reduce", whole), ("reduce_scatter", scattered)):
            lines += self.collective_terms(
                "data", kind, "step", payload, np.where(payload > 0, self.reductions("data"), 0.0)
            )
        self.hidden_later, self.hidden_most = [], self._hidden_most(layers, tables)
        if hides(self.stack, "data"):
            self.hidden_later = lines
        else:
            self.terms.entries += lines

    def _hidden_most(self, layers: np.ndarray, tables: np.ndarray) -> np.ndarray | None:
        """The most that the backward pass hides of reductions of `layers` and `tables` bytes along `data`, as a share.

        The gradients of the tables come first: the layers' whole backward pass can hide their reduction. That of a
        layer's gradients must end before the loop goes on to the next layer, so most of it is exposed (`hidden_most` of
        the hardware file). Where `expert` divides the experts, their gradients are reduced apart from all others, one
        matrix after another, and only the reduction of the last has nothing behind it: of three matrices 0.65 to 0.69
        is hidden (mixtral-2048 on h100:2x8, expert 2 to 8, jax 0.10.2).
        """
        most = self.stack.hidden_most.get("data")
        if most is None:
            return None
        routed = self._routed_gradients("data")
        matrices = float(self.shape.mlp_matrices)
        apart = np.where(self.size["expert"] > 1, max(most, (matrices - 1.0) / matrices), most)
        hidden, total = tables + most * (layers - routed) + apart * routed, tables + layers
        return np.divide(hidden, total, out=np.zeros_like(total), where=total > 0)

    def _weights(self) -> None:
        """Add the reductions of gradients along the other axes that repeat weights, and the gathers of ZeRO."""
        state, zero = self.stack.state, self.table.zero
        own, routed = self._own_parameters()
        if self.used["data"] and (zero > 0).any():
            self.add_collective(
                "data", "all_gather", "step", state.compute * (own + routed), np.where(zero > 0, 1.0, 0.0)
            )
        for axis in ("context", "expert"):
            payload = self._layer_gradients(axis) + self._table_gradients(axis) * self.table_share(axis)
            self.add_collective(
                axis, "all_reduce", "step", payload, self.reductions(axis), outer_share=self._outer_share(axis)
            )
        first, of = unique_rows([self.piece, self.table.zero, self.table.reduce, self.table.microbatches])
        self.terms.shared = ((self.some(Embedding, first).terms, of),)

    def _optimizer(self) -> None:
        """Add the optimizer's update, its transfers to host memory, and the sums of accumulated gradients."""
        terms, size, state, table = self.terms, self.size, self.stack.state, self.table
        own, routed = self._own_parameters()
        each = own + routed
        cut = np.where(table.zero > 0, size["data"], 1.0)
        if self.adapters is not None:
            # Of adapters ZeRO cuts a part only.
            each = cut * self.layers * self.adapters.local(size["fsdp"], cut)
        terms.add("optimizer", "hbm", "step", state.update_traffic * each / cut / self.hbm_rate)
        if (table.offload > 0).any():
            moments = 2.0 * optimizer_bytes(self, each, cut) * (table.offload > 0)
            terms.add("offload.optimizer", "host", "step", moments / self.host_rate)
        if state.accumulate_traffic:
            sums = state.accumulate_traffic * each / np.where((table.zero > 0) & ~self.deferred, size["data"], 1.0)
            # A pipeline adds up the gradients of its microbatches by itself (`per_microbatch`).
            passes = np.where(table.accumulate > 1, table.accumulate, 0)
            terms.add("accumulation", "hbm", "step", passes * sums / self.hbm_rate)

    def _orthogonalisation(self, found: Orthogonalisation) -> None:
        """Add Muon's iteration."""
        self.terms.add("matmul.orthogonalisation", "matmul", "step", found.seconds)
        self.terms.add("orthogonalisation", "hbm", "step", found.hbm_bytes / self.hbm_rate)
        launches = found.launches * self.hardware.launch_seconds
        self.terms.add("launches.orthogonalisation", "launch", "step", launches + self.nothing)
        self.terms.count("flops", "step", found.flops)
        outer = self.hardware.tiers[-1].name
        for axis in dict.fromkeys(axis for axis, *_ in found.collectives):
            lines: list[TermRows] = []
            for along, kind, payload, times in found.collectives:
                lines += self.collective_terms(axis, kind, "step", payload, times) if along == axis else []
            # One matrix waits for its collectives while another is at work: they are independent of each other.
            if hides(self.stack, axis):
                lines = hidden_beside(self.stack, axis, lines, found.seconds, outer)
            self.terms.entries += lines

    # Gradients along the axes that repeat the weights

    def _own_parameters(self) -> tuple[np.ndarray, np.ndarray]:
        """Parameters of the fullest stage on one fsdp shard: (without routed experts, routed experts alone)."""
        fsdp = self.size["fsdp"]
        return self.parameters.dense(self.layers) / fsdp, self.parameters.routed(self.layers) / fsdp

    def _layer_gradients(self, axis: str) -> np.ndarray:
        """Bytes of the gradients of the fullest stage's layers that a reduction along `axis` takes."""
        dense = self.layers * self.parameters.layer_dense / self._shards(axis, self._scatters_layers, INNER_FIRST)
        dense = self.stack.state.reduced * dense / self.size["fsdp"]
        return dense if axis == "expert" else dense + self._routed_gradients(axis)

    def _routed_gradients(self, axis: str) -> np.ndarray:
        """Of these, the bytes of routed experts."""
        inside = self._shards(axis, self._scatters_layers, INNER_FIRST[1:])
        return self.stack.state.reduced * self.layers * self.parameters.layer_routed / inside / self.size["fsdp"]

    def _table_gradients(self, axis: str) -> np.ndarray:
        """The same of the vocabulary's tables, without an embedding whose gradient is reduced by itself
        (`embedding_gradient`)."""
        sent = self.parameters.sent_vocabulary - self.parameters.embedding
        shards = self.size["fsdp"] * self._shards(axis, self._scatters_tables, INNER_FIRST)
        return self.stack.state.reduced * sent / shards

    def _shards(self, axis: str, scattered: np.ndarray, axes: tuple[str, ...]) -> np.ndarray:
        """The number of shards that each gradient is divided into before it is reduced along `axis`.

        One collective reduces along all of `axes`, inner axes first; a reduce-scatter along `data` comes before it.
        What is deferred is reduced along `data` alone."""
        inside = np.where(scattered, self.size["data"] if axis != "data" else 1.0, 1.0)
        for name in axes[: axes.index(axis)]:
            inside = inside * np.where(scattered & ((axis == "data") | (name == "data")), 1.0, self.size[name])
        return np.where(self.deferred, 1.0, inside) if axis == "data" else inside

    @property
    def _scatters_tables(self) -> np.ndarray:
        """Rows that reduce-scatter gradients along `data` (ZeRO-2)."""
        return (self.size["data"] > 1) & (self.table.zero == 2)

    @property
    def _scatters_layers(self) -> np.ndarray:
        """Rows that reduce-scatter the gradients of the layers along `data`. A pipeline sums these by itself, and the
        compiler turns that sum into a reduce-scatter only where it runs along `data` alone."""
        return self._scatters_tables & ~(self.staged & (self.size["context"] > 1))

    def _outer_share(self, axis: str) -> np.ndarray:
        """The share of a reduction's bytes along `axis` that crosses the outer tier: one collective along several axes
        reduces over the inner tier first, so the axes outside `axis` have already cut the array."""
        outside = np.ones(len(self.table))
        for name in INNER_FIRST[INNER_FIRST.index(axis) + 1 : -1]:
            inner = self.size[name] / getattr(self.table, f"dcn_{name}")
            outside = outside * (np.where(self.deferred, 1.0, inner) if name == "data" else inner)
        return np.where(self._scatters_layers, 1.0, 1.0 / outside)
