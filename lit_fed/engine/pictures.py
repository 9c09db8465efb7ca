"""The pictures of a run, from what its folder says, whether the run ended, goes on or was killed."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_fed.engine.run_folder import RunFolder
from lit_fed.engine.storage import write_bytes
from lit_fed.metrics.fairness import spread
from lit_fed.metrics.names import higher_is_better, primary
from lit_fed.pictures.active import draw_trainers, trainers
from lit_fed.pictures.canvas import png
from lit_fed.pictures.fusion import draw_fusion, fusion_weights
from lit_fed.pictures.gate import draw_gate, gate_weights
from lit_fed.pictures.holders import draw_holders, holders
from lit_fed.pictures.personal import draw_pairs, pairs
from lit_fed.pictures.scores import draw_scores, scores
from lit_fed.pictures.server import draw_server, server_numbers
from lit_fed.pictures.stages import draw_stages, stage_bytes, stages_of
from lit_fed.pictures.turns import draw_turns, turns

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Record:
    """The numbers of a run."""

    rounds: list[dict[str, Any]]
    """Rows of ``metrics.csv``."""
    turns: list[dict[str, Any]]
    """Rows of ``clients.csv``."""
    initial: dict[str, float]
    """Scores before the first round, of ``initial.json``."""
    num_blocks: int | None
    """Blocks of the model, of ``summary.json``; not known before the run's end."""
    clients: dict[str, Any]
    """Scores of each client's own serving and of the global one, of ``clients.json``; not known before the end."""

    @classmethod
    def read(cls, path: Path) -> "Record":
        """What the folder of a run says; a file that is not there says nothing."""
        folder = RunFolder(path)
        num_blocks = folder.summary().get("num_blocks")
        return cls(folder.rounds(), folder.turns(), folder.initial()["metrics"], num_blocks, folder.clients())


def accuracy(record: Record) -> "Figure | None":
    """The metric that tables show, over rounds; `None` without an evaluation."""
    names = [name for found in (record.initial, *record.rounds) for name in found]
    found = scores(primary(names), record.rounds, record.initial)
    return None if found is None else draw_scores(found)


def allocation(record: Record) -> "Figure | None":
    """Who ran which blocks; `None` if everyone ran all."""
    counts = holders(record.turns, record.num_blocks)
    return None if counts is None else draw_holders(counts)


def clients(record: Record) -> "Figure | None":
    """Bytes and seconds of each client; `None` if nobody has had a turn."""
    taken = turns(record.turns)
    return None if taken is None else draw_turns(taken)


def server(record: Record) -> "Figure | None":
    """What the algorithm's server reports; `None` if it reports nothing."""
    numbers = server_numbers(record.rounds)
    return draw_server(numbers) if numbers else None


def active(record: Record) -> "Figure | None":
    """Which blocks were trained; `None` if the method does not activate them one after the other."""
    counts = trainers(record.turns, record.num_blocks)
    return None if counts is None else draw_trainers(counts, stages_of(record.rounds))


def gate(record: Record) -> "Figure | None":
    """How much of its own expert each client uses; `None` without a gate."""
    weights = gate_weights(record.turns)
    return None if weights is None else draw_gate(weights)


def fusion(record: Record) -> "Figure | None":
    """What each client gave to its own LoRA and to the global one; `None` without a fusion."""
    weights = fusion_weights(record.turns)
    return None if weights is None else draw_fusion(weights)


def personal(record: Record) -> "Figure | None":
    """Each client's own serving against the global one; `None` if all predict with the same, or the run goes on."""
    metric = primary([f"global/{name}" for own in record.clients.values() for name in own["own"]])
    found = pairs(record.clients, metric, partial(spread, higher_is_better=higher_is_better(metric)))
    return None if found is None else draw_pairs(found)


def stages(record: Record) -> "Figure | None":
    """Bytes of each stage; `None` for a method without stages."""
    found = stage_bytes(record.turns, stages_of(record.rounds))
    return None if found is None else draw_stages(found)


PICTURES: dict[str, Callable[[Record], "Figure | None"]] = {
    "accuracy": accuracy, "active": active, "allocation": allocation, "clients": clients, "fusion": fusion,
    "gate": gate, "personal": personal, "server": server, "stages": stages,
}  # fmt: skip


def draw_pictures(path: Path) -> list[Path]:
    """Draw all that the folder of a run gives cause for, into ``pictures/`` there.

    A picture that cannot be drawn is a warning, and the others are drawn: a run is worth more than its pictures.

    Args:
        path: The run folder.

    Returns:
        The files written.
    """
    written: list[Path] = []
    record: Record | None = None
    for name, draw in PICTURES.items():
        file = path / "pictures" / f"{name}.png"
        try:
            record = record or Record.read(path)
            figure = draw(record)
            if figure is not None:
                file.parent.mkdir(exist_ok=True)
                write_bytes(file, png(figure))
                written.append(file)
        except Exception as error:
            warnings.warn(f"{file} could not be drawn: {type(error).__name__}: {error}", stacklevel=2)
    return written
