"""The command line: ``lit-fed fit | validate | test | predict | partition | suite | compare | report | export``.

What a command does for itself is parsed here, with nothing but the standard library, so that help comes at once. The
settings of a federation are parsed from signatures, in `lit_fed.cli.settings`.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from lit_fed.cli.process import first_process
from lit_fed.cli.suggest import choose

__all__ = ["main"]

SETTINGS = """
settings of the federation:
  --config FILE           YAML; may be given several times, later ones win
  --GROUP.KEY VALUE       one setting, after or in place of a file; groups are model, data, algorithm, federation
  --seed_everything SEED  all randomness of a run is a function of it
  --print_config          print everything that can be set, resolved, and leave
  --help_all              every setting, its type and its default (takes a few seconds)
"""
SUITE_SETTINGS = """settings:
  --GROUP.KEY VALUE       a setting of `lit-fed fit` for every run, after those of the file
"""
ILL_CONFIGURED, FAILED, INTERRUPTED = 2, 1, 130


class UsageError(Exception):
    """The arguments of a command are wrong."""


def main(args: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        args: The arguments, without the program's name; those of the process by default.

    Returns:
        The exit code: 0, 1 if the work failed, 2 if the settings are wrong, 130 if interrupted.
    """
    if "torch" not in sys.modules:
        # Threads that wait for one another by spinning starve as soon as anything else runs on the machine: measured on
        # two cores with one of them busy, a round took ten times as long. Idle, it makes little difference.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        options, rest = _parser().parse_known_args(sys.argv[1:] if args is None else args)
    except UsageError as error:
        return _fail(str(error), ILL_CONFIGURED)
    return _run(options.command, options, rest)


def _run(command: str, options: argparse.Namespace, rest: list[str]) -> int:
    # Nothing heavy before here: what a command needs is loaded when it is known which.
    from lit_fed.cli import commands
    from lit_fed.core.errors import ConfigError, LitFedError, StateMismatchError

    function: Callable[[argparse.Namespace, list[str]], None] = getattr(commands, command)
    try:
        function(options, rest)
    except (ConfigError, StateMismatchError) as error:
        return _fail(str(error), ILL_CONFIGURED)
    except LitFedError as error:
        return _fail(str(error), FAILED)
    except KeyboardInterrupt:
        again = "The same command" if command == "suite" else "`lit-fed fit ... --ckpt_path last`"
        return _fail(f"interrupted. {again} continues from the last checkpoint.", INTERRUPTED)
    return 0


def _fail(message: str, code: int) -> int:
    if first_process():
        print(f"lit-fed: error: {message}", file=sys.stderr)
    return code


class _Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are exceptions, and that knows what a misspelt command was to be."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}. See `{self.prog} --help`.")

    def _check_value(self, action: argparse.Action, value: str) -> None:
        if action.choices is not None and value not in action.choices:
            raise UsageError(f"Expected a command, {choose(value, action.choices)}")


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = _Parser("lit-fed", description="Federated tuning of foundation models.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_Parser)

    def add(name: str, help: str, settings: bool = True) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name,
            help=help,
            description=help[0].upper() + help[1:] + ".",
            epilog=SETTINGS if settings else None,
            formatter_class=raw,
            allow_abbrev=False,
        )
        if settings:
            command.add_argument("--help_all", action="store_true", help=argparse.SUPPRESS)
        return command

    fit = add("fit", "run or resume a federation")
    fit.add_argument(
        "--ckpt_path", metavar="last|RUN|FILE", help="continue the newest run, a run folder, or one of its checkpoints"
    )
    fit.add_argument(
        "--fastest",
        action="store_true",
        help="first run a few rounds with one process of all cores, and with one for each core; take the faster",
    )
    for name, data in (("validate", "validation"), ("test", "test"), ("predict", "prediction")):
        command = add(name, f"use the stored result of a run on its {data} data")
        command.add_argument("--run", metavar="RUN", help="the run folder; its settings are the defaults")
    command.add_argument("--client", metavar="ID", help="predict as this client; without it, as a new one")
    command.add_argument(
        "--input",
        metavar="FILE",
        nargs="+",
        help="new examples, not the run's: pictures, folders of them, .txt, .jsonl, .csv; needs no training data",
    )
    command.add_argument(
        "--to",
        metavar="FILE",
        help="JSON lines, an example each, or with --input also .csv (default: RUN/predictions.jsonl; a table)",
    )
    partition = add("partition", "show who holds what, without training")
    partition.add_argument("--picture", metavar="FILE", help="draw it, as PNG, PDF or SVG")
    suite = add("suite", "run many experiments with many seeds, and compare them", settings=False)
    suite.epilog = SUITE_SETTINGS
    suite.add_argument("--config", metavar="FILE", required=True, help="which; see configs/suites/")
    suite.add_argument("--run_dir", metavar="DIR", help="in place of the file's")
    suite.add_argument("--seeds", metavar="0,1,2", type=_seeds, help="in place of the file's")
    suite.add_argument(
        "--only", metavar="NAME", nargs="+", help="run these experiments, and compare all that is finished"
    )
    suite.add_argument(
        "--processes", metavar="N", type=_count, help="runs at a time (default: as processors or GPUs allow)"
    )
    suite.add_argument(
        "--threads", metavar="N", type=_count, default=1, help="of each run; as many give the same bytes (default: 1)"
    )
    compare = add("compare", "put finished runs side by side", settings=False)
    compare.add_argument("runs", metavar="RUN", nargs="+", help="run folders")
    compare.add_argument("--to", metavar="DIR", help="write table.md, table.csv and figure.png here")
    compare.add_argument("--baseline", metavar="NAME", help="test the others against it, paired by seed")
    compare.add_argument(
        "--metric", metavar="NAME", help="to compare by (default: accuracy, or the first of the runs')"
    )
    compare.add_argument(
        "--name",
        metavar="NAME",
        nargs="+",
        help="a name for each run (default: its algorithm's); runs of one name are seeds of one experiment",
    )
    report = add("report", "write what a run did as one HTML file", settings=False)
    report.add_argument("run", metavar="RUN", help="the run folder; its run need not be finished")
    report.add_argument("--to", metavar="FILE", help="(default: RUN/report.html)")
    export = add("export", "write the adapter of a run for PEFT, or the whole model", settings=False)
    export.add_argument("run", metavar="RUN", help="the run folder")
    export.add_argument("--to", metavar="DIR", required=True, help="a new folder")
    export.add_argument("--client", metavar="ID", help="the adapter of this client; without it, the global one")
    export.add_argument("--merge", action="store_true", help="the model with the adapter merged into its weights")
    return parser


def _seeds(text: str) -> list[int]:
    try:
        return [int(seed) for seed in text.strip("[]").split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected integers with commas between them, but got {text!r}") from None


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected an integer >= 1, but got {text!r}")
    return int(text)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"lit-fed {version('lit-fed')}"
    except PackageNotFoundError:  # run from a checkout that was not installed
        return "lit-fed (not installed)"
