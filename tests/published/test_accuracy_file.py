"""docs/accuracy.txt is what `scripts/validate.py` prints: AUTOTUNE_WRITE_GOLDEN=1 writes it anew."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_accuracy_file_is_what_the_script_prints():
    command = [sys.executable, "-W", "ignore", str(ROOT / "scripts/validate.py")]
    outcome = subprocess.run(command, capture_output=True, text=True)
    assert outcome.returncode in (0, 1), outcome.stderr[-2000:]
    path = ROOT / "docs/accuracy.txt"
    if os.environ.get("AUTOTUNE_WRITE_GOLDEN"):
        path.write_text(outcome.stdout)
    assert outcome.stdout == path.read_text()
