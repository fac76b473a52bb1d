"""Which layers of a Hugging Face model attend over a window, by its keys and the code of its family."""

from __future__ import annotations

from collections.abc import Callable

from autotune.model_files.keys import Keys


def windows_of(keys: Keys, count: int, local: Callable[[int], bool], key: str = "sliding_window") -> list[int | None]:
    """Window of each layer: by `layer_types` where the file has them, else where `local(layer)` says so."""
    window = keys.whole(key, None)
    types = keys.texts("layer_types", count)
    if types is not None:
        for word in sorted(set(types) - {"full_attention", "sliding_attention", "chunked_attention"}):
            raise ValueError(f"{keys.where}: layer_types: {word!r} is no attention that is known here")
        local = lambda layer: types[layer] != "full_attention"  # noqa: E731
    if window is None:
        if types is not None and any(map(local, range(count))):
            raise ValueError(f"{keys.where}: layer_types names layers with a window, {key} is missing")
        return [None] * count
    return [window if local(layer) else None for layer in range(count)]


def everywhere(keys: Keys, count: int) -> list[int | None]:
    return windows_of(keys, count, lambda layer: True)


def switched(keys: Keys, count: int) -> list[int | None]:
    """Qwen: windows only where `use_sliding_window`, from layer `max_window_layers` on."""
    if not keys.flag("use_sliding_window", False):
        keys.take("layer_types", None)
        keys.used -= {"sliding_window", "max_window_layers"}
        return [None] * count
    first = keys.whole("max_window_layers", 0, least=0)
    return windows_of(keys, count, lambda layer: layer >= first)


def in_turn(every: int, key: str | None = None) -> Callable[[Keys, int], list[int | None]]:
    """One global layer behind `every` - 1 local ones; `key` says another number."""

    def windows(keys: Keys, count: int) -> list[int | None]:
        period = (keys.whole(key, None) if key else None) or every
        return windows_of(keys, count, lambda layer: (layer + 1) % period != 0)

    return windows


def in_chunks(keys: Keys, count: int) -> list[int | None]:
    """Llama 4: attention in chunks in the layers with rotary positions, 3 of 4."""
    with_positions = keys.take("no_rope_layers", None) or None
    every = keys.whole("no_rope_layer_interval", 4)
    if with_positions is not None and (not isinstance(with_positions, list) or len(with_positions) != count):
        raise ValueError(f"{keys.where}: no_rope_layers must be a list of num_hidden_layers={count} entries")

    def local(layer: int) -> bool:
        return bool(with_positions[layer]) if with_positions else (layer + 1) % every != 0

    return windows_of(keys, count, local, "attention_chunk_size")


def by_pattern(keys: Keys, count: int) -> list[int | None]:
    """EXAONE 4: local layers where `sliding_window_pattern` has an L, or every so many layers a global one."""
    told = keys.take("sliding_window_pattern", None)
    if isinstance(told, str) and told:
        return windows_of(keys, count, lambda layer: told[layer % len(told)] == "L")
    every = keys.whole("sliding_window_pattern", count + 1)
    return windows_of(keys, count, lambda layer: (layer + 1) % every != 0)
