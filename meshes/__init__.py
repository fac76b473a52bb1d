"""The machine and how it is cut. `topology` and `sharding` need JAX and are imported by name."""

from autotune.meshes.hardware import Hardware, Tier, hardware_names, load_hardware, read_hardware, scale
from autotune.meshes.layout import Layout, parse_layout
from autotune.meshes.target import Target, parse_target, with_memory_fraction
from autotune.meshes.transformer import TransformerShape, read_transformer

__all__ = [
    "Hardware",
    "Layout",
    "Target",
    "Tier",
    "TransformerShape",
    "hardware_names",
    "load_hardware",
    "parse_layout",
    "parse_target",
    "read_hardware",
    "read_transformer",
    "scale",
    "with_memory_fraction",
]
