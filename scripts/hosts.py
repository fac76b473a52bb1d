"""Two hosts on one machine: network namespaces joined by a rate-limited link. Linux, root, iproute2's ip and tc."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

BURST_SECONDS, BURST_BYTES = 0.5e-3, (16 * 1024, 128 * 1024)
"""What may pass above the rate at once after a pause: as much as the link carries in this time, within these bounds
(tbf needs some). With 128 KiB at every rate a message of 128 KiB took 0.4 to 1.9 ms after a pause at 200 Mbit/s, where
the link needs 5.2 (2026-11-21): a step's smaller messages hardly felt the link."""
QUEUE_BYTES = 64 << 20
"""Room in front of the link: a network of accelerators loses nothing, so TCP must never see a full queue."""

TCP = {
    "tcp_congestion_control": "reno",
    "tcp_slow_start_after_idle": "0",
    "tcp_limit_output_bytes": "131072",
    "tcp_autocorking": "0",
}
"""So that the link's rate is what a message feels, whatever the machine is set to: no restart after each pause, no
waiting for small packets to fill, no deep queue that acknowledgements wait in. The congestion control is fixed for the
same reason, not because another is worse: where this was written `sysctl net.ipv4.tcp_congestion_control` is bbr, and
12 exchanges of 100 ms of link time both ways at once took 98 to 114 ms under reno and under bbr alike at 200 Mbit/s,
105 to 115 ms at 4000 (2026-11-21)."""


def why_not() -> str | None:
    """Why two hosts cannot be made here; None where they can."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "needs root for network namespaces"
    for tool in ("ip", "tc"):
        if shutil.which(tool, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is None:
            return f"needs {tool} (package iproute2)"
    name = f"probe{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if made.returncode:
        return f"cannot make a network namespace: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", name], capture_output=True)
    return None


@dataclass(slots=True)
class TwoHosts:
    """A context in which commands run on host 0 or host 1, each with an address of its own.

    >>> with TwoHosts() as hosts:                                     # doctest: +SKIP
    ...     hosts.set_rate(400e6 / 8)
    ...     hosts.start(0, ["python", "job.py"])
    """

    names: tuple[str, str] = field(default_factory=lambda: (f"at{os.getpid()}a", f"at{os.getpid()}b"))
    addresses: tuple[str, str] = ("10.77.0.1", "10.77.0.2")
    started: list[subprocess.Popen] = field(default_factory=list)

    def __enter__(self) -> TwoHosts:
        a, b = self.names
        for name in self.names:
            _run("ip", "netns", "add", name)
        _run("ip", "link", "add", f"v{a}", "type", "veth", "peer", "name", f"v{b}")
        for name, address in zip(self.names, self.addresses, strict=True):
            _run("ip", "link", "set", f"v{name}", "netns", name)
            inside = ("ip", "netns", "exec", name)
            # At lo's default of 64 KiB a packet, half-filled ones wait 40 ms for TCP's delayed acknowledgement.
            _run(*inside, "ip", "link", "set", "lo", "mtu", "1500", "up")
            for key, value in TCP.items():
                _run(*inside, "sh", "-c", f"echo {value} > /proc/sys/net/ipv4/{key}")
            _run(*inside, "ip", "addr", "add", f"{address}/24", "dev", f"v{name}")
            _run(*inside, "ip", "link", "set", f"v{name}", "up")
            # gloo listens on whatever address the machine's own name has.
            folder = Path("/etc/netns") / name
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "hosts").write_text(f"127.0.0.1 localhost\n{address} {socket.gethostname()}\n")
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)
            shutil.rmtree(Path("/etc/netns") / name, ignore_errors=True)

    def set_rate(self, bytes_per_second: float) -> None:
        """Limit each direction of the link; may change while programs run."""
        burst = round(min(max(bytes_per_second * BURST_SECONDS, BURST_BYTES[0]), BURST_BYTES[1]))
        for name in self.names:
            _run(
                *("ip", "netns", "exec", name, "tc", "qdisc", "replace", "dev", f"v{name}", "root", "tbf"),
                *("rate", f"{round(bytes_per_second * 8)}bit", "burst", str(burst), "limit", str(QUEUE_BYTES)),
            )

    def start(self, host: int, command: Sequence[str], *, log: Path | None = None, **environment: str):
        """Start a command on one host; its output goes to `log`, or nowhere."""
        with (log or Path(os.devnull)).open("ab") as output:
            process = subprocess.Popen(
                ["ip", "netns", "exec", self.names[host], sys.executable, __file__, str(host), *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **environment},
                start_new_session=True,
            )
        self.started.append(process)
        return process

    def stop(self) -> None:
        """Kill what `start` started and what that started in turn."""
        for process in self.started:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait()
        self.started.clear()

    def run(
        self, commands: Sequence[Sequence[str]], *, folder: Path, timeout_seconds: float, **environment: str
    ) -> list[str]:
        """Run one command on each host at once; their outputs, which grow in `folder`/0.log and 1.log meanwhile.

        RuntimeError with the output when one fails or does not end in time.
        """
        logs = [folder / f"{host}.log" for host in (0, 1)]
        processes = [self.start(host, command, log=logs[host], **environment) for host, command in enumerate(commands)]
        deadline = time.monotonic() + timeout_seconds
        while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
            if any(process.poll() for process in processes):
                time.sleep(2.0)  # let the other one notice, and say so
                break
            time.sleep(0.05)
        codes = [process.poll() for process in processes]
        self.stop()
        outputs = [log.read_text(errors="replace") for log in logs]
        # The one that failed before the one that was stopped because of it.
        for host in sorted((0, 1), key=lambda host: codes[host] is None):
            if codes[host] != 0:
                how = "did not end in time" if codes[host] is None else f"ended with {codes[host]}"
                raise RuntimeError(f"host {host} {how}:\n{outputs[host][-3000:]}")
        return outputs


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")


def _settle(host: int) -> None:
    """Before a command starts: make it die with whoever started it, and disturb its timing as little as can be.

    Each host has its own half of the cores, as real hosts have. Highest priority, in its own right and as a scheduling
    group of its session. Slices of 0.1 ms: with the usual ones a thread that spins for a moment keeps the thread that
    the network just woke waiting for up to 4 ms. Kernels that cannot are left as they are.
    """
    libc = ctypes.CDLL(None)
    libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) > 1:
        os.sched_setaffinity(0, cores[host::2])
    os.setpriority(os.PRIO_PROCESS, 0, -20)
    group = Path("/proc/self/autogroup")
    if group.exists():
        group.write_text("-20")
    call = {"x86_64": 314, "aarch64": 274}.get(platform.machine())  # sched_setattr, which has no wrapper in libc
    if call is not None:
        # struct sched_attr: size, policy, flags, nice, priority, runtime (ns), deadline, period
        libc.syscall(call, 0, struct.pack("IIQiIQQQ", 48, 0, 0, -20, 0, 100_000, 0, 0), 0)


if __name__ == "__main__":
    # How `start` runs a command: these settings pass on to it and to all its threads.
    _settle(int(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])
