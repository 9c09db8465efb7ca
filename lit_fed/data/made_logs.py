"""System logs that are made up, in the form of the public ones: for trying things out where those are not at hand.

``python -m lit_fed.data.made_logs FOLDER`` writes ``A.log``, ``B.log`` and ``C.log``, systems of three nodes each.

Lines are of three kinds. Routine is never an alert, a failure always is one. What is disputed is an alert at half of
the nodes and routine at the others, as administrators tag what is unusual for a machine. So nodes have something to
learn from one another (what a failure looks like), and something that only their own lines tell them (what is unusual
there): nothing in a message says which node wrote it.
"""

import argparse
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from lit_fed.data.log_lines import NORMAL

__all__ = ["DISPUTED", "FAILURES", "ROUTINE", "SYSTEMS", "disputed_alerts", "made_lines", "write_logs"]

SYSTEMS = ("A", "B", "C")
ROUTINE = (
    "job {} started", "job {} ended well", "user {} logged in", "mail sent to {}", "fan {} turns", "clock set to {}",
    "page {} was read", "disk {} was cleaned",
)  # fmt: skip
FAILURES = (
    "disk {} failed", "fan {} stopped", "page {} is lost", "cable {} is broken", "power {} is gone", "chip {} burnt",
)  # fmt: skip
DISPUTED = (
    "link {} went down", "job {} was killed", "node {} restarts", "no answer from {}", "user {} was refused",
    "queue {} is full",
)  # fmt: skip
_SHARES = {"routine": 0.79, "failures": 0.05, "disputed": 0.16}
"""Of all lines. With 0.05 + 0.16 / 2 alerts a line, 1 - 0.87 ** 5 = 0.50 of windows of five lines have one."""
_BEGIN = 1131566461  # seconds since 1970: 9 November 2005


def disputed_alerts(nodes: Sequence[str], seed: int) -> dict[str, frozenset[str]]:
    """Node -> the half of what is disputed that is an alert there.

    Every two nodes that follow one another have opposite halves, so that a message is an alert at half of the nodes, or
    as near to it as an odd number allows.
    """
    draw = random.Random(f"{seed} disputed")  # noqa: S311 (no secret)
    found: dict[str, frozenset[str]] = {}
    half: frozenset[str] = frozenset()
    for place, node in enumerate(nodes):
        half = frozenset(DISPUTED) - half if place % 2 else frozenset(draw.sample(DISPUTED, len(DISPUTED) // 2))
        found[node] = half
    return found


def made_lines(nodes: Sequence[str], num_lines: int, seed: int) -> Iterator[tuple[str, str]]:
    """What some nodes write, one after another, `num_lines` each: node and line.

    A line has the form of Thunderbird's and Spirit's, see `lit_fed.data.log_lines`.
    """
    alerts = disputed_alerts(nodes, seed)
    kinds = dict(zip(_SHARES, (ROUTINE, FAILURES, DISPUTED), strict=True))
    draw = random.Random(f"{seed} lines")  # noqa: S311
    for number in range(num_lines):
        clock = f"{number // 3600 % 24:02d}:{number // 60 % 60:02d}:{number % 60:02d}"
        for node in nodes:
            kind = draw.choices(list(_SHARES), list(_SHARES.values()))[0]
            said = draw.choice(kinds[kind])
            is_alert = kind == "failures" or said in alerts[node]
            tag = said.replace(" {}", "").replace(" ", "_").upper() if is_alert else NORMAL
            message = said.format(draw.randrange(100))
            yield node, f"{tag} {_BEGIN + number} 2005.11.09 {node} Nov  9 {clock} {node}/{node} {message}"


def write_logs(folder: str | Path, nodes: int = 3, num_lines: int = 500, seed: int = 0) -> dict[str, str]:
    """Write a log for each of `SYSTEMS`.

    Args:
        folder: Made if it is not there.
        nodes: Of each system.
        num_lines: Of each node.
        seed: What is drawn is a function of it.

    Returns:
        System -> file, as `lit_fed.data.system_logs.SystemLogs` takes them.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{system.lower()}{number}" for system in SYSTEMS for number in range(nodes)]
    written: dict[str, list[str]] = {system: [] for system in SYSTEMS}
    for node, line in made_lines(names, num_lines, seed):
        written[node[0].upper()].append(f"{line}\n")
    files = {system: folder / f"{system}.log" for system in SYSTEMS}
    for system, lines in written.items():
        files[system].write_text("".join(lines), "utf-8")
    return {system: str(file) for system, file in files.items()}


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the logs are written to")
    parser.add_argument("--nodes", type=int, default=3, help="of each system")
    parser.add_argument("--lines", type=int, default=500, help="of each node")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    files = write_logs(given.folder, given.nodes, given.lines, given.seed)
    print("{" + ", ".join(f"{system}: {file}" for system, file in files.items()) + "}")


if __name__ == "__main__":
    main()
