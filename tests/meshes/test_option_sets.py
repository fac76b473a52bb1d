"""Named sets of XLA options in hardware files: read, refused with one line, resolved, and taken by a layout's word."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from autotune.calibrate.hardware_file import hardware_toml
from autotune.cli import autotune
from autotune.meshes import compiler_options as module
from autotune.meshes.compiler_options import (
    as_variable,
    compiler_options,
    options_left_out,
    options_of,
    refused_option,
    set_names,
    told_by,
    without_options,
)
from autotune.meshes.hardware import FILES, figures, hardware_names, load_hardware, read_hardware
from autotune.meshes.layout import parse_layout
from autotune.meshes.option_sets import MOST_RECOMMENDED
from autotune.meshes.xla_options import FILE_OPTIONS

CHIP = (FILES / "v5e.toml").read_text().split("# Beside `none` and `default`.")[0]
SETS = """
[compiler_options]
xla_enable_async_all_gather = true
xla_tpu_scoped_vmem_limit_kib = { value = 65536, source = "ours", holds_for = "libtpu<0.0.1" }

[option_sets]
recommended = ["more", "none"]

[option_sets.more]
meaning = "On the default set."
source = "of the set"
base = "default"

[option_sets.more.options]
xla_tpu_scoped_vmem_limit_kib = 98304
xla_tpu_rwb_fusion = { value = false, source = "of the option", holds_for = "libtpu<0.0.1" }

[option_sets.alone]
meaning = "On nothing."
holds_for = "libtpu<0.0.1"

[option_sets.alone.options]
xla_tpu_bf16_emission_mode = "NATIVE_EMISSION"
"""


@pytest.fixture
def chip(tmp_path):
    path = tmp_path / "v5e.toml"
    path.write_text(CHIP + SETS)
    return read_hardware(path)


def test_a_set_stands_on_nothing_or_on_the_default_one(chip):
    assert set_names(chip) == ("none", "default", "more", "alone")
    assert chip.recommended_sets == ("more", "none")
    default, limits = told_by(chip)
    assert told_by(chip, "default") == (default, limits) and limits == {"xla_tpu_scoped_vmem_limit_kib": "libtpu<0.0.1"}
    assert told_by(chip, "none") == ({}, {})
    options, limits = told_by(chip, "more")
    assert options == {**default, "xla_tpu_scoped_vmem_limit_kib": 98304, "xla_tpu_rwb_fusion": False}
    assert limits == {"xla_tpu_rwb_fusion": "libtpu<0.0.1"}, (
        "an option that the set gives anew has no limit of the base"
    )
    assert told_by(chip, "alone")[0] == {"xla_tpu_bf16_emission_mode": "NATIVE_EMISSION"}


def test_what_holds_for_another_compiler_is_left_out(chip, monkeypatch):
    monkeypatch.setattr(module, "meets", lambda requirement: False)
    assert options_left_out(chip, "more") == {"xla_tpu_rwb_fusion": "libtpu<0.0.1"}
    assert options_of(chip, "more")[
        "xla_tpu_scoped_vmem_limit_kib"
    ] == 98304 and "xla_tpu_rwb_fusion" not in options_of(chip, "more")
    assert options_of(chip, "alone") == {}, "holds_for of a set limits all of it"
    monkeypatch.setattr(module, "meets", lambda requirement: True)
    assert options_of(chip, "alone") and not options_left_out(chip, "alone")


def test_an_option_that_a_compiler_refuses_is_left_out_of_the_set_that_was_told(chip, monkeypatch):
    monkeypatch.setattr(module, "meets", lambda requirement: True)
    message = "INVALID_ARGUMENT: No such compile option: 'xla_tpu_bf16_emission_mode'"
    assert refused_option(message, chip, "alone") == ("xla_tpu_bf16_emission_mode",)
    assert refused_option(message, chip, "more") == ()
    less = without_options(chip, ["xla_tpu_bf16_emission_mode", "xla_enable_async_all_gather"])
    assert told_by(less, "alone")[0] == {} and "xla_enable_async_all_gather" not in told_by(less, "more")[0]


def test_a_layouts_own_options_stand_on_top_of_its_set(chip):
    layout = parse_layout("fsdp=4,options=alone,xla.xla_tpu_bf16_emission_mode=X,xla.xla_tpu_rwb_fusion=true")
    assert str(layout) == "fsdp=4,options=alone,xla.xla_tpu_bf16_emission_mode=X,xla.xla_tpu_rwb_fusion=true"
    assert compiler_options(layout, chip) == {"xla_tpu_bf16_emission_mode": "X", "xla_tpu_rwb_fusion": True}
    assert as_variable(parse_layout("fsdp=4,options=none"), chip) is None
    assert as_variable(parse_layout("fsdp=4"), chip) == as_variable(parse_layout("fsdp=4,options=default"), chip)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("base =", "bases ="), "option_sets.more.bases is not known; did you mean 'base'?"),
        (('base = "default"', 'base = "alone"'), "option_sets.more.base='alone' must be one of none, default"),
        (('meaning = "On nothing."\n', ""), "option_sets.alone.meaning is missing"),
        (('meaning = "On nothing."', "meaning = 3"), "option_sets.alone.meaning=3 must be a text"),
        (('xla_tpu_bf16_emission_mode = "NATIVE_EMISSION"\n', ""), "option_sets.alone.options is empty; a set names"),
        (('xla_tpu_bf16_emission_mode = "NATIVE_EMISSION"', 'xla_dump_to = "/x"'),
         "option_sets.alone.options.xla_dump_to='/x': is no option that a file may set"),
        (('"NATIVE_EMISSION"', '"/etc/x"'), "must be true, false, a number or one word"),
        (('"NATIVE_EMISSION"', '{ source = "x" }'), "xla_tpu_bf16_emission_mode has no value; write value"),
        (('"NATIVE_EMISSION"', '{ value = 1, of = "x" }'), "options.xla_tpu_bf16_emission_mode.of is not known"),
        (("[option_sets.alone]", "[option_sets.none]"), "option_sets.none is a set of every chip"),
        (("[option_sets.alone]", "[option_sets.default]"), "option_sets.default is a set of every chip"),
        (("[option_sets.alone]\n", "[option_sets.more]\n"), "is given twice"),
        (("option_sets.alone", "option_sets.'A b'"), "sets have names of small letters, digits and _"),
        (('["more", "none"]', '["mroe"]'), "names 'mroe', no set of this file; did you mean 'more'?"),
        (('["more", "none"]', '["more", "more"]'), "names a set twice"),
        (('["more", "none"]', '["more", "alone", "none", "default"]'), "must name at most 3 sets"),
        (('["more", "none"]', '"more"'), "option_sets.recommended='more' must be a list"),
        (('["more", "none"]', "[3]"), "option_sets.recommended holds 3; each must be a text"),
        (('meaning = "On nothing."\nholds_for = "libtpu<0.0.1"', 'meaning = "On nothing."\nholds_for = "x y z"'),
         "option_sets.alone.holds_for='x y z' must be written as a requirement"),
        (("[option_sets.alone]", "[option_sets]\n[option_sets.alone]"), "is given twice"),
    ],
)  # fmt: skip
def test_a_wrong_set_is_one_clear_line(tmp_path, change, told):
    assert change[0] in SETS
    path = tmp_path / "v5e.toml"
    path.write_text(CHIP + SETS.replace(*change))
    with pytest.raises(ValueError) as error:
        read_hardware(path)
    assert told in str(error.value) and str(path) in str(error.value) and "\n" not in str(error.value)


def test_option_sets_that_are_no_table_are_one_line(tmp_path):
    path = tmp_path / "h100.toml"
    path.write_text("option_sets = 3\n" + (FILES / "h100.toml").read_text())
    with pytest.raises(ValueError, match="option_sets=3 must be an object"):
        read_hardware(path)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("fsdp=4,options=Big", "layout: options='Big' must be a name of small letters"),
        ("fsdp=4,options=a;b", "layout: options='a;b' must be a name"),
        ("fsdp=4,options=" + "x" * 41, "at most 40 of them"),
        ("fsdp=4,options=none,options=none", "options is given twice"),
    ],
)
def test_a_word_that_names_no_set_is_one_line(text, told):
    with pytest.raises(ValueError, match="^layout: ") as error:
        parse_layout(text)
    assert told in str(error.value)


@pytest.mark.parametrize(
    "arguments",
    [
        ["tune", "--layouts", "fsdp=4;fsdp=4,options=maxtxt"],
        ["tune", "--fix", "options=maxtxt"],
        ["explain", "--layout", "fsdp=4,options=maxtxt"],
    ],
)
def test_a_set_that_the_chip_has_not_is_bad_input(arguments):
    job = ["--model", "tiny", "--target", "v5e:2x2", "--batch", "8", "--seq", "128", "--compile", "0"]
    found = CliRunner().invoke(autotune, [*arguments, *job])
    assert found.exit_code == 2
    assert "options=maxtxt is no option set of v5e; it has none, default, maxtext, vmem; did you mean 'maxtext'?" in (
        " ".join(found.output.split())
    )


@pytest.mark.parametrize("name", hardware_names())
def test_our_files_hold_sets_with_sources_that_a_plan_may_name(name):
    chip = load_hardware(name)
    assert len(chip.recommended_sets) <= MOST_RECOMMENDED
    for one, found in chip.option_sets.items():
        assert found.meaning.endswith(".")
        assert found.options.keys() <= FILE_OPTIONS
        for option in found.options:
            assert chip.sources[f"option_sets.{one}.options.{option}"]
    if chip.platform == "cuda":
        source = chip.sources["option_sets.recipe.options.xla_gpu_enable_triton_gemm"]
        assert source.startswith("inherited from platforms/cuda.toml: ")


@pytest.mark.parametrize("name", ["v6e", "h100"])
def test_a_file_of_a_chip_with_sets_reads_back(name, tmp_path):
    chip = load_hardware(name)
    path = tmp_path / f"{name}.toml"
    path.write_text(hardware_toml(chip, "again"))
    again = read_hardware(path)
    assert (again.option_sets, again.recommended_sets) == (chip.option_sets, chip.recommended_sets)
    sources = [{key: text for key, text in one.sources.items() if "option_sets" in key} for one in (again, chip)]
    assert sources[0] == sources[1]


def test_targets_shows_each_set_with_its_source():
    shown = " ".join(CliRunner().invoke(autotune, ["targets", "v6e"], terminal_width=200).output.split())
    for name, value in figures(load_hardware("v6e")).items():
        if name.startswith("option_sets."):
            assert name in shown, value
    listed = json.loads(CliRunner().invoke(autotune, ["targets", "v6e", "--json"]).output)
    (found,) = listed
    assert found["recommended_sets"] == ["sparse_core", "host_offload", "none"]
    assert found["option_sets"]["bf16"]["options"] == {"xla_tpu_bf16_emission_mode": "NATIVE_EMISSION"}
