"""The public names: typed, documented, found without JAX; results that show themselves short, whole and escaped."""

from __future__ import annotations

import dataclasses
import html
import inspect
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

import autotune
from autotune.plan.read import plan_from_json
from autotune.reference_workload import reference_workload
from autotune.report.document import report_to_json
from autotune.report.html import render_html

PROMISED = (
    *("Store", "Report", "Plan", "Layout", "Target", "Workload"),
    *("tune", "explain", "compare", "sweep", "load_plan"),
)


@pytest.fixture(scope="module")
def workload():
    return reference_workload("tiny", batch=16, seq=64, dtype="float32")


@pytest.fixture(scope="module")
def report(workload):
    return autotune.tune(workload, "cpu:8", axes=("data", "fsdp"), compile=0, measure=0)


@pytest.fixture(scope="module")
def nothing_fits():
    big = reference_workload("llama3-70b", batch=8, seq=4096, dtype="bfloat16")
    return autotune.tune(big, "v5e:2x2", axes=("fsdp",), compile=0)


@pytest.fixture(scope="module")
def swept(workload):
    return autotune.sweep(workload, "h100", "2..8", axes=("data", "fsdp"))


@pytest.mark.parametrize("name", PROMISED)
def test_a_public_name_is_exported_and_documented(name):
    assert name in autotune.__all__ and name in dir(autotune)
    assert len(inspect.getdoc(getattr(autotune, name)) or "") > 40


@pytest.mark.parametrize("name", ["tune", "explain", "compare", "sweep", "load_plan", "load_workload", "parse_target"])
def test_a_public_function_is_typed(name):
    signature = inspect.signature(getattr(autotune, name))
    empty = inspect.Signature.empty
    assert signature.return_annotation is not empty
    assert [one.name for one in signature.parameters.values() if one.annotation is empty] == []


def test_names_come_without_jax():
    code = "import sys, autotune; autotune.Report, autotune.Store, autotune.Target, autotune.sweep\n"
    code += "assert not {'jax', 'libtpu'} & set(sys.modules), 'imported'\n"
    code += "import autotune.sweep.point; assert callable(autotune.sweep)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_repr_is_one_short_line(report, nothing_fits, swept):
    best = str(report.best().layout)
    for one in (report, report.plan, report.best()):
        assert best in repr(one) and "priced" in repr(one), repr(one)
    assert "nothing fits" in repr(nothing_fits) and "llama3-70b" in repr(nothing_fits)
    assert "at 8 chips" in repr(swept)
    for one in (report, report.plan, *report.rows, nothing_fits, *nothing_fits.rows, swept):
        assert len(repr(one)) < 500 and "\n" not in repr(one), repr(one)


@pytest.mark.parametrize("width", [80, 100, 140])
def test_a_text_keeps_to_its_width(report, nothing_fits, width):
    for one in (report, report.plan, nothing_fits):
        lines = one.text(width).splitlines()
        assert max(map(len, lines)) <= width and not any("\x1b" in line for line in lines)


def test_json_and_page_are_those_of_the_command(report, swept):
    assert json.loads(report.to_json()) == json.loads(json.dumps(report_to_json(report)))
    assert report.to_html() == render_html(report)
    assert dataclasses.replace(plan_from_json(report.plan.to_json())) == plan_from_json(report.plan.to_json())
    assert [one["chips"] for one in json.loads(swept.to_json())["targets"][0]["points"]] == [2, 4, 8]


def test_show_prints_the_text(report, swept, capsys):
    for one in (report, report.plan, swept):
        one.show()
        assert capsys.readouterr().out == one.text() + "\n"


def test_a_cell_of_a_notebook_holds_the_text(report, swept, monkeypatch, capsys):
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    for one in (report, report.plan, swept):
        text = one.text()
        assert text.strip() and html.escape(text) in one._repr_html_()
    assert capsys.readouterr().out == ""


def test_html_holds_no_markup_of_the_input(report, swept):
    bad = "<script>alert(1)</script> & co"
    question = dataclasses.replace(swept.question, workload=autotune.Workload.of(
        name=bad, build=lambda layout, mesh: None, sequences=1, seq=1, dtype="float32", fingerprint="x"))  # fmt: skip
    for one in (
        dataclasses.replace(report, workload=bad),
        dataclasses.replace(report.plan, workload=bad, guesses=(bad,)),
        dataclasses.replace(swept, question=question),
    ):
        for text in (one._repr_html_(), one.to_html()):
            assert "<script>" not in text and "&lt;script&gt;" in text


def test_a_plan_says_all_a_reader_needs(report):
    text = report.plan.text(200)
    for word in (str(report.best().layout), "cpu:8", "8 devices", "priced", "binds", report.plan.workload):
        assert word in text, text
    unknown = dataclasses.replace(
        report.plan,
        binding=None,
        kept_out_by=None,
        figures=dataclasses.replace(
            report.plan.figures, **{name: None for name in report.plan.figures.__dataclass_fields__}
        ),
    )
    assert "step time not known" in unknown.text() and "None" not in unknown.text()


def test_compare_two_layouts_and_one_with_itself(little_effort, tmp_path):
    def step(state, batch):
        value, gradient = jax.value_and_grad(lambda w: jnp.mean((batch["x"] @ w) ** 2))(state["w"])
        return {"w": state["w"] - 0.1 * gradient}, {"loss": value}

    shape = jax.ShapeDtypeStruct
    workload = autotune.Workload(
        step, {"w": shape((16, 16), jnp.float32)}, {"x": shape((8, 16), jnp.float32)}, name="one matmul"
    )
    store = autotune.Store(tmp_path)
    both = autotune.compare(workload, "cpu:2", "data=2", "fsdp=2", store=store)
    same = autotune.compare(workload, "cpu:2", "data=2", autotune.parse_layout("data=2"), store=store)
    assert same.first is same.second
    for one in (both, same):
        values = json.loads(one.to_json())
        assert [values["first"]["text"], values["second"]["text"]] == [str(one.first.layout), str(one.second.layout)]
        assert "seconds on the critical path" in one.text() and len(repr(one)) < 500 and "compiled" in repr(one)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("v5p", ()), "chips: names no size"),
        (("v5p", "8..64", ("rows",)), "axes: .* makes no use of 'rows'"),
        (("v5p", [8, -4]), "chips: '-4' must be"),
        (("nothing", "8"), "target"),
    ],
)
def test_a_sweep_refuses_what_it_cannot_read(workload, arguments, message):
    target, chips, *axes = arguments
    with pytest.raises(ValueError, match=message):
        autotune.sweep(workload, target, chips, axes=axes[0] if axes else None)
