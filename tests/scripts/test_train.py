"""`scripts/train.py` and `scripts/reshard.py`: killed and resumed, on this mesh and on another, the losses go on."""

import dataclasses
import importlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from test_plan import plan_for

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "scripts"
STEPS = 8


def arguments(plan: Path, folder: Path, steps: int) -> list[str]:
    text = folder.parent / "text"
    return [str(plan), "--text", str(text), "--steps", str(steps), "--every", "2", "--checkpoints", str(folder)]


def environment() -> dict[str, str]:
    """Programs compiled as in this process (conftest.py): losses are compared to the last digit."""
    known = {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    return {**os.environ, **known}


def run(script: str, *given: str) -> Result:
    """The script in this process: no second start of JAX."""
    return CliRunner().invoke(importlib.import_module(script).main, [str(one) for one in given])


def losses(output: str) -> dict[int, float]:
    return {int(step): float(loss) for step, loss in re.findall(r"^step (\d+)  loss (\S+)", output, re.M)}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("train")
    (folder / "text").write_text("the quick brown fox jumps over the lazy dog\n" * 40)
    plan_for("fsdp=4", "cpu:4").save(folder / "four.json")
    plan_for("data=2,tensor=2", "cpu:4").save(folder / "other.json")
    plan_for("fsdp=2", "cpu:2").save(folder / "two.json")
    return folder


@pytest.fixture(scope="module")
def undisturbed(place) -> dict[int, float]:
    done = run("train", *arguments(place / "four.json", place / "whole", STEPS))
    assert done.exit_code == 0, done.output
    assert re.search(r"the plan says 400.0 ms a step \(compiled\)", done.stdout)
    line = done.stdout.splitlines()[-1]
    assert re.search(r"ms \(plan 400.0 ms\)  [\d,]+ tokens/s  MFU \S+ % \(plan 31.00 %\)", line), line
    found = losses(done.stdout)
    assert sorted(found) == list(range(1, STEPS + 1)) and found[STEPS] < found[1]
    return found


def test_packed_documents_are_trained_on(tmp_path):
    (tmp_path / "text").write_text("the quick brown fox jumps over the lazy dog\n" * 40)
    plan = plan_for("fsdp=4", "cpu:4")
    dataclasses.replace(plan, recipe={**plan.recipe, "packing": 3}).save(tmp_path / "packed.json")
    done = run("train", tmp_path / "packed.json", "--text", tmp_path / "text", "--steps", STEPS)
    assert done.exit_code == 0, done.output
    found = losses(done.stdout)
    assert sorted(found) == list(range(1, STEPS + 1)) and found[STEPS] < found[1]


@pytest.fixture(scope="module")
def killed(place, undisturbed) -> Path:
    """Checkpoints of a run that kill -9 ended right after its fifth step."""
    folder = place / "killed"
    command = [sys.executable, str(SCRIPTS / "train.py"), *arguments(place / "four.json", folder, 10**6)]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.startswith("step 5 "):
                os.kill(process.pid, signal.SIGKILL)
                break
    return folder


def copied(folder: Path, name: str) -> Path:
    import shutil

    return Path(shutil.copytree(folder, folder.parent / name))


@pytest.mark.parametrize(("plan", "tolerance"), [("four.json", 0.0), ("other.json", 2e-5), ("two.json", 2e-5)])
@pytest.mark.slow
def test_resumed_after_kill_9_the_losses_go_on(place, killed, undisturbed, plan, tolerance):
    """On the same mesh to the last digit shown; on another to 2e-5 (float32 sums in another order)."""
    folder = copied(killed, f"resumed-{plan}")
    done = run("train", *arguments(place / plan, folder, STEPS))
    assert done.exit_code == 0, done.output
    start = int(re.search(r"resumed after step (\d+) \(saved under fsdp=4\)", done.stdout)[1])
    assert start in (2, 4)
    found = losses(done.stdout)
    assert sorted(found) == list(range(start + 1, STEPS + 1))
    for step, loss in found.items():
        assert loss == pytest.approx(undisturbed[step], rel=tolerance, abs=1e-9)


def test_a_damaged_checkpoint_is_refused_and_the_last_good_one_used(place, undisturbed):
    folder = copied(place / "whole", "damaged")
    largest = max((path for path in (folder / "8").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    (folder / "6" / "state" / "_METADATA").unlink()
    (folder / "10.orbax-checkpoint-tmp").mkdir()
    done = run("train", *arguments(place / "two.json", folder, STEPS))
    assert "checkpoint 8 refused: state/" in done.stdout and "was changed or cut short" in done.stdout
    assert "checkpoint 6 refused: state/_METADATA is missing" in done.stdout
    assert "resumed after step 4" in done.stdout, done.output
    assert losses(done.stdout)[5] == pytest.approx(undisturbed[5], rel=2e-5)


def test_reshard_says_beforehand_whether_a_checkpoint_fits(place, undisturbed):
    done = run("reshard", place / "two.json", place / "whole")
    assert done.exit_code == 0, done.output
    assert "parameters.unembedding  float32[64, 256]  fits, cut as P('fsdp'" in done.stdout
    assert re.search(r"step 8: (\d+) of \1 arrays fit fsdp=2 on cpu:2", done.stdout)
    done = run("reshard", place / "two.json", place / "whole", "--step", "6", "--out", place / "anew")
    assert done.exit_code == 0 and f"step 6 written to {place / 'anew'}" in done.stdout, done.output
    done = run("reshard", place / "four.json", place / "anew")
    assert re.search(r"step 6: (\d+) of \1 arrays fit fsdp=4 on cpu:4", done.stdout), done.output
    values = json.loads((place / "two.json").read_text())
    values["recipe"]["model"] = "small"
    (place / "small.json").write_text(json.dumps(values))
    done = run("reshard", place / "small.json", place / "whole")
    assert done.exit_code == 1
    assert (
        "parameters.unembedding  float32[64, 256]  is float32[64, 256], the plan's model has float32[512, 1024]"
        in done.stdout
    )  # noqa: E501


@pytest.mark.slow
def test_after_kill_9_every_checkpoint_is_verified_and_a_flipped_bit_is_found(killed):
    """The one that the next run goes on from too: its digests are there before it is."""
    from autotune.checkpoints import Checkpoints

    folder = copied(killed, "flipped")
    store = Checkpoints(folder, read_only=True)
    steps = store.steps()
    assert steps and all(store.verified(step) and store.damage(step) is None for step in steps)
    newest = folder / str(steps[0])
    files = [path for path in newest.rglob("*") if path.is_file() and path.name != "_CHECKPOINT_METADATA"]
    for path in sorted(files, key=lambda path: -path.stat().st_size)[:3]:
        data = path.read_bytes()
        for place in (0, len(data) // 3, len(data) - 1):
            path.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
            assert "was changed or cut short" in (store.damage(steps[0]) or "")
        path.write_bytes(data)
    assert store.damage(steps[0]) is None
    (folder / "verified" / f"{steps[0]}.json").write_text("[]")
    assert "its digests, cannot be read" in (store.damage(steps[0]) or "")
    store.close()


def test_an_unverified_checkpoint_is_said_to_be_one_and_never_noted_as_good(place, undisturbed):
    folder = copied(place / "whole", "unverified")
    (folder / "verified" / "8.json").unlink()
    done = run("train", *arguments(place / "four.json", folder, STEPS + 2))
    assert done.exit_code == 0, done.output
    assert re.search("^checkpoint 8 is unverified: nobody noted its digests", done.stdout, re.M)
    assert "resumed after step 8" in done.stdout
    assert (folder / "8").is_dir() and sorted(path.name for path in (folder / "verified").iterdir()) == [
        "10.json", "6.json"
    ]  # fmt: skip
    done = run("reshard", place / "four.json", folder, "--step", "8")
    assert done.exit_code == 0 and "checkpoint 8 is unverified" in done.stdout


def test_two_runs_cannot_save_in_one_folder(place, undisturbed):
    from autotune.checkpoints import Checkpoints

    folder = copied(place / "whole", "locked")
    holder = (
        "import sys; from pathlib import Path; from autotune.checkpoints import Checkpoints\n"
        "store = Checkpoints(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", holder, str(folder)]
    with subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "held\n"
        done = run("train", *arguments(place / "four.json", folder, STEPS + 2))
        assert done.exit_code == 2 and done.stderr.count("\n") == 1
        assert f"checkpoints {folder}: another run saves there (process {process.pid} on " in done.stderr
        Checkpoints(folder, read_only=True).close()  # to look is allowed
        process.kill()
    first = Checkpoints(folder)  # the kernel dropped the lock of the dead
    with pytest.raises(ValueError, match=f"another run saves there \\(process {os.getpid()} on"):
        Checkpoints(folder)
    first.close()
    Checkpoints(folder).close()


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ({}, None),
        ({"seed": 1}, "were trained with seed 1, this is 0"),
        ({"text": 99}, "on a text of 99 bytes, this one has 100"),
        ({"text_sha256": "another"}, "on another text of the same 100 bytes"),
        ({"seed": None}, "with seed None"),
        ({"text_sha256": None}, "another text"),
    ],
)
def test_another_seed_or_text_is_another_run(place, saved, message):
    sys.path.insert(0, str(SCRIPTS))
    try:
        check_same = importlib.import_module("train").check_same
    finally:
        sys.path.remove(str(SCRIPTS))
    here = {"seed": 0, "text": 100, "text_sha256": "this"}
    if message is None:
        check_same(place, {**here, **saved}, here)
        check_same(place, {"seed": 0, "text": 100}, here)  # of a version that noted no digest of the text
    else:
        with pytest.raises(ValueError, match=message):
            check_same(place, {**here, **saved}, here)


def test_another_text_of_equal_length_is_refused(place, undisturbed):
    text = (place / "text").read_text()
    (place / "other").mkdir(exist_ok=True)
    (place / "other" / "text").write_text(text.replace("quick", "quack"))
    folder = place / "other" / "checkpoints"
    import shutil

    shutil.copytree(place / "whole", folder)
    done = run("train", *arguments(place / "four.json", folder, STEPS + 2))
    assert done.exit_code == 2 and "were trained on another text of the same" in done.stderr
    assert done.stderr.count("\n") == 1 and "step 9" not in done.stdout


def test_a_checkpoint_whose_digests_nobody_noted_is_still_refused_when_it_cannot_be_read(place, undisturbed):
    """Killed between the end of a save and the note of its digests, then damaged."""
    folder = copied(place / "whole", "unnoted")
    (folder / "verified" / "8.json").unlink()
    (folder / "8" / "state" / "_METADATA").write_text("{")
    done = run("train", *arguments(place / "two.json", folder, STEPS))
    assert re.search(r"^checkpoint 8 refused: cannot be read", done.stdout, re.M), done.output
    assert "resumed after step 6" in done.stdout


@pytest.mark.slow
def test_whether_it_fits_can_be_asked_before_the_devices_are_there(place, undisturbed):
    plan = plan_for("fsdp=4", "v5e:2x2")
    plan = dataclasses.replace(plan, seq=128, recipe={**plan.recipe, "seq": 128})
    plan.save(place / "tpu.json")
    done = run("reshard", place / "tpu.json", place / "whole")
    assert done.exit_code == 0, done.output
    assert re.search(r"step 8: (\d+) of \1 arrays fit fsdp=4 on v5e:2x2", done.stdout)
    done = run("reshard", place / "tpu.json", place / "whole", "--out", place / "elsewhere")
    assert done.exit_code == 2 and "made for 4 devices of v5e (v5e:2x2); here are" in done.stderr
    assert done.stderr.count("\n") == 1 and not (place / "elsewhere").exists()


def test_wrong_checkpoints_get_one_line_and_nothing_is_written(place, undisturbed):
    values = json.loads((place / "two.json").read_text())
    values["recipe"]["model"] = "small"
    (place / "small.json").write_text(json.dumps(values))
    (place / "empty").mkdir(exist_ok=True)
    before = sorted((place / "whole").rglob("*"))
    for done, message in (
        (run("train", *arguments(place / "small.json", place / "whole", STEPS)), "whole/8: is of another model: "),
        (run("train", *arguments(place / "two.json", place / "text", STEPS)), "checkpoints .*text: File exists"),
        (run("reshard", place / "two.json", place / "nowhere"), "checkpoints .*nowhere: no such folder"),
        (run("reshard", place / "two.json", place / "empty"), "checkpoints .*empty: no good checkpoint"),
        (run("reshard", place / "two.json", place / "whole", "--step", "7"), "no good checkpoint of step 7"),
        (run("reshard", place / "two.json", place / "whole", "--out", place / "whole"), "whole: is there already"),
    ):
        assert done.exit_code == 2 and re.search(message, done.stderr), done.output
        assert done.stderr.count("\n") == 1
    assert sorted((place / "whole").rglob("*")) == before and not (place / "nowhere").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"plan": "nowhere.json"}, "train: plan .*nowhere.json: No such file"),
        ({"text": "nowhere"}, "train: text .*nowhere: No such file"),
        ({"text": "short"}, "train: text .*short: has 3 bytes, one sequence needs 10"),
    ],
)
def test_wrong_input_gets_one_line(place, change, message):
    (place / "short").write_text("abc")
    plan, text = place / change.get("plan", "two.json"), place / change.get("text", "text")
    done = run("train", plan, "--text", text, "--steps", "1")
    assert done.exit_code == 2 and re.search(message, done.stderr) and done.stderr.count("\n") == 1
