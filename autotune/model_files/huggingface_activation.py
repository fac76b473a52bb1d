"""The activation of a Hugging Face MLP."""

from __future__ import annotations

from autotune.meshes.fields import did_you_mean, short
from autotune.model_files.keys import Keys

GATED = {"silu": "swiglu", "swish": "swiglu", "gelu": "geglu", "gelu_pytorch_tanh": "geglu", "gelu_new": "geglu"}
PLAIN = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu", "gelu_new": "gelu", "gelu_fast": "gelu", "relu": "relu",
         "relu2": "relu2", "silu": "silu"}  # fmt: skip
"""Activation by the library's name -> by ours, in an MLP with a gate and without."""


def activation_of(keys: Keys, name: str, gated: bool) -> str:
    value = keys.take(name)
    if name == "hidden_act" and gated and keys.values.get("hidden_activation"):
        value = keys.take("hidden_activation")  # Gemma: the newer name wins
    known = GATED if gated else PLAIN
    if not isinstance(value, str) or value not in known:
        close = did_you_mean(str(value), known)
        raise ValueError(f"{keys.where}: {name}={short(value)} must be one of {', '.join(known)}{close}")
    return known[value]
