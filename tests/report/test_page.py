"""The HTML report: one file that asks for nothing, readable at every width, light and dark, in a real browser."""

import dataclasses
import json
import re

import pytest
from chromium import asked, needs_chromium
from hlo_fixtures import fixture

from autotune.analysis.analyse import analyse_program, program_of
from autotune.analysis.limits import binding_limit, elasticities
from autotune.memory_use import compiled_use
from autotune.reference_workload import reference_workload
from autotune.report import charts
from autotune.report.html import render_html
from autotune.row_status import RowStatus
from autotune.search import search

WIDTHS = (390, 768, 1280, 1920)
BAD = "<script>alert(1)</script><img src=x onerror=alert(2)> & \"co\" 'x' </script>"


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A priced search for a saved program's own model, its chosen row compiled, with collectives on two axes."""
    saved = fixture("v5e-mixed")
    keys = ("layers", "d_model", "heads", "kv_heads", "head_dim", "d_ff", "vocab", "mlp")
    model = tmp_path_factory.mktemp("model") / "model.json"
    model.write_text(json.dumps({key: getattr(saved.model, key) for key in keys}))
    workload = reference_workload(str(model), batch=saved.batch, seq=saved.seq, dtype=saved.dtype)
    found = search(workload, saved.target, axes=None, layouts=None, fix=(), compile_count=0, measure_count=0, jobs=1)
    program = program_of(saved.compilation, saved.layout, saved.target)
    analysis = analyse_program(program, saved.compilation, saved.layout, saved.target)
    shares = elasticities(analysis.prediction.by_resource())
    best = dataclasses.replace(
        found.rows[0], layout=saved.layout, status=RowStatus.COMPILED, analysis=analysis, reason=None,
        memory=compiled_use(analysis.memory), peak_bytes=analysis.memory.peak_bytes, elasticities=shares,
        limit=binding_limit(shares),
    )  # fmt: skip
    return dataclasses.replace(found, rows=(best, *found.rows[1:]), compiled=saved.compilation)


LOOKED_AT = """(window, document) => {
  const pen = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const light = colours => { for (const colour of colours) { pen.fillStyle = colour; pen.fillRect(0, 0, 1, 1); }
    return [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3).map(v => v / 255)
      .map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
      .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0); };
  const behind = element => !element ? ['white'] :
    [...behind(element.parentElement), window.getComputedStyle(element).backgroundColor];
  const contrast = element => { const layers = behind(element), under = light(layers),
    over = light([...layers, window.getComputedStyle(element).color]);
    return (Math.max(under, over) + .05) / (Math.min(under, over) + .05); };
  const seen = [...document.querySelectorAll('h1, h2, p, dt, dd, td, th, summary, li, .name span, .stack > span')]
    .filter(one => one.offsetParent && one.textContent.trim());
  const worst = seen.map(one => [contrast(one), one.outerHTML.slice(0, 200)]).sort((a, b) => a[0] - b[0])[0];
  const rows = () => [...document.querySelectorAll('table.layouts tbody tr')].filter(row => !row.hidden);
  const first = rows().length, filter = document.getElementById('filter');
  filter.value = 'remat=full'; filter.dispatchEvent(new window.Event('input'));
  const kept = rows().map(row => row.textContent);
  filter.value = ''; filter.dispatchEvent(new window.Event('input'));
  document.querySelectorAll('table.layouts th button')[4].click();
  const prices = rows().map(row => row.cells[4].dataset.v).filter(Boolean).map(Number);
  document.getElementById('more').click();
  const canvas = document.getElementById('timeline-canvas');
  const ink = () => { const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
    let sum = 0; for (let i = 0; i < data.length; i += 4) sum += data[i + 3] > 0; return sum / (data.length / 4); };
  const before = canvas.toDataURL(), inked = ink();
  document.getElementById('closer').click();
  const closer = canvas.toDataURL() != before;
  const jump = document.getElementById('jump'); jump.value = '1'; jump.dispatchEvent(new window.Event('change'));
  const box = canvas.getBoundingClientRect();
  canvas.dispatchEvent(new window.PointerEvent('pointermove',
    {clientX: box.left + box.width / 2, clientY: box.top + 45, pointerType: 'mouse', bubbles: true}));
  return {
    overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    width: document.documentElement.clientWidth, requests: window.performance.getEntriesByType('resource').length,
    worst, first, kept, prices, all: rows().length, inked, closer, turns: jump.options.length,
    told: document.getElementById('told').textContent,
    background: window.getComputedStyle(document.body).backgroundColor,
    wide: [...document.querySelectorAll('body *')].filter(one => !one.closest('.wide, pre, option, .stack') &&
      one.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
      .map(one => one.outerHTML.slice(0, 90)),
    dialogs: document.querySelectorAll('img').length,
    cut: [...document.querySelectorAll('.stack b')].filter(label => {
      const box = label.parentElement.getBoundingClientRect(), words = label.getBoundingClientRect();
      return words.top < box.bottom - 1 && words.right > box.right + 1; })
      .map(label => label.textContent),
    labels: [...document.querySelectorAll('.stack b')].filter(label =>
      label.getBoundingClientRect().top < label.parentElement.getBoundingClientRect().bottom - 1).length,
    beyond: document.querySelector('.wide').scrollWidth - document.querySelector('.wide').clientWidth,
  }
}"""


@needs_chromium
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_page_in_a_browser(report, tmp_path, dark):
    page = render_html(dataclasses.replace(report, workload=BAD), command=f"autotune tune --model {BAD}")
    found = asked(page, LOOKED_AT, WIDTHS, tmp_path, dark=dark)
    assert set(found) == set(WIDTHS)
    for width, seen in found.items():
        assert "error" not in seen, seen
        assert seen["width"] <= width and seen["overflow"] <= 0, (width, seen["overflow"], seen["wide"])
        assert seen["requests"] == 0 and seen["dialogs"] == 0
        assert not seen["cut"] and seen["labels"] >= 6, "a label stands whole in its part of a bar, or not at all"
        assert seen["beyond"] <= 0, (width, "every column of the table is in sight")
        contrast, where = seen["worst"]
        assert contrast >= 4.5, (contrast, where)
        assert seen["first"] == 20 and seen["all"] == len(report.rows)
        assert seen["kept"] and all("remat=full" in text for text in seen["kept"])
        assert len(seen["prices"]) > 3 and seen["prices"] == sorted(seen["prices"])
        assert seen["inked"] > 0.2 and seen["closer"] and seen["turns"] > 2
        assert "compute, " in seen["told"] and "turn " in seen["told"], seen["told"]
        red, green, blue = map(int, re.findall(r"\d+", seen["background"])[:3])
        assert (red + green + blue < 150) == dark


def test_the_page_asks_for_nothing_and_is_small(report):
    page = render_html(report)
    assert len(page.encode()) < 2_000_000
    assert "default-src 'none'" in page
    outside = re.findall(r"""(?:src|href|action)\s*=\s*["']?(?!#)[^"'\s>]+|url\(|@import|\bimport\s*\(|fetch\(""", page)
    assert not outside, outside


def test_names_are_escaped_and_data_stays_data(report):
    page = render_html(
        dataclasses.replace(report, workload=BAD, notes=(BAD,)), command=BAD, plan_path=BAD.replace("/", "|")
    )
    assert "<script>" not in page and "<img" not in page and "&lt;script&gt;" in page
    [data] = re.findall(r'<script type="application/json" id="timeline-data">(.*?)</script>', page, re.S)
    read = json.loads(data)
    assert read["step"] == report.rows[0].analysis.prediction.step_seconds


def test_the_page_says_how_it_was_made(report):
    page = render_html(report, command="autotune tune --model llama3-8b", plan_path="mine.json")
    assert "autotune tune --model llama3-8b" in page and "load_plan(&#34;mine.json&#34;)" in page
    assert report.date in page and f"jax {report.compiled.versions['jax']}" in page
    assert f"compiled: <code>{report.rows[0].layout}</code>" in page


def test_layouts_break_after_commas_only_and_copy_whole(report):
    layout = report.rows[0].layout
    page = render_html(report)
    shown = re.findall(r"<tr class=\"best\"><td><code>(.*?)</code>", page)
    assert [re.sub("<wbr>", "", text) for text in shown] == [str(layout)]
    assert shown[0].split("<wbr>")[:-1] == [f"{word}," for word in str(layout).split(",")[:-1]]


def test_columns_that_no_row_fills_are_left_out(report):
    classes = re.search(r'<table class="([^"]*)"', render_html(report))[1]
    assert "no-measured" in classes and "no-compiled" not in classes


def test_where_nothing_fits_the_closest_layout_is_in_the_picture(report):
    rows = tuple(
        dataclasses.replace(row, status=RowStatus.OOM, peak_bytes=times * report.target.hardware.capacity_bytes)
        for times, row in zip((7.0, 80.0), report.rows[:2], strict=True)
    )
    plane = charts.plane(dataclasses.replace(report, rows=rows))
    assert [point["kind"] for point in plane["points"]] == ["oom"] and plane["hidden"] == 1


def test_a_priced_page_says_what_a_compile_would_add(report):
    priced = render_html(dataclasses.replace(report, rows=report.rows[1:], compiled=None))
    words = "the step by lane and the collectives are those of a compiled layout"
    assert words in priced and 'id="timeline-canvas"' not in priced and 'href="#step"' not in priced
    assert words not in render_html(report)


def test_bars_add_up(report):
    limits = charts.limits(report)
    assert len(limits.bars) == 6
    for bar in limits.bars:
        assert sum(part.share for part in bar.parts) == pytest.approx(1.0, abs=0.01)
    assert len({style for _, style in limits.legend}) == len(limits.legend), "one look, one line of the legend"
    for bars in (limits, charts.memories(report), charts.collectives(report)):
        assert {part.style for bar in bars.bars for part in bar.parts} <= {style for _, style in bars.legend}
    for bar in charts.collectives(report).bars:
        assert sum(part.share for part in bar.parts) == pytest.approx(1.0)


def test_the_frontier_is_of_layouts_that_nothing_beats(report):
    plane = charts.plane(report)
    runs = [point for point in plane["points"] if point["kind"] != "oom"]
    assert len(runs) > 5
    corners = {(x, y) for line in plane["frontier"] for x, y in (line[:2], line[2:])}
    unbeaten = [
        one for one in runs
        if not any(o["x"] <= one["x"] and o["y"] >= one["y"] and (o["x"], o["y"]) != (one["x"], one["y"]) for o in runs)
    ]  # fmt: skip
    assert {(one["x"], one["y"]) for one in unbeaten} <= corners
    assert all(0 <= point["x"] <= 100 and 0 <= point["y"] <= 100 for point in plane["points"])
