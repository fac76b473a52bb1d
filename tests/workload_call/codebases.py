"""Small models in the structure of ten training codebases: states, signatures, jits, constraints. None of their code.

Each function gives (step, args, kwargs, batch, options, loop): the call that its loop makes, what the tuner is told
beside it, and `loop(step)`, three steps of that loop with the loss of each.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import nnx, struct
from flax.training import train_state
from jax.sharding import PartitionSpec as P

ADAM = optax.adam(1e-2)
VOCAB, WIDTH, HIDDEN, BATCH, LENGTH = 64, 32, 64, 16, 8
TOKENS = (jnp.arange(BATCH * LENGTH) * 7 % VOCAB).reshape(BATCH, LENGTH)
IMAGES = jnp.linspace(-1, 1, 64 * WIDTH).reshape(64, WIDTH)


def normal(seed, *shape):
    return 0.2 * jax.random.normal(jax.random.key(seed), shape)


def cross_entropy(logits, targets):
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()


# --- lm1b: Linen with logical axes and constraints, static config and schedule, jitted by the loop


@dataclasses.dataclass(frozen=True)
class LmConfig:
    layers: int = 2
    dropout: float = 0.1


class LmBlock(nn.Module):
    config: LmConfig

    @nn.compact
    def __call__(self, x, deterministic):
        kernel = nn.initializers.xavier_uniform()
        h = nn.Dense(HIDDEN, kernel_init=nn.with_logical_partitioning(kernel, ("embed", "mlp")))(x)
        h = nn.with_logical_constraint(nn.relu(h), ("activation_batch", "activation_length", "activation_mlp"))
        h = nn.Dropout(self.config.dropout, deterministic=deterministic)(h)
        return x + nn.Dense(WIDTH, kernel_init=nn.with_logical_partitioning(kernel, ("mlp", "embed")))(h)


class Lm(nn.Module):
    config: LmConfig

    @nn.compact
    def __call__(self, tokens, deterministic=False):
        table = nn.with_logical_partitioning(nn.initializers.normal(0.2), ("vocab", "embed"))
        embed = nn.Embed(VOCAB, WIDTH, embedding_init=table)
        x = embed(tokens)
        for index in range(self.config.layers):
            x = LmBlock(self.config, name=f"encoderblock_{index}")(x, deterministic)
        return embed.attend(x)


def lm1b() -> Any:
    config, schedule = LmConfig(), optax.cosine_decay_schedule(1e-2, 100)

    def train_step(state, batch, config, learning_rate_fn, label_smoothing=0.0, dropout_rng=None):
        rng = jax.random.fold_in(dropout_rng, state.step)

        def loss_fn(params):
            logits = Lm(config).apply({"params": params}, batch["inputs"], rngs={"dropout": rng})
            confidence = 1.0 - label_smoothing
            return confidence * cross_entropy(logits, batch["inputs"]), logits

        (loss, _), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        return state.apply_gradients(grads=grads), {"loss": loss, "learning_rate": learning_rate_fn(state.step)}

    def make():
        params = Lm(config).init(jax.random.key(0), TOKENS, deterministic=True)["params"]
        return train_state.TrainState.create(apply_fn=Lm(config).apply, params=params, tx=optax.adamw(schedule))

    key = jax.random.PRNGKey(2)
    step = jax.jit(train_step, static_argnums=(2, 3), static_argnames=("label_smoothing",))

    def loop(step):
        state, losses = make(), []
        for _ in range(3):
            state, metrics = step(state, {"inputs": TOKENS}, config, schedule, dropout_rng=key)
            losses.append(float(metrics["loss"]))
        return losses

    args = (jax.eval_shape(make), {"inputs": TOKENS}, config, schedule)
    return step, args, {"dropout_rng": key}, 1, {}, loop


# --- gemma: an NNX model taken apart into a TrainState, put together inside the step, Explicit axes


class GemmaBlock(nnx.Module):
    def __init__(self, rngs):
        kernel = nnx.initializers.lecun_normal()
        self.up = nnx.Linear(WIDTH, HIDDEN, kernel_init=nnx.with_partitioning(kernel, ("embed", "mlp")), rngs=rngs)
        self.down = nnx.Linear(HIDDEN, WIDTH, kernel_init=nnx.with_partitioning(kernel, ("mlp", "embed")), rngs=rngs)

    def __call__(self, x):
        return x + self.down(nnx.gelu(self.up(x)))


class Gemma(nnx.Module):
    def __init__(self, rngs):
        table = nnx.with_partitioning(nnx.initializers.normal(0.2), ("vocab", "embed"))
        self.embed = nnx.Embed(VOCAB, WIDTH, embedding_init=table, rngs=rngs)
        self.layers = nnx.List([GemmaBlock(rngs) for _ in range(2)])

    def __call__(self, tokens):
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.embed.attend(x)


class GemmaState(train_state.TrainState):
    graphdef: Any = struct.field(pytree_node=False)


def gemma() -> Any:
    def train_step(state, batch, learning_rate_fn, label_smoothing=0.0, dropout_rng=None):
        def loss_fn(params):
            return cross_entropy(nnx.merge(state.graphdef, params)(batch["inputs"]), batch["targets"])

        loss, grads = jax.value_and_grad(loss_fn)(state.params)
        return state.apply_gradients(grads=grads), {"loss": loss, "learning_rate": learning_rate_fn(state.step)}

    schedule, batch = optax.constant_schedule(1e-2), {"inputs": TOKENS, "targets": TOKENS}

    def make():
        with nnx.use_eager_sharding(False):
            graphdef, params = nnx.split(Gemma(nnx.Rngs(0)))
        return GemmaState.create(apply_fn=None, params=params, tx=optax.adam(1e-2), graphdef=graphdef)

    def loop(step):
        state, losses = make(), []
        for _ in range(3):
            state, metrics = step(state, batch, schedule, 0.0, jax.random.key(0))
            losses.append(float(metrics["loss"]))
        return losses

    return train_step, (make(), batch, schedule, 0.0, jax.random.key(0)), {}, batch, {}, loop


# --- imagenet: pmap, batch statistics in the state, averages over the axis


class ImagenetState(train_state.TrainState):
    batch_stats: Any


class Resnet(nn.Module):
    @nn.compact
    def __call__(self, x, train=True):
        h = nn.Dense(HIDDEN)(x)
        h = nn.BatchNorm(use_running_average=not train, axis_name="batch")(h)
        return nn.Dense(10)(nn.relu(h))


def imagenet() -> Any:
    def train_step(state, batch, learning_rate_fn):
        def loss_fn(params):
            variables = {"params": params, "batch_stats": state.batch_stats}
            logits, new = state.apply_fn(variables, batch["image"], mutable=["batch_stats"])
            decay = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params) if leaf.ndim > 1)
            return cross_entropy(logits, batch["label"]) + 1e-4 * decay, new

        (loss, new), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        grads = jax.lax.pmean(grads, axis_name="batch")
        metrics = jax.lax.pmean({"loss": loss, "lr": learning_rate_fn(state.step)}, axis_name="batch")
        return state.apply_gradients(grads=grads, batch_stats=new["batch_stats"]), metrics

    batch = {"image": IMAGES, "label": jnp.arange(64) % 10}
    schedule = optax.constant_schedule(0.1)
    step = functools.partial(train_step, learning_rate_fn=schedule)

    def make():
        variables = Resnet().init(jax.random.key(0), IMAGES, train=False)
        return ImagenetState.create(apply_fn=Resnet().apply, params=variables["params"], tx=optax.sgd(schedule, 0.9),
                                    batch_stats=variables["batch_stats"])  # fmt: skip

    def loop(step):
        state, losses = make(), []
        for _ in range(3):
            state, metrics = step(state, batch)
            losses.append(float(metrics["loss"]))
        return losses

    return step, (make(), batch), {}, 1, {}, loop


# --- nanodo: a step closed over model and config, state donated


def nanodo() -> Any:
    model = Lm(LmConfig(dropout=0.0))

    @functools.partial(jax.jit, donate_argnames=("state",))
    def step_fn(state, in_BxL):
        def loss_fn(params):
            return cross_entropy(model.apply({"params": params}, in_BxL), in_BxL)

        loss, grads = jax.value_and_grad(loss_fn)(state.params)
        return state.apply_gradients(grads=grads), {"train_loss": loss}

    def make():
        params = nn.meta.unbox(model.init(jax.random.key(0), TOKENS)["params"])
        tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2))
        return train_state.TrainState.create(apply_fn=model.apply, params=params, tx=tx)

    def loop(step):
        state, losses = make(), []
        for _ in range(3):
            state, metrics = step(state=state, in_BxL=TOKENS)
            losses.append(float(metrics["train_loss"]))
        return losses

    return step_fn, (), {"state": jax.eval_shape(make), "in_BxL": TOKENS}, "in_BxL", {}, loop


# --- big_vision: dicts, a key in the middle, shardings of its own on the jit, layers scanned


def big_vision() -> Any:
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    whole, rows = jax.NamedSharding(mesh, P()), jax.NamedSharding(mesh, P("data"))

    @functools.partial(jax.jit, donate_argnums=(0,), in_shardings=(whole, whole, rows))
    def update_fn(train_state, rng, batch):
        rng, key = jax.random.split(rng)

        def loss_fn(params):
            def block(x, w):
                return x + nn.gelu(x @ w["up"]) @ w["down"], None

            x = batch["image"] + 0.01 * jax.random.normal(key, batch["image"].shape)
            x, _ = jax.lax.scan(jax.checkpoint(block), x, params["encoderblock"])
            return cross_entropy(x @ params["head"], batch["labels"])

        value, grads = jax.value_and_grad(loss_fn)(train_state["params"])
        updates, opt = ADAM.update(grads, train_state["opt"], train_state["params"])
        measurements = {
            "training_loss": value,
            "l2_grads": sum((one**2).sum() for one in jax.tree.leaves(grads)) ** 0.5,
        }
        return {"params": optax.apply_updates(train_state["params"], updates), "opt": opt}, rng, measurements

    batch = {"image": IMAGES, "labels": jnp.arange(64) % 10}

    def make():
        blocks = {"up": normal(0, 3, WIDTH, HIDDEN), "down": normal(1, 3, HIDDEN, WIDTH)}
        params = {"encoderblock": blocks, "head": normal(2, WIDTH, 10)}
        return {"params": params, "opt": ADAM.init(params)}

    def loop(step):
        state, rng, losses = make(), jax.random.PRNGKey(0), []
        for _ in range(3):
            state, rng, measurements = step(state, rng, batch)
            losses.append(float(measurements["training_loss"]))
        return losses

    return update_fn, (jax.eval_shape(make), jax.random.PRNGKey(0), batch), {}, 2, {}, loop


# --- EasyLM: regex rules, constraints by mesh names of its own, a stream of keys


def easylm() -> Any:
    rules = ((".*/wte", P("mp", "fsdp")), (".*/wi", P("fsdp", "mp")), (".*/wo", P("mp", "fsdp")), (".*", P()))

    @jax.jit
    def train_step(train_state, rng, batch):
        rng, key = jax.random.split(rng)
        tokens = jax.lax.with_sharding_constraint(batch["input_tokens"], P(("dp", "fsdp")))

        def loss_and_accuracy(params):
            x = params["wte"][tokens]
            x = x * jax.random.bernoulli(key, 0.9, x.shape)
            h = jax.lax.with_sharding_constraint(nn.silu(x @ params["wi"]), P(("dp", "fsdp"), None, "mp"))
            logits = (x + h @ params["wo"]) @ params["wte"].T
            return cross_entropy(logits, batch["target_tokens"]), (logits.argmax(-1) == tokens).mean()

        (loss, accuracy), grads = jax.value_and_grad(loss_and_accuracy, has_aux=True)(train_state.params["params"])
        train_state = train_state.apply_gradients(grads={"params": grads})
        return train_state, rng, {"loss": loss, "accuracy": accuracy}

    batch = {"input_tokens": TOKENS, "target_tokens": TOKENS}

    def make():
        params = {"wte": normal(0, VOCAB, WIDTH), "wi": normal(1, WIDTH, HIDDEN), "wo": normal(2, HIDDEN, WIDTH)}
        return train_state.TrainState.create(apply_fn=None, params={"params": params}, tx=optax.adamw(1e-2))

    def loop(step):
        state, rng, losses = make(), jax.random.PRNGKey(0), []
        for _ in range(3):
            state, rng, metrics = step(state, rng, batch)
            losses.append(float(metrics["loss"]))
        return losses

    args = (jax.eval_shape(make), jax.random.PRNGKey(0), batch)
    return train_step, args, {}, "batch", {"rules": rules}, loop


# --- Tunix: a trainer with threads, LoRA in an NNX model, the optimizer beside it


class LoraNet(nnx.Module):
    def __init__(self, rngs):
        self.base = nnx.Linear(WIDTH, HIDDEN, rngs=rngs)
        self.lora = nnx.LoRA(WIDTH, 4, HIDDEN, rngs=rngs)
        self.head = nnx.Linear(HIDDEN, WIDTH, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.base(x) + self.lora(x)))


class PeftTrainer:
    def __init__(self):
        self.lock = threading.Lock()
        self.model = LoraNet(nnx.Rngs(0))
        self.optimizer = nnx.Optimizer(self.model, ADAM, wrt=nnx.LoRAParam)

    def _train_step(self, model, optimizer, inputs):
        def loss_fn(model, x):
            return ((model(x) - x) ** 2).mean(), {"rows": x.shape[0]}

        of = nnx.value_and_grad(loss_fn, argnums=nnx.DiffState(0, nnx.LoRAParam), has_aux=True)
        (loss, aux), grads = of(model, inputs["x"])
        optimizer.update(model, grads)
        return loss, aux


def tunix() -> Any:
    trainer = PeftTrainer()
    inputs = {"x": IMAGES}

    def loop(step):
        again, losses = PeftTrainer(), []
        for _ in range(3):
            loss, _ = step(again.model, again.optimizer, inputs)
            losses.append(float(loss))
        return losses

    return trainer._train_step, (trainer.model, trainer.optimizer, inputs), {}, inputs, {}, loop


# --- jax-llm-examples: dataclasses as trees, Explicit axes x, y, z


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class LlamaWeights:
    table: Any
    up: Any
    down: Any
    config: LmConfig = dataclasses.field(metadata={"static": True}, default=LmConfig())


def jax_llm_examples() -> Any:
    def step(weights, opt_state, tokens):
        def loss_fn(w):
            x = w.table.at[tokens].get(out_sharding=P("x", None, None))
            h = jnp.einsum("btd,df->btf", x, w.up, out_sharding=P("x", None, "z"))
            x = x + jnp.einsum("btf,fd->btd", jax.nn.silu(h), w.down, out_sharding=P("x", None, None))
            logits = jnp.einsum("btd,vd->btv", x, w.table, out_sharding=P("x", None, None))
            hot = jax.nn.one_hot(tokens, VOCAB)
            return -(jax.nn.log_softmax(logits) * hot).sum(-1).mean()

        loss, grads = jax.value_and_grad(loss_fn)(weights)
        updates, opt_state = ADAM.update(grads, opt_state)
        return loss, optax.apply_updates(weights, updates), opt_state

    def make():
        weights = LlamaWeights(normal(0, VOCAB, WIDTH), normal(1, WIDTH, HIDDEN), normal(2, HIDDEN, WIDTH))
        return weights, ADAM.init(weights)

    def loop(step):
        (weights, opt_state), losses = make(), []
        for _ in range(3):
            loss, weights, opt_state = step(weights, opt_state, TOKENS)
            losses.append(float(loss))
        return losses

    options = {
        "mesh_axes": {"x": "data", "y": "fsdp", "z": "tensor"},
        "rules": (("up$", (None, "z")), ("down$", ("z", None)), ("table$", (None, None))),
    }
    return step, (*make(), TOKENS), {}, 2, options, loop


# --- bonsai: an NNX model that decodes with a cache


class QwenCache(nnx.Pytree):
    def __init__(self):
        self.keys = nnx.Cache(jnp.zeros((BATCH, LENGTH, WIDTH)))
        self.at = nnx.Variable(jnp.zeros((), jnp.int32))


class Qwen(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(VOCAB, WIDTH, embedding_init=nnx.initializers.normal(0.2), rngs=rngs)
        self.key = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.out = nnx.Linear(WIDTH, WIDTH, rngs=rngs)

    def __call__(self, tokens, cache):
        x = self.embed(tokens)
        start = (0, cache.at[...], 0)
        cache.keys[...] = jax.lax.dynamic_update_slice(cache.keys[...], self.key(x)[:, None], start)
        score = jnp.einsum("bd,btd->bt", x, cache.keys[...])
        seen = jnp.arange(LENGTH)[None] <= cache.at[...]
        cache.at[...] += 1
        mixed = jnp.einsum("bt,btd->bd", nnx.softmax(jnp.where(seen, score, -1e9)), cache.keys[...])
        return self.embed.attend(x + self.out(mixed))


def bonsai() -> Any:
    @nnx.jit
    def decode(model, cache, tokens):
        logits = model(tokens, cache)
        return logits, logits.max()

    def loop(step):
        model, cache, losses = Qwen(nnx.Rngs(0)), QwenCache(), []
        for index in range(3):
            _, best = step(model, cache, TOKENS[:, index])
            losses.append(float(best))
        return losses

    return decode, (Qwen(nnx.Rngs(0)), QwenCache(), TOKENS[:, 0]), {}, "tokens", {}, loop


# --- Levanter with Haliax: named arrays, a state of dataclasses with a key and a counter, batches as star arguments


@functools.partial(jax.tree_util.register_dataclass, data_fields=["array"], meta_fields=["axes"])
@dataclasses.dataclass(frozen=True)
class NamedArray:
    array: Any
    axes: tuple[str, ...]

    def dot(self, other, axis):
        kept = (*(one for one in self.axes if one != axis), *(one for one in other.axes if one != axis))
        return NamedArray(jnp.tensordot(self.array, other.array, (self.axes.index(axis), other.axes.index(axis))), kept)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainerState:
    step: Any
    model: Any
    opt_state: Any
    training_key: Any


class LevanterTrainer:
    def __init__(self):
        self.hooks = [lambda info: None]

    def train_step(self, state, *batch, **batch_kwargs):
        key, new_key = jax.random.split(state.training_key)

        def loss_fn(model):
            x = NamedArray(batch[0], ("batch", "embed"))
            h = x.dot(model["up"], "embed")
            h = NamedArray(jax.nn.gelu(h.array) * jax.random.bernoulli(key, 0.9, h.array.shape), h.axes)
            return ((h.dot(model["down"], "mlp").array - batch[0]) ** 2).mean()

        loss, grads = jax.value_and_grad(loss_fn)(state.model)
        updates, opt_state = ADAM.update(grads, state.opt_state)
        model = optax.apply_updates(state.model, updates)
        return loss, TrainerState(state.step + 1, model, opt_state, new_key)


def levanter() -> Any:
    trainer = LevanterTrainer()

    def make():
        up = NamedArray(normal(0, WIDTH, HIDDEN), ("embed", "mlp"))
        model = {"up": up, "down": NamedArray(normal(1, HIDDEN, WIDTH), ("mlp", "embed"))}
        return TrainerState(jnp.zeros((), jnp.int32), model, ADAM.init(model), jax.random.PRNGKey(0))

    def loop(step):
        state, losses = make(), []
        for _ in range(3):
            loss, state = step(state, IMAGES)
            losses.append(float(loss))
        return losses

    return trainer.train_step, (jax.eval_shape(make), IMAGES), {}, 1, {}, loop


CODEBASES = {
    one.__name__: one
    for one in (lm1b, gemma, imagenet, nanodo, big_vision, easylm, tunix, jax_llm_examples, bonsai, levanter)
}
