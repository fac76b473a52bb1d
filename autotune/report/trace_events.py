"""A timeline in the Chrome trace format, which Perfetto and chrome://tracing open beside a real profile.

Format: "Trace Event Format" (Google, 2016): complete events ("ph": "X") with `ts` and `dur` in microseconds; one
process per kind of device, one thread per lane.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autotune.analysis.timeline import Timeline, lane_title
from autotune.replay.timeline import Span
from autotune.system.whole_file import write_whole

PROCESS = 1


def write_trace(timeline: Timeline, path: Path | str) -> None:
    """Write the timeline as one JSON file. OSError when it cannot be written."""
    write_whole(Path(path), json.dumps(trace_events(timeline)))


def trace_events(timeline: Timeline) -> dict[str, Any]:
    """The JSON document: `traceEvents`, and in `otherData` what was predicted, for what, with which versions.

    Of the events of one thread, the sum of `args.busy_us` is how long that lane works in a step
    (`otherData.busy_us`); the durations on thread "compute" add up to the step (`otherData.step_us`).
    """
    threads = {lane: number for number, lane in enumerate(timeline.lanes(), 1)}
    target = timeline.target
    process = f"{timeline.device}: each of {target.devices} devices, predicted"
    events: list[dict[str, Any]] = [_named("process_name", {"name": process})]
    for lane, thread in threads.items():
        events.append(_named("thread_name", {"name": lane_title(lane)}, thread))
        events.append(_named("thread_sort_index", {"sort_index": thread}, thread))
    events += [_event(span, threads[span.lane]) for span in timeline.spans]
    prediction = timeline.prediction
    return {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {
            "made_by": "autotune, a prediction: the compiled program replayed",
            "layout": str(timeline.layout),
            "target": target.name,
            "devices": target.devices,
            "step_us": 1e6 * prediction.step_seconds,
            "busy_us": {lane_title(lane): 1e6 * seconds for lane, seconds in prediction.busy.items()},
            "versions": timeline.versions,
        },
    }


def _named(what: str, values: Mapping[str, Any], thread: int = 0) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": PROCESS, "tid": thread, "args": dict(values)}


def _event(span: Span, thread: int) -> dict[str, Any]:
    args = {
        "source": span.source,
        "bytes": span.bytes,
        "flops": span.flops,
        "axis": span.axis,
        "turn": ", ".join(span.turn) or None,
        "resource": span.resource,
        "scope": span.scope,
    }
    return {
        "ph": "X",
        "name": span.name,
        "cat": span.what,
        "pid": PROCESS,
        "tid": thread,
        "ts": 1e6 * span.start_seconds,
        "dur": 1e6 * span.seconds,
        "args": {
            "busy_us": 1e6 * span.busy_seconds,
            **{key: value for key, value in args.items() if value is not None},
        },
    }
