"""Model files of other codebases: what is counted, what each key became, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from other_models import COUNTED
from other_models import REFUSED as REFUSED_TOO
from published_models import FOLDER, PUBLISHED, files, table

from autotune.cli import run
from autotune.meshes.layout import parse_layout
from autotune.meshes.placement import default_dcn
from autotune.meshes.target import parse_target
from autotune.model_files import huggingface_keys, maxtext_keys
from autotune.model_files.maxtext_run import devices_batch, layout_of_run
from autotune.model_files.read import read_model
from autotune.model_files.read_model import architecture_of, describe
from autotune.model_files.shape import shape_of
from autotune.models.presets import PRESETS

DOCS = Path(__file__).parents[2] / "docs" / "models.md"
FILES = files()
MAXTEXT = Path(__file__).parent / "maxtext_llama3_8b.yml"


def write(tmp_path, values, name="config.json"):
    path = tmp_path / name
    path.write_text(yaml.safe_dump(values) if name.endswith(".yml") else json.dumps(values))
    return str(path)


def changed(name, **values):
    """A published config with some keys changed; a value of `...` takes the key away."""
    return {key: value for key, value in (FILES[name] | values).items() if value is not ...}


def test_every_published_count_is_met_and_the_page_shows_the_same_table():
    assert PUBLISHED.keys() == FILES.keys()
    lines = table()
    assert all(line.endswith("| PASS |") for line in lines[2:]), [line for line in lines[2:] if "PASS" not in line]
    assert "\n".join(lines) in DOCS.read_text()


@pytest.mark.parametrize("name", COUNTED)
def test_other_public_models_are_counted_as_published(name, tmp_path):
    """To all digits where these are published, else to half a per cent."""
    values, published = COUNTED[name]
    model = read_model(write(tmp_path, values))
    exact = isinstance(published, int)
    assert model.architecture.parameters == pytest.approx(published, rel=0 if exact else 6e-3)
    assert not [note for note in model.not_modelled if "unknown" in note]
    assert shape_of(model, model.architecture.position_rows or 2048).parameters == model.architecture.parameters


@pytest.mark.parametrize("name", REFUSED_TOO)
def test_other_public_models_are_refused_in_one_line(name, tmp_path, capsys):
    values, words = REFUSED_TOO[name]
    assert run(["models", write(tmp_path, values)]) == 2
    told = capsys.readouterr().err.strip()
    assert words in told and "\n" not in told


def test_an_unknown_name_is_read_as_the_one_that_is_said_for_it(tmp_path):
    path = write(tmp_path, changed("llama-3.1-8b", model_type="mine"))
    with pytest.raises(ValueError, match="--set model_type=llama"):
        read_model(path)
    assert read_model(path, ["model_type=llama"]).architecture.parameters == 8_030_261_248


STRANGE = ("x", [1], {"a": 1}, 0, -1, None, 1.5, True, 10**30)


@pytest.mark.parametrize("name", COUNTED)
def test_a_strange_value_of_any_key_is_read_or_refused_in_one_line(name, tmp_path):
    values = COUNTED[name][0]
    for place, key in enumerate(values):
        for value in (STRANGE[place % len(STRANGE)], STRANGE[(place + len(name)) % len(STRANGE)]):
            try:
                read_model(write(tmp_path, values | {key: value}))
            except ValueError as error:
                assert "\n" not in str(error)


@pytest.mark.parametrize("name", FILES)
def test_every_key_of_a_published_config_is_known(name):
    model = read_model(str(FOLDER / f"{name}.json"))
    assert not [note for note in model.not_modelled if "unknown" in note]
    assert sum(count for _, count in model.architecture.kinds) == len(model.architecture.layers)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_one_count(name):
    """The architecture of a uniform shape counts what the shape counts."""
    shape = PRESETS[name]
    architecture = architecture_of(shape)
    idle = shape.layers * (shape.mlp_parameters - shape.active_mlp_parameters)
    table_again = 0 if shape.tied_embeddings else shape.vocab * shape.d_model
    assert architecture.parameters == shape.parameters
    assert architecture.active_parameters == shape.parameters - idle - table_again


@pytest.mark.parametrize(("config", "preset"), [("llama-3.1-8b", "llama3-8b"), ("mixtral-8x7b", "mixtral-8x7b")])
def test_a_config_of_what_a_preset_describes_is_the_same_shape(config, preset):
    import dataclasses

    shape = shape_of(read_model(str(FOLDER / f"{config}.json")), 4096)
    assert dataclasses.replace(shape, name=preset) == PRESETS[preset]


def test_a_folder_gives_its_config_and_its_name(tmp_path):
    folder = tmp_path / "My-8B"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(FILES["llama-3.1-8b"]))
    assert read_model(str(folder)).architecture.name == "My-8B"
    assert read_model(str(folder / "config.json")).architecture.name == "My-8B"


LAYERS = {
    "deepseek-v3": [3, 58],
    "gemma-3-27b": [52, 10],
    "gpt-oss-20b": [12, 12],
    "llama-4-maverick": [24, 12, 12],
    "mistral-7b-v0.1": [32],
}


@pytest.mark.parametrize("name", LAYERS)
def test_the_document_of_a_file(name, capsys):
    assert run(["models", str(FOLDER / f"{name}.json"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert set(told) == {"name", "parameters", "active_parameters", "layers", "ignored", "not_modelled"}
    assert all(set(layer) == {"count", "attention", "mlp"} for layer in told["layers"])
    assert [layer["count"] for layer in told["layers"]] == LAYERS[name]


def test_windows_lie_where_the_code_of_the_family_puts_them():
    def windows(name):
        return [layer.attention.window for layer in read_model(str(FOLDER / f"{name}.json")).architecture.layers]

    assert windows("gemma-3-27b")[:7] == [1024] * 5 + [None, 1024]
    assert windows("gemma-2-9b")[:4] == [4096, None, 4096, None]
    assert windows("gpt-oss-20b")[:4] == [128, None, 128, None]
    assert windows("llama-4-scout")[:5] == [8192, 8192, 8192, None, 8192]
    assert set(windows("qwen2.5-7b")) == {None}


def test_sequences_within_a_window_are_attended_whole():
    mistral = read_model(str(FOLDER / "mistral-7b-v0.1.json"))
    assert [kind.attention.window for kind, _ in mistral.architecture.at_length(4096).kinds] == [None]
    assert [kind.attention.window for kind, _ in mistral.architecture.at_length(4097).kinds] == [4096]


def test_the_text_part_of_a_multimodal_config_is_read_and_said():
    model = read_model(str(FOLDER / "gemma-3-27b.json"))
    assert "text part" in model.source
    assert any(note.startswith("vision_config: only the text model") for note in model.not_modelled)


def test_each_key_is_sorted(tmp_path):
    values = changed("llama-3.1-8b", attention_dropout=0.1, wings=2, rope_theta=1e4, nothing=None)
    model = read_model(write(tmp_path, values))
    assert {"rope_theta", "nothing"} <= set(model.ignored)
    assert [note.partition(":")[0] for note in model.not_modelled] == ["attention_dropout", "wings"]
    assert "unknown key" in model.not_modelled[1]


REFUSED = {
    "mamba": ({"model_type": "mamba", "state_size": 16}, "state-space"),
    "jamba": (changed("llama-3.1-8b", model_type="jamba"), "state-space"),
    "a hybrid of a known family": (changed("llama-3.1-8b", mamba_d_state=128), "state-space"),
    "qwen3-next": (changed("qwen3-30b-a3b", model_type="qwen3_next"), "gated delta net"),
    "linear layers": (changed("qwen3-8b", layer_types=["linear_attention"] * 36), "gated delta net"),
    "t5": ({"model_type": "t5", "is_encoder_decoder": True}, "encoder-decoders"),
    "whisper": ({"model_type": "whisper"}, "encoder-decoders"),
    "siglip": ({"model_type": "siglip_vision_model"}, "vision towers"),
    "mllama": ({"model_type": "mllama", "text_config": {"model_type": "mllama_text_model"}}, "cross-attention"),
    "unknown": (changed("llama-3.1-8b", model_type="hyena"), "model_type='hyena' is no architecture"),
    "missing": (changed("llama-3.1-8b", hidden_size=...), "missing key 'hidden_size'"),
    "no number": (changed("llama-3.1-8b", num_hidden_layers="32"), "num_hidden_layers='32' must be a whole number"),
    "uneven": (changed("llama-3.1-8b", num_attention_heads=30), "must divide hidden_size=4096"),
    "activation": (changed("llama-3.1-8b", hidden_act="xielu"), "hidden_act='xielu' must be one of"),
    "kv heads": (changed("llama-3.1-8b", num_key_value_heads=5), "kv_heads=5 must divide heads=32"),
    "layer types": (changed("qwen3-8b", use_sliding_window=True, sliding_window=4096, layer_types=["full_attention"]),
                    "layer_types must be a list of 36 words"),
    "nothing known": ({"a": 1}, "is no model that is known here"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_another_kind_of_model_is_refused_in_one_line(case, tmp_path, capsys):
    values, words = REFUSED[case]
    assert run(["models", write(tmp_path, values)]) == 2
    told = capsys.readouterr().err.strip()
    assert words in told and "\n" not in told.partition("Error: ")[2]


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("Qwen/Qwen3-8B", "nothing is downloaded"),
        ("missing.json", "missing.json: No such file"),
        ("llama9", "is no preset"),
    ],
)
def test_no_file_is_one_line(model, words, capsys):
    assert run(["models", model]) == 2
    assert words in capsys.readouterr().err


def test_settings_replace_keys_and_unknown_ones_are_refused(tmp_path, capsys):
    config = write(tmp_path, FILES["gemma-3-27b"])
    assert len(read_model(config, ["num_hidden_layers=6"]).architecture.layers) == 6
    assert run(["models", config, "--set", "wings=2"]) == 2
    assert "--set wings" in capsys.readouterr().err
    assert run(["models", config, "--set", "wings"]) == 2
    assert "write KEY=VALUE" in capsys.readouterr().err
    assert run(["models", "llama3-8b", "--set", "layers=2"]) == 2


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("deep.json", "[" * 100_000, "nested too deeply"),
        ("deeper.json", '{"a": ' * 100_000, "nested too deeply"),
        ("deep.yml", "[" * 20_000, "nested too deeply"),
        ("twice.json", '{"model_type": "llama", "model_type": "gemma"}', "'model_type' is given twice"),
        ("twice.yml", "base_emb_dim: 1\nbase_emb_dim: 1", "'base_emb_dim' is given twice, in lines 1 and 2"),
        ("within.yml", "decoder_block: llama2\nx: [{a: 1, a: 2}]", "'a' is given twice, in lines 2 and 2"),
        ("quoted.yml", "decoder_block: llama2\n\n'decoder_block': gemma", "is given twice, in lines 1 and 3"),
        ("anchor.yml", "x: &x {a: *x, b: 1, b: 2}", "'b' is given twice, in lines 1 and 1"),
        ("nan.json", '{"model_type": "llama", "rope_theta": NaN}', "NaN is no number that JSON has"),
        ("digits.json", '{"model_type": "llama", "hidden_size": ' + "9" * 6000 + "}", "not JSON"),
        ("month.yml", "base_emb_dim: 2001-13-45", "month must be in 1..12"),
        ("maybe.yml", "base_emb_dim: !!bool maybe", "not YAML"),
        ("when.yml", "base_emb_dim: !!timestamp x", "not YAML"),
        ("digits.yml", "base_emb_dim: " + "9" * 6000, "not YAML"),
        ("call.yml", "x: !!python/object/apply:os.system ['touch called']", "not YAML"),
    ],
)
def test_a_damaged_file_is_one_line(name, text, said, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(name).write_text(text)
    assert run(["models", name]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and len(error) < 1000
    assert not Path("called").exists()


def test_yml_that_merges_others_gives_no_key_twice(tmp_path):
    """`<<` may stand twice, and a mapping may set anew what it merges."""
    values = dict.fromkeys(("a", "b"), 1)
    path = tmp_path / MAXTEXT.name
    path.write_text(f"x: &x {values}\ny: &y {values}\nz: {{<<: *x, <<: *y, a: 2}}\n" + MAXTEXT.read_text())
    assert read_model(str(path)).architecture == read_model(str(MAXTEXT)).architecture


@pytest.mark.parametrize("setting", ["no_such_key=", "no_such_key=null", "no_such_key=~", "no_such_key=!!bool maybe"])
@pytest.mark.parametrize(
    "file", [str(FOLDER / "llama-3.1-8b.json"), str(Path(__file__).parent / "maxtext_llama3_8b.yml")]
)
def test_a_key_that_no_file_has_is_refused_whatever_its_value(file, setting, capsys):
    assert run(["models", file, "--set", setting]) == 2
    assert "--set no_such_key: is no key that such a file has" in capsys.readouterr().err


def test_a_maxtext_model_is_the_config_of_the_same_model():
    ours = read_model(str(MAXTEXT))
    theirs = read_model(str(FOLDER / "llama-3.1-8b.json"))
    assert ours.architecture.layers == theirs.architecture.layers
    assert ours.architecture.parameters == theirs.architecture.parameters
    assert not ours.not_modelled


def test_a_maxtext_run_is_base_yml_under_the_model_under_the_command_line(tmp_path):
    base = {"run_name": "", "model_name": "default", "decoder_block": "llama2", "per_device_batch_size": 12.0,
            "max_target_length": 2048, "remat_policy": "full", "ici_fsdp_parallelism": -1, "opt_type": "adamw",
            "base_emb_dim": 2048, "vocab_size": 32000}  # fmt: skip
    path = write(tmp_path, base, "base.yml")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "llama3.1-8b.yml").write_text(MAXTEXT.read_text())
    model = read_model(path, ["model_name=llama3.1-8b", "remat_policy=minimal", "per_device_batch_size=2"])
    assert model.architecture.name == "llama3.1-8b" and model.architecture.parameters == 8_030_261_248
    assert (model.run["remat"], model.run["per_device_batch"], model.run["ici"]) == ("minimal", 2, {"fsdp": -1})
    alone = read_model(str(tmp_path / "models" / "llama3.1-8b.yml"))
    assert alone.run["seq"] == 2048 and alone.architecture.parameters == 8_030_261_248
    with pytest.raises(ValueError, match="model_name='nobody'"):
        read_model(path, ["model_name=nobody"])


def test_a_run_over_a_named_base_takes_the_model_that_it_names(tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "gpu" / "models").mkdir(parents=True)
    (tmp_path / "models" / "llama3.1-8b.yml").write_text(MAXTEXT.read_text())
    write(tmp_path, {"run_name": "", "model_name": "default", "remat_policy": "full"}, "base.yml")
    own = {"base_config": "base.yml", "run_name": "mine", "model_name": "llama3.1-8b", "remat_policy": "minimal"}
    model = read_model(write(tmp_path / "gpu" / "models", own, "mine.yml"))
    assert (model.architecture.parameters, model.run["remat"]) == (8_030_261_248, "minimal")
    with pytest.raises(ValueError, match="base_config='bass.yml': there is no such file"):
        read_model(write(tmp_path, own | {"base_config": "bass.yml"}, "mine.yml"))


BASE = {"run_name": "", "decoder_block": "llama2", "per_device_batch_size": 2, "max_target_length": 64,
        "remat_policy": "full", "ici_fsdp_parallelism": -1, "dcn_data_parallelism": -1, "opt_type": "adamw",
        "weight_dtype": "float32", "mu_dtype": "", "dtype": "bfloat16", "base_emb_dim": 64, "base_num_query_heads": 4,
        "base_num_kv_heads": 4, "base_mlp_dim": 128, "base_num_decoder_layers": 8, "head_dim": 16, "vocab_size": 256,
        "gradient_accumulation_steps": 1}  # fmt: skip
LAYOUTS = [
    ("v5p:4x4x4", {}, "fsdp=64,remat=full", 128),
    ("v5p:4x4x4*2", {"ici_tensor_parallelism": 4}, "data=2,fsdp=16,tensor=4,dcn.data=2,remat=full", 256),
    ("v5e:4x4", {"remat_policy": "custom", "decoder_layer_input": "offload", "query_proj": "device", "context": "remat",
                 "mlpwi_0": "offload"}, "fsdp=16,remat=save:query/offload:layer_input+mlp_gate", 32),
    ("v5e:4x4", {"remat_policy": "qkv_proj_offloaded", "gradient_accumulation_steps": 4},
     "fsdp=16,remat=save:layer_input/offload:query+key+value,accumulate=4", 128),
    ("v5e:4x4", {"ici_pipeline_parallelism": 4, "num_pipeline_microbatches": 8, "num_layers_per_pipeline_stage": 1,
                 "per_device_batch_size": 0.5},
     "fsdp=4,stage=4,remat=full,microbatches=8,schedule=circular,virtual_stages=2", 8),
    ("v5e:4x4", {"ici_context_parallelism": 2, "context_parallel_strategy": "ring", "ici_fsdp_parallelism": 8},
     "fsdp=8,context=2,remat=full,context_attention=ring", 32),
    ("v5e:4x4", {"ici_fsdp_parallelism": 2, "ici_fsdp_transpose_parallelism": -1}, "fsdp=16,remat=full", 32),
    ("v5e:4x4", {"ici_fsdp_parallelism": 2, "ici_fsdp_transpose_parallelism": 4, "ici_tensor_parallelism": 2},
     "fsdp=8,tensor=2,remat=full", 32),
    ("h100:2x8", {"dcn_data_parallelism": 1, "dcn_fsdp_parallelism": 2, "remat_policy": "minimal_with_context"},
     "fsdp=16,dcn.fsdp=2,remat=dots", 32),
]  # fmt: skip


@pytest.mark.parametrize(("target", "changes", "layout", "batch"), LAYOUTS)
def test_the_keys_of_a_maxtext_run_are_a_layout_and_a_batch(target, changes, layout, batch, tmp_path):
    machine = parse_target(target)
    told = read_model(write(tmp_path, BASE | changes, "base.yml")).run
    found = layout_of_run(told, 8, machine, "file")
    assert found == default_dcn(parse_layout(layout), machine)
    assert devices_batch(told, machine, "file") == batch


def test_a_second_axis_of_fsdp_is_read_as_fsdp_and_said(tmp_path):
    said = {"ici_fsdp_parallelism": 2, "ici_fsdp_transpose_parallelism": 8}
    notes = read_model(write(tmp_path, BASE | said, "base.yml")).not_modelled
    assert any(note.startswith("ici_fsdp_transpose_parallelism: 8 is read as fsdp") for note in notes)


def test_a_mesh_of_another_machine_is_refused():
    machine = parse_target("v5e:4x4")
    for told, words in (({"ici": {"fsdp": 8}}, "multiply to 8, v5e:4x4 has 16 devices in a slice"),
                       ({"ici": {"fsdp": -1, "data": -1}}, "are -1; one may be"),
                       ({"ici": {"fsdp": 16}, "dcn": {"data": 2}}, "multiply to 2, v5e:4x4 has 1 slices")):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            layout_of_run(told, 8, machine, "file")
    with pytest.raises(ValueError, match="must be a whole number"):
        devices_batch({"per_device_batch": 0.01}, machine, "file")


@pytest.mark.parametrize("key", BASE)
@pytest.mark.parametrize("value", ["x", [1], {"a": 1}, 0, -2, 1.5, True, 10**30])
def test_a_strange_value_of_a_maxtext_key_is_read_or_refused_in_one_line(key, value, tmp_path):
    try:
        model = read_model(write(tmp_path, BASE | {key: value}, "mine.yml"))
        layout_of_run(model.run, 8, parse_target("v5e:4x4"), "file")
    except ValueError as error:
        assert "\n" not in str(error)


@pytest.mark.slow
def test_explain_shows_what_a_maxtext_run_runs(tmp_path, capsys):
    path = write(tmp_path, BASE | {"dtype": "float32", "weight_dtype": "bfloat16"}, "base.yml")
    words = ["explain", "--model", path, "--target", "cpu:8", "--no-measure", "--store", str(tmp_path / "store")]
    assert run([*words, "--set", "ici_tensor_parallelism=2", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["best"]["text"] == "fsdp=4,tensor=2,remat=full" and told["best"]["status"] == "compiled"
    assert "batch 16 x 64 tokens, float32" in told["workload"]
    assert told["taken"].startswith("float32 compute, bfloat16 weights and moments") and told["ignored"]
    (tmp_path / "far" / "away").mkdir(parents=True)
    alone = write(tmp_path / "far" / "away", {"decoder_block": "llama2", "base_emb_dim": 64}, "alone.yml")
    assert run(["explain", "--model", alone, "--target", "cpu:8"]) == 2
    assert "give one of PLAN and --layout" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"decoder_block": "qwen3_next"}, "gated delta net"),
        ({"decoder_block": "envy"}, "decoder_block='envy' is not known"),
        ({"engram_layers": [1]}, "engram layers are not modelled"),
        ({"use_indexer": True}, "indexer is not modelled"),
        ({"global_parameter_scale": 8}, "must be 1"),
        ({"mlp_activations": ["xielu"]}, "mlp_activations=.* must be one of"),
        ({"opt_type": "shampoo"}, "opt_type='shampoo' must be one of"),
        ({"ici_fsdp_parallelism": 0}, "ici_fsdp_parallelism=0 must be"),
        ({"decoder_block": "gemma3", "sliding_window_size": 0}, "sliding_window_size must be above 0"),
    ],
)
def test_a_maxtext_file_of_another_model_is_refused(values, words, tmp_path):
    told = yaml.safe_load(MAXTEXT.read_text()) | values
    with pytest.raises(ValueError, match=words):
        read_model(write(tmp_path, told, "mine.yml"))


def test_features_of_maxtext_that_no_price_has_are_named(tmp_path):
    told = yaml.safe_load(MAXTEXT.read_text()) | {"quantization": "int4w", "num_vocab_tiling": 4, "mtp_num_layers": 0}
    model = read_model(write(tmp_path, told, "mine.yml"))
    assert layout_of_run(model.run, 32, parse_target("v5e:1x1"), "mine.yml").vocab_tiles == 4
    assert sorted(note.partition(":")[0] for note in model.not_modelled) == ["num_vocab_tiling", "quantization"]
    assert "mtp_num_layers" in model.ignored


@pytest.mark.parametrize(("value", "dtype"), [("int8", "int8"), ("fp8_full", "float8"), ("", None)])
def test_quantised_matmuls_of_maxtext_are_priced(value, dtype, tmp_path):
    model = read_model(write(tmp_path, yaml.safe_load(MAXTEXT.read_text()) | {"quantization": value}, "mine.yml"))
    assert model.run.get("matmul_dtype") == dtype
    assert not any(note.startswith("quantization") for note in model.not_modelled)


@pytest.mark.parametrize("module", [huggingface_keys, maxtext_keys])
def test_no_key_is_listed_twice(module):
    listed = [key for keys in module.NEUTRAL.values() for key in keys]
    assert len(listed) == len(set(listed))


def test_the_list_of_reference_models_stands_as_before(capsys):
    assert run(["models", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert {one["name"]: one["parameters"] for one in listed} == {n: s.parameters for n, s in PRESETS.items()}


def test_describe_counts_layers_by_kind():
    told = describe(read_model(str(FOLDER / "deepseek-v3.json")))
    assert "latent" in told["layers"][0]["attention"] and "8 of 256" in told["layers"][1]["mlp"]


def test_the_room_of_an_expert_can_be_set_for_every_kind_of_model(tmp_path):
    own = {"layers": 2, "d_model": 64, "heads": 4, "d_ff": 32, "vocab": 64, "experts": 8, "experts_per_token": 2}
    ours = write(tmp_path, own, "ours.json")
    theirs = str(FOLDER / "mixtral-8x7b.json")
    for model in ("mixtral-8x7b", ours, theirs):
        assert shape_of(read_model(model)).capacity_factor == 1.25
        assert shape_of(read_model(model, ("capacity_factor=2",))).capacity_factor == 2
        dropless = read_model(model, ("capacity_factor=dropless",))
        assert shape_of(dropless).dropless and not any("1.25" in note for note in dropless.not_modelled)
    assert any("1.25" in note for note in read_model(theirs).not_modelled)
    for word in ("dropless", None):
        assert shape_of(read_model(write(tmp_path, own | {"capacity_factor": word}, "ours.json"))).dropless


@pytest.mark.parametrize(
    ("said", "room"),
    [
        ({}, 1.25),
        ({"capacity_factor": -1.0}, None),
        ({"capacity_factor": 0, "sparse_matmul": True, "megablox": True}, None),
        ({"capacity_factor": "dropless"}, None),
        ({"capacity_factor": -1.0, "sparse_matmul": False}, 1.25),
        ({"capacity_factor": 1.5, "sparse_matmul": False}, 1.5),
    ],
)
def test_maxtext_says_whether_tokens_are_dropped(said, room, tmp_path):
    experts = {"decoder_block": "mixtral", "num_experts": 8, "num_experts_per_tok": 2}
    told = yaml.safe_load(MAXTEXT.read_text()) | experts | said
    model = read_model(write(tmp_path, told, "mine.yml"))
    assert shape_of(model).capacity_factor == room
    assert any("1.25" in note for note in model.not_modelled) == (room == 1.25)


@pytest.mark.parametrize(
    ("model", "setting", "words"),
    [
        ("mixtral-8x7b", "capacity_factor=some", "capacity_factor='some': capacity_factor must be a number above 0"),
        ("mixtral-8x7b", "capacity_factor=0", "must be a number above 0, at most 1e6, or dropless"),
        ("mixtral-8x7b", "capacity_factor=", "must be a number above 0, at most 1e6, or dropless"),
        ("mixtral-8x7b", "layers=2", "is a preset, which has no other key to set"),
        ("llama3-8b", "capacity_factor=dropless", "llama3-8b has no experts"),
        (str(MAXTEXT), "capacity_factor=[1]", r"capacity_factor=\[1\] must be a number or dropless"),
    ],
)
def test_a_room_that_is_none_is_refused(model, setting, words):
    with pytest.raises(ValueError, match=words):
        read_model(model, (setting,))
