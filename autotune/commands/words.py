"""`autotune words`: what the words on the screen mean."""

from __future__ import annotations

import json

import click
from rich.console import Group

from autotune.commands.command import Command
from autotune.commands.options import json_option
from autotune.commands.run import show
from autotune.commands.values import Suggested
from autotune.meshes.fields import did_you_mean, short
from autotune.tables import Prose

RESOURCES = {
    "matmul": "The matmul units: compute that would take less time on a chip with more FLOP/s.",
    "hbm": "The bandwidth of device memory: norms, residuals, the optimizer, everything that is no matmul.",
    "core": "Other work of the core that neither FLOP/s nor bandwidth decides, such as a fused kernel's start.",
    "latency": "Time that no bandwidth shortens: hops of collectives and launches of kernels.",
    "network:AXIS@TIER": "Bytes of the collectives along a mesh axis on one tier of links, as far as compute does not "
    "hide them. Tiers: `autotune targets NAME` (ici: links between the chips of a TPU slice; nvlink: inside an NVLink "
    "domain; dcn, network: between slices or domains).",
    "host": "Copies between device memory and host memory.",
    "capacity": "Bytes of device memory: it binds where a faster layout needs more of them.",
}
"""What can bind a step, as limits and terms name it."""

FIGURES = {
    "priced": "From the closed form: no compiler ran. Seconds and bytes of a whole space take less than a second.",
    "compiled": "From the program that the target's compiler made for this layout: its time is replayed instruction by "
    "instruction with the rates of the hardware file, its memory is the compiler's own.",
    "measured": "The step ran on devices; the median of several turns, with their spread.",
    "MFU": "Model FLOPs utilisation: FLOPs that the model needs (recomputation not counted, causal attention counted "
    "in full) a second, over the peak FLOP/s of the device.",
    "causal": "MFU without the FLOPs of the pairs that a causal mask hides, which a fused kernel does not compute "
    "(`mfu_causal` in the JSON).",
    "closest": "Where nothing fits: the layout of the whole space that needs least memory.",
    "elasticity": "How many per cent faster the step becomes when a resource becomes 1 % better; the elasticities of a "
    "step add up to 100 %.",
    "margin": "The elasticity of the resource that binds, less that of the next one, in points.",
    "exposed": "Seconds of a collective that no compute hides.",
    "payload, sent": "Bytes of the array that a collective works on, and bytes that one device sends for it.",
    "overlap: perfect .. none": "The step if all communication were hidden, and if none were.",
    "redundant": "Compute that more than one device does for the same result.",
    "bubble": "Time that a pipeline stage waits for the others.",
    "recompute": "Time of what the backward pass computes again, by the `remat` policy.",
    "adapters, frozen base": "Of LoRA (`--lora-rank`): the low-rank matrices that alone are trained, and all other "
    "weights, which have no gradient and no optimizer state.",
    "packed documents, segments": "Of `--packing N`: N documents one behind the other in each sequence, and the "
    "numbers by which attention tells them apart; a token attends to its own document only.",
    "waiting": "Time that slices wait for the slowest one.",
}
"""What the columns and lines of a report mean."""


def everything() -> dict[str, dict[str, str]]:
    """Section -> word -> meaning."""
    from autotune.meshes.layout_words import LAYOUT_WORDS, WORD_FAMILIES
    from autotune.row_status import RowStatus

    axes = {name: word.meaning for name, word in LAYOUT_WORDS.items() if word.kind == "axis"}
    others = {}
    for name, word in LAYOUT_WORDS.items():
        if word.kind == "axis":
            continue
        values = "; ".join(f"{value}: {meaning}" for value, meaning in (word.value_meanings or {}).items())
        listed = values or ", ".join(word.text(value) for value in word.values)
        others[name] = f"{word.meaning} Values: {listed}." if listed else word.meaning
    return {
        "mesh axes": axes,
        "other words of a layout": {**others, **WORD_FAMILIES},
        "resources": RESOURCES,
        "figures": FIGURES,
        "states of a layout": {str(status): status.sentence for status in RowStatus},
    }


@click.command(cls=Command)
@click.argument("word", required=False, type=Suggested("word", lambda: _known()))
@json_option
def words(word: str | None, as_json: bool) -> None:
    """What the words on the screen mean; with WORD, one of them.

    \b
    autotune words
    autotune words remat
    """
    sections = everything()
    if word is not None:
        found = {title: {name: text for name, text in section.items() if _is(word, name)}
                 for title, section in sections.items()}  # fmt: skip
        sections = {title: section for title, section in found.items() if section}
        if not sections:
            hint = did_you_mean(word, _known()) or "; `autotune words` lists all"
            raise click.UsageError(f"WORD={short(word)} is not a word of layouts or reports{hint}")
    if as_json:
        click.echo(json.dumps(sections, indent=1))
        return
    parts = []
    for title, section in sections.items():
        parts.append(Prose(title, style="bold"))
        for name, meaning in section.items():
            parts += [Prose(f"  {name}", style="cyan"), Prose(f"      {meaning}")]
    show(Group(*parts))


def _known() -> list[str]:
    return [name for section in everything().values() for name in section]


def _is(word: str, name: str) -> bool:
    """Whether `name` explains the word as a reader meets it: "network:fsdp@ici" is explained by "network:AXIS@TIER"."""
    plain = word.lower()
    if name.startswith("network:"):
        return plain.startswith("network")
    head = name.split("<")[0].lower()
    return plain in (part.strip().lower() for part in name.split(",")) or ("<" in name and plain.startswith(head))
