"""Progress over images: a bar on a terminal, occasional lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

from maecli.output import Output, can_redraw, make_console
from maecli.views.progress import SECONDS_BETWEEN_LINES, duration

if TYPE_CHECKING:
    from mae.evaluation.extract import Progress


class CountingView:
    """Shows images done, their rate and the time left; a context manager, so that no bar is left behind."""

    def __init__(self, output: Output) -> None:
        self.output = output
        self.stage = ""
        self.started = self.spoke = 0.0
        self.before = 0  # images that were done when the stage started or restarted
        self.bar: Any = None
        self.task: Any = None

    def __enter__(self) -> CountingView:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end()

    def __call__(self, progress: Progress) -> None:
        """Show the progress."""
        if self.output.quiet:
            return
        if progress.stage != self.stage:
            self._begin(progress)
        done, seconds = progress.done - self.before, time.monotonic() - self.started
        rate = done / seconds if seconds > 0 else 0.0
        text = f"{rate:,.0f} {progress.unit}/s" if rate and progress.unit == "images" else ""
        left = f"left {duration((progress.total - progress.done) / rate)}" if rate and progress.total else ""
        if self.bar is not None:
            self.bar.update(self.task, completed=progress.done, total=progress.total or None, rate=text, left=left)
        elif time.monotonic() - self.spoke > SECONDS_BETWEEN_LINES:
            self.spoke = time.monotonic()
            of = f" of {progress.total:,}" if progress.total else ""
            parts = (f"{progress.stage}: {progress.done:,}{of} {progress.unit}", text, left)
            self.output.say("  ".join(part for part in parts if part))

    def _begin(self, progress: Progress) -> None:
        self._end()
        self.stage, self.started, self.before = progress.stage, time.monotonic(), progress.done
        self.spoke = self.spoke or self.started
        if progress.kept:
            self.output.note(f"{progress.kept:,} of {progress.total:,} images were already done")
        if can_redraw(sys.stderr):
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

            self.bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TextColumn("{task.fields[left]}"),
                console=make_console(sys.stderr),
                transient=True,
            )
            self.task = self.bar.add_task(progress.stage, total=progress.total or None, rate="", left="")
            self.bar.start()

    def _end(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
