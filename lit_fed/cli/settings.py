"""Settings of a federation: signature = flag = YAML key, as with LightningCLI, by jsonargparse."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace

from lit_fed.cli.explain import explain
from lit_fed.core.errors import ConfigError
from lit_fed.core.seeding import isolated_rng

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule

    from lit_fed.data import FederatedDataModule
    from lit_fed.engine.federation import Federation

GROUPS = ("model", "data", "algorithm", "federation")
WITH_SHORT_NAMES = (  # a class that is imported can be chosen by its short name
    "flwr_datasets.partitioner",
    "lightning.pytorch.callbacks",
    "lightning.pytorch.loggers",
    "lit_fed.algorithms",
    "lit_fed.callbacks",
    "lit_fed.data",
    "lit_fed.modules",
)
FROM_ELSEWHERE = {"algorithm", "seed"}  # arguments of `Federation` that other groups give


class Settings:
    """Parsed and resolved settings, from which objects are built.

    Args:
        args: The arguments of a command that are settings.

    Raises:
        ConfigError: In one line, naming the key and what it may be.
    """

    def __init__(self, args: Sequence[str]) -> None:
        self._parser = build_parser()
        try:
            self._values: Namespace = self._parser.parse_args(list(args))
        except ArgumentError as error:
            raise ConfigError(explain(str(error), self._parser)) from error
        for group in ("data", "federation"):
            if not isinstance(value := self._values[group], Namespace):
                raise ConfigError(f"Expected `{group}` to hold settings by name, but got {value!r}.")

    def resolved(self) -> dict[str, Any]:
        """Every setting with its value, defaults included: what ``--config`` takes to repeat the run."""
        resolved: dict[str, Any] = yaml.safe_load(self._parser.dump(self._values, skip_unset=False))
        return resolved

    def module(self) -> "LightningModule":
        """The module of ``model``."""
        with self._building("model"):
            module: LightningModule = self._instantiate("model")
            return module

    def data(self) -> "FederatedDataModule":
        """The federated data of ``data``."""
        from lit_fed.data import FederatedDataModule

        with self._building("data"):
            return FederatedDataModule(**vars(self._instantiate("data")))

    def federation(self) -> "Federation":
        """The federation of ``federation``, ``algorithm`` and ``seed_everything``."""
        from lit_fed.engine.federation import Federation

        with self._building("algorithm"):
            algorithm = self._instantiate("algorithm")
        with self._building("federation"):
            arguments = vars(self._instantiate("federation"))
            return Federation(algorithm, seed=self._values.seed_everything, **arguments)

    def _instantiate(self, group: str) -> Any:
        """The object of one group, and no other; its arguments where we call the constructor."""
        values = self._values.clone()
        for other in set(GROUPS) - {group}:
            values.pop(other)
        return self._parser.instantiate(values)[group]

    @contextmanager
    def _building(self, group: str) -> Iterator[None]:
        """What constructors draw depends on seed and group alone; what they refuse is a setting."""
        try:
            with isolated_rng(self._values.seed_everything, "construct", group):
                yield
        except ValueError as error:
            raise ConfigError(f"Expected `{group}` to be settings that can be built, but got: {error}") from error


def build_parser() -> ArgumentParser:
    """The parser of all settings; importing what it needs to know takes a few seconds."""
    from lightning.pytorch import LightningModule

    from lit_fed.algorithms import Algorithm
    from lit_fed.data import FederatedDataModule
    from lit_fed.engine.federation import Federation

    for package in WITH_SHORT_NAMES:
        import_all(package)
    parser = ArgumentParser(
        prog="lit-fed",
        usage="lit-fed fit [--config FILE] [--GROUP.KEY VALUE ...]",
        description="Every setting. A class is chosen by its name or path, and configured by its arguments.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="config", help="YAML file; may be given several times, later ones win.")
    parser.add_argument("--seed_everything", type=int, default=0, help="All randomness of a run is a function of it.")
    parser.add_subclass_arguments(LightningModule, "model", required=True, fail_untyped=False)
    parser.add_class_arguments(FederatedDataModule, "data", instantiate=False)
    parser.add_subclass_arguments(Algorithm, "algorithm", required=True)
    parser.add_class_arguments(Federation, "federation", skip=FROM_ELSEWHERE, instantiate=False)
    return parser


def import_all(package: str) -> None:
    """Import what a package offers, also if it would wait until it is asked."""
    module = import_module(package)
    for name in module.__all__:
        getattr(module, name)
