"""What each process of the cluster tests runs: `python job.py COORDINATOR PROCESS_ID OUT [die]`."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from toy_steps import toy

from autotune.commands.follow import follow
from autotune.measure.agreed_runner import AgreedRunner
from autotune.measure.measure import Budget, measure, to_json
from autotune.meshes.layout import parse_layout
from autotune.meshes.topology import local_target
from autotune.system import job as job_here


def main() -> int:
    coordinator, process_id, out = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    dies = sys.argv[4:] == ["die"]
    leads = job_here.join(coordinator, 2, process_id)
    target = local_target()
    workload = toy()
    if not leads:
        return follow(workload, target)
    job = job_here.current()
    layouts = [parse_layout(text) for text in ("data=2", "fsdp=2", "tensor=2")]
    runner = AgreedRunner(job, workload, target)
    turns = 0

    def keep(layout, outcome) -> None:
        nonlocal turns
        turns += 1
        aside = out.with_suffix(".new")
        aside.write_text(json.dumps({"layout": str(layout), "turns": turns, "outcome": to_json(outcome)}))
        os.replace(aside, out)
        if dies and turns == 5:
            os.kill(int(Path(os.environ["VICTIM_FILE"]).read_text()), signal.SIGKILL)

    outcomes = measure(runner, layouts, Budget(rounds=3, turn_seconds=0.1, precision=0.0), on_outcome=keep)
    text = runner.compilation(layouts[0]).text
    runner.close()
    job_here.leave()
    out.write_text(
        json.dumps(
            {
                "target": [target.groups, target.devices],
                "all_reduces": text.count(" all-reduce("),
                "outcomes": {str(layout): to_json(outcome) for layout, outcome in outcomes.items()},
            }
        )
    )
    return 0


if __name__ == "__main__":
    if int(sys.argv[2]) == 1 and "VICTIM_FILE" in os.environ:
        Path(os.environ["VICTIM_FILE"]).write_text(str(os.getpid()))
    sys.exit(main())
