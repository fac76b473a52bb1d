"""Every worked example, run on simulated devices: from import to plan to five training steps in few lines."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import autotune

DOCS = (Path(__file__).parents[2] / "docs" / "examples.md").read_text()
FOLDER = Path(__file__).parents[2] / "scripts" / "examples"
LOOPS = ("nnx_loop", "linen_loop", "plain_pytree")
OTHERS = ("before_booking", "other_machines", "maxtext_user", "ci_gate")


def documented(name: str) -> str:
    """The output that docs/examples.md shows below an example's command."""
    found = re.search(rf"```bash\npython scripts/examples/{name}\.py[^\n]*\n```\n```text\n(.*?)\n```", DOCS, re.DOTALL)
    assert found, f"docs/examples.md does not show {name}"
    return found[1]


def form(output: str) -> list[str]:
    """The lines of an output without what may change from run to run: figures, the layout, the limit, specs."""
    rules = (
        (r"^[a-z][\w-]*:\d[\dx]*:", "TARGET:"),
        (r"bound by \S+", "bound by X"),
        (r"\bP\(.*\)$", "P"),
        (r"\b\w+=\w+(,\w+=\w+)*", "LAYOUT"),
        (r"[\d.,]*\d", "N"),
    )
    lines = [line for line in output.strip().splitlines() if line.strip()]
    for pattern, instead in rules:
        lines = [re.sub(pattern, instead, line) for line in lines]
    return lines


@pytest.fixture
def example(monkeypatch):
    """Imports an example by name, as `python` run beside it would."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


def test_no_example_is_left_out():
    assert sorted(path.stem for path in FOLDER.glob("*.py")) == sorted((*LOOPS, *OTHERS))


@pytest.fixture(scope="module")
def trained():
    """Losses of the loops that have been run, by name."""
    return {}


@pytest.mark.parametrize("name", [pytest.param("nnx_loop", marks=pytest.mark.slow), *LOOPS[1:]])
def test_a_loop_that_exists_trains_five_steps_under_a_plan(example, name, capsys, trained):
    losses = trained[name] = example(name).main("cpu:8")
    assert len(losses) == 5 and losses == sorted(losses, reverse=True) and losses[-1] < 0.95 * losses[0]
    shown = capsys.readouterr().out
    assert form(shown) == form(documented(name))
    sizes = {axis: int(size) for axis, size in re.findall(r"(data|fsdp|tensor)=(\d+)", shown.splitlines()[0])}
    product = 1
    for size in sizes.values():
        product *= size
    assert product == 8


@pytest.mark.parametrize("name", LOOPS)
def test_what_autotune_adds_is_under_20_lines(name):
    """The import and the body of `main`, where the loop itself is counted too."""
    tree = ast.parse((FOLDER / f"{name}.py").read_text())
    (main,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main")
    body = main.body[1:]  # without the docstring
    assert 1 + body[-1].end_lineno - body[0].lineno + 1 < 20


def test_a_plan_changes_no_number(example, trained):
    """The Linen loop without autotune, on one device, has the same losses."""
    linen = example("linen_loop")
    found = trained.get("linen_loop") or linen.main("cpu:8")
    import jax

    state, losses = linen.make(), []
    for batch in linen.batches(5):
        state, loss = jax.jit(linen.train_step)(state, batch)
        losses.append(float(loss))
    assert found == pytest.approx(losses, rel=1e-4)


@pytest.mark.slow
def test_before_booking(example):
    lines = example("before_booking").main(["cpu:8", "cpu:4"], model="tiny", batch=8, seq=32)
    assert {*form("\n".join(lines))} == {*form(documented("before_booking"))}


@pytest.mark.slow
def test_maxtext_user(example):
    flags = example("maxtext_user").main("cpu:8", model="tiny", batch=16, seq=32)
    sizes = [int(size) for size in re.findall(r"ici_\w+_parallelism=(\d+)", flags)]
    product = 1
    for size in sizes:
        product *= size
    assert product == 8 and "max_target_length=32" in flags
    flag = re.compile(r"^  (\w+)=", re.MULTILINE)
    names, shown = set(flag.findall(flags)), set(flag.findall(documented("maxtext_user")))
    assert names ^ shown <= {"ici_tensor_parallelism", "dcn_tensor_parallelism", "context_parallel_strategy"}


@pytest.mark.slow
def test_other_machines(example, tmp_path, monkeypatch, capsys):
    """The user's own model through the compilers of a TPU and of a GPU, which are not here."""
    monkeypatch.chdir(tmp_path)
    plans = example("other_machines").main(["v5e:4x4", "h100:1x8"])
    assert form(capsys.readouterr().out) == form(documented("other_machines"))
    for plan, file in zip(plans, ("v5e-4x4.json", "h100-1x8.json"), strict=True):
        assert autotune.load_plan(file) == plan
        with pytest.raises(ValueError, match=rf"plan: made for \d+ devices of {plan.hardware} .*; here are 8 of cpu"):
            plan.mesh()


@pytest.mark.slow
def test_ci_gate(tmp_path):
    def run(*command: str) -> subprocess.CompletedProcess:
        root = str(FOLDER.parents[1])
        environment = {"PYTHONPATH": root, "PATH": "/usr/bin:/bin", "JAX_PLATFORMS": "cpu", "HOME": str(tmp_path)}
        return subprocess.run(
            [sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
        )

    made = run(str(FOLDER / "ci_gate.py"))
    assert made.returncode == 0 and made.stdout.strip() == documented("ci_gate"), made.stderr
    gate = ("-m", "pytest", "-q", "-p", "no:cacheprovider", str(FOLDER / "ci_gate.py"), "--rootdir", str(tmp_path))
    assert run(*gate).returncode == 0
    plan = tmp_path / "plan.json"
    plan.write_text(re.sub(r'"flops": [\d.e+]+', '"flops": 1.0', plan.read_text()))
    failed = run(*gate)
    assert (
        failed.returncode == 1
        and "the plan no longer holds" in failed.stdout
        and "flops: 1 in the plan" in failed.stdout
    )
