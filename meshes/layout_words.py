"""Every word of a layout: its default, its values, what it means, and which values the search tries.

The parser and the printer (`meshes.layout`), the legality rules, the columns of a table of layouts (`autotune.table`),
the search space (`autotune.space`), the bounds of `sweep` and the help texts are made from this table. JAX-free; NumPy
is imported where arrays are met, since help texts do without it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from autotune.meshes import remat_sets
from autotune.meshes.fields import did_you_mean, short

if TYPE_CHECKING:
    import numpy as np

SET_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
"""How a set of XLA options is called."""

LARGEST_COUNT = 2**20
"""Of every size of an axis, as many devices as the largest target has; and of the passes that the search tries."""

LARGEST_PASSES = 64 * LARGEST_COUNT
"""Of every other count of a layout."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutWord:
    """One word of a layout text, such as `remat` in `remat=full`."""

    name: str
    """The word, and the name of the field of `Layout`."""
    kind: Literal["axis", "count", "choice", "flag", "order", "name"]
    """axis: size of a mesh axis. count: whole number, 1 or more. choice: one of `values`. flag: 0 or 1.
    order: all mesh axes, joined by ">". name: of a thing that the hardware file holds, or None."""
    default: Any
    """The value that a layout has when its text leaves the word out."""
    meaning: str
    """What the word decides: one sentence."""
    values: tuple[Any, ...] = ()
    """The values of a choice or a flag. A column of a table holds the position of the value in this tuple."""
    value_meanings: Mapping[str, str] | None = None
    """What each value of a choice means, where the sentence of the word does not say it."""
    searched: tuple[Any, ...] | None = None
    """The values that the search tries; None where they depend on the job (see `search_rule`)."""
    search_rule: str | None = None
    """How the search finds its values, or what `searched` counts, where the tuple alone does not say it."""
    needs_axis: str | None = None
    """A value other than the default changes nothing unless this mesh axis is larger than 1."""
    host_memory: tuple[str, ...] = ()
    """Values that keep arrays in host memory. XLA can address host memory on TPU only."""

    def searched_on(self, platform: str) -> tuple[Any, ...]:
        """The values that the search tries on a platform."""
        assert self.searched is not None, f"{self.name}: {self.search_rule}"
        return tuple(value for value in self.searched if platform == "tpu" or value not in self.host_memory)

    def code(self, value: Any) -> int:
        """The value as the whole number that a column of a table of layouts holds; -1 for None."""
        if value is None:
            return -1
        return self.values.index(value) if self.values else int(value)

    def value(self, code: int) -> Any:
        """The value of a code: the inverse of `code`."""
        if not self.values:
            return code
        return self.values[code] if code >= 0 else None

    def on_host(self, codes: Any) -> Any:
        """Whether the value of a code, or of each of an array of codes, keeps arrays in host memory."""
        found = codes != codes
        for value in self.host_memory:
            found = found | (codes == self.code(value))
        return found

    def text(self, value: Any) -> str:
        """The value as a layout text writes it."""
        if self.kind == "order":
            return ">".join(value)
        return str(int(value)) if self.kind == "flag" else str(value)

    def parse(self, text: str) -> Any:
        """The value that a text writes. ValueError where a number is wanted and the text is none.

        Whether a choice has the value is asked by `check`.
        """
        if self.kind == "order":
            return tuple(text.split(">"))
        if self.kind == "name":
            return text
        if self.kind == "flag":
            if text not in ("0", "1"):
                raise ValueError(f"layout: {self.name}={short(text)} must be 0 or 1")
            return text == "1"
        if self.kind == "choice" and isinstance(self.values[0], str):
            return text
        return whole_number(self.name, text)

    def check(self, value: Any) -> None:
        """ValueError where a layout cannot have the value."""
        if self.kind == "name":
            if value is not None and not (isinstance(value, str) and SET_NAME.fullmatch(value)):
                rule = "must be a name of small letters, digits and _, at most 40 of them, a letter first"
                raise ValueError(f"layout: {self.name}={short(value)} {rule}")
        elif self.values:
            if value not in self.values and not (value is None and self.default is None):
                listed = ", ".join(self.text(known) for known in self.values)
                close = did_you_mean(str(value), map(self.text, self.values))
                raise ValueError(f"layout: {self.name}={short(value)} must be one of {listed}{close}")
        elif not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"layout: {self.name}={short(value)} must be a whole number, 1 or more")
        elif value > (largest := LARGEST_COUNT if self.kind == "axis" else LARGEST_PASSES):
            raise ValueError(f"layout: {self.name}={short(value)} must be at most {largest:,}")


class RematWord(LayoutWord):
    """`remat`: a policy's name, or any other set of arrays (`autotune.meshes.remat_sets`).

    The codes of sets that have no name follow those of the names.
    """

    __slots__ = ()

    def code(self, value: Any) -> int:
        """A name's position, or the number of its set after all names."""
        if value in self.values:
            return self.values.index(value)
        return len(self.values) + remat_sets.set_code(remat_sets.places_of(value))

    def value(self, code: int) -> Any:
        """The name or the text of a set: the inverse of `code`."""
        if code < len(self.values):
            return self.values[code]
        return remat_sets.text_of(remat_sets.places_of_code(code - len(self.values)))

    def set_codes(self, codes: Any) -> np.ndarray:
        """The number of the set of each code, whether it has a name or not."""
        import numpy as np

        codes, named = np.asarray(codes), self._named_sets()
        return np.where(self.unnamed(codes), codes - len(named), named[np.minimum(codes, len(named) - 1)])

    def codes_of_sets(self, sets: np.ndarray) -> np.ndarray:
        """The code of each number of a set: that of its name, where it has one (but `none`, which keeps more)."""
        import numpy as np

        codes = sets + len(self.values)
        for code, (name, number) in enumerate(zip(self.values, self._named_sets(), strict=True)):
            if name != "none":
                codes = np.where(sets == number, code, codes)
        return codes

    def unnamed(self, codes: Any) -> np.ndarray:
        """Whether each code is that of a set without a name."""
        import numpy as np

        return np.asarray(codes) >= len(self.values)

    def on_host(self, codes: Any) -> np.ndarray:
        """Whether some array of each set waits in host memory."""
        import numpy as np

        codes, named = np.asarray(codes), _waits(self._named_sets())
        found = named[np.minimum(codes, len(named) - 1)]
        unnamed = self.unnamed(codes)
        return np.where(unnamed, _waits(codes - len(named)), found) if unnamed.any() else found

    def _named_sets(self) -> np.ndarray:
        import numpy as np

        return np.array([remat_sets.set_code(remat_sets.NAMED_SETS[name]) for name in self.values], dtype=np.int64)

    def parse(self, text: str) -> Any:
        """The one text of the set that `text` writes."""
        return text if text in self.values else remat_sets.text_of(remat_sets.places_of(text))

    def check(self, value: Any) -> None:
        """ValueError where the value is neither a name nor a set."""
        remat_sets.places_of(str(value))


def _waits(sets: np.ndarray) -> np.ndarray:
    import numpy as np

    return np.logical_or.reduce([digit == remat_sets.HOST for digit in remat_sets.digits_of(sets).values()])


def whole_number(name: str, text: str) -> int:
    """The whole number that a text writes; ValueError names the word. Where it must lie is for `LayoutWord.check`."""
    if not re.fullmatch(r"[-+]?[0-9]{1,18}", text):
        raise ValueError(f"layout: {name}={short(text)} must be a whole number")
    return int(text)


def _axis(name: str, meaning: str) -> LayoutWord:
    rule = "every divisor of the device count, such that the sizes of all axes multiply to it"
    return LayoutWord(name=name, kind="axis", default=1, meaning=meaning, search_rule=rule)


_WORDS = (
    _axis("data", "Devices over which the batch is cut while each holds all parameters (data parallelism)."),
    _axis("fsdp", "Devices over which batch, parameters, gradients and optimizer state are cut (ZeRO-3)."),
    _axis("tensor", "Devices over which attention heads, MLP columns and the vocabulary are cut."),
    _axis("stage", "Pipeline stages: devices over which the layers are cut."),
    _axis("context", "Devices over which each sequence is cut, attention included."),
    _axis("expert", "Devices over which the experts of MoE layers are cut; they cut the batch elsewhere."),
    LayoutWord(
        name="zero",
        kind="choice",
        default=0,
        values=(0, 1, 2),
        searched=(0, 1, 2),
        needs_axis="data",
        meaning="What is cut over `data` besides the batch: 0 nothing, 1 optimizer state, 2 gradients too.",
    ),
    RematWord(
        name="remat",
        kind="choice",
        default="none",
        values=("none", "dots", "minimal", "attention", "full", "offload"),
        searched=("none", "dots", "minimal", "attention", "full", "offload"),
        host_memory=("offload",),
        meaning="What the backward pass finds saved of each layer besides its input; the other values are recomputed. "
        "Beside the names any set of arrays: save:A+B/offload:C, of "
        f"{', '.join(remat_sets.REMAT_ARRAYS)}; what it does not name is recomputed.",
        search_rule="sets of arrays that win are added by `autotune.price.remat_choices`",
        value_meanings={
            "none": "whatever the backward pass reads",
            "dots": "outputs of every weight's matmul (query, key and value after rotation, attention out, MLP in, MLP "
            "out) and the attention kernel's output with its softmax statistics",
            "minimal": "as dots, but the attention kernel runs again (MaxText's `minimal`)",
            "attention": "as dots, but the matmuls of the MLP run again",
            "full": "nothing",
            "offload": "nothing, and the layer's input waits in host memory",
        },
    ),
    LayoutWord(
        name="accumulate",
        kind="count",
        default=1,
        search_rule="powers of two up to the sequences of one batch shard; 1 where there are pipeline stages",
        meaning="Gradient accumulation: sequential passes over slices of the batch before one optimizer step.",
    ),
    LayoutWord(
        name="reduce",
        kind="choice",
        default="pass",
        values=("pass", "step"),
        searched=("pass",),
        search_rule="step is added where it wins by `autotune.price.deferred_reduction`",
        needs_axis="data",
        meaning="How often gradients are reduced over `data` under accumulation: in every pass, or once a step.",
        value_meanings={
            "pass": "each pass's gradients are reduced, and their sums are the same on all replicas",
            "step": "each replica sums its own gradients over the passes, and the sums are reduced once",
        },
    ),
    LayoutWord(
        name="microbatches",
        kind="count",
        default=1,
        searched=(1, 2, 4, 8),
        search_rule="so many times `stage`",
        needs_axis="stage",
        meaning="Slices of the batch that follow one another through the pipeline.",
    ),
    LayoutWord(
        name="schedule",
        kind="choice",
        default=None,
        values=("gpipe", "1f1b", "circular", "zero-bubble"),
        value_meanings={
            "gpipe": "all forward passes, then all backward passes (Huang et al. 2019, arXiv 1811.06965)",
            "1f1b": "a backward pass after each forward pass, as soon as there is one (Narayanan et al. 2021, arXiv "
            "2104.04473); priced only",
            "circular": "gpipe with several thin slices of the layers on each stage, all microbatches saved",
            "zero-bubble": "1f1b with the gradients of weights postponed (ZB-H1 of Qi et al. 2024, arXiv 2401.10241); "
            "priced only",
        },
        searched=("gpipe", "circular"),
        search_rule="schedules that the reference models can be compiled with",
        needs_axis="stage",
        meaning="The order in which pipeline stages run forward and backward passes; none where `stage` is 1.",
    ),
    LayoutWord(
        name="virtual_stages",
        kind="count",
        default=1,
        searched=(1, 2, 4, 8),
        search_rule="1 for all schedules but circular, the larger counts for circular",
        needs_axis="stage",
        meaning="Slices of the layers that each pipeline stage holds; above 1 with the circular schedule only.",
    ),
    LayoutWord(
        name="sequence_parallel",
        kind="flag",
        default=True,
        values=(False, True),
        searched=(True,),
        meaning="Whether norms and residuals are cut along the sequence over `tensor`.",
    ),
    LayoutWord(
        name="context_attention",
        kind="choice",
        default="gather",
        values=("gather", "ring"),
        searched=("gather", "ring"),
        needs_axis="context",
        meaning="How attention sees the shards of a sequence that `context` cuts: gather keys and values, or pass them "
        "round a ring.",
    ),
    LayoutWord(
        name="vocab_tiles",
        kind="count",
        default=1,
        searched=(1,),
        search_rule="more are added where the logits stand in the way, by `autotune.price.vocabulary_tiles`",
        meaning="Tiles of the vocabulary, one after the other, in which the loss is computed: the logits of one tile "
        "are in memory at a time, and the backward pass computes them again.",
    ),
    LayoutWord(
        name="offload",
        kind="choice",
        default="none",
        values=("none", "optimizer"),
        searched=("none",),
        host_memory=("optimizer",),
        meaning="What waits in host memory between steps: nothing, or the optimizer state.",
    ),
    LayoutWord(
        name="options",
        kind="name",
        default=None,
        searched=(None,),
        search_rule="the best compiled layout is compiled again under the sets that its hardware file recommends "
        "(`autotune.option_sets`)",
        meaning="The chip's set of XLA options, by its name in the hardware file (`autotune targets NAME` lists them): "
        "none is the compiler's own defaults, default what the file says where this word is left out. `xla.` words "
        "stand on top of the set.",
    ),
)

LAYOUT_WORDS: dict[str, LayoutWord] = {
    word.name: word
    for word in (
        *_WORDS,
        LayoutWord(
            name="order",
            kind="order",
            default=("stage", "data", "fsdp", "context", "expert", "tensor"),
            searched=(("stage", "data", "fsdp", "context", "expert", "tensor"),),
            search_rule="other orders are tried for the best layouts of a torus (`autotune.price.axis_orders`)",
            meaning="The mesh axes from the outermost (slowest varying device) to the innermost.",
        ),
    )
}
"""Every word, by name, in the order in which a layout text writes it."""

WORD_FAMILIES: dict[str, str] = {
    "dcn.<axis>": "The factor of a mesh axis that crosses the outer tier: DCN between TPU slices, the network between "
    "NVLink domains.",
    "xla.<option>": "An option for the XLA compiler.",
    "rule.<logical axis>": "The mesh axes, joined by +, that cut a logical axis of the model; none leaves it whole.",
}
"""Words that name a part of something else, and what they mean."""


def words_help() -> str:
    """Every word of a layout with its values, as one sentence for a help text."""
    listed = []
    for word in LAYOUT_WORDS.values():
        values = "|".join(word.text(value) for value in word.values)
        listed.append(f"{word.name}={values}" if values else word.name)
    return "Words of a layout: " + ", ".join([*listed, *WORD_FAMILIES]) + "."
