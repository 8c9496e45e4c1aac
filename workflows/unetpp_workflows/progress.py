"""Shows a call's work while it runs: bars on a terminal, else a line now and then; knows no image and no model."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

_LINE_EVERY_S, _SHOWN_EVERY_S = 10.0, 0.1


@dataclass
class ShardMeter:
    """Counts committed shards; thread-safe. `pixels` are valid output pixels, stage seconds sum over workers.

    `before` are the shards that an earlier call committed; `total` and `done` are without them.
    """

    total: int
    before: int = 0
    done: int = 0
    pixels: int = 0
    stages: dict[str, float] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, pixels: int, stages: Mapping[str, float]) -> None:
        with self._lock:
            self.done += 1
            self.pixels += pixels
            for stage, seconds in stages.items():
                self.stages[stage] = self.stages.get(stage, 0.0) + seconds

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started

    def speed(self) -> str:
        return f"{self.pixels / max(self.seconds, 1e-9) / 1e6:.2f} Mpx/s"

    def limit(self) -> str:
        """Name the stage that decides the speed, with the seconds of all stages."""
        from unetpp.commit import STAGES, limiting_stage

        stage = limiting_stage(self.stages)
        if stage is None:
            return ""
        spent = ", ".join(f"{name} {self.stages.get(name, 0.0):.1f} s" for name in STAGES)
        return f"{stage} limits ({spent})"


class Display:
    """Writes progress to one console; all of a call's output goes through it."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()

    def say(self, message: str, style: str | None = None) -> None:
        self.console.print(message, style=style, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def shards(
        self, total: int, title: str, note: Callable[[], str] = str, *, before: int = 0
    ) -> Iterator[tuple[ShardMeter, Callable[[], None]]]:
        """Yield a meter and the function to call after each change of it.

        Args:
            total: shards that this call is to commit. before: that an earlier one did; shares shown include them.
            note: what else is to be said now.
        """
        meter = ShardMeter(total, before)
        if self.console.is_terminal:
            with self._bar() as bar:
                task = bar.add_task(title, total=before + total, completed=before, note="shards  starting workers")
                last = [0.0]

                def show() -> None:
                    now = time.perf_counter()
                    if now - last[0] < _SHOWN_EVERY_S and meter.done < meter.total:
                        return
                    last[0] = now
                    said = "  ".join(filter(None, (meter.speed(), meter.limit(), note())))
                    bar.update(task, completed=before + meter.done, note=f"shards  {said}")

                yield meter, show
        else:
            yield meter, self._lines(meter, title, note)
        if meter.done:
            limit = meter.limit()
            earlier = f" ({before} were done before)" if before else ""
            shards = f"{meter.done} of {total} shards in {meter.seconds:.1f} s{earlier}"
            self.say(f"{title}: {shards}, {meter.speed()}, {limit}")

    @contextmanager
    def images(self, total: int, title: str) -> Iterator[Callable[[], None]]:
        """Yield the function to call after each of many images that a step takes one by one."""
        done, last = 0, time.perf_counter()

        def line() -> None:
            nonlocal done, last
            done += 1
            if time.perf_counter() - last >= _LINE_EVERY_S:
                last = time.perf_counter()
                self.say(f"{title}: {done}/{total}")

        if self.console.is_terminal:
            with self._bar() as bar:
                task = bar.add_task(title, total=total, note="images")
                yield lambda: bar.advance(task)
        else:
            yield line

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """Show that something without countable parts is under way."""
        if self.console.is_terminal:
            with self.console.status(title):
                yield
        else:
            self.say(title)
            yield

    def _bar(self) -> Progress:
        return Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
        )

    def _lines(self, meter: ShardMeter, title: str, note: Callable[[], str]) -> Callable[[], None]:
        last = [meter.started]

        def line() -> None:
            now = time.perf_counter()
            if now - last[0] >= _LINE_EVERY_S:
                last[0] = now
                said = ", ".join(filter(None, (meter.speed(), meter.limit(), note())))
                self.say(f"{title}: {meter.before + meter.done}/{meter.before + meter.total} shards, {said}")

        return line
