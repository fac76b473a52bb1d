"""The harness of two hosts: the link's rate is what a transfer feels; the quick proof holds."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
from hosts import TwoHosts, why_not

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"

REASON = why_not()
needs_hosts = pytest.mark.skipif(REASON is not None, reason=f"two hosts cannot be made here: {REASON}")

RECEIVE = """
import socket, time
server = socket.create_server(("10.77.0.1", 5001))
for _ in range(5):
    connection, _ = server.accept()
    got = len(connection.recv(1))
    begin = time.perf_counter()
    while part := connection.recv(1 << 20):
        got += len(part)
    print(got / (time.perf_counter() - begin))
"""
SEND = """
import socket, time
for _ in range(100):
    try:
        connection = socket.create_connection(("10.77.0.1", 5001))
        break
    except OSError:
        time.sleep(0.05)
for transfer in range(5):
    connection = connection if transfer == 0 else socket.create_connection(("10.77.0.1", 5001))
    connection.sendall(bytes(8_000_000))
    connection.close()
"""


@needs_hosts
@pytest.mark.parametrize("rate", [10e6, 40e6])
def test_a_transfer_takes_the_time_of_the_link(rate, tmp_path):
    with TwoHosts() as hosts:
        hosts.set_rate(rate)
        commands = [[sys.executable, "-c", RECEIVE], [sys.executable, "-c", SEND]]
        outputs = hosts.run(commands, folder=tmp_path, timeout_seconds=30)
    # Headers take 4 to 5 % of an Ethernet frame. Other work on the machine can only slow a transfer down: the fastest
    # of five is the link's, and none is faster.
    assert max(map(float, outputs[0].split())) == pytest.approx(0.955 * rate, rel=0.05)


@needs_hosts
def test_a_failing_command_is_told_with_its_output_and_nothing_is_left(tmp_path):
    with pytest.raises(RuntimeError, match="(?s)host 1 ended with 3.*no such luck"), TwoHosts() as hosts:
        sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
        fail = [sys.executable, "-c", "print('no such luck', flush=True); raise SystemExit(3)"]
        begin = time.monotonic()
        hosts.run([sleep, fail], folder=tmp_path, timeout_seconds=30)
    assert time.monotonic() - begin < 20
    assert not Path("/etc/netns", hosts.names[0]).exists()


@needs_hosts
@pytest.mark.slow
def test_the_slow_link_is_named_and_the_fast_one_is_not(tmp_path):
    from two_hosts import run
    from validation.link_cases import cases

    rows = run(["weights"], [200, 8000], ["data=2", "fsdp=2", "tensor=2"], seconds=5.0, folder=tmp_path)
    slow, fast = sorted(cases(rows), key=lambda case: case.rate_megabit)
    assert slow.found and slow.chosen.binding.endswith("@network")
    assert not fast.chosen.binding.endswith("@network")
