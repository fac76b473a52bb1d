"""Every term of the price of a chunk of layouts: compute, collectives, bubble, optimizer; memory is in `price.memory`.

One pass is one microbatch of one accumulation step, forward and backward, on the busiest stage. A step is
accumulate x microbatches passes, the bubble, and what happens once: gradients over `data`, the optimizer, ZeRO.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from autotune.efficiency import DTYPE_BYTES
from autotune.meshes.collectives import wire_bytes
from autotune.meshes.layout import REMAT, SCHEDULES, WORDS
from autotune.meshes.target import Target
from autotune.meshes.transformer import Transformer
from autotune.price import remat as price_remat
from autotune.price.assumptions import Assumptions
from autotune.price.ledger import Ledger
from autotune.price.memory import memory_of
from autotune.price.network import CollectiveCost, Meshes, cost_of, distinct, meshes_of
from autotune.price.parameters import Parameters, parameters_of
from autotune.price.schedules import bubble_seconds
from autotune.price.work import Matmul, Work, work_of
from autotune.replay.replay import HOST_BYTES_PER_SECOND
from autotune.table import CONTEXT_ATTENTION, LayoutTable

KINDS = {
    "tensor": ("all_gather", "reduce_scatter", "all_reduce"),
    "fsdp": ("all_gather", "reduce_scatter", "all_reduce"),
    "data": ("all_gather", "reduce_scatter", "all_reduce"),
    "context": ("all_gather", "reduce_scatter", "permute", "all_reduce"),
    "expert": ("all_to_all", "all_reduce"),
    "stage": ("permute", "all_gather", "reduce_scatter", "all_reduce"),
}
"""The collectives that each axis can ask for."""

CHUNK_TRAFFIC = 42.0
"""Bytes per parameter of a stage of several layers that each tick of `autotune.models.pipeline` moves beside its
matmuls. Forward: the chunk and then each layer sliced out, the chunk saved (10). Backward: both slices again (8), and
the gradients set to zero, written layer by layer in float32 and added to the sums, some of it by copies (24). Counted
in the h100 program of a dense gpipe layout with two layers a stage (jax 0.10.2) after such layouts were seen to be
priced too fast; chunks of a single layer are not sliced, and showed no such excess."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What a whole table shares: its distinct meshes with the cost of every collective, its distinct pieces of work."""

    meshes: Meshes
    costs: dict[tuple[str, str], CollectiveCost]
    work: Work
    work_of_row: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class Pricer:
    """Prices tables of layouts of one transformer and batch on one target under one set of assumptions."""

    transformer: Transformer
    batch: int
    seq: int
    dtype: str
    target: Target
    assumptions: Assumptions

    def prepare(self, table: LayoutTable) -> Prepared:
        """What all chunks of the table share."""
        meshes = meshes_of(table, self.target)
        pieces = table.data * table.fsdp * table.expert * table.accumulate * table.microbatches
        choices = [getattr(table, name) for name in ("tensor", "context", "expert", "sequence_parallel")]
        first, work_of_row = distinct([pieces, *choices, table.context_attention])
        work = work_of(
            self.transformer,
            self.seq,
            self.dtype,
            self.target.hardware,
            self.assumptions,
            sequences=self.batch / pieces[first],
            tensor=table.tensor[first].astype(np.float64),
            context=table.context[first].astype(np.float64),
            expert=table.expert[first].astype(np.float64),
            sequence_parallel=table.sequence_parallel[first],
            ring=table.context_attention[first] == CONTEXT_ATTENTION.index("ring"),
        )
        used = {axis: kinds for axis, kinds in KINDS.items() if (getattr(table, axis) > 1).any()}
        costs = {(axis, kind): cost_of(kind, axis, meshes) for axis, kinds in used.items() for kind in kinds}
        return Prepared(meshes=meshes, costs=costs, work=work, work_of_row=work_of_row)

    def ledger(self, table: LayoutTable, prepared: Prepared, rows: slice, *, counting: bool = False) -> Ledger:
        """Every term of some rows (already taken as `table`) of the prepared table."""
        return Chunk(self, table, prepared, rows, counting).ledger()


class Chunk:
    """One chunk while it is worked out; every array has one entry a row. `price.memory` reads it too."""

    def __init__(self, pricer: Pricer, table: LayoutTable, prepared: Prepared, rows: slice, counting: bool) -> None:
        self.pricer, self.table, self.prepared = pricer, table, prepared
        self.stack, self.shape, self.hardware = pricer.assumptions, pricer.transformer, pricer.target.hardware
        self.mesh = prepared.meshes.of_row[rows]
        self.piece = prepared.work_of_row[rows]
        self.width = DTYPE_BYTES[pricer.dtype]
        self.size = {name: getattr(table, name).astype(np.float64) for name in WORDS}
        self.used = {name: bool((getattr(table, name) > 1).any()) for name in WORDS}
        self.passes = (table.accumulate * table.microbatches).astype(np.float64)
        self.parallel = table.sequence_parallel > 0
        self.again = {
            part: share[table.remat]
            for part, share in price_remat.run_again(self.stack.reruns_unread, self.stack.reruns_kernel).items()
        }
        if self.shape.experts:
            # What leaves the routed experts is read again, by the gradient of the gates.
            routed = self.shape.slots_per_token / (self.shape.slots_per_token + self.shape.shared_experts)
            self.again["hidden_out"] = np.maximum(self.again["hidden_out"], routed * self.again["hidden_in"])
        waiting = self.hardware.waiting(pricer.target.groups)
        self.book = Ledger(rows=len(table), waiting=waiting, counting=counting)
        self.parameters: Parameters = parameters_of(self.shape, self.stack, self.size)
        self.stream_bytes = self.of(prepared.work.stream_bytes)
        self.by_hand = (self.size["stage"] > 1) & self.stack.pipeline_by_hand
        kept = price_remat.kept()
        self.kept = sum(kept[part][table.remat] * self.of(values) for part, values in prepared.work.kept.items())
        self.kept_again: np.ndarray | float = 0.0
        if self.stack.eager:
            # What a layer keeps without recomputation is in hand while it is run again.
            everything = sum(kept[part][0] * self.of(values) for part, values in prepared.work.kept.items())
            self.kept_again = everything - self.kept
        gathered = (self.size["fsdp"] > 1) & (table.remat == 0) & self.stack.keeps_gathered & ~self.by_hand
        self.kept_weights = self.stack.state.compute * self.parameters.layer * gathered

    def of(self, values: np.ndarray) -> np.ndarray:
        """Values of each row's piece of work."""
        return values[self.piece]

    def ledger(self) -> Ledger:
        """All entries, in the order of a step."""
        self._layers()
        forward, backward, weight, core = self._compute()
        self._tensor()
        self._context(*core)
        self._expert()
        self._fsdp(forward - core[0], backward + weight - core[1])
        self._head()
        self._pipeline(forward, backward, weight)
        self._once()
        self.book.memory = memory_of(self)
        return self.book

    def _layers(self) -> None:
        """Layers of a middle stage and of the first and last; of the only stage where there is one."""
        stages, lighter = self.size["stage"], self.stack.lighter_ends
        count = float(self.shape.layers)
        slices = stages * self.table.virtual_stages
        middle = np.ceil((count + 2 * lighter) / slices - 1e-9) * self.table.virtual_stages
        self.middle = np.where(stages > 1, middle, count)
        self.ends = np.where(stages > 1, middle - lighter, count)

    def _compute(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]:
        """One layer's compute; its (forward, backward, weight gradient) seconds, what runs again in the second; and of
        the first two what attention's core takes."""
        work, again, book = self.prepared.work, self.again, self.book
        matmuls: dict[str, Matmul] = {name: getattr(work, name) for name in ("heads", "out", "hidden_in", "hidden_out")}
        ahead = {name: self.of(matmul.forward) for name, matmul in matmuls.items()}
        back = {name: self.of(matmul.backward_input) for name, matmul in matmuls.items()}
        own = {name: self.of(matmul.backward_weight) for name, matmul in matmuls.items()}
        for label, first, second in (("attention", "heads", "out"), ("mlp", "hidden_in", "hidden_out")):
            total = ahead[first] + ahead[second] + back[first] + back[second] + own[first] + own[second]
            book.add(f"matmul.{label}", "matmul", "layer", total)
        rerun = sum(again[name] * ahead[name] for name in matmuls)
        book.add("recompute.matmul", "matmul", "layer", rerun)
        core = [self.of(values) for values in work.core_matmul]
        book.add("attention", "matmul", "layer", core[0] + core[1])
        book.add("recompute.attention", "matmul", "layer", again["context"] * core[0])
        for name, matmul in matmuls.items():
            book.count("flops", "layer", (3.0 + again[name]) * self.of(matmul.flops))
        kernel = [self.of(values) for values in work.core_flops]
        book.count("flops", "layer", (1.0 + again["context"]) * kernel[0] + kernel[1])
        rest = [self.of(values) for values in work.elementwise]
        book.add("elementwise", "hbm", "layer", rest[0] + rest[1])
        book.add("recompute.elementwise", "hbm", "layer", again["elementwise"] * rest[0])
        if any(np.any(values) for values in work.core_hbm):
            scores = [self.of(values) for values in work.core_hbm]
            book.add("attention.scores", "hbm", "layer", scores[0] + scores[1])
            book.add("recompute.scores", "hbm", "layer", again["context"] * scores[0])
            core = [matmul + spill for matmul, spill in zip(core, scores, strict=True)]
        rate = self.hardware.hbm_bytes_per_second * self.hardware.hbm_efficiency
        book.add("saving", "hbm", "layer", self.stack.traffic.saving * (self.kept + self.kept_weights) / rate)
        launches = work.launches[1] + work.launches[0] * (1.0 + again["elementwise"])
        book.add("launches", "launch", "layer", launches)
        cast = self._casts()
        self._offloaded_inputs(sum(ahead.values()) + sum(back.values()) + sum(own.values()))
        forward = sum(ahead.values()) + core[0] + rest[0] + work.launches[0] + cast
        backward = rerun + sum(back.values()) + core[1] + rest[1] + work.launches[1] + cast
        backward = backward + again["context"] * core[0] + again["elementwise"] * (rest[0] + work.launches[0])
        weight = own["heads"] + own["out"] + own["hidden_in"] + own["hidden_out"]
        return forward, backward, weight, (core[0], core[1] + again["context"] * core[0])

    def _casts(self) -> np.ndarray | float:
        """Weights kept wider than they are used are cast in every pass, forward and backward; seconds of one."""
        state = self.stack.state
        if not state.casts:
            return 0.0
        cast = (state.weights + state.compute) * self.parameters.layer / self.size["fsdp"]
        seconds = cast / (self.hardware.hbm_bytes_per_second * self.hardware.hbm_efficiency)
        if self.by_hand.any():
            several = self.middle > self.table.virtual_stages
            chunk = np.where(several, CHUNK_TRAFFIC, 0.0) / 2.0 * self.parameters.layer
            chunk = chunk / (self.hardware.hbm_bytes_per_second * self.hardware.hbm_efficiency)
            seconds = np.where(self.by_hand, chunk, seconds)
        self.book.add("casts", "hbm", "layer", 2.0 * seconds)
        return seconds

    def _offloaded_inputs(self, matmuls: np.ndarray | float) -> None:
        """Layer inputs that wait in host memory travel there and back beside the matmuls."""
        rows = self.table.remat == REMAT.index("offload")
        if rows.any():
            full = 2.0 * self.of(self.prepared.work.kept["input"]) / self._host_rate() * rows
            self.book.add("offload.activations", "host", "layer", np.maximum(full - matmuls, 0.0) * rows, full)

    def _host_rate(self) -> float:
        return HOST_BYTES_PER_SECOND * self.hardware.faster.get("host", 1.0)

    # Collectives

    def _move(self, axis: str, kind: str, unit: str, payload, times, beside=None) -> np.ndarray | float:
        """Enter `times` collectives along an axis. Compute `beside` hides up to the stack's share of itself."""
        if not self.used[axis]:
            return 0.0
        cost = self.prepared.costs[axis, kind]
        if self.book.counting:
            self.book.count(axis, unit, wire_bytes(kind, payload, self.size[axis]) * times)
        parts, latency = cost.seconds(self.mesh, payload)
        total = latency
        for part in parts:
            total = total + part
        total = total * times
        share = self.stack.hidden_share.get(axis, 0.0)
        scale = times
        exposed = total
        if beside is not None and share:
            most = self.stack.hidden_most.get(axis, 1.0)
            exposed = np.maximum(total - np.minimum(share * beside, most * total), 0.0)
            scale = times * np.divide(exposed, total, out=np.zeros(self.book.rows), where=total > 0)
        for tier, part in zip(cost.tiers, parts, strict=True):
            if part.any():
                self.book.add(f"{kind}[{axis}]@{tier}", f"network:{axis}@{tier}", unit, part * scale, part * times)
        self.book.add(f"latency[{axis}]", "latency", unit, latency * scale, latency * times)
        return exposed

    def _tensor(self) -> None:
        """Two blocks a layer, each entered by a gather and left by a reduction; backward the other way round."""
        if not self.used["tensor"]:
            return
        again = self.again
        regather = 2.0 * self.stack.gathers_again * (1.0 - self.stack.regather_hidden)
        gathers = np.where(self.parallel, 4.0 + 2.0 * again["gathers"] + regather, 0.0)
        scatters = np.where(self.parallel, 4.0 + 2.0 * again["scatters"], 0.0)
        own = float(self.stack.reduces_each * (self.shape.mlp_matrices - 2))
        reductions = np.where(self.parallel, 0.0, 4.0 + own + 2.0 * again["scatters"])
        if self.parallel.any():
            self._move("tensor", "all_gather", "layer", self.stream_bytes, gathers)
            self._move("tensor", "reduce_scatter", "layer", self.stream_bytes, scatters)
        if not self.parallel.all():
            self._move("tensor", "all_reduce", "layer", self.stream_bytes, reductions)
        if self.shape.experts:
            # Slots travel cut along D, are whole for the experts' matmuls, and their results are reduced onto the cut:
            # gathered forward, again for the weights' gradients, and the gradient of the result. Where the experts run
            # again, two more gathers and one more reduction (deepseek-like on h100, remat=full, jax 0.10.2).
            slots, more = self.of(self.prepared.work.slot_bytes), self.again["hidden_in"]
            self._move("tensor", "all_gather", "layer", slots, 3.0 + 2.0 * more)
            self._move("tensor", "reduce_scatter", "layer", slots, 2.0 + more)

    def _context(self, forward: np.ndarray, backward: np.ndarray) -> None:
        """Keys and values of the other shards: gathered, or handed around a ring, while attention works on others.

        Attention's core hides these, the rest of a layer hides the gathers of its weights: no second is used twice.
        """
        if not self.used["context"]:
            return
        size = self.size["context"]
        ring = self.table.context_attention == CONTEXT_ATTENTION.index("ring")
        own = self.of(self.prepared.work.kv_bytes)
        # Gathered forward and, where anything is recomputed, once more; their gradients are scattered. A ring passes
        # them on forward, again in the backward pass, and there their gradients too.
        gathers = np.where(ring, 0.0, 1.0 + self.again["elementwise"])
        self._move("context", "all_gather", "layer", own * size, gathers, forward + 0.5 * backward)
        self._move("context", "reduce_scatter", "layer", own * size, np.where(ring, 0.0, 1.0), 0.5 * backward)
        turns = np.where(ring, (size - 1.0) * (4.0 + self.again["context"]), 0.0)
        self._move("context", "permute", "layer", own, turns, forward + backward)

    def _expert(self) -> None:
        """Tokens travel to their experts and back, forward and backward; where experts run again, there again too.

        Results are kept where the experts are, so where anything is recomputed they come back once more (mixtral-like
        on h100, remat=dots, jax 0.10.2).
        """
        if self.used["expert"] and self.shape.experts:
            times = 4.0 + self.again["elementwise"] + self.again["hidden_in"]
            slots = self.of(self.prepared.work.slot_bytes) / self.size["tensor"]
            self._move("expert", "all_to_all", "layer", slots, times)

    def _fsdp(self, forward: np.ndarray, backward: np.ndarray) -> None:
        """Weights gathered before each use, gradients reduced onto their shards, in every pass."""
        if not self.used["fsdp"]:
            return
        state = self.stack.state
        saved = self.stack.keeps_gathered & (self.table.remat == 0) | self.by_hand
        each = np.where(self.by_hand, 0.0, 1.0)
        if self.by_hand.any():
            layers = self.parameters.layer * self.middle
            once = self.table.accumulate * (1.0 - each)
            self._gather("step", state.compute * layers, once)
            self._scatter("step", state.reduced * layers, np.zeros(self.book.rows), once)
        pieces = float(self.stack.weight_pieces)
        weights = state.compute * self.parameters.layer / pieces
        later = np.where(saved, 0.0, 1.0) + self.stack.gathers_rerun * self.again["heads"]
        self._gather("layer", weights, pieces * each, forward)
        self._gather("layer", weights, pieces * later, 0.5 * backward)
        self._scatter("layer", state.reduced * self.parameters.layer / pieces, 0.5 * backward, pieces * each)
        if self.stack.piece_seconds:
            times = pieces * (2.0 * each + later) * (self.size["fsdp"] > 1)
            self.book.add("latency[fsdp]", "latency", "layer", self.stack.piece_seconds * self.size["fsdp"] * times)

    def _gather(self, unit: str, weights: np.ndarray, times: np.ndarray | float, beside=None) -> None:
        """Weights of one layer or of the tables from their fsdp shards."""
        summed = self._summed
        self._move("fsdp", "all_gather", unit, weights, np.where(summed, 0.0, times), beside)
        if summed.any():
            self._move("fsdp", "all_reduce", unit, weights, np.where(summed, times, 0.0))

    @property
    def _summed(self) -> np.ndarray:
        """Rows whose fsdp shards are all of a slice that the compiler gathers by sums of zeros and one shard."""
        target, table = self.pricer.target, self.table
        deep = self.stack.sums_over_slice and len(target.shape) == 3 and min(target.shape) > 1
        return (table.fsdp // table.dcn_fsdp == target.devices_per_group) & deep

    def _scatter(self, unit: str, gradients: np.ndarray, beside: np.ndarray, times: np.ndarray | float = 1.0) -> None:
        """Gradients of one layer or of the tables onto their fsdp shards."""
        whole = (self.shape.d_model / self.size["fsdp"] < self.stack.least_shard) | self._summed
        if self.stack.scatter_hides != "always":
            alone = (self.size["data"] == 1) if self.stack.scatter_hides == "alone" else False
            beside = np.where(alone, beside, 0.0)
        self._move("fsdp", "reduce_scatter", unit, gradients, np.where(whole, 0.0, times), beside)
        if whole.any():
            self._move("fsdp", "all_reduce", unit, gradients, np.where(whole, times, 0.0))

    def _head(self) -> None:
        """Logits, loss, and the collectives around embedding and logits."""
        work, book, state = self.prepared.work, self.book, self.stack.state
        head = work.head
        self.head_forward = self.of(head.forward) + self.of(work.loss[0])
        book.add(
            "matmul.logits", "matmul", "head",
            self.of(head.forward) + self.of(head.backward_input) + self.of(head.backward_weight),
        )  # fmt: skip
        rerun = self.stack.reruns_head * self.again["out"]
        if self.stack.reruns_head:
            book.add("recompute.logits", "matmul", "head", rerun * self.of(head.forward))
        book.count("flops", "head", (3.0 + rerun) * self.of(head.flops))
        book.add("loss", "hbm", "head", self.of(work.loss[0]) + self.of(work.loss[1]))
        book.add("launches", "launch", "head", 20.0 * self.hardware.launch_seconds * np.ones(book.rows))
        beside = book.unit_seconds("head")
        if self.used["tensor"]:
            both = np.where(self.parallel, 1.0, 0.0)
            if self.parallel.any():
                self._move("tensor", "all_gather", "head", self.stream_bytes, 2.0 * both)
                self._move("tensor", "reduce_scatter", "head", self.stream_bytes, 2.0 * both)
            if not self.parallel.all():
                self._move("tensor", "all_reduce", "head", self.stream_bytes, 2.0 * (1.0 - both))
            if self.stack.gathers_logits:
                whole = self.width * self.of(work.tokens) * self.shape.vocab
                self._move("tensor", "all_gather", "head", whole, 1.0 + rerun)
        if self.used["fsdp"]:
            table = self.parameters.sent_vocabulary
            # Embedding and unembedding once each; the latter again in the backward pass where nothing keeps it.
            times = 1.0 if self.stack.keeps_gathered else 1.5
            each = np.where(self.by_hand, 0.0, 1.0)
            self._gather("head", state.compute * table, times * each, 0.5 * beside)
            self._scatter("head", state.reduced * table, 0.5 * beside, each)
            if self.by_hand.any():
                once = self.table.accumulate * (1.0 - each)
                self._gather("step", state.compute * table, times * once)
                self._scatter("step", state.reduced * table, np.zeros(book.rows), once)

    def _pipeline(self, forward: np.ndarray, backward: np.ndarray, weight: np.ndarray) -> None:
        """How often each unit counts on the busiest stage, the transfers between stages, and the bubble."""
        book, size, table = self.book, self.size, self.table
        layer, head = book.unit_seconds("layer"), book.unit_seconds("head")
        staged = size["stage"] > 1
        if self.stack.head_everywhere:
            layers, heads = self.middle, np.where(self.by_hand, 1.0 / size["stage"], 1.0)
            others = (size["stage"] - 2.0) * self.middle * layer + 2.0 * self.ends * layer - self.middle * layer
        else:
            last_is_busiest = ~staged | (self.ends * layer + head >= self.middle * layer)
            layers = np.where(last_is_busiest, self.ends, self.middle)
            heads = np.where(last_is_busiest, 1.0, 0.0)
            everything = (size["stage"] - 2.0) * self.middle * layer + 2.0 * self.ends * layer + head
            others = everything - layers * layer - heads * head
        others = np.where(staged, others, 0.0)
        book.times = {
            "layer": self.passes * layers,
            "head": self.passes * heads,
            "pass": self.passes,
            "step": np.ones(book.rows),
        }
        if not self.used["stage"]:
            return
        virtual = table.virtual_stages.astype(np.float64)
        cut = np.where(self.parallel | self.stack.scatter_transfers, size["tensor"], 1.0)
        payload = self.stream_bytes / cut
        # 1F1B exchanges twice a microbatch and waits for both; the circular schedule sends both ways at once, for each
        # of its slices; zero-bubble schedules have other work to do meanwhile.
        circular, zero = (table.schedule == SCHEDULES.index(name) for name in ("circular", "zero-bubble"))
        waits = staged * np.where(zero, 0.0, np.where(circular, virtual, 2.0)) * (1.0 - self.stack.transfer_hidden)
        if self.by_hand.any():
            self._by_hand(payload)
            waits = np.where(self.by_hand, 2.0 * virtual, waits)
        parts, latency = self.prepared.costs["stage", "permute"].seconds(self.mesh, payload)
        one_way = sum(parts) + latency + self.stack.transfer_wait
        self._move("stage", "permute", "pass", payload, waits)
        if self.stack.transfer_wait:
            book.add("latency[stage]", "latency", "pass", self.stack.transfer_wait * waits)
        if self.stack.scatter_transfers and not self.parallel.all() and self.used["tensor"]:
            gathers = np.where(self.parallel, 0.0, 2.0 * virtual) * staged
            self._move("tensor", "all_gather", "pass", self.stream_bytes, gathers)
        communication = layer - forward - backward - weight
        bubble = np.zeros(book.rows)
        for code, schedule in enumerate(SCHEDULES):
            rows = staged & (table.schedule == code)
            if rows.any():
                name = self.stack.zero_bubble if schedule == "zero-bubble" else schedule
                seconds = bubble_seconds(
                    name,
                    stages=size["stage"],
                    passes=table.microbatches,
                    virtual_stages=virtual,
                    others=others,
                    forward=self.middle * (forward + 0.5 * communication),
                    backward_input=self.middle * (backward + 0.5 * communication),
                    backward_weight=self.middle * weight,
                    transfer=one_way,
                )
                bubble = np.where(rows, seconds * table.accumulate, bubble)
        book.bubble = bubble

    def _by_hand(self, payload: np.ndarray) -> None:
        """What `autotune.models.pipeline` does around its loop: every stage has all microbatches' inputs and hands
        back its share of the results, forward and backward; the tables' gradients are summed over the stages. Thin
        slices are dealt to their stages, one of each stage at a time for every distance, and their gradients back."""
        book, size = self.book, self.size
        book.idle = np.where(self.by_hand, (size["stage"] - 1.0) / (self.passes * self.table.virtual_stages), 0.0)
        batch = payload * self.passes
        twice = np.where(self.by_hand, 2.0, 0.0)
        self._move("stage", "all_gather", "step", batch, twice)
        self._move("stage", "reduce_scatter", "step", batch, twice)
        tables = self.stack.state.reduced * self.parameters.vocabulary / size["fsdp"]
        self._move("stage", "all_reduce", "step", tables, 0.5 * twice)
        virtual, stages = self.table.virtual_stages, size["stage"]
        turns = (stages - 1.0) * np.ceil((virtual - 1.0) / stages) * self.table.accumulate
        slices = self.stack.state.compute * self.parameters.layer * self.middle / virtual / size["fsdp"]
        self._move("stage", "permute", "step", slices, turns * twice)

    def _once(self) -> None:
        """Gradients over the axes along which weights are repeated, ZeRO's gathers, the optimizer."""
        book, size, state, table = self.book, self.size, self.stack.state, self.table
        own = self.parameters.dense(self.middle) / size["fsdp"]
        routed = self.parameters.routed(self.middle) / size["fsdp"]
        repeats = table.accumulate.astype(np.float64) if self.stack.gradients_per_pass else np.ones(book.rows)
        beside = book.unit_seconds("layer") * self.middle
        if self.stack.scatter_hides == "never":
            # Reduced layer by layer beside the backward pass only where no scatter along fsdp comes first.
            beside = np.where(size["fsdp"] > 1, 0.0, 0.5 * beside)
        zero = table.zero
        scattered = (zero == 2) | ((zero == 1) & self.stack.zero1_scatters)
        twice = (self.parameters.sent_vocabulary - self.parameters.vocabulary) / size["fsdp"]
        gradients = state.reduced * (own + routed + twice)
        if self.used["data"]:
            self._move("data", "all_reduce", "step", gradients, np.where(scattered, 0.0, repeats), beside)
            if scattered.any():
                self._move("data", "reduce_scatter", "step", gradients, np.where(scattered, repeats, 0.0), beside)
            if (zero > 0).any():
                weights = state.compute * (own + routed)
                self._move("data", "all_gather", "step", weights, np.where(zero > 0, 1.0, 0.0))
        for axis in ("context", "expert"):
            payload = gradients - state.reduced * (routed if axis == "expert" else 0.0)
            self._move(axis, "all_reduce", "step", payload, repeats)
        cut = np.where(zero > 0, size["data"], 1.0)
        traffic = state.update_traffic * (own + routed) / cut
        hbm = self.hardware.hbm_bytes_per_second * self.hardware.hbm_efficiency
        book.add("optimizer", "hbm", "step", traffic / hbm)
        if (table.offload > 0).any():
            moments = 2.0 * state.optimizer * (own + routed) / cut * (table.offload > 0)
            book.add("offload.optimizer", "host", "step", moments / self._host_rate())
        if state.reduce_traffic and self.used["data"]:
            copies = state.reduce_traffic * (own + routed) * (size["data"] > 1)
            book.add("gradient_copies", "hbm", "step", copies / hbm)
        if state.accumulate_traffic:
            sums = state.accumulate_traffic * (own + routed) / np.where(zero == 2, size["data"], 1.0)
            book.add("accumulation", "hbm", "step", self.passes * sums / hbm)
