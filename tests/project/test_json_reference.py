"""The schemas of docs/schemas describe every document that is written; the reference pages name every key."""

import copy
import json
import re
from pathlib import Path

import json_reference
import jsonschema
import pytest
from test_plan import plan_for

from autotune.cli import run
from autotune.meshes.chip import Hardware, Slices, Tier
from autotune.meshes.hardware import read_hardware

ROOT = Path(__file__).parents[2]
JOB = ("--model", "llama3-8b", "--batch", "64", "--seq", "4096")
TUNES = {
    "a choice": (*JOB, "--target", "h100:2x8", "--compile", "0"),
    "near the capacity": (*JOB, "--target", "v5e:8x8", "--compile", "0"),
    "nothing fits": (*JOB, "--target", "a100-40:1x4", "--compile", "0"),
    "named layouts": (*JOB, "--target", "v5e:8x8", "--layouts", "fsdp=64;data=64;fsdp=64,remat=full", "--compile", "0"),
}


def checker(name: str) -> jsonschema.Draft202012Validator:
    schema = json.loads((json_reference.SCHEMAS / f"{name}.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def wrong(name: str, document: dict) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in checker(name).iter_errors(document)]


@pytest.mark.parametrize("words", TUNES.values(), ids=TUNES)
def test_a_report_is_as_its_schema_says(words, capsys):
    assert run(["tune", *words, "--json", "--quiet"]) in (0, 1)
    assert wrong("report", json.loads(capsys.readouterr().out)) == []


@pytest.mark.parametrize("of", ["a step", pytest.param("a model", marks=pytest.mark.slow)])
def test_a_compiled_report_and_its_plan_are_as_their_schemas_say(tmp_path, capsys, of):
    words = ["--model", str(tiny(tmp_path)), "--batch", "8", "--seq", "64"]
    if of == "a step":
        words = ["--workload", "toy_steps:own_step"]
    saved = ["--store", str(tmp_path / "store"), "--out", str(tmp_path / "plan.json")]
    assert run(["tune", *words, "--target", "cpu:2", "--compile", "1", *saved, "--json", "--quiet"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["best"]["status"] == "measured" and report["best"]["collectives"] is not None
    assert wrong("report", report) == []
    assert wrong("plan", json.loads((tmp_path / "plan.json").read_text())) == []


def tiny(folder: Path) -> Path:
    path = folder / "tiny.json"
    shape = {"kind": "decoder", "layers": 2, "d_model": 32, "heads": 2, "kv_heads": 2, "d_ff": 64, "vocab": 64}
    path.write_text(json.dumps({"name": "tiny", **shape}))
    return path


def test_a_plan_is_as_its_schema_says():
    assert wrong("plan", json.loads(plan_for("data=2,tensor=2", "cpu:4").to_json())) == []


@pytest.mark.parametrize("spoil", [
    lambda plan: plan.pop("layout"),
    lambda plan: plan.update(more=1),
    lambda plan: plan["layout"].update(accumulate=0),
    lambda plan: plan["figures"].update(mfu="high"),
    lambda plan: plan["runners_up"].append({"layout": "fsdp=4"}),
])  # fmt: skip
def test_another_document_is_refused(spoil):
    plan = copy.deepcopy(json.loads(plan_for("data=2,tensor=2", "cpu:4").to_json()))
    spoil(plan)
    assert wrong("plan", plan)


def test_the_page_is_made_from_the_schemas():
    assert json_reference.PAGE.read_text() == json_reference.page(), "run python scripts/json_reference.py"


def test_the_hardware_files_of_the_page_are_whole(tmp_path):
    text = (ROOT / "docs" / "add_an_accelerator.md").read_text()
    whole = [block for block in re.findall(r"```toml\n(.*?)```", text, re.S) if "[[tiers]]" in block]
    for number, block in enumerate(whole):
        path = tmp_path / f"{number}.toml"
        path.write_text(block)
        words = ["--target", "mygpu:2x8" if "mygpu" in block else "mytpu:2x2x4", "--hardware", str(path)]
        assert read_hardware(path).name in words[1]
        assert run(["tune", *JOB, *words, "--compile", "0", "--quiet"]) == 0
    assert len(whole) == 2


def test_every_key_of_a_hardware_file_is_on_the_page():
    text = (ROOT / "docs" / "reference_hardware.md").read_text()
    # `recommended_sets` is `recommended` of option_sets; a replay counts `sustained_share`
    ours = {"sources", "faster", "option_holds_for", "recommended_sets", "sustained_share"}
    keys = {name for kind in (Hardware, Tier, Slices) for name in kind.__dataclass_fields__} - ours
    assert not {key for key in keys if f"`{key}`" not in text}
