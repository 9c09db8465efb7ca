"""``lit-fed predict``: files in, a table or a file out."""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_fed.core.errors import ConfigError
from lit_fed.data.new_rows import NewRows, read_new
from lit_fed.engine.run_folder import RunFolder

if TYPE_CHECKING:
    from rich.table import Table

    from lit_fed.cli.settings import Settings

__all__ = ["as_table", "predict_files", "rows_of", "written"]

_INPUTS = ("text", "image", "prompt", "response")
_MOST_ROWS, _LONGEST = 40, 60  # of a table in a terminal
_AT_ONCE = 32  # examples, where the data's settings name no number


class _Batches:
    """Rows as the module encodes them, a batch at a time."""

    def __init__(self, encode: Any, rows: NewRows, size: int) -> None:
        self._encode, self._rows, self._size = encode, rows, size

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, len(self._rows), self._size):
            part = {name: values[start : start + self._size] for name, values in self._rows.columns.items()}
            try:
                yield dict(self._encode(part))
            except OSError as error:  # a picture that is none
                raise ConfigError(f"Expected `input` to be files that can be read, but got: {error}") from error


def predict_files(
    settings: "Settings", run: Path, paths: Sequence[str], client: str | None
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """What each example is known by, and what is predicted for it.

    Args:
        settings: Of the run; its data are neither read nor needed.
        run: The run folder.
        paths: Files and folders; see `lit_fed.data.new_rows.read_new`.
        client: Whose serving to use; `None` is what a new client gets.

    Raises:
        ConfigError: If a file cannot be read, the module has no ``encode``, or there is no such run or client.
    """
    data = settings.resolved()["data"]
    rows = read_new(paths, _called(data))
    module = settings.module()
    encode = getattr(module, "encode", None)
    if not callable(encode):
        raise ConfigError(
            f"Expected the module to offer `encode(rows)`, which turns files into tensors, but {type(module).__name__}"
            " does not. Add the method, or leave `--input` out and give `data.source` a predict_dataloader."
        )
    batches = _Batches(encode, rows, data.get("eval_batch_size") or data.get("batch_size") or _AT_ONCE)
    predicted = settings.federation().predict_new(module, batches, run, client)
    flat = [row for batch in predicted for row in rows_of(batch)]
    if len(flat) != len(rows):
        raise ConfigError(
            f"Expected `predict_step` of {type(module).__name__} to return as many rows as it is given, but got"
            f" {len(flat)} for {len(rows)} examples."
        )
    names = RunFolder(run).summary().get("label_names")
    return [(shown, _named(row, names)) for shown, row in zip(rows.shown, flat, strict=True)]


def rows_of(batch: Any) -> Iterator[Any]:
    """The examples of a predicted batch as JSON values: rows of a tensor, of a mapping of tensors, or of a list."""
    from torch import Tensor

    if isinstance(batch, Tensor):
        yield from (batch.unsqueeze(0) if batch.ndim == 0 else batch).tolist()
    elif isinstance(batch, Mapping):
        for row in zip(*(list(rows_of(column)) for column in batch.values()), strict=True):
            yield dict(zip(batch, row, strict=True))
    elif isinstance(batch, Sequence) and not isinstance(batch, str):
        yield from batch
    else:
        yield batch


def _called(data: Mapping[str, Any]) -> dict[str, str]:
    """What the run's own data called the columns that modules know."""
    source = data.get("source") or {}
    given = source.get("init_args") or {} if isinstance(source, Mapping) else {}
    return {name: column for name in _INPUTS if (column := given.get(f"{name}_column"))}


def _named(row: Any, names: Sequence[str] | None) -> dict[str, Any]:
    """A classifier's row with its class by name; what other modules predict as it is."""
    if not isinstance(row, Mapping):
        return {"prediction": row}
    label, probs = row.get("labels"), row.get("probs")
    if not isinstance(label, int) or not isinstance(probs, Sequence) or set(row) != {"labels", "probs"}:
        return dict(row)
    known = list(names) if names is not None and len(names) == len(probs) else [str(i) for i in range(len(probs))]
    return {
        "prediction": known[label],
        "probability": probs[label],
        "probabilities": dict(zip(known, probs, strict=True)),
    }


def written(rows: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]], to: Path) -> str:
    """The content of a file of predictions: a table for ``.csv``, else JSON lines."""
    lines = [{**shown, **predicted} for shown, predicted in rows]
    if to.suffix.lower() != ".csv":
        return "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for line in lines for key in line)), lineterminator="\n")
    writer.writeheader()
    plain = [
        {key: json.dumps(v, ensure_ascii=False) if isinstance(v, Mapping | list) else v for key, v in line.items()}
        for line in lines
    ]
    writer.writerows(plain)
    return text.getvalue()


def as_table(rows: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> "Table":
    """The first rows for a terminal, without what does not fit into a cell."""
    from rich.box import SIMPLE
    from rich.table import Table
    from rich.text import Text

    lines = [{**shown, **predicted} for shown, predicted in rows[:_MOST_ROWS]]
    cells = {key: None for line in lines for key, value in line.items() if not isinstance(value, Mapping | list)}
    table = Table(*cells, box=SIMPLE)
    if len(rows) > _MOST_ROWS:
        table.caption = f"the first {_MOST_ROWS} of {len(rows)}; `--to FILE` writes all"
    for line in lines:
        table.add_row(*(Text(_cell(key, line.get(key, ""))) for key in cells))
    return table


def _cell(key: str, value: Any) -> str:
    text = f"{value:.3f}" if isinstance(value, float) else " ".join(str(value).split())
    if len(text) <= _LONGEST:
        return text
    return f"…{text[1 - _LONGEST :]}" if key == "file" else f"{text[: _LONGEST - 1]}…"  # a path is told by its end
