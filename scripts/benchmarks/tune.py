"""The main job as a user runs it: cold, then again from the store; and the memory of all its processes together."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time

import psutil

SAMPLE_SECONDS = 0.2


def run(model: str, target: str, batch: int, seq: int, compile_count: int) -> dict[str, object]:
    """Wall seconds of both runs, the share of the cold one in which no compile ran, and the peak resident bytes.

    The baseline of the cold run is the sum of its own compiles, one after another, as their workers timed them.
    """
    with tempfile.TemporaryDirectory(prefix="autotune-bench-") as store:
        command = [
            sys.executable, "-m", "autotune", "tune", "--model", model, "--target", target, "--batch", str(batch),
            "--seq", str(seq), "--compile", str(compile_count), "--store", store, "--json",
        ]  # fmt: skip
        cold_seconds, cold, peak_bytes = _timed(command)
        warm_seconds, warm, _ = _timed(command)
    statuses = cold["counts"]
    serial = sum(row["compile_seconds"] or 0.0 for row in cold["rows"])
    return {
        "command": " ".join(command[1:12]),
        "cold_seconds": cold_seconds,
        "warm_seconds": warm_seconds,
        "warm_over_cold": warm_seconds / cold_seconds,
        "layouts": sum(statuses.values()),
        "compiled": statuses.get("compiled", 0) + statuses.get("measured", 0),
        "compiles_one_after_another_seconds": serial,
        "cold_over_serial_compiles": cold_seconds / serial if serial else None,
        "not_compiling_share": 1 - cold["seconds"]["compilers running"] / cold_seconds,
        "peak_rss_gib_all_processes": peak_bytes / 2**30,
        "best": cold["best"]["text"],
        "same_answer": cold["best"]["text"] == warm["best"]["text"],
    }


def _timed(command: list[str]) -> tuple[float, dict, int]:
    """(wall seconds, the JSON on stdout, peak resident bytes of the process and its descendants)."""
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peak = [0]
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            peak[0] = max(peak[0], _resident(process.pid))
            done.wait(SAMPLE_SECONDS)

    watcher = threading.Thread(target=watch)
    watcher.start()
    output, _ = process.communicate()
    done.set()
    watcher.join()
    if process.returncode not in (0, 1):
        raise RuntimeError(f"{' '.join(command)}: exit {process.returncode}")
    return time.perf_counter() - begin, json.loads(output), peak[0]


def _resident(pid: int) -> int:
    """Resident bytes of a process tree; processes that end meanwhile count as nothing."""
    total = 0
    try:
        tree = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    for process in tree:
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total
