"""The command: exit codes, what it prints, the page."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from unetpp.train.store import PatchStore
from unetpp_workflows.cli import app
from unetpp_workflows.prepare.page import overlay

DESCRIPTION = """
name = "garden"
[data]
side = 32
images = "images/*.png"
labels = "masks/{stem}.png"
group_pattern = "^([a-z]+)"
validation = ["v"]
[[classes]]
name = "ground <b>"
color = [10, 20, 30]
background = true
[[classes]]
name = "tree"
color = [0, 200, 0]
[[classes]]
name = "roof"
color = [200, 0, 0]
"""


def run(folder: Path, *options: str) -> Any:
    (folder / "d.toml").write_text(DESCRIPTION)
    command = ["prepare", str(folder / "d.toml"), "--data", str(folder), "-o", str(folder / "s.zarr"), *options]
    return CliRunner().invoke(app, command)


class Page(HTMLParser):
    """Text, pictures and everything that would be loaded from elsewhere."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.words, self.pictures, self.loaded = "", 0, []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "href"):
                inline = str(value).startswith("data:image/")
                self.pictures += inline
                self.loaded += [] if inline else [value]

    def handle_data(self, data: str) -> None:
        self.words += data


def test_a_store_a_page_and_an_export(photos: Any, tmp_path: Path) -> None:
    photos({"a1": (70, 100), "v1": (40, 90)})
    result = run(tmp_path, "--export", str(tmp_path / "plain"))
    assert result.exit_code == 0, result.output
    assert "train 1 image(s)" in result.output
    store, plain = PatchStore.open(tmp_path / "s.zarr"), PatchStore.open(tmp_path / "plain")
    assert store.fingerprint == plain.fingerprint
    assert not (tmp_path / "s.zarr.work").exists()
    page = Page(tmp_path / "s.html")
    assert page.pictures >= 4 and not page.loaded
    assert "ground <b>" in page.words and store.fingerprint[:16] in page.words
    again = run(tmp_path)
    assert again.exit_code == 0 and "stored already" in again.output


def test_errors_are_on_the_page_and_exit_with_2(photos: Any, tmp_path: Path) -> None:
    photos({"a1": (70, 100), "v1": (40, 90)})
    Image.fromarray(np.zeros((39, 90), np.uint8)).save(tmp_path / "masks/v1.png")
    result = run(tmp_path)
    assert result.exit_code == 2 and "the image 90 x 40" in result.output
    assert not (tmp_path / "s.zarr").exists()
    assert "Errors: nothing was stored" in Page(tmp_path / "s.html").words


@pytest.mark.parametrize(
    ("options", "said"),
    [(["--set", "data.validation=['w']"], "no split"), (["--executor", "spark"], "spark"), (["-o", "s.zip"], ".zarr")],
)
def test_wrong_usage_exits_with_2(options: list[str], said: str, photos: Any, tmp_path: Path) -> None:
    photos({"a1": (70, 100), "v1": (40, 90)})
    result = run(tmp_path, *options)
    assert result.exit_code == 2 and said in result.output


def test_an_overlay_shows_classes_borders_and_what_does_not_count() -> None:
    labels = np.zeros((40, 40), np.uint8)
    labels[10:20, 10:20], labels[30:] = 1, 255
    drawn = overlay(np.full((40, 40, 3), 100, np.uint8), labels, [(0, 0, 0), (200, 0, 0)], [True, False])
    assert (drawn[5, 5] == 100).all() and drawn[15, 15].tolist() == [150, 50, 50]
    assert (drawn[10, 10:20] == 255).all() and (drawn[35] == 128).any()
