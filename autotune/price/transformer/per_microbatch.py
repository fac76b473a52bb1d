"""The time of one microbatch, forward and backward, in one layer and in the head.

It depends on the mesh, the work of a device and the recomputation policy, so many rows of a table share one.
"""

from __future__ import annotations

import numpy as np

from autotune.efficiency import DTYPE_BYTES
from autotune.meshes.collectives import wire_bytes
from autotune.price.transformer.adapters import Adapters
from autotune.price.transformer.device_work import QUANTISED_READS, Matmul
from autotune.price.transformer.remat import Shares
from autotune.price.transformer.rows import Rows
from autotune.table import CONTEXT_ATTENTION

CHUNK_TRAFFIC = ((6.0, 27.0), (32.0, 40.0))
"""Bytes of memory traffic per parameter that one microbatch of `autotune.models.pipeline` causes beside its matmuls.

First index: whether a pipeline chunk has several layers. Second index: whether a stage has several chunks. The program
slices each layer out of the stacked weights, forward and backward, adds its gradient to a sum in float32, and copies
the chunk out of the stage's weights and back. Measured: growth of the traffic of programs for h100:2x8 from 16 to 32
microbatches (dense-4096, 2, 4 and 8 stages, jax 0.10.2)."""


SCALE_BYTES = 4.0
"""Of the largest magnitude of an array, which is reduced over all devices that hold a part of it."""

SCALES = (4.0, 6.0)
"""Reductions of a layer that find them, one after another, (forward, backward): of the inputs of attention, of its
projection back, of the MLP and of its last matmul; of the gradients of queries, keys, values, the projection back, the
MLP's first matmuls and its last one."""


class MicrobatchTerms(Rows):
    """Terms of the units "layer" and "head" for some layouts, and what a step needs to know of its microbatches."""

    layer: np.ndarray
    """Seconds of one layer, forward and backward, with exposed communication."""
    forward: np.ndarray
    """Seconds of compute of one layer's forward pass."""
    backward: np.ndarray
    """Seconds of compute of one layer's backward pass: gradients of the inputs, and everything that is recomputed."""
    weight: np.ndarray
    """Seconds of compute of the gradients of one layer's weights."""
    kept_bytes: np.ndarray
    """Bytes of activations that one layer saves for its backward pass."""
    offloaded_bytes: np.ndarray
    """Bytes of activations that one layer keeps in host memory for its backward pass."""
    kept_weight_bytes: np.ndarray
    """Bytes of gathered or cast weights that one layer saves for its backward pass."""
    tick_weight_bytes: np.ndarray
    """Bytes of weights among `kept_bytes`: those that each tick of the reference pipeline saves."""

    def add_terms(self) -> None:
        """Every term of a layer and of the head, in the order in which a microbatch runs them."""
        stack, table, work = self.stack, self.table, self.prepared.work
        shares = Shares(table.remat, self.shape)
        self.again = dict(shares.again)
        if stack.reruns_kernel:
            self.again["attention"] = self.again["elementwise"]
        if stack.reruns_kernel:
            # Plain attention on blocks of queries always recomputes its scores. It runs its forward pass again only
            # where the policy does not keep its result (h100, remat=dots, context=4, jax 0.10.2). Attention by parts
            # names all that its backward pass needs.
            own = shares.again["attention"]
            names = self.per_row(work.attention.blocked) | self.per_row(work.attention.named)
            self.again["attention"] = np.where(names, own, self.again["attention"])
        self.kept_bytes = sum(
            (shares.kept[part] * self.per_row(work.kept_bytes[part]) for part in shares.kept), self.nothing
        )
        self.offloaded_bytes = sum(
            (shares.offloaded[part] * self.per_row(work.kept_bytes[part]) for part in shares.offloaded), self.nothing
        )
        self.tick_weight_bytes = self.nothing
        if self.staged.any():
            # Without recomputation the pipeline keeps, for each microbatch, the weights that its matmuls read.
            again = self.staged & (table.remat == 0)
            self.tick_weight_bytes = stack.state.compute * self.parameters.layer * again
            self.kept_bytes = self.kept_bytes + self.tick_weight_bytes
        # Without recomputation a layer also keeps the gathered or cast weights (h100, h200 and a100-80, jax 0.10.2).
        gathered = (table.remat == 0) & ~self.staged
        each = DTYPE_BYTES[stack.matmul_dtype] if stack.matmul_dtype else stack.state.compute
        self.kept_weight_bytes = each * self.parameters.layer * gathered
        core = self._compute()
        self._tensor()
        self._context(*core)
        self._expert()
        kernels = [one + beside for one, beside in zip(core, self._grouped(), strict=True)]
        self._fsdp(self.forward - kernels[0], self.backward + self.weight - kernels[1])
        self._head()
        self.layer = self.terms.unit_seconds("layer")

    def _compute(self) -> tuple[np.ndarray, np.ndarray]:
        """Add one layer's compute; return the seconds of its attention, (forward, backward with what is recomputed)."""
        work, again, terms, stack = self.prepared.work, self.again, self.terms, self.stack
        matmuls: dict[str, Matmul] = {
            name: getattr(work, name) for name in ("qkv", "attention_out", "mlp_in", "mlp_out")
        }
        ahead = {name: self.per_row(matmul.forward) for name, matmul in matmuls.items()}
        back = {name: self.per_row(matmul.backward_input) for name, matmul in matmuls.items()}
        own = {name: self.per_row(matmul.backward_weight) for name, matmul in matmuls.items()}
        for label, first, second in (("attention", "qkv", "attention_out"), ("mlp", "mlp_in", "mlp_out")):
            total = ahead[first] + ahead[second] + back[first] + back[second] + own[first] + own[second]
            terms.add(f"matmul.{label}", "matmul", "layer", total)
        rerun = sum(again[name] * ahead[name] for name in matmuls)
        if work.adapters:
            # Nothing keeps x A: with the rest of the layer it is computed again, (x A) B with what it is added to.
            for name, both in work.adapters.items():
                for own_again, low in zip((again["elementwise"], again[name]), both, strict=True):
                    ahead[name] = ahead[name] + self.per_row(low.forward)
                    back[name] = back[name] + self.per_row(low.backward_input)
                    own[name] = own[name] + self.per_row(low.backward_weight)
                    rerun = rerun + own_again * self.per_row(low.forward)
                    terms.count("flops", "layer", (3.0 + own_again) * self.per_row(low.flops))
            lows = [low for both in work.adapters.values() for low in both]
            total = sum(
                (self.per_row(low.forward + low.backward_input + low.backward_weight) for low in lows), self.nothing
            )
            terms.add("matmul.adapters", "matmul", "layer", total)
        terms.add("recompute.matmul", "matmul", "layer", rerun)
        core = [self.per_row(values) for values in work.attention.matmul_seconds]
        terms.add("attention", "matmul", "layer", core[0] + core[1])
        core_again = again["attention"] * self.per_row(work.attention.recomputed)
        core_rerun = core_again * core[0]
        terms.add("recompute.attention", "matmul", "layer", core_rerun)
        passes = 3.0 if stack.state.base is None else 2.0
        for name, matmul in matmuls.items():
            terms.count("flops", "layer", (passes + again[name]) * self.per_row(matmul.flops))
        kernel = [self.per_row(values) for values in work.attention.flops]
        terms.count("flops", "layer", (1.0 + core_again) * kernel[0] + kernel[1])
        rest = [self.per_row(values) for values in work.elementwise]
        terms.add("elementwise", "hbm", "layer", rest[0] + rest[1])
        terms.add("recompute.elementwise", "hbm", "layer", again["elementwise"] * rest[0])
        for name, passes_of in (("scores", work.attention.hbm_seconds), ("parts", work.attention.parts_seconds)):
            if any(np.any(values) for values in passes_of):
                moved = [self.per_row(values) for values in passes_of]
                terms.add(f"attention.{name}", "hbm", "layer", moved[0] + moved[1])
                terms.add(f"recompute.{name}", "hbm", "layer", again["attention"] * moved[0])
                core_rerun = core_rerun + again["attention"] * moved[0]
                core = [one + beside for one, beside in zip(core, moved, strict=True)]
        mask = self._mask()
        saving = self.stack.traffic.saving * (self.kept_bytes + self.kept_weight_bytes)
        terms.add("saving", "hbm", "layer", saving / self.hbm_rate)
        launches = work.launches[1] + work.launches[0] * (1.0 + again["elementwise"])
        terms.add("launches", "launch", "layer", launches + self.nothing)
        cast, narrowed = self._casts(), self._quantised()
        self._offloaded(sum(ahead.values()) + sum(back.values()) + sum(own.values()))
        forward = sum(ahead.values()) + core[0] + rest[0] + work.launches[0] + cast + narrowed[0]
        backward = rerun + sum(back.values()) + core[1] + rest[1] + work.launches[1] + cast + narrowed[1]
        backward = backward + core_rerun + again["elementwise"] * (rest[0] + work.launches[0]) + mask
        weight = own["qkv"] + own["attention_out"] + own["mlp_in"] + own["mlp_out"]
        self.forward, self.backward, self.weight = forward, backward, weight
        return core[0], core[1] + core_rerun

    def _mask(self) -> np.ndarray:
        """Add the writing of the mask that keeps packed documents apart. The forward pass has one for all layers; the
        backward pass makes its own in each layer where anything is recomputed (h100:1x8, llama3-1b, jax 0.10.2).
        Reading it, and writing the gradient that JAX asks of it, is taken to hide behind the kernel's matmuls."""
        size = self.per_row(self.prepared.work.attention.mask_bytes)
        if not size.any():
            return self.nothing
        seconds = np.where(self.table.remat == 0, 0.0, size / self.hbm_rate)
        self.terms.add("attention.mask", "hbm", "layer", seconds)
        return seconds

    def _grouped(self) -> tuple[np.ndarray, np.ndarray]:
        """Seconds of grouped matmuls in kernels of their own, (forward, backward with what is recomputed)."""
        ahead, back = self.nothing, self.nothing
        for name, matmul in zip(("mlp_in", "mlp_out"), self.prepared.work.grouped, strict=True):
            forward = self.per_row(matmul.forward)
            ahead = ahead + forward
            back = (
                back
                + self.per_row(matmul.backward_input)
                + self.per_row(matmul.backward_weight)
                + self.again[name] * forward
            )
        return ahead, back

    def _casts(self) -> np.ndarray:
        """Add the memory traffic of a layer's weights: the casts to the compute dtype, in a pipeline the copies of
        `CHUNK_TRAFFIC`. Return the seconds of one of two equal halves (forward, backward)."""
        state = self.stack.state
        if self.adapters is not None:
            return self._frozen_casts(self.adapters)
        cast = (state.weights + state.compute) * self.parameters.layer / self.size["fsdp"]
        seconds = cast / self.hbm_rate
        if self.staged.any():
            traffic = np.array(CHUNK_TRAFFIC)[self.sliced * 1, self.dealt * 1]
            seconds = np.where(self.staged, traffic / 2.0 * self.parameters.layer / self.hbm_rate, seconds)
        self.terms.add("casts", "hbm", "layer", 2.0 * seconds)
        return seconds

    def _frozen_casts(self, adapters: Adapters) -> np.ndarray:
        """The same of frozen weights and their adapters: slices of the stacked weights, casts, and copies in the
        compute dtype of what is quantised."""
        state, base = self.stack.state, self.stack.state.base
        assert base is not None
        cut = np.where(self.staged, 1.0, self.size["fsdp"])
        sliced = (base.kept + base.sent) * self.parameters.layer / cut
        sliced = sliced + (state.weights + state.compute) * adapters.local(cut)
        made = (base.sent + base.made) * self.parameters.layer if base.made else 0.0
        seconds = (sliced + made) / self.hbm_rate
        if self.staged.any():
            # Each microbatch adds the gradients of adapters to sums in float32.
            sums = (8.0 + state.reduced) * adapters.local(np.ones_like(cut))
            seconds = np.where(self.staged, seconds + 0.5 * sums / self.hbm_rate, seconds)
        self.terms.add("casts", "hbm", "layer", 2.0 * seconds)
        return seconds

    def _quantised(self) -> tuple[np.ndarray, np.ndarray]:
        """Add what it takes to quantise the operands of matmuls, and the reductions that find their scales; return the
        seconds of memory traffic, (forward, backward)."""
        if self.stack.matmul_dtype is None:
            return self.nothing, self.nothing
        ahead, back = (self.per_row(elements) for elements in self.prepared.work.quantised)
        again = self.again["elementwise"]
        each = (QUANTISED_READS * self.width + DTYPE_BYTES[self.stack.matmul_dtype]) / self.hbm_rate
        weights = self.parameters.layer
        forward, backward = each * (ahead + weights), each * (back + again * (ahead + weights))
        self.terms.add("quantise", "hbm", "layer", forward + backward)
        for axis in ("data", "fsdp", "tensor", "context", "expert"):
            self.add_collective(
                axis, "all_reduce", "layer", SCALE_BYTES + self.nothing, SCALES[0] * (1.0 + again) + SCALES[1]
            )
        return forward, backward

    def _offloaded(self, matmuls: np.ndarray | float) -> None:
        """Add the copies of what waits in host memory, there and back. Matmuls hide them while they last."""
        rows = self.offloaded_bytes > 0
        if rows.any():
            full = 2.0 * self.offloaded_bytes / self.host_rate * rows
            self.terms.add("offload.activations", "host", "layer", np.maximum(full - matmuls, 0.0) * rows, full)

    def _tensor(self) -> None:
        """Add the collectives along `tensor`. A layer has two blocks (attention, MLP), each with a gather before it and
        a reduction after it; the backward pass has the reverse."""
        if not self.used["tensor"]:
            return
        again, work = self.again, self.prepared.work
        # Routed experts have collectives of their own (below); shared experts have those of an MLP. Routers of experts
        # with a capacity read the gathered sequence, too.
        blocks = 1.0 + self.shape.dense_share
        read = blocks if self.shape.dropless else 2.0
        gathers = np.where(self.parallel, 2.0 * read + read * again["gathers"], 0.0)
        scatters = np.where(self.parallel, 2.0 * blocks + 2.0 * again["scatters"], 0.0)
        reductions = np.where(self.parallel, 0.0, 2.0 * read + 2.0 * again["scatters"])
        # Across NVLink domains half of a layer's compute runs beside the gathers, the other half beside the reductions.
        crossing = self.table.dcn_tensor > 1
        beside = np.where(crossing, 0.5 * (self.forward + self.backward + self.weight), 0.0)
        if self.parallel.any():
            self.add_collective("tensor", "all_gather", "layer", self.stream_bytes, gathers, beside)
            self.add_collective("tensor", "reduce_scatter", "layer", self.stream_bytes, scatters, beside)
        if self.terms.counting:
            # With one sequence a microbatch the pipeline gathers the gradient of each block's result twice, once for
            # each matmul that reads it; the second gather runs beside the first matmul (h100 and h200, tensor 2 and 4,
            # jax 0.10.2).
            twice = self.parallel & self.staged & (self.per_row(work.sequences) <= 1.0)
            sent = wire_bytes("all_gather", self.stream_bytes, self.size["tensor"])
            self.terms.count("tensor", "layer", np.where(twice, 2.0 * sent, 0.0))
        if not self.parallel.all():
            self.add_collective("tensor", "all_reduce", "layer", self.stream_bytes, reductions)
        if self.adapters is not None:
            self._tensor_of_adapters()
        if self.shape.dropless:
            # The tokens of all devices along `expert` are gathered along `tensor`, and what its devices make of them is
            # reduced; without sequence parallelism the gradient of what was reduced is reduced once more.
            tokens, share = self.stream_bytes * self.size["expert"], self.shape.expert_share
            both = np.where(self.parallel, share, 0.0)
            self.add_collective("tensor", "all_gather", "layer", tokens, (2.0 + again["slots"]) * both)
            self.add_collective("tensor", "reduce_scatter", "layer", tokens, 2.0 * both)
            self.add_collective("tensor", "all_reduce", "layer", tokens, 2.0 * (share - both))
            self.add_collective("tensor", "all_reduce", "layer", self.stream_bytes, share - both)
        elif self.shape.experts:
            # Expert slots are cut along d_model while they travel, and gathered for the matmuls of the experts: once
            # forward, once for the gradients of the weights, and once for the gradient of the result. Recomputed
            # experts need two more gathers and one more reduction (deepseek-like on h100, remat=full, jax 0.10.2).
            # A gated MLP gathers the gradient of its result once for each matmul that reads it; a pipeline gathers each
            # array once. An all-to-all changes the mixed tokens, and their gradient, from a cut along d_model to a cut
            # along the sequence and back.
            slots, more = self.per_row(work.slot_bytes), self.again["widened"]
            gated = self.shape.mlp_matrices - 2.0
            self.add_collective("tensor", "all_gather", "layer", slots, np.where(self.staged, 3.0, 3.0 + gated + more))
            # `mlp_out` is above 0 where the outputs of routed experts are computed again.
            self.add_collective("tensor", "reduce_scatter", "layer", slots, 2.0 + (self.again["mlp_out"] > 0))
            cut = self.stream_bytes / self.size["tensor"]
            self.add_collective(
                "tensor", "all_to_all", "layer", cut, np.where(self.parallel, 2.0 * self.shape.expert_share, 0.0)
            )

    def _tensor_of_adapters(self) -> None:
        """Add the sums along `tensor` of x A, where x is cut, and of its gradient, where the result is."""
        base, adapters = self.stack.state.base, self.adapters
        assert base is not None and adapters is not None
        low = self.stream_bytes * base.lora.rank / self.shape.d_model
        behind = adapters.reading
        again = self.again["elementwise"]
        both = np.where(self.parallel, 1.0, 0.0)
        # Under sequence parallelism x A of `output` and `down` is cut along the sequence behind the sum.
        self.add_collective("tensor", "reduce_scatter", "layer", low, behind * (1.0 + again) * both)
        self.add_collective("tensor", "all_gather", "layer", low, behind * both)
        self.add_collective("tensor", "all_reduce", "layer", low, behind * (1.0 + again) * (1.0 - both))
        self.add_collective("tensor", "all_reduce", "layer", low, adapters.writing + self.nothing)

    def _context(self, forward: np.ndarray, backward: np.ndarray) -> None:
        """Add the collectives along `context`: keys and values are gathered, or passed around a ring.

        Attention hides them, and the other compute of a layer hides the gathers of its weights: of these two, no second
        of compute hides both.
        """
        if not self.used["context"]:
            return
        size = self.size["context"]
        ring = self.table.context_attention == CONTEXT_ATTENTION.index("ring")
        own = self.per_row(self.prepared.work.kv_bytes)
        # Keys and values are gathered once forward and once more where anything is recomputed; their gradients are
        # reduce-scattered. A ring passes keys and values on in both passes, and their gradients in the backward pass.
        # Attention by parts gathers its keys anew for the backward pass, which a recomputed forward pass shares.
        anew = self.per_row(self.prepared.work.attention.named)
        gathers = np.where(ring, 0.0, np.where(anew, 2.0, 1.0 + self.again["elementwise"]))
        # Assumed: a half of the backward pass's compute can hide the gathers, the other half the reductions. What runs
        # between start and done of each in a compiled backward pass would settle the shares.
        self.add_collective("context", "all_gather", "layer", own * size, gathers, forward + 0.5 * backward)
        self.add_collective("context", "reduce_scatter", "layer", own * size, np.where(ring, 0.0, 1.0), 0.5 * backward)
        if self.shape.experts and not self.shape.dropless:
            # Dispatch to experts needs the tokens of whole sequences: gathered before it and scattered after it, in
            # both passes.
            tokens = self.stream_bytes * size / self.size["tensor"]
            share = self.shape.expert_share
            self.add_collective("context", "all_gather", "layer", tokens, (2.0 + self.again["slots"]) * share)
            self.add_collective("context", "reduce_scatter", "layer", tokens, 2.0 * share + self.nothing)
        # Gradients travel in float32. They take one step more than keys and values, back to their owner, in the compute
        # dtype. A recomputed ring shares its first step with the backward pass (a100-40 and h100, jax 0.10.2).
        again = self.again["attention"]
        turns = np.where(ring, (size - 1.0) * (4.0 + again) + (1.0 - again), 0.0) * (size > 1)
        self.add_collective("context", "permute", "layer", own, turns, forward + backward)

    def _expert(self) -> None:
        """Add the all-to-alls along `expert`: to the experts and back, forward and backward, and for recomputation.
        Where no token is dropped, all tokens are gathered and the sums over the experts scattered instead.

        The results are kept on the devices of the experts, so any recomputation sends them back once more
        (mixtral-like on h100, remat=dots, jax 0.10.2).
        """
        if self.shape.dropless:
            tokens, share = self.stream_bytes * self.size["expert"], self.shape.expert_share
            tokens = tokens / np.where(self.parallel, self.size["tensor"], 1.0)
            self.add_collective("expert", "all_gather", "layer", tokens, (2.0 + self.again["slots"]) * share)
            self.add_collective("expert", "reduce_scatter", "layer", tokens, 2.0 * share + self.nothing)
        elif self.used["expert"] and self.shape.experts:
            times = 4.0 + self.again["elementwise"] + self.again["slots"]
            slots = self.per_row(self.prepared.work.slot_bytes) / self.size["tensor"]
            self.add_collective("expert", "all_to_all", "layer", slots, times)

    def _fsdp(self, forward: np.ndarray, backward: np.ndarray) -> None:
        """Add the gathers of weights before each use and the reductions of gradients onto their shards. A pipeline does
        both once a step instead (`per_step`)."""
        if not self.used["fsdp"]:
            return
        state = self.stack.state
        each = np.where(self.staged, 0.0, 1.0)
        later = np.where((self.table.remat == 0) | self.staged, 0.0, 1.0)
        if self.adapters is not None:
            assert state.base is not None
            cut = self.adapters.cut + self.adapters.routed_cut
            weights = state.base.sent * self.parameters.layer + state.compute * cut
            self.add_gather("layer", weights, each, forward)
            self.add_gather("layer", weights, later, 0.5 * backward)
            self.add_scatter("layer", state.reduced * cut, each, 0.5 * backward)
            # Those without a side that fsdp cuts are whole on each of its devices, so their gradients are summed.
            whole = self.adapters.whole + self.adapters.routed_whole
            self.add_collective("fsdp", "all_reduce", "layer", state.reduced * whole, each, 0.5 * backward)
            return
        layer = self.parameters.layer
        if self.shape.dropless and self.hardware.platform == "tpu":
            # XLA hides gathers beside its own matmuls. It hides neither the gathers of weights that kernels read, nor
            # the reductions of their gradients (mixtral-8x7b on v5e:4x4 and smaller ones on v5e:2x2, jax 0.10.2).
            routed, layer = self.parameters.layer_routed, self.parameters.layer_dense
            self.add_gather("layer", state.compute * routed, each + later)
            self.add_scatter("layer", state.reduced * routed, each)
        self.add_gather("layer", state.compute * layer, each, forward)
        # Assumed, as for context above: the gathers and the reductions each have half of the backward pass to hide in.
        self.add_gather("layer", state.compute * layer, later, 0.5 * backward)
        self.add_scatter("layer", state.reduced * layer, each, 0.5 * backward)

    def _head(self) -> None:
        """Add the logits, the loss, and the collectives around embedding and logits."""
        work, terms, state = self.prepared.work, self.terms, self.stack.state
        logits = work.logits
        tiled = self.table.vocab_tiles > 1  # whose backward pass computes the logits again
        runs = np.where(tiled, 2.0, 1.0)
        seconds = runs * self.per_row(logits.forward) + self.per_row(logits.backward_input)
        terms.add("matmul.logits", "matmul", "head", seconds + self.per_row(logits.backward_weight))
        terms.count("flops", "head", (2.0 - (state.base is not None) + runs) * self.per_row(logits.flops))
        terms.add("loss", "hbm", "head", self.per_row(work.loss[0]) + self.per_row(work.loss[1]))
        # Assumed: twenty instructions for embedding, last norm, logits, loss and their gradients. To settle it, count
        # those of a profile outside the loop over layers (`scripts/op_profile.py`).
        terms.add("launches", "launch", "head", 20.0 * self.hardware.launch_seconds + self.nothing)
        beside = terms.unit_seconds("head")
        if self.used["tensor"]:
            both = np.where(self.parallel, 1.0, 0.0)
            if self.parallel.any():
                self.add_collective("tensor", "all_gather", "head", self.stream_bytes, 2.0 * both)
                self.add_collective("tensor", "reduce_scatter", "head", self.stream_bytes, 2.0 * both)
            if not self.parallel.all():
                self.add_collective("tensor", "all_reduce", "head", self.stream_bytes, 2.0 * (1.0 - both))
        if self.used["fsdp"]:
            table = self.parameters.sent_vocabulary
            each = np.where(self.staged, 0.0, 1.0)
            if state.base is not None:
                # Without gradients nothing tells the two uses of a tied table apart: TPUs gather it once (v5e, libtpu
                # 0.0.42).
                if self.shape.tied_embeddings and self.hardware.platform == "tpu":
                    table = self.parameters.embedding
                sent = state.base.sent_beside * (table + np.where(tiled, self.parameters.embedding, 0.0))
                self.add_gather("head", sent, each, 0.5 * beside)
                return
            self.add_gather(
                "head", state.compute * (table + np.where(tiled, self.parameters.embedding, 0.0)), each, 0.5 * beside
            )
            own = table - self.parameters.embedding
            self.add_scatter("head", state.reduced * own, each, 0.5 * beside)
