"""`autotune words` explains every word that a report uses."""

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from autotune.analysis.overheads import OVERHEAD_KINDS
from autotune.cli import autotune, run
from autotune.commands.words import everything
from autotune.meshes.layout_words import LAYOUT_WORDS
from autotune.price.terms import COMPUTE
from autotune.row_status import RowStatus

GOLDEN = Path(__file__).parents[1] / "golden"


def told(*arguments):
    return CliRunner().invoke(autotune, ["words", *arguments])


def test_every_word_of_a_layout_every_state_and_every_resource_is_explained():
    known = {name for section in everything().values() for name in section}
    assert set(LAYOUT_WORDS) <= known and {str(status) for status in RowStatus} <= known
    assert {"latency" if name == "launch" else name for name in COMPUTE} <= known
    assert {kind for kind in OVERHEAD_KINDS if kind in ("redundant", "bubble")} <= known
    assert all(meaning.endswith(".") for section in everything().values() for meaning in section.values())


@pytest.mark.parametrize("word", ["remat", "fsdp", "network:fsdp@ici", "MFU", "oom", "dcn.data", "payload", "hbm"])
def test_a_word_of_the_screen_is_found_as_it_stands_there(word):
    assert told(word).exit_code == 0 and told(word).output.strip()


def test_resources_on_the_golden_screens_are_explained():
    for screen in GOLDEN.glob("*.txt"):
        for word in re.findall(r"what binds: ([\w:@]+)", screen.read_text()):
            assert told(word).exit_code == 0, word


def test_a_misspelt_word_is_one_line_with_the_right_one(capsys):
    assert run(["words", "rematt"]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "did you mean 'remat'?" in line


def test_json_has_the_same():
    assert json.loads(told("--json").output) == everything()
