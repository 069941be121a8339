"""The pictures of README.md and docs: what commands really print, as SVG, and the HTML pages as a browser shows them.

    python benchmarks/pictures.py                 all of them, into docs/pictures
    python benchmarks/pictures.py recommend       those whose name begins so

Commands run in a copy of sample_models, in a terminal of 100 columns; pages need Playwright and a Chromium.
"""

from __future__ import annotations

import io
import os
import pty
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "docs" / "pictures"
COLUMNS = 100
LARGEST = 300_000
"""Bytes of a picture."""

COMMANDS = {
    "profile": "dnnmem profile sample_models/gpt.py --batch 8 --device fake --gpu rtx-4090-24gb --html profile.html",
    "recommend": "dnnmem recommend sample_models/gpt.py --batch 16 --gpus 1 --gpu rtx-4090-24gb --top 4 --verify 2"
    " --html recommend.html",
}
"""By the name of the picture; each writes a page as well."""
SHOTS = {
    "recommend-light": ("recommend", "light", 1280),
    "recommend-dark": ("recommend", "dark", 1280),
    "recommend-narrow": ("recommend", "light", 420),
    "profile-dark": ("profile", "dark", 1280),
    "profile-narrow": ("profile", "dark", 420),
    "profile-light": ("profile", "light", 1280),
}
"""Pages: of which command, in which colours, how wide."""
SHOWN = ("recommend-light", "profile-dark")
"""Those that the documents show; the others are for looking at, in the folder that is named second."""
PLACES = {"profile-dark": "#time"}
"""Where on the page."""
HEIGHT = 900


def main(wanted: str = "", others: str = "") -> None:
    """Make the pictures whose names begin with `wanted`; shots that no document shows go to the folder `others`."""
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(ROOT / "sample_models", folder / "sample_models")
        for picture, command in COMMANDS.items():
            if picture.startswith(wanted.partition("-")[0]):
                written(PICTURES / f"{picture}.svg", terminal_svg(command, folder))
        shots(folder, wanted, Path(others) if others else None)


def terminal_svg(command: str, folder: Path) -> str:
    """The command and what it printed, colours and all."""
    from rich.console import Console
    from rich.text import Text

    text = run(command, folder)
    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    console.print(Text(f"$ {command.partition(' --html')[0]}\n", "bold"))
    console.print(Text.from_ansi(text), soft_wrap=True)
    svg = console.export_svg(title="dnnmem")
    return re.sub(r"@font-face \{[^}]*\}", "", svg)  # fonts of another site: a picture loads nothing


def run(command: str, folder: Path) -> str:
    """What the command prints on a terminal; it must succeed."""
    reader, terminal = pty.openpty()
    environ = {**os.environ, "COLUMNS": str(COLUMNS), "TERM": "xterm-256color"}
    words = [sys.executable, "-m", *shlex.split(command)]
    with subprocess.Popen(words, cwd=folder, env=environ, stdout=terminal, stderr=subprocess.PIPE) as child:
        os.close(terminal)
        parts = []
        while part := read(reader):
            parts.append(part)
        assert child.stderr is not None  # noqa: S101 - for the type checker
        errors = child.stderr.read().decode()
    os.close(reader)
    if child.returncode:
        sys.exit(f"{command}: {errors}")
    return b"".join(parts).decode().replace("\r\n", "\n")


def read(reader: int) -> bytes:
    """The next bytes; none when the terminal has closed."""
    try:
        return os.read(reader, 1 << 16)
    except OSError:
        return b""


def shots(folder: Path, wanted: str, others: Path | None) -> None:
    """Pages as a browser shows them."""
    from playwright.sync_api import sync_playwright

    path = next((found for name in ("chromium", "google-chrome") if (found := shutil.which(name))), None)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        for name, (page_name, colours, width) in SHOTS.items():
            page_file = folder / f"{page_name}.html"
            if not page_file.exists() or (name not in SHOWN and others is None) or not name.startswith(wanted):
                continue
            page = browser.new_page(
                viewport={"width": width, "height": HEIGHT}, color_scheme=colours, reduced_motion="reduce"
            )
            page.goto(page_file.as_uri() + PLACES.get(name, ""))
            target = (PICTURES if name in SHOWN else others or PICTURES) / f"{name}.png"
            written(target, page.screenshot())
            if others is not None:
                page.screenshot(path=others / f"{name}-full.png", full_page=True)
            page.close()
        browser.close()


def written(path: Path, content: str | bytes) -> None:
    """Write a picture; one that is too large is an error."""
    data = content.encode() if isinstance(content, str) else content
    if len(data) > LARGEST:
        sys.exit(f"{path.name} has {len(data):,} bytes, and {LARGEST:,} is the most")
    path.write_bytes(data)
    print(f"wrote {path} ({len(data):,} bytes)", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:3])
