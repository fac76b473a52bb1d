"""The pictures of the documentation, each drawn by a run of the tool: `python scripts/screenshots.py`.

terminal.svg: `autotune tune` on a terminal of 100 columns. page.png: the top of its HTML report in headless Chromium.
frontier*.png: the three pictures of `autotune frontier`. Look at what it wrote before you commit it.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import click

ROOT = Path(__file__).parents[1]
COMMAND = "autotune tune --model llama3-8b --target h100:2x8 --batch 64 --seq 4096 --compile 3"
FRONTIER = {"frontier.png": "utilization", "frontier_mix.png": "mix", "frontier_shape.png": "shape"}
PICTURES = ("terminal.svg", "page.png", *FRONTIER)
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
NO_BROWSER = f"none of {', '.join(BROWSERS)} here; Debian: apt-get install chromium"
COLUMNS = 100


def autotune(words: list[str], folder: Path, **options) -> subprocess.CompletedProcess:
    """A command of the tool, run to its end in a folder. CalledProcessError where it does not exit with 0."""
    command = [sys.executable, "-m", "autotune", *words]
    return subprocess.run(command, cwd=folder, check=True, stderr=subprocess.PIPE, text=True, **options)


def on_a_terminal(words: list[str], folder: Path) -> tuple[str, str]:
    """(progress, screen with its colours) of a command whose stdout is a terminal of `COLUMNS` columns."""
    import pty
    import threading

    leader, follower = pty.openpty()
    seen: list[bytes] = []

    def read() -> None:
        while True:
            try:
                data = os.read(leader, 65536)
            except OSError:  # the command has ended and nobody holds the other end
                return
            seen.append(data)

    reader = threading.Thread(target=read)
    reader.start()
    environment = {**os.environ, "COLUMNS": str(COLUMNS), "TERM": "xterm-256color", "COLORTERM": "truecolor"}
    try:
        done = autotune(words, folder, stdout=follower, env=environment)
    finally:
        os.close(follower)
        reader.join()
        os.close(leader)
    return done.stderr, b"".join(seen).decode().replace("\r\n", "\n")


def terminal_svg(command: str, progress: str, screen: str, lines: int) -> str:
    """The first `lines` lines of a terminal as SVG; the picture says how many it leaves out. It loads no font."""
    import io

    from rich.console import Console
    from rich.terminal_theme import DIMMED_MONOKAI
    from rich.text import Text

    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    text = Text.assemble(("$ ", "bold green"), (command, "bold"), "\n", (progress, "dim"))
    text.append_text(Text.from_ansi(screen))
    rows = text.wrap(console, COLUMNS)
    for row in rows[:lines]:
        console.print(row, no_wrap=True)
    if len(rows) > lines:
        console.print(Text(f"[... {len(rows) - lines} more lines]", style="dim"))
    drawn = console.export_svg(title="autotune tune", theme=DIMMED_MONOKAI)
    return re.sub(r"@font-face \{.*?\}\s*", "", drawn, flags=re.S)


def page_png(page: Path, picture: Path, width: int, height: int) -> None:
    """The top of a page in a light window of width x height pixels. ClickException where there is no Chromium."""
    if BROWSER is None:
        raise click.ClickException(NO_BROWSER)
    with tempfile.TemporaryDirectory() as profile:
        subprocess.run(
            [
                BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                "--blink-settings=preferredColorScheme=1", "--host-resolver-rules=MAP * ~NOTFOUND",
                f"--user-data-dir={profile}", f"--window-size={width},{height}", f"--screenshot={picture}",
                page.as_uri(),
            ],
            check=True, capture_output=True, timeout=120,
        )  # fmt: skip


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=ROOT / "docs" / "images", help="Where pictures go.")
@click.option("--only", default=",".join(PICTURES), show_default=True, help="Which pictures.")
@click.option("--command", default=COMMAND, show_default=True, help="What terminal.svg and page.png show.")
@click.option("--lines", default=38, show_default=True, help="Lines of the terminal.")
def main(out: Path, only: str, command: str, lines: int) -> None:
    """Draw the pictures."""
    wanted = only.split(",")
    if unknown := set(wanted) - set(PICTURES):
        raise click.BadParameter(f"{', '.join(sorted(unknown))}; known: {', '.join(PICTURES)}", param_hint="--only")
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    words = shlex.split(command)[1:]
    with tempfile.TemporaryDirectory() as folder:
        if {"terminal.svg", "page.png"} & set(wanted):
            progress, screen = on_a_terminal([*words, "--html", "report.html"], Path(folder))
            if "terminal.svg" in wanted:
                (out / "terminal.svg").write_text(terminal_svg(command, progress, screen, lines), encoding="utf-8")
            if "page.png" in wanted:
                page_png(Path(folder) / "report.html", out / "page.png", 1280, 1360)
        for name, kind in FRONTIER.items():
            if name in wanted:
                autotune(["frontier", "--target", "h100", "--plot", name, "--picture", kind], Path(folder),
                         stdout=subprocess.DEVNULL)  # fmt: skip
                shutil.copy(Path(folder) / name, out / name)
    click.echo(f"wrote {', '.join(str(out / name) for name in wanted)}")


if __name__ == "__main__":
    main()
