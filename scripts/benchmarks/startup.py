"""How long the tool takes to answer `--help`, beside what importing jax takes on the same machine."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

RUNS = 5


def run() -> dict[str, object]:
    """Wall seconds of whole processes, medians of `RUNS`, taken in turns."""
    commands = {
        "help": [sys.executable, "-m", "autotune", "--help"],
        "tune_help": [sys.executable, "-m", "autotune", "tune", "--help"],
        "import_jax": [sys.executable, "-c", "import jax"],
        "python": [sys.executable, "-c", "pass"],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(RUNS):
        for name, command in commands.items():
            begin = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            seconds[name].append(time.perf_counter() - begin)
    medians = {f"{name}_seconds": statistics.median(values) for name, values in seconds.items()}
    probe = "import sys, autotune.cli; autotune.cli.run(['tune', '--help']); sys.exit('jax' in sys.modules)"
    imports_jax = subprocess.run([sys.executable, "-c", probe], capture_output=True).returncode != 0
    ratio = medians["help_seconds"] / medians["import_jax_seconds"]
    return {**medians, "help_over_import_jax": ratio, "help_imports_jax": imports_jax}
