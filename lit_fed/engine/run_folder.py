"""A run is a folder: configuration, tables, checkpoints, adapters, summary."""

import csv
import io
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lit_fed.core.errors import ConfigError
from lit_fed.engine.checkpoint import CheckpointFolder
from lit_fed.engine.private_store import PrivateStore
from lit_fed.engine.storage import TEMPORARY, write_bytes, write_json

TEXT_COLUMNS = ("client", "domain", "allocation", "failure")
"""Of ``clients.csv``: what may look like a number and is none."""


class RunFolder:
    """One ``version_N`` of a `run_dir`.

    ``config.yaml``, ``metrics.csv`` (a row a round), ``clients.csv`` (a row a round and client, with the client's own
    scores where the round was evaluated), ``checkpoints/``, ``private/``, ``adapters/``, ``summary.json``,
    ``pictures/``; and ``clients.json`` if clients predict with something of their own: the scores of that and of the
    global serving on each client's own test data, at the end.

    In ``clients.csv``, ``blocks`` is how many blocks of the model the client ran, and ``allocation`` which ones
    (``"0 3 7"``) if that was not all of them; ``turn/<name>`` are the numbers of its update.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = CheckpointFolder(path / "checkpoints")
        self.private = PrivateStore(path / "private")
        self._rows: list[dict[str, Any]] = []

    @classmethod
    def new(cls, run_dir: Path) -> "RunFolder":
        """The next ``version_N``; made at once, so that two runs started together get two."""
        run_dir.mkdir(parents=True, exist_ok=True)
        version = max(_versions(run_dir), default=-1) + 1
        while True:
            try:
                (run_dir / f"version_{version}").mkdir()
            except FileExistsError:
                version += 1
            else:
                return cls(run_dir / f"version_{version}")

    @classmethod
    def find(cls, ckpt_path: str, run_dir: Path) -> tuple["RunFolder | None", int | None]:
        """What ``--ckpt_path`` means: the run to continue and the round to continue from (`None`: the newest).

        Args:
            ckpt_path: ``"last"``, a run folder, or a checkpoint file in one.
            run_dir: Where ``"last"`` looks.

        Returns:
            `None` for the folder if ``"last"`` finds nothing to continue.

        Raises:
            ConfigError: If a path is given and is neither.
        """
        if ckpt_path == "last":
            versions = _versions(run_dir)
            return (cls(run_dir / f"version_{max(versions)}"), None) if versions else (None, None)
        path = Path(ckpt_path)
        match = re.fullmatch(r"round_(\d+)\.safetensors", path.name)
        if match and path.is_file():
            return cls(path.parent.parent), int(match[1])
        if (path / "checkpoints").is_dir():
            return cls(path), None
        raise ConfigError(
            f"Expected `ckpt_path` to be 'last', a run folder or a checkpoint in one, but got {ckpt_path!r}."
        )

    def write_config(self, config: Mapping[str, Any]) -> None:
        """``config.yaml``: everything resolved."""
        text = yaml.safe_dump(json.loads(json.dumps(config, default=str)), sort_keys=False, allow_unicode=True)
        write_bytes(self.path / "config.yaml", text.encode())

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """``summary.json``."""
        write_json(self.path / "summary.json", summary)

    def summary(self) -> dict[str, Any]:
        """What `write_summary` wrote, or nothing."""
        path = self.path / "summary.json"
        return dict(json.loads(path.read_text())) if path.is_file() else {}

    def write_initial(self, scores: Mapping[str, Any]) -> None:
        """``initial.json``: the scores before the first round, of domains and of clients."""
        write_json(self.path / "initial.json", scores)

    def initial(self) -> dict[str, Any]:
        """What `write_initial` wrote, or nothing."""
        path = self.path / "initial.json"
        return dict(json.loads(path.read_text())) if path.is_file() else {"metrics": {}, "clients": {}}

    def write_clients(self, scores: Mapping[str, Any]) -> None:
        """``clients.json``: client -> ``own`` and ``global`` -> metric -> value."""
        write_json(self.path / "clients.json", scores)

    def clients(self) -> dict[str, Any]:
        """What `write_clients` wrote, or nothing."""
        path = self.path / "clients.json"
        return dict(json.loads(path.read_text())) if path.is_file() else {}

    def rounds(self) -> list[dict[str, Any]]:
        """The rows of ``metrics.csv`` as they were written."""
        return read_csv(self.path / "metrics.csv")

    def turns(self) -> list[dict[str, Any]]:
        """The rows of ``clients.csv`` as they were written."""
        return read_csv(self.path / "clients.csv", TEXT_COLUMNS)

    def client_ids(self) -> tuple[str, ...]:
        """Everybody who had a turn or was evaluated, by id."""
        return tuple(sorted({row["client"] for row in self.turns()} | set(self.initial()["clients"])))

    def client_totals(self) -> dict[str, dict[str, float]]:
        """Bytes and seconds of every client that ever took part, added up from ``clients.csv``."""
        totals: dict[str, dict[str, float]] = {}
        for row in self.turns():
            total = totals.setdefault(row["client"], {"up_bytes": 0, "down_bytes": 0, "seconds": 0.0})
            for name in total:
                total[name] += row.get(name, 0)
        return totals

    def add_round(self, row: Mapping[str, Any], clients: Sequence[Mapping[str, Any]]) -> None:
        """Add a row to ``metrics.csv``, and the rows of its clients to ``clients.csv``."""
        self._rows.append(dict(row))
        self._append("metrics.csv", [row])
        self._append("clients.csv", clients)

    @property
    def history(self) -> list[dict[str, Any]]:
        """The rows of ``metrics.csv`` of the run that this object has seen."""
        return list(self._rows)

    def rewind(self, version: int) -> None:
        """Make the folder look as it did after `version` rounds."""
        for left_behind in self.path.glob("cache_*"):
            shutil.rmtree(left_behind)
        for half_written in self.path.rglob(TEMPORARY):
            half_written.unlink()
        self.checkpoints.rewind(version)
        self.private.rewind(version)
        self._rows = [row for row in self.rounds() if row["round"] < version]
        for name in ("metrics.csv", "clients.csv"):
            path = self.path / name
            if path.is_file():
                header, *lines = path.read_text().splitlines(keepends=True)
                kept = [line for line in lines if line.endswith("\n") and int(line.partition(",")[0]) < version]
                write_bytes(path, "".join([header, *kept]).encode())

    def _append(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        path = self.path / name
        columns = list(dict.fromkeys(key for row in rows for key in row))
        if not rows:
            return  # nobody had a task
        if not path.exists():
            write_bytes(path, _csv(columns, rows).encode())
            return
        with open(path, newline="") as file:
            header = file.readline().rstrip("\n").split(",")
        if set(columns) <= set(header):
            with open(path, "a", newline="") as file:
                file.write(_csv(header, rows).split("\n", 1)[1])
                file.flush()
                os.fsync(file.fileno())
        else:  # a column that was not there before, such as the scores of a first evaluation
            write_bytes(
                path,
                _csv(list(dict.fromkeys([*header, *columns])), [*read_csv(path, TEXT_COLUMNS), *rows]).encode(),
            )


def read_csv(path: Path, text_columns: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Rows of a table, with numbers as numbers (but in `text_columns`) and without empty cells.

    A last line without its end is passed over: whoever wrote it was killed.
    """
    if not path.is_file():
        return []
    written = path.read_bytes()
    lines = io.StringIO(written[: written.rfind(b"\n") + 1].decode(), newline="")
    rows = [{k: v for k, v in row.items() if v not in ("", None)} for row in csv.DictReader(lines)]
    return [{k: v if k in text_columns else _number(v) for k, v in row.items()} for row in rows]


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _csv(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def _versions(run_dir: Path) -> list[int]:
    found = (re.fullmatch(r"version_(\d+)", path.name) for path in run_dir.glob("version_*"))
    return [int(match[1]) for match in found if match]
