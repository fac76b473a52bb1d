"""A word that is nearly right is answered with the right one, wherever it stands."""

import json
import random
import string
from pathlib import Path

import pytest
from test_help import ALL, context_of

from autotune.cli import run
from autotune.commands.command import sections
from autotune.meshes.fields import did_you_mean

HARDWARE = Path(__file__).parents[2] / "meshes" / "hardware_files"
JOB = ("--batch", "16", "--seq", "64")
TUNE = ("tune", "--model", "tiny", *JOB, "--target", "cpu:4", "--compile", "0", "--measure", "0")
SWEEP = ("sweep", "--model", "tiny", "--target", "cpu", "--chips", "2", "--batch-tokens", "1024", "--seq", "64")


def layout(words):
    return ("explain", "--model", "tiny", *JOB, "--target", "cpu:4", "--compile", "0", "--layout", words)


@pytest.mark.parametrize(
    ("words", "right"),
    [
        (("tunee",), "tune"),
        (("store", "lst"), "list"),
        (("tune", "--modle", "tiny"), "--model"),
        (("store", "prune", "--keep-mb", "1"), "--keep-mib"),
        (("sweep", "--compil", "1"), "--compile"),
        (("tune", "--model", "llama3-8", *JOB, "--target", "cpu:4"), "llama3-8b"),
        (("tune", "--model", "Tiny", *JOB, "--target", "cpu:4"), "tiny"),
        (("tune", "--model", "tiny", *JOB, "--target", "h10:2x8"), "h100"),
        (("tune", "--model", "tiny", *JOB, "--target", "locl"), "local"),
        (("targets", "v5ee"), "v5e"),
        (("models", "mixtral-8x7"), "mixtral-8x7b"),
        (layout("tensr=4"), "tensor"),
        (layout("dcn.dta=2"), "data"),
        (layout("dnc.data=2"), "dcn.data"),
        (layout("data=4,remat=ful"), "full"),
        (layout("data=4,remat=sav:query"), "save"),
        (layout("data=4,remat=save:querry"), "query"),
        (layout("data=2,stage=2,schedule=gpip"), "gpipe"),
        (layout("data=4,context_attention=rng"), "ring"),
        (layout("data=4,rule.mlp=tenor"), "tensor"),
        (layout("data=4,order=stge>data>fsdp>context>expert>tensor"), "stage"),
        ((*TUNE, "--axes", "dta,fsdp"), "data"),
        ((*TUNE, "--fix", "remt=full"), "remat"),
        ((*TUNE, "--fix", "remat=ful"), "full"),
        ((*TUNE, "--fix", "dcn.dta=2"), "data"),
        ((*TUNE, "--optimizer", "adamv"), "adamw"),
        ((*TUNE, "--moments-dtype", "bfloat6"), "bfloat16"),
        ((*TUNE, "--dtype", "bflot16"), "bfloat16"),
        (("words", "rematt"), "remat"),
        (("emit", "plan.json", "--for", "maxtxt"), "maxtext"),
        (("frontier", "--target", "h10"), "h100"),
        (("frontier", "--batch-rule", "papr"), "paper"),
        (("frontier", "--overlap", "tensr"), "tensor"),
        (("frontier", "--beside", "v10"), "v100"),
        (("frontier", "--picture", "mx", "--plot", "a.png"), "mix"),
        (("frontier", "--scale", "latncy=2"), "latency"),
        ((*SWEEP, "--scale", "hmb=2"), "hbm"),
        ((*SWEEP, "--scale", "netwrk:memory=2"), "network:memory"),
        ((*SWEEP, "--batch-rule", "critcal"), "critical"),
        ((*SWEEP, "--price", "cpo=2"), "cpu"),
    ],
)
def test_a_mistyped_word_is_one_line_with_the_right_one(words, right, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("AUTOTUNE_STORE", str(tmp_path / "store"))
    assert run(list(words)) == 2
    found = capsys.readouterr()
    assert found.out == "" and found.err.count("\n") == 1
    assert f"did you mean '{right}'?" in found.err


@pytest.mark.parametrize(
    ("key", "wrong"),
    [("clock_hz", "clok_hz"), ("capacity_bytes", "capacty_bytes"), ("hbm_bytes_per_second", "hbm_byte_per_second")],
)
def test_a_mistyped_key_of_a_hardware_file(key, wrong, tmp_path, capsys):
    text = (HARDWARE / "v5e.toml").read_text()
    assert f"[{key}]" in text
    (tmp_path / "mine.toml").write_text(text.replace(f"[{key}]", f"[{wrong}]"))
    assert run(["targets", "--hardware", str(tmp_path / "mine.toml")]) == 2
    assert f"{wrong} is not known; did you mean '{key}'?" in capsys.readouterr().err


LLAMA = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
         "intermediate_size": 128, "vocab_size": 256}  # fmt: skip


@pytest.mark.parametrize(
    ("values", "settings", "message"),
    [
        ({"layers": 2, "d_model": 64, "heads": 4, "d_fff": 128, "vocab": 256, "d_ff": 1}, (), "did you mean 'd_ff'?"),
        ({**LLAMA, "model_type": "lama"}, (), "did you mean 'llama'?"),
        ({**LLAMA, "hidden_act": "sillu"}, (), "did you mean 'silu'?"),
        ({name.replace("hidden_size", "hiden_size"): value for name, value in LLAMA.items()}, (),
         "missing key 'hidden_size'; is 'hiden_size' meant to be it?"),
        (LLAMA, ("--set", "num_hiden_layers=4"), "did you mean 'num_hidden_layers'?"),
    ],
)  # fmt: skip
def test_a_mistyped_key_of_a_model_file(values, settings, message, tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert run(["models", str(tmp_path / "config.json"), *settings]) == 2
    found = capsys.readouterr()
    assert message in found.err and found.err.count("\n") == 1


@pytest.mark.parametrize("name", ALL)
def test_every_option_is_found_from_its_name_with_two_letters_exchanged(name, capsys):
    for parameters in sections(ALL[name], context_of(name)).values():
        for option in parameters:
            spelling = max(option.opts, key=len)
            middle = len(spelling) // 2 + 1
            wrong = spelling[:middle] + spelling[middle + 1 : middle + 2] + spelling[middle] + spelling[middle + 2 :]
            if len(spelling) < 7 or wrong == spelling:
                continue
            assert run([*name.split(), wrong]) == 2
            assert f"did you mean '{spelling}'?" in capsys.readouterr().err


def test_a_word_far_from_all_has_no_suggestion():
    letters = random.Random(0)
    for _ in range(50):
        word = "".join(letters.choices(string.digits, k=8))
        assert did_you_mean(word, ("data", "fsdp", "tensor")) == ""
