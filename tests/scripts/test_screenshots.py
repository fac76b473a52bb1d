"""The pictures of the documentation come from the script that draws them."""

import re
import xml.etree.ElementTree as ElementTree

import pytest
import screenshots
from chromium import needs_chromium
from click.testing import CliRunner

SMALL = "autotune tune --model tiny --target cpu:8 --batch 16 --seq 64 --layouts fsdp=8;data=8 --compile 1 --measure 0"
SIGNATURE = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTOTUNE_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")


def draw(*options):
    done = CliRunner().invoke(screenshots.main, [str(option) for option in options])
    assert done.exit_code == 0, (done.output, done.exception)


def size_of(png: bytes) -> tuple[int, int]:
    """(width, height) of a PNG: two big-endian words of its header chunk."""
    assert png.startswith(SIGNATURE)
    return int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")


@needs_chromium
@pytest.mark.slow
def test_a_terminal_and_a_page_at_small_size(tmp_path):
    command = SMALL.replace("fsdp=8;data=8", "'fsdp=8;data=8'")
    draw("--out", tmp_path, "--only", "terminal.svg,page.png", "--command", command, "--lines", "12")
    text = (tmp_path / "terminal.svg").read_text()
    ElementTree.fromstring(text)
    words = re.sub(r"<[^>]+>", "", text).replace("&#160;", " ")
    assert "early answer, priced and not compiled yet" in words and "chosen: " in words and "more lines]" in words
    assert "http" not in text.replace("http://www.w3.org", "").replace("https://www.textualize.io", "")
    assert size_of((tmp_path / "page.png").read_bytes()) == (1280, 1360)


def test_a_picture_of_the_frontier(tmp_path):
    pytest.importorskip("matplotlib")
    draw("--out", tmp_path, "--only", "frontier_mix.png")
    width, height = size_of((tmp_path / "frontier_mix.png").read_bytes())
    assert width > 1000 and height > 500


def test_an_unknown_picture_is_refused_in_one_line():
    done = CliRunner().invoke(screenshots.main, ["--only", "page.gif"])
    assert done.exit_code == 2 and "page.gif; known: terminal.svg" in done.output


def test_every_picture_of_the_pages_has_its_command():
    shown = set()
    for page in (screenshots.ROOT / "README.md", *(screenshots.ROOT / "docs").glob("*.md")):
        shown |= set(re.findall(r"images/([\w.]+)", page.read_text()))
    assert shown == set(screenshots.PICTURES)
    assert {path.name for path in (screenshots.ROOT / "docs" / "images").iterdir()} == shown


def test_the_terminal_of_the_readme_shows_a_command_of_the_readme():
    assert screenshots.COMMAND in (screenshots.ROOT / "README.md").read_text()
