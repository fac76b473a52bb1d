"""Debian's Chromium, without a window: what a page looks like to it. Nothing is downloaded."""

from __future__ import annotations

import html
import json
import re
import subprocess
from pathlib import Path

import pytest
from screenshots import BROWSER, NO_BROWSER

needs_chromium = pytest.mark.skipif(BROWSER is None, reason=NO_BROWSER)


def dumped(page: Path, *options: str, profile: Path) -> str:
    """The document of a page once its scripts have run. No name resolves: a page that needs a network lacks it."""
    assert BROWSER is not None
    done = subprocess.run(
        [
            BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-extensions",
            "--disable-background-networking", "--host-resolver-rules=MAP * ~NOTFOUND",
            f"--user-data-dir={profile}", *options, "--dump-dom", page.as_uri(),
        ],
        capture_output=True, text=True, timeout=90,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def asked(page: str, question: str, widths: tuple[int, ...], folder: Path, *, dark: bool = False) -> dict[int, dict]:
    """The value of a JavaScript function of (window, document) on the page, for each width of a frame in pixels."""
    frames = "".join(
        f'<iframe style="width:{width}px;height:900px;border:0" data-width="{width}" srcdoc="{html.escape(page)}">'
        "</iframe>"
        for width in widths
    )
    harness = folder / f"harness{'-dark' * dark}.html"
    harness.write_text(
        f"<!doctype html><meta charset=utf-8><body style='width:3000px'>{frames}<pre id=found></pre><script>"
        f"const question = {question};\n"
        "addEventListener('load', () => { const found = {}; for (const frame of document.querySelectorAll('iframe'))"
        " { try { found[frame.dataset.width] = question(frame.contentWindow, frame.contentDocument) }"
        " catch (error) { found[frame.dataset.width] = {error: String(error)} } }"
        " document.getElementById('found').textContent = JSON.stringify(found) })</script>",
        encoding="utf-8",
    )
    options = ("--blink-settings=preferredColorScheme=0",) if dark else ("--blink-settings=preferredColorScheme=1",)
    text = dumped(harness, *options, "--window-size=3000,1000", profile=folder / f"profile{'-dark' * dark}")
    match = re.search(r'<pre id="found">(.*?)</pre>', text, re.S)
    assert match and match[1], text[-500:]
    return {int(width): value for width, value in json.loads(html.unescape(match[1])).items()}
