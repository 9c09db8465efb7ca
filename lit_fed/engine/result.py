"""What a federation leaves behind."""

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from lit_fed.core.errors import ConfigError
from lit_fed.core.types import Server
from lit_fed.core.units import readable_bytes
from lit_fed.engine.pictures import PICTURES, Record
from lit_fed.pictures.canvas import img

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

_DRAWN_FROM = {
    "accuracy": "at least one evaluation",
    "active": "blocks that are activated one after the other",
    "allocation": "clients that ran a part of the blocks",
    "clients": "at least one client's turn",
    "fusion": "clients that fused their LoRA with the global one",
    "gate": "a gate",
    "personal": "clients that predict with something of their own",
    "server": "numbers that its algorithm reports",
    "stages": "stages",
}


@dataclass(frozen=True)
class Result:
    """The outcome of a run.

    Args:
        server: The server after the last round.
        adapter: The adapter that a new client would be served, by canonical name.
        summary: The content of ``summary.json``.
        history: A row a round, as in ``metrics.csv``.
        domains: Domain -> metric -> ``(before, after)``.
        clients: Client -> its row of the final table: examples, scores before and after, bytes, seconds.
        path: The run folder.
    """

    server: Server
    adapter: Mapping[str, Tensor]
    summary: Mapping[str, Any]
    history: list[dict[str, Any]]
    domains: Mapping[str, Mapping[str, tuple[float | None, float]]]
    clients: Mapping[str, Mapping[str, Any]]
    path: Path
    metric: str = field(default="accuracy")

    def __repr__(self) -> str:
        """In a line; the tensors would be millions of characters."""
        names = (f"global/{self.metric}", f"personal/{self.metric}_mean")
        scores = [f"{name} {_score(self.metrics[name])}" for name in names if name in self.metrics]
        rounds = f"rounds: {self.summary['rounds']}"
        return f"Result({', '.join([self.summary['algorithm'], rounds, *scores, str(self.path)])})"

    @property
    def metrics(self) -> Mapping[str, float]:
        """The final metrics, by the names of ``summary.json``."""
        metrics: Mapping[str, float] = self.summary["metrics"]
        return metrics

    @property
    def pictures(self) -> list[Path]:
        """What was drawn when the run ended: PNG files in its folder."""
        return sorted((self.path / "pictures").glob("*.png"))

    def plot(
        self,
        path: str | Path | None = None,
        *,
        picture: Literal[
            "accuracy", "active", "allocation", "clients", "fusion", "gate", "personal", "server", "stages"
        ] = "accuracy",
    ) -> "Figure":
        """Draw the run; also writes the picture to `path`, if given.

        Args:
            path: A file: PNG, PDF or SVG.
            picture: ``"accuracy"``: the metric that `table` shows, over rounds, of every domain and of the clients;
                ``"active"``: which blocks were trained; ``"allocation"``: who ran which blocks; ``"clients"``: bytes
                and seconds of each client; ``"fusion"``: how each client weighed its own LoRA and the global one;
                ``"gate"``: the weight of each client's own expert; ``"personal"``: each client's own serving against
                the global one; ``"server"``: what the algorithm reports; ``"stages"``: bytes of each stage.

        Raises:
            ConfigError: If there is no such picture, or the run folder has nothing (any more) to draw it from.
        """
        if picture not in PICTURES:
            raise ConfigError(f"Expected `picture` to be one of {', '.join(PICTURES)}, but got {picture!r}.")
        figure = PICTURES[picture](Record.read(self.path))
        if figure is None:
            raise ConfigError(f"Expected a run with {_DRAWN_FROM[picture]}, but {self.path} has none to draw.")
        if path is not None:
            figure.savefig(path, dpi=150)
        return figure

    def table(self, most: int = 24) -> "Table":
        """The final table: domains, then clients (the first `most` of them), before and after."""
        from rich.markup import escape
        from rich.table import Table

        table = Table(title=f"{self.summary['algorithm']} after {self.summary['rounds']} rounds: {self.metric}")
        for name in ("", "examples", "before", "after", "up", "down", "seconds"):
            table.add_column(name, justify="left" if not name else "right")
        for domain, scores in self.domains.items():
            before, after = scores[self.metric]
            table.add_row(f"[bold]{domain}[/]", "", _score(before), f"[bold]{_score(after)}[/]", "", "", "")
        overall = self.metrics.get(f"global/{self.metric}")
        if len(self.domains) > 1:
            before = self.metrics.get(f"initial/{self.metric}")
            table.add_row("[bold]all domains[/]", "", _score(before), f"[bold]{_score(overall)}[/]", "", "", "")
        table.add_section()
        for client, row in list(self.clients.items())[:most]:
            table.add_row(
                f"client {client}", str(row["examples"]), _score(row.get("before")), _score(row.get("after")),
                readable_bytes(row["up_bytes"]), readable_bytes(row["down_bytes"]), f"{row['seconds']:.1f}",
            )  # fmt: skip
        if len(self.clients) > most:
            table.add_row(f"... {len(self.clients) - most} more", "", "", "", "", "", "")
        traffic, seconds = self.summary["traffic"], self.summary["seconds"]
        table.add_section()
        table.add_row(
            "total", str(sum(row["examples"] for row in self.clients.values())), "", "",
            readable_bytes(traffic["up_bytes"]), readable_bytes(traffic["down_bytes"]), f"{seconds['train']:.1f}",
        )  # fmt: skip
        if self.pictures:
            table.caption = escape(f"pictures: {self.pictures[0].parent}")
        return table

    def _repr_html_(self) -> str:
        """How it looks in Jupyter."""
        from rich.console import Console

        # Without the last argument it would also show there what it records.
        console = Console(record=True, width=100, file=io.StringIO(), force_jupyter=False)
        console.print(self.table())
        table = console.export_html(inline_styles=True, code_format="<pre>{code}</pre>")
        shown = [img(file.read_bytes(), file.stem) for file in self.pictures if file.stem == "accuracy"]
        return "".join([table, *shown])


def _score(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
