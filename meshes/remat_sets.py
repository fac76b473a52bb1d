"""The arrays of a layer that a layout keeps, offloads or computes again, and the names of the usual sets. JAX-free.

`REMAT_ARRAYS` says what each array is and what MaxText calls it; `price.transformer.remat` says what each costs. The
policies of `remat` are names of sets of these arrays. Any other set is written `save:layer_input+query/offload:mlp_up`;
an array that it does not name is computed again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autotune.meshes.fields import did_you_mean, short

if TYPE_CHECKING:
    import numpy as np

PLACES = ("recompute", "device", "host")
"""Where the backward pass has an array from. The position is the digit of a set's code."""

RECOMPUTE, DEVICE, HOST = range(3)


@dataclass(frozen=True, slots=True, kw_only=True)
class RematArray:
    """One array of a layer.

    `maxtext`: its key in MaxText's configs/base.yml under `remat_policy: custom`; None where MaxText has none. `needs`:
    what the model must have: "gate", "experts" or None.
    """

    name: str
    meaning: str
    maxtext: str | None
    needs: str | None = None


_ARRAYS = (
    RematArray(name="layer_input", meaning="the residual stream that enters the layer",
               maxtext="decoder_layer_input"),
    RematArray(name="query", meaning="queries after rotation", maxtext="query_proj"),
    RematArray(name="key", meaning="keys after rotation", maxtext="key_proj"),
    RematArray(name="value", meaning="values", maxtext="value_proj"),
    RematArray(name="attention", meaning="the attention kernel's output and its softmax statistics", maxtext="context"),
    RematArray(name="attention_out", meaning="attention's projection back to the residual stream", maxtext="out_proj"),
    RematArray(name="mlp_gate", meaning="the MLP's first matmul that the activation takes",
               maxtext="mlpwi_0", needs="gate"),
    RematArray(name="mlp_up", meaning="the MLP's other first matmul, or its only one", maxtext="mlpwi_1"),
    RematArray(name="mlp_out", meaning="the MLP's last matmul; read again only where its experts are mixed",
               maxtext="mlpwo"),
    RematArray(name="expert_tokens", meaning="an expert's tokens after their all-to-all",
               maxtext=None, needs="experts"),
)  # fmt: skip

REMAT_ARRAYS: dict[str, RematArray] = {array.name: array for array in _ARRAYS}
"""Every array, by name, in the order in which a layout text writes them."""

MAXTEXT_ARRAYS = {array.maxtext: name for name, array in REMAT_ARRAYS.items() if array.maxtext is not None}
"""MaxText's key under `remat_policy: custom` -> our array."""

MAXTEXT_PLACES = {"device": "device", "offload": "host", "remat": "recompute"}
"""Value of such a key -> where the array is; configs/base.yml lists the three."""

MAXTEXT_POLICIES = {"none": "none", "minimal_with_context": "dots", "minimal_flash": "dots", "minimal": "minimal",
                    "full": "full", "save_dot_with_context_except_mlp": "attention"}  # fmt: skip
"""MaxText's `remat_policy` -> remat word of a layout. Of two that are one of ours, `emit` writes the first."""

_PROJECTIONS = ("query", "key", "value", "attention_out")
_MLP = ("mlp_gate", "mlp_up", "mlp_out", "expert_tokens")

NAMED_SETS: dict[str, Mapping[str, str]] = {
    name: {array: places.get(array, "recompute") for array in REMAT_ARRAYS}
    for name, places in {
        "none": dict.fromkeys(REMAT_ARRAYS, "device"),
        "dots": dict.fromkeys(("layer_input", "attention", *_PROJECTIONS, *_MLP), "device"),
        "minimal": dict.fromkeys(("layer_input", *_PROJECTIONS, *_MLP), "device"),
        "attention": dict.fromkeys(("layer_input", "attention", *_PROJECTIONS), "device"),
        "full": {"layer_input": "device"},
        "offload": {"layer_input": "host"},
    }.items()
}
"""Name -> where each array is. `none` keeps what lies between the arrays, too: whatever the backward pass reads."""

_DIGITS = tuple(3**place for place in range(len(REMAT_ARRAYS)))


def places_of(text: str) -> Mapping[str, str]:
    """Array -> "device", "host" or "recompute", of a policy's name or of the text of a set.

    The layer's input cannot be computed again: it starts the layer, so it is on the device unless it is offloaded.
    ValueError names the array and lists those that there are.

    >>> [name for name, place in places_of("save:query/offload:layer_input").items() if place != "recompute"]
    ['layer_input', 'query']
    """
    if text in NAMED_SETS:
        return NAMED_SETS[text]
    places: dict[str, str] = {}
    told: list[str] = []
    for section in text.split("/"):
        verb, colon, names = section.partition(":")
        place = {"save": "device", "offload": "host"}.get(verb)
        if not colon or place is None:
            raise ValueError(
                f"layout: remat={short(text)} must be one of {', '.join(NAMED_SETS)}, or arrays by name: "
                f"save:layer_input+query/offload:mlp_up{did_you_mean(verb, (*NAMED_SETS, 'save', 'offload'))}"
            )
        if verb in told:
            raise ValueError(f"layout: remat={short(text)} has {verb}: twice")
        told.append(verb)
        for name in names.split("+"):
            if name not in REMAT_ARRAYS:
                raise ValueError(
                    f"layout: remat: {short(name)} is no array of a layer; arrays: {', '.join(REMAT_ARRAYS)}"
                    f"{did_you_mean(name, REMAT_ARRAYS)}"
                )
            if name in places:
                raise ValueError(f"layout: remat={short(text)} names {name} twice")
            places[name] = place
    return {name: places.get(name, "device" if name == "layer_input" else "recompute") for name in REMAT_ARRAYS}


def text_of(places: Mapping[str, str]) -> str:
    """The one text of a set: a policy's name where it has one, but `none`, which keeps more than these arrays."""
    full = {name: places.get(name, "recompute") for name in REMAT_ARRAYS}
    if full["layer_input"] == "recompute":
        full["layer_input"] = "device"
    for name, named in NAMED_SETS.items():
        if name != "none" and named == full:
            return name
    sections = (
        (verb, "+".join(name for name in REMAT_ARRAYS if full[name] == place))
        for verb, place in (("save", "device"), ("offload", "host"))
    )
    return "/".join(f"{verb}:{names}" for verb, names in sections if names)


def set_code(places: Mapping[str, str]) -> int:
    """A set as a whole number, one ternary digit an array."""
    return sum(digit * PLACES.index(places[name]) for digit, name in zip(_DIGITS, REMAT_ARRAYS, strict=True))


def digits_of(codes: np.ndarray) -> dict[str, np.ndarray]:
    """Array -> the position in `PLACES` of each code."""
    return {name: codes // digit % 3 for digit, name in zip(_DIGITS, REMAT_ARRAYS, strict=True)}


def places_of_code(code: int) -> dict[str, str]:
    """The inverse of `set_code`."""
    return {name: PLACES[int(code) // digit % 3] for digit, name in zip(_DIGITS, REMAT_ARRAYS, strict=True)}
