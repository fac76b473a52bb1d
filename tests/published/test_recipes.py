"""Published runs with their whole recipe: each is answered or says all that is missing, and compiles on demand."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import validate  # noqa: E402
from validation import predict  # noqa: E402
from validation.cases import Case, Skipped, read_cases  # noqa: E402

from autotune.meshes.training import Training  # noqa: E402

FILE = validate.DATA / "jax_recipes.json"
ROWS = {row["id"]: row for row in json.loads(FILE.read_text())}

ONE_HOT = "its embedding is a matmul with one-hot tokens, ours looks its rows up"
LLAMA = "mt-v5p8-llama2-d16-L12-fsdp4"
KEYS = {
    "id", "rank_set", "quantity", "measured", "predicted", "error", "oom_measured", "oom_predicted",
    "peak_bytes_predicted", "source", "skipped",
}  # fmt: skip


def case_of(tmp_path, change, name=LLAMA):
    """The case of a row of the file with something changed."""
    row = copy.deepcopy(ROWS[name])
    change(row)
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([row]))
    (case,) = read_cases(path)
    return case


def run(*arguments):
    return CliRunner().invoke(validate.main, [str(argument) for argument in arguments])


def test_every_row_is_answered_or_says_what_is_missing():
    outcome = run("--cases", FILE, "--json")
    assert outcome.exit_code == 0, outcome.output
    rows = json.loads(outcome.stdout)
    assert [row["id"] for row in rows] == list(ROWS)
    for row in rows:
        assert row.keys() >= KEYS and row["quantity"] == "step_seconds"
        if row["skipped"] is None:
            assert row["source"] in ("priced", "compiled") and row["predicted"] > 0
        else:
            assert row["skipped"].startswith("it cannot be expressed: ") and row["predicted"] is None


def test_a_rows_mesh_model_and_options_become_a_layout():
    (case,) = [case for case in read_cases(FILE) if case.id == "maxtext-a3-llama2-7b-4vm"]
    assert isinstance(case, Case)
    assert str(case.layout).startswith("data=4,fsdp=8,dcn.data=4,remat=dots")
    assert (case.batch, case.seq, case.target.name, case.transformer.d_ff) == (128, 4096, "h100:4x8", 11008)
    assert dict(case.layout.compiler_options) == ROWS[case.id]["xla_flags"]
    assert case.target.hardware.compiler_options == {}  # the run was told its own options and no others
    assert not case.training.scan_layers and case.differs == (ONE_HOT,)


def test_what_a_run_told_libtpu_and_jax_is_of_its_machine():
    cases = {case.id: case for case in read_cases(FILE)}
    trillium = cases["tpurec-Llama3.1-8B-MaxText-v6e-256"]
    assert trillium.target.hardware.compile_fields["chip_config_name"] == "megachip_tccontrol"
    assert not any("chip_config" in name for name, _ in trillium.layout.compiler_options)
    assert trillium.layout.remat == "offload:layer_input+query+key+value+attention_out"
    card = cases["dgxc-maxtext-llama3-70b-bf16-128"]
    assert card.target.memory_fraction == 0.94
    assert card.layout.remat == "save:layer_input+query+key+value"
    assert card.differs == (ONE_HOT, "its schedule was guided by a profile of an earlier run, ours is not")
    assert not any("pgle" in name for name, _ in card.layout.compiler_options)


@pytest.mark.parametrize(
    ("change", "missing"),
    [
        (lambda row: row.update(quantization="intmp (aqt)"), "quantization intmp"),
        (lambda row: row["optimizer"].update(type="shampoo"),
         "the optimizer: optimizer='shampoo' must be one of adamw, adafactor, lion, sgd, muon"),
        (lambda row: row["optimizer"].update(mu_dtype="int8"),
         "the optimizer: moments_dtype='int8' must be one of float32, bfloat16, float16"),
        (lambda row: row["mesh"].update(ici_fsdp_transpose_parallelism=2), "the mesh axis fsdp_transpose"),
        (lambda row: row["remat"].update(policy="save_out_proj"), "the remat policy save_out_proj"),
        (lambda row: row["model"].update(decoder_block="qwen3_next"),
         "the model's decoder_block='qwen3_next': gated delta net (linear attention) is not modelled"),
    ],
)  # fmt: skip
def test_what_cannot_be_expressed_is_named(tmp_path, change, missing):
    case = case_of(tmp_path, change)
    assert isinstance(case, Skipped) and case.reason == f"it cannot be expressed: {missing}"


def test_all_that_is_missing_is_named_at_once(tmp_path):
    def change(row):
        row["optimizer"]["type"] = "shampoo"
        row["quantization"] = "intmp"

    case = case_of(tmp_path, change)
    assert isinstance(case, Skipped) and "quantization intmp; the optimizer: optimizer=" in case.reason


def test_the_optimizer_and_the_dtypes_of_a_row_are_priced(tmp_path):
    def change(row):
        row["optimizer"] |= {"type": "lion", "mu_dtype": "bfloat16", "grad_dtype": "float32"}
        row["weight_dtype"] = "bfloat16"

    case = case_of(tmp_path, change)
    told = Training(optimizer="lion", weights_dtype="bfloat16", moments_dtype="bfloat16", gradients_dtype="float32")
    assert isinstance(case, Case) and case.training == told
    assert (case.stack.state.weights, case.stack.state.gradients, case.stack.state.optimizer) == (2.0, 4.0, 2.0)


def test_a_model_that_the_reference_lacks_parts_of_is_read_by_its_yml():
    cases = {case.id: case for case in read_cases(FILE)}
    small = cases["mt-v7x-qwen3-0.6b-eng-dp8-auto-ga1"]
    assert isinstance(small, Case) and small.transformer.architecture is not None
    assert small.transformer.parameters == 596_049_920
    large = cases["ironwood-qwen3-235b-a22b-256-4096-bf16"]
    assert isinstance(large, Case) and large.transformer.parameters == 235_093_634_560
    assert large.transformer.dropless and not any("dropping" in note for note in large.differs)


@pytest.mark.parametrize(
    ("tensors", "remat"),
    [
        ({"decoder_layer_input": "device"}, "full"),
        ({"decoder_layer_input": "offload"}, "offload"),
        (dict.fromkeys("decoder_layer_input context query_proj key_proj value_proj out_proj".split(), "device"),
         "attention"),
        ({"decoder_layer_input": "device", "context": "device"}, "save:layer_input+attention"),
        ({"decoder_layer_input": "device", "query_proj": "offload"}, "save:layer_input/offload:query"),
        ({"decoder_layer_input": "offload", "mlpwi_0": "device", "mlpwi_1": "device"},
         "save:mlp_gate+mlp_up/offload:layer_input"),
        ({"decoder_layer_input": "device", "mla_q": "device"}, None),
    ],
)  # fmt: skip
def test_arrays_kept_one_by_one_are_a_set_and_a_policy_where_they_are_the_same(tmp_path, tensors, remat):
    def change(row):
        row["remat"] = {"policy": "custom", "tensors": {"mlpwo": "remat", **tensors}}

    case = case_of(tmp_path, change)
    if remat is None:
        assert isinstance(case, Skipped) and "remat array by array" in case.reason
    else:
        assert isinstance(case, Case) and case.layout.remat == remat


@pytest.mark.parametrize(
    ("convention", "factor"),
    [
        ("MaxText, attention NON-causal", 1.0),
        ("MaxText, attention causal", None),
        ("per CHIP; MaxText, NON-causal", 2.0),
    ],
)
def test_a_published_rate_becomes_seconds_by_the_rows_own_convention(tmp_path, convention, factor):
    """At 100 TFLOP/s: 6 x parameters x tokens and attention, in full or its causal half; a chip is two devices."""

    def change(row):
        row["measured"] = {"tflops_per_device": 100.0, "flops_convention": convention}

    case = case_of(tmp_path, change, "mt-v7x8-llama2-d16-L12-fsdp8-s4096")
    assert isinstance(case, Case) and case.measured_from == "tflops_per_device"
    layers, width, heads, head_dim, d_ff, vocab, seq, batch, devices = 12, 2048, 8, 128, 8192, 32000, 4096, 8, 8
    matrices = layers * (4 * width * heads * head_dim + 3 * width * d_ff) + vocab * width
    attention = 12 * layers * heads * head_dim * seq * seq * batch
    flops = 6 * matrices * batch * seq + attention * (0.5 if factor is None else 1.0)
    assert case.measured_seconds == pytest.approx((factor or 1.0) * flops / (100e12 * devices), rel=1e-12)


def test_a_rate_of_no_stated_convention_gives_no_time(tmp_path):
    case = case_of(tmp_path, lambda row: row.update(measured={"tflops_per_device": 100.0}))
    assert isinstance(case, Case) and case.measured_seconds is None and case.measured_from is None


@pytest.mark.slow
def test_a_compiled_row_is_kept_and_an_unknown_id_refused(tmp_path):
    row = copy.deepcopy(ROWS[LLAMA])
    row |= {"id": "small", "chip": "cpu:8", "jax_devices": 8, "batch_sequences": 8, "seq": 64, "xla_flags": {}}
    row["mesh"] = {"ici_fsdp_parallelism": 8}
    row["model"] |= {"layers": 2, "d_model": 64, "heads": 4, "kv_heads": 4, "head_dim": 16, "d_ff": 128, "vocab": 256}
    cases, store = tmp_path / "rows.json", tmp_path / "store"
    cases.write_text(json.dumps([row, ROWS[LLAMA]]))
    arguments = ("--cases", cases, "--compile", "--only", "small", "--store", store, "--json")
    first = json.loads(run(*arguments).stdout)
    assert [(one["id"], one["source"]) for one in first] == [("small", "compiled")]
    kept = {path: path.stat().st_mtime_ns for path in (store / "entries").rglob("*") if path.is_file()}
    assert kept
    assert json.loads(run(*arguments).stdout) == first
    assert {path: path.stat().st_mtime_ns for path in (store / "entries").rglob("*") if path.is_file()} == kept
    refused = run("--cases", cases, "--only", "nothing")
    assert refused.exit_code == 2 and refused.stderr.count("\n") == 1 and "nothing" in refused.stderr


def test_an_option_that_todays_compiler_does_not_know_is_left_out_and_said():
    (case,) = [case for case in read_cases(FILE) if case.id == "jaxtb-maxtext-llama2-7b-8gpu"]
    refused = "JaxRuntimeError: INVALID_ARGUMENT: No such compile option: 'xla_gpu_graph_level'"
    known = predict.without_unknown_option(case, refused)
    assert dict(case.layout.compiler_options).keys() - dict(known.layout.compiler_options) == {"xla_gpu_graph_level"}
    assert known.differs[-1] == "without xla_gpu_graph_level=0, which this compiler does not know"
    assert predict.without_unknown_option(known, refused) is None
    assert predict.without_unknown_option(case, "RESOURCE_EXHAUSTED: Out of memory") is None


def test_the_table_of_the_docs_is_what_the_script_says():
    assert run("--cases", FILE).stdout.rstrip() == (ROOT / "docs" / "recipes.txt").read_text().rstrip()


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"micro_batches_per_step": 8, "shard_mode": "auto"}, {"accumulate": 8, "reduce": "pass"}),
        (
            {"micro_batches_per_step": 8, "shard_mode": "explicit: the all-reduce is deferred to the update"},
            {"accumulate": 8, "reduce": "step"},
        ),
        ({"gradient_accumulation_steps": 4}, {"accumulate": 4}),
        ({"num_vocab_tiling": 4}, {"vocab_tiles": 4}),
    ],
)
def test_what_a_row_says_beside_its_tables_is_part_of_its_step(tmp_path, told, words):
    case = case_of(tmp_path, lambda row: row["other"].update(told))
    assert {name: getattr(case.layout, name) for name in words} == words
    assert any("tiles of the tokens" in note for note in case.differs) == ("num_vocab_tiling" in told)


def test_a_field_that_nobody_reads_is_named(tmp_path):
    case = case_of(tmp_path, lambda row: row["other"].update(use_new_kernel=True))
    assert "not read: use_new_kernel=True" in case.differs


@pytest.mark.parametrize(
    ("name", "theirs", "ours"), [("enable_dropout", True, False), ("shard_exp_on_fsdp", True, False)]
)
def test_a_value_that_is_not_our_steps_is_named(tmp_path, name, theirs, ours):
    for value, named in ((theirs, True), (ours, False)):
        case = case_of(tmp_path, lambda row, value=value: row["other"].update({name: value}))
        assert (f"not read: {name}={value}" in case.differs) == named
