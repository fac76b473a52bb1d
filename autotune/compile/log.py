"""What a compiler's log and messages say that a user should see."""

from __future__ import annotations

import re
from pathlib import Path

OUT_OF_MEMORY = re.compile(
    r"required for HLO temporaries \(([\d.]+[KMGT]?)\) exceeds available HBM \(([\d.]+[KMGT]?)\)"
)
OUT_OF_MEMORY_LONG = re.compile(r"Used ([\d.]+[KMGT]?) of ([\d.]+[KMGT]?) hbm")
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}

WARNINGS = re.compile(r"\[SPMD\] Involuntary full rematerialization|Can't reduce memory use below", re.IGNORECASE)
"""The partitioner replicating an array because it knows no better way; XLA's own rematerialisation falling short."""

TELLING = re.compile(
    r"Check failed|^F\d{4}|Fatal Python error|terminate called|RESOURCE_EXHAUSTED|ABORTED|INTERNAL:|UNIMPLEMENTED"
    r"|INVALID_ARGUMENT|Error\b|error:|Aborted|Segmentation"
)
NOISE = re.compile(
    r"before absl::InitializeLog|before InitGoogle|cudart_stub|TPU_ACCELERATOR_TYPE|TPU_WORKER_HOSTNAMES"
    r"|libtpu_init_utils|Source Location Trace|Failed to find host bounds|jax_plugins|Unable to load CUDA"
    r"|cudaRuntimeGetVersion|Jax plugin configuration|^\s*(File|\^|raise|plugin_module|_check_cuda|_version_check)"
    r"|^Traceback|^The above exception|^Extension modules|^Thread 0x|^Current thread|^\s*$"
)
LINE_LENGTH = 500


def one_line(text: str) -> str:
    """The text on one line, cut at 500 characters."""
    joined = " ".join(text.split())
    return joined if len(joined) <= LINE_LENGTH else joined[: LINE_LENGTH - 3] + "..."


def memory_needed(message: str) -> tuple[int | None, int | None]:
    """(needed, available) bytes per device that an out-of-memory message names; None where it does not.

    >>> memory_needed("the total memory required for HLO temporaries (17.12G) exceeds available HBM (15.75G).")
    (18382460026, 16911433728)
    """
    match = OUT_OF_MEMORY.search(message) or OUT_OF_MEMORY_LONG.search(message)
    if not match:
        return None, None
    return _bytes(match[1]), _bytes(match[2])


def _bytes(text: str) -> int:
    unit = text[-1] if text[-1] in UNITS else ""
    return int(float(text.removesuffix(unit)) * UNITS[unit])


def warnings_in(log: Path) -> tuple[str, ...]:
    """The log lines that bear on the program's speed or memory, each once, in order."""
    return tuple(dict.fromkeys(line.strip() for line in _lines(log) if WARNINGS.search(line)))


def last_useful_line(log: Path) -> str | None:
    """The last line that tells what went wrong; else the last that is not start-up noise; None of an empty log."""
    lines = _lines(log)
    useful = [index for index, line in enumerate(lines) if not NOISE.search(line)]
    chosen = [index for index in useful if TELLING.search(lines[index])] or useful
    if not chosen:
        return None
    line = lines[chosen[-1]]
    if line.startswith("Fatal Python error"):  # faulthandler: the frame that was running follows
        line += next((frame for frame in lines[chosen[-1] :] if frame.startswith("  File ")), "")
    return one_line(line)


def _lines(log: Path) -> list[str]:
    try:
        return log.read_text(errors="replace").splitlines()
    except OSError:
        return []
