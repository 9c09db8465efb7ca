"""Rounds and clients as they go by: bars in a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING

from lit_fed.callbacks.base import Callback

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    from lit_fed.engine.federation import Federation


class Progress(Callback):
    """Shows the first process's work; with ``federation.progress`` it is there by itself."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console
        self._bars: Bars | None = None
        self._rounds: TaskID | None = None
        self._clients: TaskID | None = None

    @cached_property
    def console(self) -> Console:
        """Made when first used: it holds a lock, which does not go to a spawned process."""
        from rich.console import Console

        return self._console or Console()

    def on_fit_start(self, federation: Federation) -> None:
        """Draw the bars."""
        if not federation.is_global_zero:
            return
        self.console.print(f"[dim]{federation.run_path}[/dim]", highlight=False, soft_wrap=True)
        if not self.console.is_terminal:
            return
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        self._bars = Bars(
            TextColumn("{task.description:<10}"), BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn(),
            TimeRemainingColumn(), TextColumn("{task.fields[note]}"), console=self.console,
        )  # fmt: skip
        done = federation.rounds_done
        self._rounds = self._bars.add_task("rounds", total=federation.rounds, completed=done, note="")
        self._clients = self._bars.add_task("clients", total=None, note="")
        self._bars.start()

    def on_round_start(self, federation: Federation, round: int, cohort: tuple[str, ...]) -> None:
        """Start the bar of clients."""
        if self._bars and self._clients is not None:
            own = -(-len(cohort) // federation.num_processes)
            self._bars.reset(self._clients, total=own, description="clients", note="")

    def on_client_start(self, federation: Federation, round: int, client: str) -> None:
        """Name whose turn it is."""
        if self._bars and self._clients is not None:
            self._bars.update(self._clients, note=client)

    def on_client_end(self, federation: Federation, round: int, client: str) -> None:
        """One more."""
        if self._bars and self._clients is not None:
            self._bars.advance(self._clients)

    def on_evaluate_start(self, federation: Federation, round: int) -> None:
        """Say that it is being evaluated."""
        if self._bars and self._clients is not None:
            self._bars.update(self._clients, description="evaluate", note="")

    def on_round_end(self, federation: Federation, round: int, metrics: Mapping[str, float]) -> None:
        """A line of the round's numbers."""
        if not federation.is_global_zero:
            return
        line = self._line(federation, round, metrics)
        if self._bars and self._rounds is not None:
            self._bars.update(self._rounds, completed=round + 1, note="  ".join(line.split("  ")[1:3]))
        else:
            self.console.print(line, highlight=False, soft_wrap=True)

    def on_fit_end(self, federation: Federation) -> None:
        """Take the bars away."""
        self._stop()

    def on_exception(self, federation: Federation, error: BaseException) -> None:
        """Leave the terminal as it was."""
        self._stop()

    def _stop(self) -> None:
        if self._bars:
            self._bars.stop()
            self._bars = None

    def _line(self, federation: Federation, round: int, metrics: Mapping[str, float]) -> str:
        name = federation.metric
        parts = [f"round {round + 1}/{federation.rounds}"]
        if not math.isnan(metrics["train/loss"]):  # somebody trained
            parts.append(f"loss {metrics['train/loss']:.3f}")
        if f"global/{name}" in metrics:
            parts.append(f"{name} {metrics[f'global/{name}']:.3f}")
        if f"personal/{name}_mean" in metrics:
            mean, worst = metrics[f"personal/{name}_mean"], metrics[f"personal/{name}_worst"]
            parts.append(f"personal {mean:.3f} (worst {worst:.3f})")
        parts.append(f"up {metrics['up_bytes'] / 1e6:.2f} MB")
        return "  ".join([*parts, f"{metrics['seconds']:.1f} s"])
