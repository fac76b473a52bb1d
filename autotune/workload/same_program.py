"""Whether a step traced in another process is the same program, and the first operation that differs."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax.extend.core as jex

from autotune.system.code_owner import owner_of

ADDRESS = re.compile(r"0x[0-9a-f]+")
SET = re.compile(r"\{([^{}:]*)\}")
"""A set in a text, not a dict."""
TEXT_CHARACTERS = 160


class AnotherProgram(ValueError):
    """The step that was traced in this process is not the one that the workload was made from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One operation of a trace: `text` names the primitive, the shapes and dtypes; `digest` covers the parameters too
    (without addresses of objects and the order of sets, which differ from process to process)."""

    text: str
    digest: str


def operations(closed: Any) -> tuple[Operation, ...]:
    """Every operation of a ClosedJaxpr in the order of the trace, those inside loops and calls after their owner."""
    return tuple(operation for operation, _ in _listed(closed.jaxpr))


def compare(closed: Any, expected: tuple[Operation, ...]) -> None:
    """Raise AnotherProgram when the trace is not the expected one; the message names the first difference."""
    last = None
    count = 0
    for operation, equation in _listed(closed.jaxpr):
        if count == len(expected):
            raise AnotherProgram(_message(count, "the end of the step", operation.text, source(equation)))
        if operation.digest != expected[count].digest:
            wanted, found = expected[count].text, operation.text
            if wanted == found:
                found += " with other parameters"
            raise AnotherProgram(_message(count, wanted, found, source(equation)))
        last = equation
        count += 1
    if count < len(expected):
        at = source(last) if last is not None else None
        raise AnotherProgram(_message(count, expected[count].text, "the end of the step", at))


def fails_here(summary: str) -> str:
    """The line on a step of which the trace worked where the workload was made, and fails in this process."""
    return (
        f"the step fails in the worker process, and did not where the workload was made: {summary}; what your program "
        "changed before (a replaced function, a flag, an environment variable) is not so there: do it in a module that "
        "the step imports, or inside the function of Workload.from_builder"
    )


def source(equation: Any) -> str | None:
    """ "file.py:line" of the innermost frame of the user's code; None where the trace has none."""
    traceback = equation.source_info.traceback
    for frame in traceback.frames if traceback is not None else ():
        if owner_of(frame.file_name) == "user":
            return f"{frame.file_name}:{frame.line_num}"
    return None


LISTED = 3
"""Places of the user's code that a note names one by one."""


def listed_places(places: Mapping[str, str]) -> str:
    """ "file.py:3: what is there; ...": the first `LISTED` places, and how many more there are."""
    shown = "; ".join(f"{place}: {what}" for place, what in list(places.items())[:LISTED])
    return shown + (f"; and {len(places) - LISTED} more places" if len(places) > LISTED else "")


def _message(index: int, wanted: str, found: str, at: str | None) -> str:
    return (
        f"the worker process traces another program: operation {index + 1} is {found}"
        f"{f' ({at})' if at else ''}, and was {wanted} where the workload was made; a global, a flag or an environment "
        "variable that the step reads has another value there: hand it to the step, or set it inside the function of "
        "Workload.from_builder"
    )


def _lasting(text: str) -> str:
    """A text as any process writes it.

    >>> _lasting("frozenset({'y', 'x'}) at 0x7f")
    "frozenset({'x', 'y'}) at "
    """
    in_order = SET.sub(lambda match: "{" + ", ".join(sorted(match[1].split(", "))) + "}", text)
    return ADDRESS.sub("", in_order)


def _listed(jaxpr: Any) -> Iterator[tuple[Operation, Any]]:
    for equation in jaxpr.eqns:
        inner: list[Any] = []
        rest = []
        for name, value in sorted(equation.params.items()):
            parts = value if isinstance(value, (tuple, list)) else (value,)
            found = [part for part in parts if isinstance(part, (jex.ClosedJaxpr, jex.Jaxpr))]
            if found:
                inner += found
                rest.append(f"{name}={len(found)} programs")
            else:
                rest.append(f"{name}={_lasting(str(value))}")
        operands = [
            f"{one.val}:{one.aval.str_short()}" if isinstance(one, jex.Literal) else one.aval.str_short()
            for one in equation.invars
        ]
        results = [one.aval.str_short() for one in equation.outvars]
        text = f"{equation.primitive.name} {' '.join(operands)} -> {' '.join(results)}"
        digest = hashlib.sha256("\n".join([text, *rest]).encode()).hexdigest()[:16]
        short = text if len(text) <= TEXT_CHARACTERS else text[: TEXT_CHARACTERS - 3] + "..."
        yield Operation(text=short, digest=digest), equation
        for one in inner:
            yield from _listed(one.jaxpr if isinstance(one, jex.ClosedJaxpr) else one)
