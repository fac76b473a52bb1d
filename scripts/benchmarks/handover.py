"""How long a call of a 4B model's step takes to become a workload, beside tracing the same step once with jax."""

from __future__ import annotations

import time

LAYERS, WIDTH, HIDDEN, HEADS, VOCAB = 36, 2560, 9728, 32, 151936
"""The sizes of Qwen3-4B, its layers written out one by one; 4.4e9 parameters with the head of its own."""

BATCH, LENGTH = 16, 2048


def run() -> dict[str, object]:
    """Wall seconds of `Workload.of_call` and of `jax.make_jaxpr` on abstract state, and the bytes of that state."""
    import jax
    import jax.numpy as jnp
    import optax

    import autotune

    adam = optax.adamw(1e-4)

    def array(*shape, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(shape, dtype)

    layer = {
        "norm": array(WIDTH), "query": array(WIDTH, WIDTH), "key": array(WIDTH, WIDTH // 4),
        "value": array(WIDTH, WIDTH // 4), "out": array(WIDTH, WIDTH), "gate": array(WIDTH, HIDDEN),
        "up": array(WIDTH, HIDDEN), "down": array(HIDDEN, WIDTH),
    }  # fmt: skip
    params = {"table": array(VOCAB, WIDTH), "layers": [dict(layer) for _ in range(LAYERS)], "head": array(WIDTH, VOCAB)}

    def predict(params, tokens):
        x = params["table"][tokens]
        for w in params["layers"]:
            h = x * jax.lax.rsqrt((x.astype(jnp.float32) ** 2).mean(-1, keepdims=True) + 1e-6).astype(x.dtype)
            h = h * w["norm"][None, None]
            rows = x.shape[:2]
            q = (h @ w["query"]).reshape(*rows, HEADS, -1)
            k, v = ((h @ w[name]).reshape(*rows, HEADS // 4, -1) for name in ("key", "value"))
            x = x + jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(*rows, -1) @ w["out"]
            x = x + (jax.nn.silu(x @ w["gate"]) * (x @ w["up"])) @ w["down"]
        return x @ params["head"]

    def step(params, opt_state, tokens, schedule):
        def loss(params):
            return optax.softmax_cross_entropy_with_integer_labels(predict(params, tokens), tokens).mean()

        value, gradients = jax.value_and_grad(loss)(params)
        updates, opt_state = adam.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, {"loss": value, "rate": schedule(0)}

    schedule = optax.constant_schedule(1e-4)
    args = (params, jax.eval_shape(adam.init, params), array(BATCH, LENGTH, dtype=jnp.int32))
    begin, used = time.perf_counter(), time.process_time()
    jax.make_jaxpr(lambda *args: step(*args, schedule))(*args)
    traced, traced_used = time.perf_counter() - begin, time.process_time() - used
    begin, used = time.perf_counter(), time.process_time()
    workload = autotune.Workload.of_call(step, (*args, schedule), batch="tokens")
    seconds, seconds_used = time.perf_counter() - begin, time.process_time() - used
    assert workload.traced is not None
    state = workload.traced.parameter_bytes + workload.traced.optimizer_bytes
    return {
        "handover_seconds": seconds,
        "one_trace_seconds": traced,
        "handover_cpu_seconds": seconds_used,
        "one_trace_cpu_seconds": traced_used,
        "handover_over_one_trace": seconds_used / traced_used,
        "parameters": workload.traced.parameters,
        "state_bytes": state,
    }
