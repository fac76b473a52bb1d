"""Emitted plans, read back by each codebase's own rules: the same mesh, and every array cut over as many devices.

The rules are written down here from each codebase's source, named beside them. The texts of these layouts were also
read by the packages themselves: the config class of maxtext 0.2.5 and the MeshConfig of marin-levanter 0.2.227 took
them and made these meshes and rules (both want Python 3.12 and dozens of packages, so the tests do without). PyPI's
AXLearn is of early 2024, before the settings that are emitted; EasyLM is not there. Flax is installed, so its code is
run. Where a codebase cuts an array otherwise than the plan and no flag changes it, the text must say so.
"""

import dataclasses
import math
import re
import types

import jax
import pytest
import yaml
from test_plan import PLAN, plan_for

from autotune.meshes.layout import AXES, Layout, layout_to_json
from autotune.meshes.sharding import rules_of
from autotune.plan.emit import CODEBASES, emit

LAYOUTS = {
    "fsdp=64,tensor=4": "v5e:16x16",
    "data=8,fsdp=32,zero=1,remat=attention": "v5e:16x16",
    "data=2,fsdp=32,tensor=4,remat=full,accumulate=2": "v5e:16x16",
    "data=4,fsdp=64,tensor=2,dcn.data=2,remat=minimal,sequence_parallel=0": "v5e:16x16*2",
    "fsdp=128,context=2,expert=2,dcn.fsdp=2,remat=dots,context_attention=ring": "v5e:16x16*2",
    "fsdp=64,context=4,remat=offload,offload=optimizer": "v5e:16x16",
    "stage=4,data=2,fsdp=16,tensor=2,dcn.stage=2,microbatches=8,schedule=gpipe": "v5e:8x16*2",
    "stage=2,fsdp=128,microbatches=4,schedule=1f1b,zero=2": "v5e:16x16",
    "data=64,tensor=4,zero=2": "v5e:16x16",
    "fsdp=64,tensor=4,remat=save:layer_input+query+attention/offload:key+value+mlp_up": "v5e:16x16",
    "fsdp=128,tensor=2,remat=save:query+key+value/offload:attention": "v5e:16x16",
    "fsdp=256,remat=save:attention_out+mlp_gate+mlp_out/offload:layer_input": "v5e:16x16",
}
CASES = [plan_for(text, target) for text, target in LAYOUTS.items()]

MAXTEXT = {
    "embed": ("fsdp", "fsdp_transpose", "context", "expert"),
    "heads": ("tensor", "tensor_sequence"),
    "kv_heads": ("tensor", "tensor_sequence"),
    "mlp": ("fsdp_transpose", "tensor", "tensor_sequence"),
    "vocab": ("tensor", "tensor_sequence"),
    "experts": ("expert",),
    "layers": ("stage",),
    "batch": ("data", "fsdp", "fsdp_transpose", "expert"),
    "length": ("context",),
    "norm_length": ("tensor_sequence", "context"),
}
"""AI-Hypercomputer/maxtext src/maxtext/configs/base.yml, `logical_axis_rules`: embed, heads, kv_heads, mlp, vocab, exp,
layers, activation_batch, activation_length, activation_norm_length. Its mesh axes are the words of `ici_*_parallelism`
(inside a slice) and `dcn_*_parallelism`, `pipeline` being `stage`; their products must be the devices of a slice and
the slices. Global batch: per_device_batch_size x devices x gradient_accumulation_steps (configs/pyconfig_deprecated.py
calculate_global_batch_sizes); num_pipeline_microbatches must be a multiple of the stages (base.yml)."""

MAXTEXT_SAVES = {
    "minimal_with_context": "dots",
    "minimal": "minimal",
    "save_dot_with_context_except_mlp": "attention",
    "full": "full",
    "none": "none",
}
"""src/maxtext/layers/decoders.py get_remat_policy: what each saves is said in `autotune.models.remat`; the keys of
`custom` are below."""

MAXTEXT_ARRAYS = {
    "decoder_layer_input": "layer_input", "query_proj": "query", "key_proj": "key", "value_proj": "value",
    "context": "attention", "out_proj": "attention_out", "mlpwi_0": "mlp_gate", "mlpwi_1": "mlp_up",
    "mlpwi": "mlp_up", "mlpwo": "mlp_out",
}  # fmt: skip
MAXTEXT_DEFAULTS = {**dict.fromkeys(MAXTEXT_ARRAYS, "remat"), "decoder_layer_input": "device"}
"""base.yml, under remat_policy: "If "custom" remat_policy is chosen, you can select tensors from the following list to
offload on host memory, rematerialize or save on device memory", each 'remat' by default but decoder_layer_input:
'device', which "cannot be rematerialized - it serves as periodic checkpoints that act as the remat start points".
layers/attentions.py and layers/linears.py name what each is: query_proj and key_proj after rotation, context the
kernel's output, mlpwi_N the Nth of the MLP's first matmuls (mlpwi the only one), the activation being on the 0th."""

EASYLM = {"embed": ("fsdp",), "heads": ("mp",), "kv_heads": ("mp",), "mlp": ("mp",), "vocab": ("mp",),
          "batch": ("dp", "fsdp")}  # fmt: skip
"""young-geng/EasyLM EasyLM/models/llama/llama_model.py LLaMAConfigurator.get_partition_rules (kernels over fsdp and mp)
and llama_train.py train_step (batch over dp and fsdp). EasyLM/jax_utils.py get_jax_mesh: "name:size,..." must name each
of dp, fsdp, mp; get_gradient_checkpoint_policy: the four names; '' is no remat. optimizers.py: MultiSteps over
accumulate_gradient_steps batches."""
EASYLM_POLICIES = ("everything_saveable", "nothing_saveable", "checkpoint_dots", "checkpoint_dots_with_no_batch_dims")

AXLEARN = {
    "embed": ("expert", "fsdp", "seq"),
    "heads": ("model",),
    "kv_heads": ("model",),
    "mlp": ("model",),
    "layers": ("pipeline",),
    "batch": ("data", "expert", "fsdp"),
    "length": ("seq",),
}
"""apple/axlearn axlearn/experiments/text/gpt/common.py: MESH_AXIS_NAMES, mesh_shape_from_axes (sizes by keyword, 1 by
default, in that order) and model_config (set_double_shard_weights_config for attention and feed-forward weights,
batch_axis_names, seq_axis_names). common/utils.py HybridMeshShape: one such shape inside a slice, one between.
common/trainer_config_modifier.py: GradientAccumulationModifier(grad_acc_steps); RematSpecModifier sets `remat_spec` of
model.decoder.transformer.layer."""

LEVANTER_REMAT = {"true": ("dots", "minimal", "attention", "full"), "false": ("none",), "offload": ("offload",)}
"""stanford-crfm/haliax src/haliax/nn/scan.py ScanCheckpointPolicy.from_bool_or_str: true keeps carries and recomputes
blocks, false disables it, "offload" moves carries to the host."""


def split(plan):
    """(inside a slice, between slices) sizes of our axes."""
    outer = plan.layout.dcn_axes
    return {axis: size // outer[axis] for axis, size in plan.layout.axes.items()}, outer


def sizes(found: dict[str, int]) -> dict[str, int]:
    return {axis: found.get(axis, 1) for axis in AXES}


def cuts(plan) -> dict[str, int]:
    """Pieces each logical axis is cut into: of weights at rest, and of activations."""
    rules = rules_of(plan.layout)
    weights = ("embed", "heads", "kv_heads", "mlp", "vocab", "experts", "layers")
    tables = {name: rules.storage[name] for name in weights}
    tables |= {name: rules.activations[name] for name in ("batch", "length", "norm_length")}
    return {name: math.prod(plan.layout.axes[axis] for axis in axes) for name, axes in tables.items()}


def read_back_remat(flags: dict[str, str], remat: str) -> None:
    """What MaxText does with each array is what the layout says, by the name of a policy or array by array."""
    if flags["remat_policy"] != "custom":
        assert MAXTEXT_SAVES[flags["remat_policy"]] == remat
        assert not MAXTEXT_ARRAYS.keys() & flags.keys()
        return
    told = {key: flags.get(key, default) for key, default in MAXTEXT_DEFAULTS.items()}
    assert set(told.values()) <= {"remat", "device", "offload"} and told["decoder_layer_input"] != "remat"
    # query, key and value from one matmul (fused_qkv)
    three = {told[key] for key in ("query_proj", "key_proj", "value_proj")}
    assert flags.get("qkv_proj", "remat") == (three.pop() if len(three) == 1 else "remat")
    does = {"remat": "recompute", "device": "device", "offload": "host"}
    expected = layout_to_json(Layout(remat=remat))["remat_arrays"]
    assert {name: expected[name] for name in MAXTEXT_ARRAYS.values()} == {
        MAXTEXT_ARRAYS[key]: does[word] for key, word in told.items()
    }


def theirs(rules: dict[str, tuple[str, ...]], axes: dict[str, int]) -> dict[str, int]:
    return {name: math.prod(axes.get(axis, 1) for axis in used) for name, used in rules.items()}


def agree(plan, text: str, found: dict[str, int], said: dict[str, str]) -> None:
    """Every cut is the plan's, or the text says what differs."""
    ours = cuts(plan)
    for name, pieces in found.items():
        assert pieces == ours[name] or (name in said and said[name] in text), (name, pieces, ours[name])


def emitted(codebase: str):
    """(plan, text) of every layout that this codebase takes; the refused ones are refused in one line."""
    for plan in CASES:
        try:
            yield plan, emit(plan, codebase)
        except ValueError as error:
            assert "\n" not in str(error) and str(error).startswith("emit: ")


def test_maxtext():
    plans = list(emitted("maxtext"))
    assert len(plans) == len(CASES)
    for plan, text in plans:
        layout = plan.layout
        flags = dict(re.findall(r"^  (\w+)=(\S+?)(?: \\)?$", text, re.M))
        tensor = "tensor_sequence" if layout.sequence_parallel else "tensor"
        own = {name: name for name in ("data", "fsdp", "context", "expert")} | {"pipeline": "stage", tensor: "tensor"}
        tiers = {tier: {name: int(flags.pop(f"{tier}_{name}_parallelism")) for name in own} for tier in ("ici", "dcn")}
        assert not any(name.endswith("_parallelism") for name in flags)
        for found, expected in zip(tiers.values(), split(plan), strict=True):
            assert {own[name]: size for name, size in found.items()} == sizes(expected)
        axes = {name.replace("pipeline", "stage"): tiers["ici"][name] * tiers["dcn"][name] for name in own}
        along = "MaxText cuts weights along"
        plain = not layout.sequence_parallel
        agree(plan, text, theirs(MAXTEXT, axes), {"embed": along, **({"norm_length": ""} if plain else {})})
        batch = float(flags["per_device_batch_size"]) * plan.devices * int(flags["gradient_accumulation_steps"])
        assert batch == plan.sequences and int(flags["max_target_length"]) == plan.seq
        read_back_remat(flags, layout.remat)
        # configs/types.py: Zero-1 "cannot be combined with FSDP".
        assert (flags.get("shard_optimizer_over_data") == "True") == (layout.zero > 0 and layout.fsdp == 1)
        assert ("zero=2 is said as zero=1" in text) == (layout.zero == 2 and layout.fsdp == 1)
        assert (f"not expressed: zero={layout.zero}: MaxText refuses" in text) == (layout.zero > 0 and layout.fsdp > 1)
        assert (flags.get("optimizer_memory_host_offload") == "True") == (layout.offload == "optimizer")
        if layout.context > 1:
            strategy = {"gather": "all_gather", "ring": "ring"}[layout.context_attention]
            assert flags["context_parallel_strategy"] == strategy
            # configs/types.py: a ring on TPUs "requires attention=flash" and "use_tokamax_splash=True".
            ring = ("flash", "True") if strategy == "ring" else (None, None)
            assert (flags.get("attention"), flags.get("use_tokamax_splash")) == ring
        if layout.stage > 1:
            assert int(flags["num_pipeline_microbatches"]) == layout.microbatches
            assert layout.microbatches % layout.stage == 0
            assert f"num_layers_per_pipeline_stage to the layers / {layout.stage * layout.virtual_stages}" in text
            assert ("not expressed: schedule=1f1b" in text) == (layout.schedule == "1f1b")


def levanter_axes(mesh: dict, plan) -> tuple[dict[str, int], dict[str, int]]:
    """marin-community/marin lib/levanter/src/levanter/utils/mesh.py MeshConfig.axis_shapes."""
    axes = {"data": -1, "replica": 1, "model": 1} | mesh["axes"]
    between = {"replica_dcn": -1} | mesh["dcn_axes"]
    assert not axes.keys() & between.keys() and -1 not in (*axes.values(), *between.values())
    assert math.prod(axes.values()) == plan.devices // plan.groups
    assert math.prod(between.values()) == plan.groups
    return axes, between


@pytest.mark.parametrize("inherited", [True, False], ids=["params take shared_mapping", "params do not"])
def test_levanter(inherited):
    """MeshConfig.resolved_compute_mapping and resolved_param_mapping, in both versions of the latter."""
    plans = list(emitted("levanter"))
    assert [plan for plan in CASES if plan.layout.stage == 1] == [plan for plan, _ in plans]
    for plan, text in plans:
        config = yaml.safe_load(text)
        mesh = config["trainer"]["mesh"]
        axes, between = levanter_axes(mesh, plan)
        shared = {"mlp": "model", "heads": "model"} | mesh["shared_mapping"]
        compute = shared | mesh["compute_mapping"]
        params = (shared if inherited else {}) | mesh["param_mapping"]
        everywhere = axes | between

        def pieces(names, everywhere=everywhere) -> int:
            return math.prod(everywhere[name] for name in ((names,) if isinstance(names, str) else names))

        weights = {"embed": "embed", "heads": "heads", "kv_heads": "kv_head", "mlp": "mlp", "vocab": "vocab",
                   "experts": "experts"}  # fmt: skip
        found = {ours: pieces(params.get(own, ())) for ours, own in weights.items()}
        found |= {ours: pieces(compute.get(own, ())) for ours, own in (("batch", "batch"), ("length", "position"))}
        agree(plan, text, found, {})
        assert all(compute.get(own) == params.get(own) for own in ("heads", "mlp", "vocab", "experts"))
        # Trainer: train_batch_size is a multiple of per_device_parallelism x the batch axes; the rest is accumulated.
        trainer = config["trainer"]
        passes = trainer["train_batch_size"] / (trainer["per_device_parallelism"] * found["batch"])
        assert passes == plan.layout.accumulate and trainer["train_batch_size"] == plan.sequences
        word = str(config["model"]["gradient_checkpointing"]).lower()
        assert plan.layout.remat in LEVANTER_REMAT[word] or (word == "true" and "save:" in plan.layout.remat)
        assert ("whole layers are recomputed" in text) == (
            plan.layout.remat in ("dots", "minimal", "attention") or "save:" in plan.layout.remat
        )


def test_easylm():
    plans = list(emitted("easylm"))
    assert len(plans) == 8  # no stage, context or expert axis
    for plan, text in plans:
        flags = dict(re.findall(r"^  --([\w.]+)='(\S*?)'", text, re.M))
        named = flags["mesh_dim"].removeprefix("!").split(",")
        dims = {name: int(size) for name, size in (part.split(":") for part in named)}
        assert set(dims) == {"dp", "fsdp", "mp"} and math.prod(dims.values()) == plan.devices
        agree(plan, text, theirs(EASYLM, dims), {})
        batch = int(flags["train_dataset.json_dataset.batch_size"])
        assert batch * int(flags["optimizer.accumulate_gradient_steps"]) == plan.sequences
        assert flags["llama.remat_block"] in ("", *EASYLM_POLICIES)
        assert (flags["llama.remat_block"] == "") == (plan.layout.remat == "none")
        assert flags["llama.remat_mlp"] == flags["llama.remat_attention"] == ""
        for axis, factor in plan.layout.dcn:
            assert f"not expressed: dcn.{axis}={factor}" in text


def test_axlearn(monkeypatch):
    names = ("pipeline", "data", "expert", "fsdp", "seq", "model")

    def mesh_shape_from_axes(*, pipeline=1, data=1, expert=1, fsdp=1, seq=1, model=1):
        return (pipeline, data, expert, fsdp, seq, model)

    class Modifier:
        """A config that is its own instance, as ConfigModifier's."""

        default_config = classmethod(lambda cls: cls())

        def set(self, *, grad_acc_steps):
            self.steps = grad_acc_steps
            return self

        def instantiate(self):
            return self

        def __call__(self, cfg):
            cfg.steps = self.steps
            return cfg

    found_modules = {
        "axlearn": {},
        "axlearn.common": {},
        "axlearn.common.utils": {"HybridMeshShape": types.SimpleNamespace},
        "axlearn.common.base_layer": {"RematSpec": types.SimpleNamespace},
        "axlearn.common.trainer_config_modifier": {"GradientAccumulationModifier": Modifier},
        "axlearn.experiments": {},
        "axlearn.experiments.text": {},
        "axlearn.experiments.text.gpt": {},
        "axlearn.experiments.text.gpt.common": {
            "MESH_AXIS_NAMES": names, "mesh_shape_from_axes": mesh_shape_from_axes,
        },
    }  # fmt: skip
    for name, values in found_modules.items():
        module = types.ModuleType(name)
        module.__dict__.update(values)
        monkeypatch.setitem(__import__("sys").modules, name, module)
    ours = dict(zip(names, ("stage", "data", "expert", "fsdp", "context", "tensor"), strict=True))
    plans = list(emitted("axlearn"))
    assert len(plans) == len(CASES)
    for plan, text in plans:
        layer = types.SimpleNamespace(remat_spec="theirs")
        model = types.SimpleNamespace(decoder=types.SimpleNamespace(transformer=types.SimpleNamespace(layer=layer)))
        scope = {"cfg": types.SimpleNamespace(model=model, steps=1)}
        exec(text, scope)
        cfg = scope["cfg"]
        shape = cfg.mesh_shape
        tiers = (shape.ici_mesh_shape, shape.dcn_mesh_shape) if plan.layout.dcn else (shape, (1,) * 6)
        for found, expected in zip(tiers, split(plan), strict=True):
            assert {ours[name]: size for name, size in zip(cfg.mesh_axis_names, found, strict=True)} == sizes(expected)
        axes = {name: inner * outer for name, inner, outer in zip(names, *tiers, strict=True)}
        agree(plan, text, theirs(AXLEARN, axes), {"embed": "AXLearn's GPT configs cut weights along"})
        assert cfg.batch_axis_names == AXLEARN["batch"] and cfg.mesh_rules is None
        assert cfg.steps == plan.layout.accumulate
        policy = getattr(layer.remat_spec, "policy", None)
        expected = {"none": None, "dots": "dots_with_no_batch_dims_saveable",
                    "minimal": "dots_with_no_batch_dims_saveable"}  # fmt: skip
        wanted = expected.get(plan.layout.remat, "nothing_saveable")
        assert policy is (getattr(jax.checkpoint_policies, wanted) if wanted else None)
        if plan.layout.stage > 1:
            assert f"PipelinedTransformerLayer of {plan.layout.stage} stages with {plan.layout.microbatches}" in text


def test_flax_code_runs_and_gives_the_same_mesh_and_shardings():
    import flax.linen as nn

    scope: dict = {}
    exec(emit(PLAN, "flax"), scope)
    assert scope["mesh"].devices.flatten().tolist() == PLAN.mesh().devices.flatten().tolist()
    assert dict(scope["mesh"].shape) == {"fsdp": 2, "tensor": 4}
    for names in (("embed", "mlp"), ("batch", "length", "embed"), ("vocab", "embed")):
        ours = nn.logical_to_mesh_axes(names, [(one, axes) for one, axes in PLAN.partition.rules])
        theirs = nn.logical_to_mesh_axes(names, scope["LOGICAL_AXIS_RULES"])
        shape = (16,) * len(names)
        one = jax.sharding.NamedSharding(PLAN.mesh(), ours)
        other = jax.sharding.NamedSharding(scope["mesh"], theirs)
        assert one.shard_shape(shape) == other.shard_shape(shape)


def test_flax_code_counts_devices_by_place_not_by_id(monkeypatch):
    """On a TPU `jax.devices()` has the first coordinate fastest; plans have it slowest."""
    from autotune.plan.apply import position

    plan = plan_for("data=2,fsdp=4,tensor=2", "v5e:4x4")
    place = {"platform": "tpu", "core_on_chip": 0, "slice_index": 0, "process_index": 0}
    given = [types.SimpleNamespace(**place, coords=(x, y, 0), id=4 * y + x) for y in range(4) for x in range(4)]
    seen = []
    monkeypatch.setattr(jax, "devices", lambda: given)
    monkeypatch.setattr("jax.sharding.Mesh", lambda devices, *given, **named: seen.append(devices))
    exec(emit(plan, "flax"), {})
    (found,) = seen
    expected = [sorted(given, key=position)[index] for index in plan.device_order]
    assert [device.id for device in found.flat] == [device.id for device in expected]


EVERY_WORD = {
    "zero": "data=8,zero=1",
    "remat": "data=8,remat=attention",
    "accumulate": "data=8,accumulate=2",
    "reduce": "data=8,accumulate=2,reduce=step",
    "microbatches": "stage=2,data=4,schedule=gpipe,microbatches=4",
    "schedule": "stage=2,data=4,schedule=zero-bubble,microbatches=4",
    "virtual_stages": "stage=2,data=4,schedule=circular,microbatches=4,virtual_stages=2",
    "sequence_parallel": "tensor=8",
    "context_attention": "context=8,context_attention=ring",
    "vocab_tiles": "data=8,vocab_tiles=4",
    "offload": "data=8,offload=optimizer",
    "order": "data=4,tensor=2,order=tensor>data>stage>fsdp>context>expert",
    "options": "data=8,options=recipe",
    "compiler_options": "data=8,xla.some_option=1",
    "rules": "tensor=8,rule.mlp=none",
    "dcn": "data=4,tensor=2,dcn.tensor=2",
}
"""Of each word of a layout, a layout that uses it."""


@pytest.mark.parametrize("codebase", CODEBASES)
@pytest.mark.parametrize("word", EVERY_WORD)
def test_no_word_of_a_layout_is_dropped_silently(codebase, word):
    """Without the word the text is another one (a flag, a line of code, or a note), or both are refused."""
    assert set(EVERY_WORD) == set(Layout.__dataclass_fields__) - set(AXES)
    text = EVERY_WORD[word]
    machine = {"dcn": "h100:2x4", "options": "h100:1x8"}.get(word, "cpu:8")
    plan = plan_for(text, machine)
    plain = {
        "schedule": text.replace("zero-bubble", "gpipe"),
        "sequence_parallel": "tensor=8,sequence_parallel=0",
        "virtual_stages": text.replace(",virtual_stages=2", ",virtual_stages=1"),
        "microbatches": text.replace("microbatches=4", "microbatches=2"),
        "dcn": "data=4,tensor=2",
        "reduce": "data=8,accumulate=2",
    }.get(word, ",".join(part for part in text.split(",") if part.partition("=")[0] in AXES))
    other = plan_for(plain, "h100:1x8" if word == "dcn" else machine)

    def body(plan) -> str | None:
        """The text without its first line, which quotes the layout."""
        try:
            return emit(plan, codebase).partition("\n")[2]
        except ValueError:
            return None

    if body(plan) is None:
        assert codebase in ("levanter", "easylm")
    else:
        assert body(plan) != body(other)


def test_what_a_codebase_cannot_do_is_refused_in_one_line():
    with pytest.raises(ValueError, match="^emit: Levanter has no stage axis; this plan has stage=4$"):
        emit(CASES[6], "levanter")
    with pytest.raises(ValueError, match="^emit: EasyLM has no context axis; this plan has context=2$"):
        emit(CASES[4], "easylm")
    with pytest.raises(ValueError, match="^emit: 'megatron' is not known; known: maxtext, levanter"):
        emit(PLAN, "megatron")
    with pytest.raises(ValueError, match="^emit: MaxText wants microbatches to be a multiple of the .*=6, stage=4$"):
        emit(plan_for("stage=4,data=2,schedule=gpipe,microbatches=6", "cpu:8"), "maxtext")


@pytest.mark.parametrize(
    ("recipe", "layout", "said"),
    [
        ({"model": "mixtral-8x7b"}, "fsdp=16", {"sparse_matmul": "False", "capacity_factor": "1.25"}),
        (
            {"model": "mixtral-8x7b", "set": "capacity_factor=dropless"},
            "fsdp=16",
            {"sparse_matmul": "True", "megablox": "True", "capacity_factor": "-1.0"},
        ),
        (
            {"model": "some.json", "set": "hidden_size=64\ncapacity_factor=dropless"},
            "fsdp=4,expert=4",
            {"sparse_matmul": "True", "use_ring_of_experts": "True"},
        ),
        ({"model": "some.json", "set": "capacity_factor=2"}, "fsdp=16", {"capacity_factor": "2.0"}),
        ({"model": "llama3-8b"}, "fsdp=16", {}),
        ({"model": "some.json"}, "fsdp=16", {}),
    ],
)
def test_maxtext_is_told_the_room_of_an_expert(recipe, layout, said):
    plan = dataclasses.replace(plan_for(layout, "v5e:4x4"), recipe={"batch": 16, "seq": 8, "dtype": "float32"} | recipe)
    words = ("sparse_matmul", "megablox", "capacity_factor", "use_ring_of_experts")
    text = emit(plan, "maxtext")
    found = dict(re.findall(rf"^  ({'|'.join(words)})=(\S+)", text, re.MULTILINE))
    assert said.items() <= found.items() and bool(said) == bool(found)
