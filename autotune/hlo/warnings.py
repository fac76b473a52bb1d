"""What the compiler warned of, said in the user's terms: which array, which shardings, which line of source."""

from __future__ import annotations

import re

from autotune.compile.compilation import Compilation
from autotune.hlo.text import Op, read_module

_REPLICATED = re.compile(
    r"Involuntary full rematerialization.*?from sharding (\{.*?\}) to (\{.*?\}) efficiently for HLO operation "
    r"%\S+ = (\w+\[[\d,]*\])"
)
UNKNOWN_SOURCE = "source unknown"
_PREFIX = re.compile(r"^[IWEF]\d{4} [\d:.]+ +\d+ \S+\] ")


def readable_warnings(compilation: Compilation) -> tuple[str, ...]:
    """The compiler's warnings, each once. Of the partitioner gathering an array whole, because it knows no better way
    between two shardings: the array's shard, the shardings, and the line of source where one is known."""
    if not compilation.warnings:
        return ()
    module = read_module(compilation.text)
    said: dict[tuple[str, ...], str] = {}
    for line in compilation.warnings:
        match = _REPLICATED.search(line)
        if not match:
            plain = _PREFIX.sub("", line)
            said[(plain,)] = plain
            continue
        # The partitioner numbers stack frames as the compiled module does.
        op = Op(name="", opcode="", type="", operands=(), arguments="", attributes=line, root=False)
        source, scope = module.source(op), module.scope(op)
        if source or match.groups() not in said:
            given, wanted, array = match.groups()
            where = f"{source or UNKNOWN_SOURCE}{f' ({scope})' if scope else ''}"
            said[match.groups()] = f"{where}: {array} is gathered whole to get from sharding {given} to {wanted}"
    return tuple(said.values())
