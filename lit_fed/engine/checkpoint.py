"""Checkpoints of the server: whole or not there, and refused when damaged or of another configuration."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_fed.core.difference import differences, listed
from lit_fed.core.errors import StateMismatchError
from lit_fed.core.types import Server, Tree
from lit_fed.engine.storage import load_tree, save_tree

KEPT = 2
SCHEMA = 1


@dataclass(frozen=True)
class Checkpoint:
    """What a run goes on from, beside the clients' private states."""

    server: Server
    identity: Mapping[str, Any]
    """What must be the same for the result to be the same: JSON values."""
    progress: Mapping[str, Any]
    """Totals so far (traffic, seconds, metrics before the first round): JSON values."""
    callbacks: Mapping[str, Tree]


class CheckpointFolder:
    """``checkpoints/round_000012.safetensors``; the last two are kept, so a damaged one leaves one to go back to."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint, then drop what is older than the last two."""
        self.directory.mkdir(parents=True, exist_ok=True)
        server = checkpoint.server
        tree = {
            "schema": SCHEMA,
            "round": server.round,
            "adapter": server.adapter,
            "state": server.state,
            "identity": json.dumps(checkpoint.identity, sort_keys=True),
            "progress": json.dumps(checkpoint.progress),
            "callbacks": checkpoint.callbacks,
        }
        save_tree(self.directory / f"round_{server.round:06d}.safetensors", tree)
        for version in self.versions()[:-KEPT]:
            self._path(version).unlink()

    def versions(self) -> list[int]:
        """Rounds finished, of every checkpoint that is there; ascending."""
        return sorted(int(path.stem.removeprefix("round_")) for path in self.directory.glob("round_*.safetensors"))

    def load(self, version: int | None = None) -> Checkpoint | None:
        """The newest checkpoint, or the one of a given round; `None` if there is none at all.

        Raises:
            StateMismatchError: If it is damaged; names the one before it.
        """
        versions = self.versions()
        if not versions:
            return None
        version = versions[-1] if version is None else version
        try:
            tree = load_tree(self._path(version))
        except StateMismatchError as error:
            older = [v for v in versions if v < version]
            way_out = (
                f"Go on from the one before it with `--ckpt_path {self._path(older[-1])}`." if older else "Start anew."
            )
            raise StateMismatchError(f"{error} {way_out}") from error
        server = Server(tree["round"], tree.get("adapter") or {}, tree.get("state") or {})
        callbacks = tree.get("callbacks") or {}
        return Checkpoint(server, json.loads(tree["identity"]), json.loads(tree["progress"]), callbacks)

    def rewind(self, version: int) -> None:
        """Delete checkpoints newer than `version`; for 0 all of them."""
        if version == 0:
            shutil.rmtree(self.directory, ignore_errors=True)
        for newer in self.versions():
            if newer > version:
                self._path(newer).unlink()

    def _path(self, version: int) -> Path:
        return self.directory / f"round_{version:06d}.safetensors"


def check_identity(found: Mapping[str, Any], expected: Mapping[str, Any], where: Path) -> None:
    """Raise `StateMismatchError` naming every setting in which a checkpoint's run differed from this one."""
    if lines := differences(found, json.loads(json.dumps(expected))):
        raise StateMismatchError(
            f"The checkpoints in {where} belong to another configuration:{listed(lines)}\n"
            "Restore these settings, or start a new run without `--ckpt_path`."
        )
