"""What an installed copy holds and does: nothing under generic names, every file it needs, and the command works."""

import ast
import io
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = PROJECT["tool"]["setuptools"]["packages"]
FOLDERS = {"autotune": "autotune", "meshes": "autotune.meshes", "models": "autotune.models"}
"""Folder of the repository -> the package it is installed as."""
BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"


def tracked() -> list[Path]:
    """The files of the repository, as a clone or an archive of it has them."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode == 0:
        names = [Path(name) for name in listed.stdout.split("\0") if name]
        return [name for name in names if (ROOT / name).is_file() and name.parts[0] != "shared"]
    skipped = {".venv", "build", "dist", "shared", "__pycache__"}
    found = [path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file()]
    return [path for path in found if not skipped & set(path.parts) and "egg-info" not in str(path)]


def built(what: str, tree: Path, folder: Path) -> Path:
    """`build_wheel` or `build_sdist` of the project in `tree`, by its build backend."""
    done = subprocess.run(
        [sys.executable, "-c", BUILD, what, str(folder)], cwd=tree, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return folder / done.stdout.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> bytes:
    """A zip of the repository, as a host offers it: no git folder."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as out:
        for name in tracked():
            out.write(ROOT / name, f"autotune-jax-main/{name}")
    return packed.getvalue()


@pytest.fixture(scope="module")
def tree(archive, tmp_path_factory) -> Path:
    """That zip, unpacked."""
    folder = tmp_path_factory.mktemp("unpacked")
    zipfile.ZipFile(io.BytesIO(archive)).extractall(folder)
    return folder / "autotune-jax-main"


@pytest.fixture(scope="module")
def wheel(tree, tmp_path_factory) -> Path:
    return built("build_wheel", tree, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist(tree, tmp_path_factory) -> Path:
    return built("build_sdist", tree, tmp_path_factory.mktemp("sdist"))


def names_of(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as opened:
        return set(opened.namelist())


def test_nothing_lies_under_generic_names(wheel):
    tops = {name.split("/")[0] for name in names_of(wheel)}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"autotune"}


def test_every_source_and_data_file_is_there_and_nothing_else(wheel):
    expected = set()
    for folder, package in FOLDERS.items():
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".html", ".toml") or path.name == "py.typed":
                expected.add(f"{package.replace('.', '/')}/{path.relative_to(ROOT / folder)}")
    assert len(expected) > 80
    assert {name for name in names_of(wheel) if name.startswith("autotune/")} == expected


def test_the_listed_packages_are_the_folders_on_disk():
    found = set()
    for folder, package in FOLDERS.items():
        for path in (ROOT / folder).rglob("*.py"):
            found.add(".".join([package, *path.parent.relative_to(ROOT / folder).parts]))
    assert sorted(PACKAGES) == sorted(found)
    assert [name for name in PACKAGES if not (folder_of(name) / "__init__.py").is_file()] == []


def folder_of(package: str) -> Path:
    """Where a package lies in the repository; `meshes` and `models` stand at its top."""
    folder, name = max(FOLDERS.items(), key=lambda one: len(one[1]) * (package + ".").startswith(one[1] + "."))
    return (
        ROOT.joinpath(folder, *package.removeprefix(name).strip(".").split(".")) if package != name else ROOT / folder
    )


@pytest.mark.slow
def test_the_source_archive_builds_the_same_wheel(sdist, wheel, tmp_path):
    with tarfile.open(sdist) as opened:
        opened.extractall(tmp_path, filter="data")
        names = {"/".join(name.split("/")[1:]) for name in opened.getnames()}
    (unpacked,) = tmp_path.iterdir()
    (tmp_path / "out").mkdir()
    assert names_of(built("build_wheel", unpacked, tmp_path / "out")) == names_of(wheel)
    assert {"LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff", "tests/conftest.py", ".ci/run"} <= names
    assert not {"CONTRIBUTING.md", "SECURITY.md", "docs/processes.md", "scripts/validate.py"} - names


def test_the_command_runs_from_the_wheel_in_an_environment_of_its_own(wheel, tmp_path):
    """Dependencies are those of this interpreter; that they are named is the next test's, `.ci/smoke` installs them."""
    clean = tmp_path / "clean"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(clean)], check=True, timeout=120)
    python = clean / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, str(wheel)], check=True, timeout=120)
    (site,) = clean.glob("lib/*/site-packages")
    here = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (site / "dependencies.pth").write_text("\n".join(here) + "\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "JAX_"))}
    environment["XDG_CACHE_HOME"] = environment["AUTOTUNE_STORE"] = str(tmp_path / "cache")

    def run(*words: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [clean / "bin" / words[0], *words[1:]],
            cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120,
        )  # fmt: skip

    where = run("python", "-c", "import autotune.meshes.target as one; print(one.__file__)")
    assert where.stdout.startswith(str(site)), (where.stdout, where.stderr)
    job = ("--model", "tiny", "--target", "v5e:4x4", "--batch", "32", "--seq", "512", "--compile", "0")
    told = run("autotune", "tune", *job)
    assert told.returncode == 0, told.stderr
    assert "tiny" in told.stdout and "v5e:4x4" in told.stdout and "priced" in told.stdout
    assert run("autotune", "--version").stdout.split()[-1] == PROJECT["project"]["version"]
    for folder in (clean, tmp_path / "cache"):
        assert not list(folder.rglob("*.log")), "nothing was compiled"


IMPORTED_AS = {"pyyaml": "yaml", "orbax-checkpoint": "orbax"}
"""Name on the package index -> name it is imported by, where they differ."""
OF_JAX = {"jaxlib", "libtpu", "jax_plugins"}


def test_everything_imported_is_a_declared_dependency():
    declared = {re.split(r"[\[<>=; ]", one)[0] for one in PROJECT["project"]["dependencies"]}
    known = {IMPORTED_AS.get(name, name.replace("-", "_")) for name in declared} | OF_JAX | {"autotune"}
    extra = {"plot": "matplotlib"}
    imported: dict[str, str] = {}
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom) and node.level == 0:
                    names = [node.module or ""]
                imported |= {name.split(".")[0]: str(path.relative_to(ROOT)) for name in names}
    unknown = {name: file for name, file in imported.items() if name not in known | sys.stdlib_module_names}
    of_the_user = {"absl"}  # imported where the program of the user has parsed its flags
    assert set(unknown) <= set(extra.values()) | of_the_user, unknown
    assert any(extra["plot"] in one for one in PROJECT["project"]["optional-dependencies"]["plot"])


def test_metadata_is_whole(wheel):
    (name,) = [name for name in names_of(wheel) if name.endswith(".dist-info/METADATA")]
    with zipfile.ZipFile(wheel) as opened:
        told = metadata.PathDistribution(zipfile.Path(opened, name.removesuffix("METADATA"))).metadata
        assert told["Author"] == "autotune-jax developers"
        assert told["License-Expression"] == "Apache-2.0" and told["Requires-Python"] == ">=3.11"
        assert "Typing :: Typed" in told.get_all("Classifier")
        assert {f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13)} <= set(
            told.get_all("Classifier")
        )
        assert len(told["Keywords"].split(",")) > 5 and len(told.get_payload()) > 1000
        assert "jax" in {one.split("<")[0].split(">")[0] for one in told.get_all("Requires-Dist")}


def test_the_version_is_one(wheel):
    version = PROJECT["project"]["version"]
    assert re.search(r"(?m)^version: (.*)$", (ROOT / "CITATION.cff").read_text())[1] == version
    assert wheel.name.split("-")[1] == version
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()


def test_ci_and_the_hooks_run_the_same_commands():
    run = (ROOT / ".ci/run").read_text().splitlines()
    workflow = (ROOT / ".github/workflows/ci.yml").read_text()
    [command] = re.findall(r"- run: (.*)", workflow)
    assert command.split()[0] == ".ci/run"
    hooks = re.findall(r"entry: (.*)", (ROOT / ".pre-commit-config.yaml").read_text())
    assert hooks and set(hooks) <= set(run), (hooks, run)
    assert all(os.access(ROOT / ".ci" / name, os.X_OK) for name in ("run", "smoke", "typecheck"))
    for minor in (11, 12, 13):
        assert f"3.{minor}" in workflow and f"3.{minor}" in (ROOT / ".ci/run").read_text()


@pytest.mark.parametrize(
    "file", ["CONTRIBUTING.md", "SECURITY.md", "CITATION.cff", "pyproject.toml", "docs/processes.md"]
)
def test_no_address_is_invented(file):
    found = re.findall(r"https?://[^\s)\"'>]+|[\w.]+@[\w.]+\.\w+", (ROOT / file).read_text())
    assert found == []
