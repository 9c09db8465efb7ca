"""What each command does, by its name."""

import json
import os
import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from lit_fed.cli import tables
from lit_fed.cli.process import first_process
from lit_fed.core.errors import ConfigError, LitFedError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from lit_fed.cli.settings import Settings


def fit(options: Namespace, rest: list[str]) -> None:
    """Run or resume a federation."""
    if options.fastest and not options.help_all:
        _fit_fastest(options, rest)
    settings = _settings(options, rest)
    result = settings.federation().fit(settings.module(), settings.data(), options.ckpt_path, settings.resolved())
    if digest := result.summary["state_digest"]:  # of a dry run there is none, nor a folder
        _say(f"run: {result.path}", f"state_digest: {digest}")


def _fit_fastest(options: Namespace, rest: list[str]) -> NoReturn:
    """Become the command with the flags that were found: its other processes are started with the same ones."""
    from lit_fed.cli.fastest import fastest_settings

    if options.ckpt_path:
        raise ConfigError(
            "Expected `--fastest` without `--ckpt_path`, but got both. A run goes on with the threads it began with."
        )
    command = [sys.executable, "-m", "lit_fed", "fit", *rest, *fastest_settings(rest)]
    os.execv(command[0], command)  # noqa: S606


def validate(options: Namespace, rest: list[str]) -> None:
    """Score a stored run on validation data."""
    settings = _settings(options, rest)
    metrics = settings.federation().validate(settings.module(), settings.data(), options.run)
    _print(tables.scores(metrics))


def test(options: Namespace, rest: list[str]) -> None:
    """Score a stored run on test data."""
    settings = _settings(options, rest)
    metrics = settings.federation().test(settings.module(), settings.data(), options.run)
    _print(tables.scores(metrics))


def predict(options: Namespace, rest: list[str]) -> None:
    """Write what a stored run predicts."""
    from lit_fed.cli.predictions import rows_of
    from lit_fed.engine.served import is_serving

    settings = _settings(options, rest)
    if options.input:
        _predict_files(settings, options)
        return
    if is_serving(Path(options.run)):
        raise ConfigError(
            f"Expected `--input` with an export, which knows of no data, but got none. Say what {options.run} is to"
            " predict, `--input FILE ...`."
        )
    batches = settings.federation().predict(settings.module(), settings.data(), options.run, options.client)
    if first_process():
        path = Path(options.to or Path(options.run) / "predictions.jsonl")
        lines = [json.dumps(row) for batch in batches for row in rows_of(batch)]
        path.write_text("".join(f"{line}\n" for line in lines))
        _say(f"{len(lines)} predictions: {path}")


def _predict_files(settings: "Settings", options: Namespace) -> None:
    from lit_fed.cli.predictions import as_table, predict_files, written

    predicted = predict_files(settings, Path(options.run), options.input, options.client)
    if options.to is None:
        _print(as_table(predicted))
    elif first_process():
        Path(options.to).write_text(written(predicted, Path(options.to)), "utf-8")
        _say(f"{len(predicted)} predictions: {options.to}")


def partition(options: Namespace, rest: list[str]) -> None:
    """Show who holds what."""
    data = _settings(options, rest).data()
    _print(tables.holdings(data.table()))
    if options.picture:
        data.plot(options.picture)
        _say(f"picture: {options.picture}")


def export(options: Namespace, rest: list[str]) -> None:
    """Write an adapter for PEFT, or the merged model."""
    from lit_fed.integrations.export import export_adapter, export_merged

    _nothing_else(options, rest)
    run, to = Path(options.run), Path(options.to)
    if not options.merge:
        export_adapter(run, to, options.client)
    else:
        module = _run_settings(str(run), []).module()
        export_merged(module, run, to, options.client)
    _say(f"exported: {to}")


def suite(options: Namespace, rest: list[str]) -> None:
    """Run many experiments with many seeds, and compare them."""
    from lit_fed.cli.suite_file import read_suite

    wanted = read_suite(Path(options.config), options.run_dir, options.seeds, rest)
    chosen = wanted.chosen(options.only)
    from lit_fed.cli.suite import run_suite  # takes seconds, which nobody should wait for a typing error

    outcome = run_suite(wanted, chosen, options.processes, options.threads)
    if outcome.comparison is not None:
        _print(outcome.comparison)
        _say(f"table.md, table.csv, figure.png: {outcome.folder}")
    if outcome.failures:
        raise LitFedError(outcome.failures)


def compare(options: Namespace, rest: list[str]) -> None:
    """Put finished runs side by side."""
    from lit_fed.suite import compare as compared

    _nothing_else(options, rest)
    comparison = compared(options.runs, names=options.name, metric=options.metric, baseline=options.baseline)
    _print(comparison)
    if options.to is not None:
        comparison.save(options.to)
        _say(f"table.md, table.csv, figure.png: {options.to}")


def report(options: Namespace, rest: list[str]) -> None:
    """Write what a run did as one HTML file."""
    from lit_fed.report import write_report

    _nothing_else(options, rest)
    _say(f"report: {write_report(options.run, options.to)}")


def _nothing_else(options: Namespace, rest: list[str]) -> None:
    if rest:
        raise ConfigError(
            f"Expected no further arguments, but got {' '.join(rest)}. See `lit-fed {options.command} --help`."
        )


def _settings(options: Namespace, rest: list[str]) -> "Settings":
    """The settings of a command: of its arguments, on top of those of the stored run it is about."""
    from lit_fed.cli.settings import Settings, build_parser

    if options.help_all:
        build_parser().print_help()
        raise SystemExit(0)
    if "run" not in options:
        return Settings(rest)
    if options.run is None:
        raise ConfigError(f"Expected `--run` to be a run folder, but got none. See `lit-fed {options.command} --help`.")
    return _run_settings(options.run, rest)


def _run_settings(run: str, rest: list[str]) -> "Settings":
    from lit_fed.cli.settings import Settings

    config = Path(run) / "config.yaml"
    if not config.is_file():
        raise ConfigError(f"Expected `run` to be a run folder, but {config} is not a file.")
    return Settings(["--config", str(config), *rest])


def _print(table: "RenderableType") -> None:
    from rich.console import Console

    if first_process():
        Console(width=None if sys.stdout.isatty() else 120).print(table)


def _say(*lines: str) -> None:
    if first_process():
        print(*lines, sep="\n")
