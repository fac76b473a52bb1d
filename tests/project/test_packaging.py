"""What an installed copy holds: nothing under the generic names, every file that is needed at run time."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory) -> set[str]:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    return set(zipfile.ZipFile(wheel).namelist())


def test_nothing_lies_under_generic_names(wheel_names):
    tops = {name.split("/")[0] for name in wheel_names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"autotune"}


def test_every_source_and_data_file_is_there(wheel_names):
    expected = {
        f"autotune/{path.relative_to(ROOT / 'autotune')}"
        for pattern in ("**/*.py", "*.html", "py.typed")
        for path in (ROOT / "autotune").glob(pattern)
    }
    for folder in ("meshes", "models"):
        expected |= {f"autotune/{path.relative_to(ROOT)}" for path in (ROOT / folder).glob("**/*.py")}
    expected |= {f"autotune/{path.relative_to(ROOT)}" for path in (ROOT / "meshes/hardware_files").rglob("*.toml")}
    assert expected <= wheel_names
    assert len(expected) > 80
