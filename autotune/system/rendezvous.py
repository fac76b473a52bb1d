"""Where the processes of a job meet before they join JAX: each learns that all came and all run the same, or why not.

JAX's own joining waits minutes for a process that never started, and joins processes of different commands without a
word. So process 0 first listens on the port beside the coordinator's (`port_beside`). Each other process connects, and
sends its id and what it runs, as one line of JSON. Process 0 answers "go" to all when each has come and all run the
same; otherwise it answers one line that says what is wrong, and every process ends with that line.
"""

from __future__ import annotations

import socket
import time

from autotune.system.connection import Connection, NotAMessage
from autotune.system.gathering import Doorkeeper, Gathering, listen
from autotune.system.place import SAY_AFTER, LostEarly, NoJob, Place, greeting_of, reason

SILENCE_SECONDS = 15.0
"""Process 0 says every second that it waits; one that is silent for so long is lost."""
FOREIGN_SECONDS = 5.0
"""How long process 0 waits to hear whether what holds its port is another process 0."""
RETRY_SECONDS = 0.2


def meet(place: Place) -> tuple[dict[int, Connection], Doorkeeper | None]:
    """Meet the other processes: process 0 gets a connection to each other, the others one to process 0.

    Process 0 also gets the Doorkeeper that answers who comes too late, to be closed when the job ends.
    NoJob: one did not come in time, or runs something else. LostEarly: one came and ended before all were there.
    """
    if place.process_id:
        return {0: _knock(place)}, None
    try:
        listener = listen(place.host, place.port)
    except OSError as error:
        raise NoJob(_why_not_listening(place, error)) from None
    try:
        connections = Gathering(place, listener).meet()
    except BaseException:
        listener.close()
        raise
    return connections, Doorkeeper(
        listener, f"the job at {place.address} began without this process: each of its {place.processes} is there"
    )


def _knock(place: Place) -> Connection:
    """Another process than 0: connect to process 0, greet it, and wait for "go"."""
    began = time.monotonic()
    until = began + place.seconds
    said = False
    why = "nothing answers there"
    while True:
        connection, why = _connected(place, why)
        if connection is not None:
            heard = _hear(connection, place, until)
            if heard is not None:
                return heard
            why = "what answers there is not autotune"
        now = time.monotonic()
        if now >= until:
            raise NoJob(
                f"process 0 of {place.processes} did not come to {place.address} within {place.seconds:g} s: {why}"
            )
        if not said and now - began > SAY_AFTER:
            said = True
            place.say(f"waiting for process 0 of {place.processes} at {place.address}, up to {place.seconds:g} s")
        time.sleep(RETRY_SECONDS)


def _connected(place: Place, why: str) -> tuple[Connection | None, str]:
    try:
        connected = socket.create_connection((place.host, place.port), timeout=5.0)
    except OSError as error:
        return None, reason(error)
    # A port in the range that the kernel gives to outgoing connections can be connected to itself.
    if connected.getsockname() == connected.getpeername():
        connected.close()
        return None, why
    return Connection(connected), why


def _hear(connection: Connection, place: Place, until: float) -> Connection | None:
    """The connection once process 0 says "go"; None when what answers says nothing that process 0 would by `until`.

    Once process 0 has spoken its own limit counts. Raises as `meet` does.
    """
    known, said = False, False
    began = heard_at = time.monotonic()
    try:
        connection.send(greeting_of(place))
        while time.monotonic() - heard_at < SILENCE_SECONDS and (known or time.monotonic() < until):
            if not connection.has_bytes(0.2):
                continue
            messages, there = connection.read()
            for message in messages:
                if not isinstance(message, dict):
                    raise NotAMessage(message)
                heard_at = time.monotonic()
                known = True
                if "go" in message:
                    connection.held = messages[messages.index(message) + 1 :]
                    return connection
                if isinstance(message.get("no"), str):
                    raise NoJob(message["no"])
                if isinstance(message.get("lost"), str):
                    raise LostEarly(message["lost"])
                missing = message.get("wait")
                if not said and time.monotonic() - began > SAY_AFTER and isinstance(missing, str) and missing:
                    said = True
                    place.say(f"waiting for {missing} at {place.address}")
            if not there:
                break
    except (OSError, NotAMessage):
        pass
    except (NoJob, LostEarly):
        connection.close()
        raise
    connection.close()
    if known:
        raise LostEarly(f"process 0 of {place.processes} was lost before the job began")
    return None


def _why_not_listening(place: Place, error: OSError) -> str:
    """Why process 0 cannot listen, in one line: what holds the port may be another process 0."""
    beside = f"port {place.port} beside the coordinator's"
    connection, _ = _connected(place, "")
    if connection is not None:
        try:
            _hear(connection, place, time.monotonic() + FOREIGN_SECONDS)
        except NoJob as told:
            return str(told)
        except LostEarly:
            pass
        return f"coordinator: {beside} is used by another program; give --coordinator another port"
    return f"coordinator: process 0 cannot listen on {place.address}, {beside}: {reason(error)}"
