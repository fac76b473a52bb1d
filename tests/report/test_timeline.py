"""The timeline of a step: read back from its file, every lane adds up to what was predicted."""

import json
from collections import defaultdict
from dataclasses import replace

import pytest
from hlo_fixtures import fixture

from autotune.analysis.analyse import predict
from autotune.analysis.timeline import lane_title, timeline_of
from autotune.program import Loop
from autotune.replay.timeline import CORE, Recorder, merged
from autotune.report.trace_events import trace_events, write_trace


def events_of(document):
    """(events by thread's name, names of processes) of a Chrome trace."""
    threads, processes, events = {}, set(), defaultdict(list)
    for event in document["traceEvents"]:
        if event["name"] == "thread_name":
            threads[event["pid"], event["tid"]] = event["args"]["name"]
        elif event["name"] == "process_name":
            processes.add(event["args"]["name"])
    for event in document["traceEvents"]:
        if event["ph"] == "X":
            events[threads[event["pid"], event["tid"]]].append(event)
    return events, processes


def timeline(name):
    made = fixture(name)
    return timeline_of(made.compilation, made.layout, made.target)


@pytest.mark.parametrize(
    "name", ["cpu-accumulate", "h100-mixed", "v100-fsdp", "v5e-slices-both", "v5e-windowed", "tpu7x-offload"]
)
def test_lanes_of_the_file_add_up_to_the_prediction(name, tmp_path):
    made = timeline(name)
    write_trace(made, tmp_path / "step.json")
    document = json.loads((tmp_path / "step.json").read_text())
    events, processes = events_of(document)
    plain = predict(fixture(name).program, made.layout, made.target, made.target.hardware)
    assert made.prediction == plain, "looking on changes nothing"
    step = 1e6 * plain.step_seconds
    assert len(processes) == 1 and made.device in processes.pop()
    assert sum(event["dur"] for event in events["compute"]) == pytest.approx(step)
    assert max(event["ts"] + event["dur"] for of in events.values() for event in of) == pytest.approx(step)
    for lane, busy in plain.busy.items():
        found = sum(event["args"]["busy_us"] for event in events[lane_title(lane)])
        assert found == pytest.approx(1e6 * busy, abs=1e-9 * step), lane
    for of in events.values():
        ordered = sorted(of, key=lambda event: (event["ts"], event["ts"] + event["dur"]))
        for before, after in zip(ordered, ordered[1:], strict=False):
            assert before["ts"] + before["dur"] <= after["ts"] + 1e-9 * step, (before, after)


def test_events_say_line_bytes_axis_and_turn():
    events, _ = events_of(trace_events(timeline("v5e-mixed")))
    collectives = [event for of in events.values() for event in of if event["cat"] == "collective"]
    ledger = timeline("v5e-mixed").prediction.ledger
    assert {event["args"]["axis"] for event in collectives} == {line.axis for line in ledger}
    assert all(event["args"]["bytes"] > 0 for event in collectives)
    turns = {event["args"]["turn"] for of in events.values() for event in of if "turn" in event["args"]}
    loops = [one for one in fixture("v5e-mixed").program.instructions if isinstance(one, Loop) and one.trips > 2]
    assert loops
    for loop in loops:
        drawn = {turn for turn in turns if turn.startswith(f"{loop.name} ")}
        assert f"{loop.name} 1 of {loop.trips}" in drawn and len(drawn) == 2, "the first turn and the steady one"
    sources = [event["args"].get("source", "") for event in events["compute"]]
    assert sum(".py:" in source for source in sources) > len(sources) / 2


@pytest.mark.parametrize(("outer", "inner"), [(1, 1), (2, 3), (37, 5)])
def test_any_number_of_turns_adds_up(outer, inner):
    """The loops of a program made longer or shorter, and one put around it: the lanes still add up."""
    made = fixture("v5e-mixed")
    body = tuple(replace(one, trips=inner) if isinstance(one, Loop) else one for one in made.program.instructions)
    program = replace(made.program, instructions=(Loop(name="around", trips=outer, body=body),))
    recorder = Recorder(made.target.hardware)
    found = predict(program, made.layout, made.target, made.target.hardware, recorder)
    busy = defaultdict(float)
    for span in recorder.spans:
        busy[span.lane] += span.busy_seconds
    for lane, seconds in found.busy.items():
        assert busy[lane] == pytest.approx(seconds, abs=1e-9 * found.step_seconds)
    core = sum(span.seconds for span in recorder.spans if span.lane == CORE)
    assert core == pytest.approx(found.step_seconds)
    assert len(recorder.spans) < 4 * len(timeline("v5e-mixed").spans), "turns are folded, however many there are"


def test_merged_spans_are_few_and_keep_what_the_lanes_work():
    spans = timeline("v5e-windowed").spans
    few = merged(spans, 200)
    assert len(few) <= 200 < len(spans)
    for lane in {span.lane for span in spans}:
        before, after = (sum(one.busy_seconds for one in of if one.lane == lane) for of in (spans, few))
        assert after == pytest.approx(before)
    assert merged(spans, len(spans)) == tuple(spans)
