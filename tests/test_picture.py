"""Pictures can be read by people with every kind of colour vision, and say what they show."""

import itertools

import numpy as np
import pytest

from autotune.frontier.plot import DEGREES, LIMIT_STYLES
from autotune.picture import AXIS_COLOURS, CHIP_STYLES, MEMORY_COLOURS, style_of

# Machado, Oliveira, Fernandes (2009), "A physiologically-based model for simulation of color vision deficiency",
# table 1, severity 1.0, on linear RGB.
VISION = {
    "all cones": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def lab(colour, vision):
    """CIE L*a*b* (D65) of "#rrggbb" as someone with that vision sees it."""
    rgb = np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.array(VISION[vision]) @ linear, 0, 1)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ seen
    f = np.array([v ** (1 / 3) if v > 216 / 24389 else (24389 / 27 * v + 16) / 116 for v in xyz / [0.9505, 1, 1.089]])
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def difference(one, other, vision):
    return float(np.linalg.norm(lab(one, vision) - lab(other, vision)))


def test_the_measure_itself():
    assert difference("#000000", "#ffffff", "all cones") == pytest.approx(100, abs=0.1)
    assert difference("#808080", "#808080", "protanopia") == 0
    red_green = [difference("#c03030", "#708000", vision) for vision in ("all cones", "deuteranopia")]
    assert red_green[1] < red_green[0] / 3


@pytest.mark.parametrize("vision", VISION)
def test_axes_and_what_stands_beside_them_differ(vision):
    plain = {**AXIS_COLOURS, **{name: colour for name, (colour, hatch) in CHIP_STYLES.items() if not hatch}}
    for (one, first), (other, second) in itertools.combinations(plain.items(), 2):
        assert difference(first, second, vision) >= 15, (one, other)


@pytest.mark.parametrize("vision", VISION)
def test_categories_of_memory_differ_from_their_neighbours(vision):
    for one, other in itertools.pairwise(MEMORY_COLOURS.values()):
        assert difference(one, other, vision) > 8, (one, other)


def test_one_style_has_one_meaning():
    styles = [*CHIP_STYLES.items(), *((axis, (colour, "")) for axis, colour in AXIS_COLOURS.items())]
    same = {"wait", "waiting"}
    for (one, first), (other, second) in itertools.combinations(styles, 2):
        assert first != second or {one, other} == same, (one, other)
    assert len(set(LIMIT_STYLES.values())) == len(LIMIT_STYLES)
    assert len({style for _, _, style in DEGREES}) == len(DEGREES)
    assert style_of("network:fsdp@dcn", "dcn") != style_of("network:fsdp@ici", "dcn")


@pytest.fixture
def figures(monkeypatch):
    """Figures in place of files."""
    pytest.importorskip("matplotlib")
    found = []
    for module in ("autotune.sweep.plot", "autotune.frontier.plot"):
        monkeypatch.setattr(f"{module}.save_picture", lambda figure, rows, path: found.append((figure, rows)))
    return found


def words_of(figure):
    from matplotlib.text import Text

    figure.canvas.draw()
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def test_a_sweep_shows_its_layouts_and_that_nothing_was_compiled(figures, tmp_path):
    from autotune.cli import run

    words = "sweep --model llama3-8b --target v5e,h100 --chips 16..64 --batch-tokens 1M --seq 4096 --json"
    assert run([*words.split(), "--plot", str(tmp_path / "a.png")]) == 0
    [(figure, rows)] = figures
    words = words_of(figure)
    assert any("priced, nothing compiled" in text for text in words)
    shown = [text.replace("\n", "") for text in words]
    assert rows and all(row["text"] in shown for row in rows)
    drawn = {patch.get_facecolor()[:3] for axes in figure.axes for patch in axes.patches}
    legend = {patch.get_facecolor()[:3] for one in figure.legends for patch in one.get_patches()}
    assert drawn <= legend, "every colour of a bar stands in the legend"


def test_a_picture_of_the_frontier_says_that_it_is_priced(figures, tmp_path):
    from autotune.cli import run

    assert run(["frontier", "--plot", str(tmp_path / "a.png"), "--beside", "a100", "--json"]) == 0
    [(figure, _)] = figures
    assert any("priced, nothing compiled" in text for text in words_of(figure))
