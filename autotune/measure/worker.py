"""The worker process behind WorkerRunner: one layout on simulated CPU devices, turn after turn. Never imported."""

from __future__ import annotations

import os
import sys
from multiprocessing.connection import Connection

import cloudpickle
import jax

from autotune.system.host_memory import keep_freed_memory
from autotune.system.parent_death import when_parent_dies


def main() -> None:
    """Take the number of devices, then what to run, then numbers of steps, until the other end closes."""
    keep_freed_memory()
    handle = int(sys.argv[1])
    when_parent_dies(handle, lambda: os._exit(1))
    pipe = Connection(handle)
    jax.config.update("jax_num_cpu_devices", cloudpickle.loads(pipe.recv_bytes()))
    # Imported after the number of devices is fixed, and before the user's own modules.
    from autotune.compile.sent import unpacked
    from autotune.measure.local_runner import LocalRunner

    workload, target, layout = unpacked(pipe.recv_bytes())
    # The parent is the one who times us out.
    runner = LocalRunner(workload, target, timeout_seconds=None, resident=True)
    pipe.send_bytes(cloudpickle.dumps(runner.prepare([layout])[0]))
    while True:
        try:
            steps = cloudpickle.loads(pipe.recv_bytes())
        except EOFError:
            return
        pipe.send_bytes(cloudpickle.dumps(runner.turn(layout, steps)))


if __name__ == "__main__":
    main()
