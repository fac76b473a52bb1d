"""Published parameter counts of the configs in `tests/data/models`, with their sources and what they count."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from autotune.meshes.architecture import AttentionKind, LayerKind, MlpKind
from autotune.model_files.read import read_model

FOLDER = Path(__file__).parent / "data" / "models"


@dataclass(frozen=True)
class Published:
    """`total`, `active`: as published, with their digits, in units of 1e9 (or 1e6 with an M behind).

    `counts`: what the published total counts beyond or less than the text model as it is configured. `active_counts`:
    which embedding tables the published active figure counts: "one", "both" or "none"; "cut" where its digits are cut
    off and not rounded.
    """

    total: str
    source: str
    counts: str = ""
    active: str = ""
    active_counts: str = "one"


CARD = "model card, safetensors"
PUBLISHED = {
    "llama-3.1-8b": Published("8.030261248", CARD),
    "llama-3.1-70b": Published("70.553706496", CARD),
    "llama-3.1-405b": Published("405.853388800", CARD),
    "llama-3.2-1b": Published("1.235814400", CARD),
    "llama-3.2-3b": Published("3.212749824", CARD),
    "qwen2.5-0.5b": Published("0.49", "model card"),
    "qwen2.5-1.5b": Published("1.54", "model card"),
    "qwen2.5-3b": Published("3.09", "model card"),
    "qwen2.5-7b": Published("7.615616512", CARD),
    "qwen2.5-14b": Published("14.8", "safetensors"),
    "qwen2.5-32b": Published("32.8", "safetensors"),
    "qwen2.5-72b": Published("72.7", "model card"),
    "qwen3-0.6b": Published("0.6", "arXiv 2505.09388"),
    "qwen3-4b": Published("4.0", "arXiv 2505.09388"),
    "qwen3-8b": Published("8.2", "model card"),
    "qwen3-14b": Published("14.8", "model card"),
    "qwen3-32b": Published("32.8", "model card"),
    "qwen3-30b-a3b": Published("30.5", "model card", active="3.3", active_counts="both, cut"),
    "qwen3-235b-a22b": Published("235", "model card", active="22"),
    "gemma-2-2b": Published("2.6", "arXiv 2408.00118"),
    "gemma-2-9b": Published("9.24", "safetensors"),
    "gemma-2-27b": Published("27.2", "safetensors"),
    "gemma-3-1b": Published("1.00", "safetensors"),
    "gemma-3-4b": Published("4", "arXiv 2503.19786"),
    "gemma-3-12b": Published("12", "arXiv 2503.19786"),
    "gemma-3-27b": Published("27", "arXiv 2503.19786"),
    "mistral-7b-v0.1": Published("7.241732096", CARD),
    "mistral-7b-v0.3": Published("7.248023552", CARD),
    "mixtral-8x7b": Published("46.702792704", CARD, active="12.9", active_counts="both"),
    "mixtral-8x22b": Published("141", "mistral.ai, 2024-04-17", active="39"),
    "deepseek-v2-lite": Published("15.7", "arXiv 2405.04434", active="2.4", active_counts="one, cut"),
    "deepseek-v2": Published("236", "arXiv 2405.04434", active="21"),
    "deepseek-v3": Published("671", "arXiv 2412.19437", active="37"),
    "kimi-k2": Published("1.0T", "model card: 1T", active="32"),
    "gpt-oss-20b": Published("20.91", "arXiv 2508.10925, table 1", active="3.61"),
    "gpt-oss-120b": Published("116.83", "arXiv 2508.10925, table 1", active="5.13"),
    "llama-4-scout": Published("109", "model card", "with the vision tower", active="17", active_counts="both"),
    "llama-4-maverick": Published("400", "model card: about 400", "to two digits", active="17", active_counts="both"),
    "olmo-2-7b": Published("7.30", "safetensors"),
    "olmo-2-13b": Published("13.7", "safetensors"),
    "olmo-2-32b": Published("32.2", "safetensors"),
    "phi-3-mini": Published("3.8", "arXiv 2404.14219"),
    "phi-3-medium": Published("14", "arXiv 2404.14219"),
    "glm-4.5": Published(
        "355", "arXiv 2508.06471, table 1", "with the multi-token-prediction layer, without the tables", active="32",
        active_counts="none",
    ),
    "glm-4.5-air": Published("106", "arXiv 2508.06471", "without the tables", active="12", active_counts="none"),
    "gpt2": Published("124.439808M", CARD),
    "gpt2-xl": Published("1.56", "safetensors"),
    "bert-base": Published("110M", "arXiv 1810.04805", "to two digits"),
    "bert-large": Published("340M", "arXiv 1810.04805", "to two digits"),
    "vit-base": Published("86M", "arXiv 2010.11929, table 1", "without the classifier"),
}  # fmt: skip
"""File in `tests/data/models` -> what was published."""


def llama4_vision_tower() -> int:
    """Parameters of Llama 4's vision tower: 34 layers of 1408, a pixel-shuffling MLP and the projector (its config)."""
    d, wide = 1408, 4096
    layer = LayerKind(
        attention=AttentionKind(heads=16, kv_heads=16, head_dim=88, bias="all"),
        mlp=MlpKind(activation="gelu", width=5632, bias=True),
    )
    patches = 3 * 14 * 14 * d + 577 * d + d
    return 34 * layer.parameters(d, 2 * d) + 4 * d + patches + 4 * d * wide + wide * wide + wide * 5120


def rounds(value: float, published: str, digits: int | None = None, cut: bool = False) -> bool:
    """Whether a count rounds to the published figure at its precision, or to its first `digits` digits. `cut`: whether
    its digits beyond that are cut off instead."""
    unit = {"M": 1e6, "T": 1e12}.get(published[-1], 1e9)
    text = published.rstrip("MT")
    places = len(text.partition(".")[2])
    if digits is not None:
        places = digits - len(text.partition(".")[0])
    if cut:
        return math.floor(value / unit * 10**places) == round(float(text) * 10**places)
    return round(value / unit, places) == round(float(text), places)


def counted(name: str) -> tuple[int, int, int, int]:
    """(parameters, active parameters as we count them, the two as the published figures count them)."""
    published, model = PUBLISHED[name], read_model(str(FOLDER / f"{name}.json")).architecture
    total, active = model.parameters, model.active_parameters
    as_total, as_active = total, active
    if "tower" in published.counts:
        as_total += llama4_vision_tower()
    if "without the tables" in published.counts:
        as_total -= model.table_parameters * (1 if model.tied_embeddings else 2)
    if "prediction layer" in published.counts:  # of GLM 4.5: one more layer, two norms, a projection of two streams
        as_total += model.layers[-1].parameters(model.d_model, model.d_model) + 2 * model.d_model * (model.d_model + 1)
    if not model.tied_embeddings:
        as_active += {"one": 0, "both": 1, "none": -1}[
            published.active_counts.removesuffix(", cut")
        ] * model.table_parameters
    return total, active, as_total, as_active


def table() -> list[str]:
    """The lines of the table in docs/models.md."""
    lines = [
        "| config | parameters | published | active | published active | |",
        "|---|---|---|---|---|---|",
    ]
    for name, published in PUBLISHED.items():
        total, active, as_total, as_active = counted(name)
        digits = 2 if published.counts == "to two digits" else None
        good = rounds(as_total, published.total, digits)
        good &= not published.active or rounds(as_active, published.active, cut=published.active_counts.endswith("cut"))
        counts = f", {published.counts}" if published.counts else ""
        which = {"one": "", "one, cut": ", digits cut", "both": ", both tables", "none": ", no table",
                 "both, cut": ", both tables, digits cut"}[published.active_counts]  # fmt: skip
        lines.append(
            f"| {name} | {total:,} | {published.total} ({published.source}{counts}) | {active:,} | "
            f"{published.active + which if published.active else ''} | {'PASS' if good else 'FAIL'} |"
        )
    return lines


def files() -> dict[str, dict]:
    """Name -> parsed config of every file in `tests/data/models`."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}
