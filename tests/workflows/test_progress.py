"""What a call shows of its work: a line now and then where nobody looks, a bar on a terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from unetpp_workflows import progress
from unetpp_workflows.progress import Display


def test_images_taken_one_by_one_are_counted_in_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_LINE_EVERY_S", 0.0)
    file = io.StringIO()
    with Display(Console(file=file)).images(3, "opening images") as opened:
        opened(), opened()
    assert file.getvalue().splitlines() == ["opening images: 1/3", "opening images: 2/3"]


def test_what_ends_soon_writes_no_line() -> None:
    file = io.StringIO()
    with Display(Console(file=file)).images(3, "opening images") as opened:
        opened()
    assert file.getvalue() == ""


def test_a_terminal_gets_a_bar_that_vanishes() -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, color_system=None, width=100)
    with Display(console).images(2, "opening images") as opened:
        opened(), opened()
    assert "2/2 images" in file.getvalue() and file.getvalue().endswith("\x1b[2K")


def test_shards_are_shown_with_speed_limit_and_note() -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, color_system=None, width=160)
    with Display(console).shards(2, "segmenting 1 image", lambda: "1 of 2 images finished") as (meter, show):
        for _ in range(2):
            meter.add(1000, {"read": 0.25, "compute": 2.0, "write": 0.5})
            show()
    last = file.getvalue().splitlines()[-1]
    assert "2/2 shards" in file.getvalue() and "1 of 2 images finished" in file.getvalue()
    assert "segmenting 1 image: 2 of 2 shards in " in last
    assert "compute limits (read 0.5 s, compute 4.0 s, write 1.0 s)" in last


def test_shards_of_an_earlier_call_count_as_done_and_not_as_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_LINE_EVERY_S", 0.0)
    file = io.StringIO()
    with Display(Console(file=file, width=160)).shards(2, "segmenting", before=5) as (meter, show):
        meter.add(1000, {"compute": 2.0})
        show()
    first, last = file.getvalue().splitlines()
    assert first.startswith("segmenting: 6/7 shards, ")
    assert last.startswith("segmenting: 1 of 2 shards in ") and " s (5 were done before), " in last
    terminal = Console(file=(file := io.StringIO()), force_terminal=True, color_system=None, width=160)
    with Display(terminal).shards(2, "segmenting", before=5) as (meter, show):
        for _ in range(2):
            meter.add(1000, {"compute": 2.0})
            show()
    assert "5/7" in file.getvalue() and "7/7" in file.getvalue()
