"""The sections of a report, each a function of the facts; one that has nothing to say is nothing."""

import inspect
import math
import shlex
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import yaml

from lit_fed.core.units import readable_bytes
from lit_fed.engine import pictures
from lit_fed.metrics.names import higher_is_better
from lit_fed.pictures.clients import client_scores, draw_clients
from lit_fed.pictures.costs import draw_costs
from lit_fed.pictures.fusion import draw_fusion, fusion_weights
from lit_fed.pictures.svg import svg
from lit_fed.report.facts import Facts
from lit_fed.report.markup import Markup, scroll, table, tag

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["again", "clients", "costs", "failures", "headline", "method", "scores", "settings"]

_MOST_OPEN = 40  # rows of a table that is not folded away


def headline(facts: Facts) -> Markup:
    """What it is, and the numbers that count."""
    summary, rounds = facts.summary, len(facts.record.rounds)
    said = [f"{len(facts.clients)} clients", f"{rounds} rounds", f"seed {facts.config.get('seed_everything', '?')}"]
    unfinished = None
    if not summary:
        unfinished = tag("p", f"This run is not finished: this is what {rounds} rounds gave.", class_="note")
    tiles = [_tile(*entry) for entry in _numbers(facts)]
    return tag(
        "header",
        tag("h1", f"{facts.algorithm}: {facts.path.name}"),
        tag("p", ", ".join(said) + "."),
        unfinished,
        tag("dl", *tiles),
    )


def _numbers(facts: Facts) -> list[tuple[str, str, str]]:
    """Name, value and small print of each tile."""
    metric, latest, rows, summary = facts.metric, facts.latest, facts.record.rounds, facts.summary
    found = []
    if (after := latest.get(f"global/{metric}")) is not None:
        before = facts.record.initial.get(f"global/{metric}")
        found.append((f"global {metric}", _score(after), f"{_score(before)} before" if before is not None else ""))
    if (mean := latest.get(f"personal/{metric}_mean")) is not None:
        worst = latest.get(f"personal/{metric}_worst")
        found.append((f"mean {metric} of clients", _score(mean), f"the worst: {_score(worst)}"))
    up, down = (sum(row.get(name, 0) for row in rows) for name in ("up_bytes", "down_bytes"))
    found.append(("sent up", readable_bytes(up), f"down: {readable_bytes(down)}"))
    seconds = summary.get("seconds", {})
    evaluated = f"evaluation: {_time(seconds['evaluate'])}" if "evaluate" in seconds else ""
    found.append(("training", _time(sum(row.get("seconds", 0.0) for row in rows)), evaluated))
    if summary:
        share = f"of {summary['total_parameters']:,}"
        found.append(("tuned parameters", f"{summary['trainable_parameters']:,}", share))
        found.append(("peak memory", readable_bytes(summary["peak_memory_bytes"]), "of the run's processes"))
    return found


def _tile(name: str, value: str, small: str) -> Markup:
    return tag("div", tag("dt", name), tag("dd", value, tag("small", small) if small else None))


def scores(facts: Facts) -> Markup | None:
    """The metric over rounds, and what every domain has of it."""
    if not facts.latest:
        return _section("Scores", tag("p", "Nothing was evaluated yet."))
    rows = []
    for name, value in facts.latest.items():
        kind, _, rest = name.partition("/")
        metric, _, domain = rest.partition("/")
        if kind == "global":
            before = facts.record.initial.get(name)
            rows.append([metric, domain or "all domains", _score(before), _score(value), _change(before, value)])
    metrics = list(dict.fromkeys([facts.metric, *(row[0] for row in rows)]))
    rows.sort(key=lambda row: metrics.index(row[0]))
    better = "Higher" if higher_is_better(facts.metric) else "Lower"
    return _section(
        f"{facts.metric.capitalize()} over rounds",
        tag(
            "p", f"{better} is better. Global is what a new client gets; personal is what each client is served itself."
        ),
        _figure("scores", f"{facts.metric} over rounds", pictures.accuracy(facts.record)),
        table(["metric", "domain", "before", "after", "change"], rows, ("metric", "domain")) if rows else None,
    )


def clients(facts: Facts) -> Markup | None:
    """How the clients differ: what they hold, what they get, what it costs them."""
    found = client_scores(facts.metric, facts.record.turns, facts.initial_clients)
    if not facts.clients:
        return None
    after = dict(zip(found.clients, found.after.tolist(), strict=True)) if found else {}
    totals: dict[str, dict[str, Any]] = {client: {} for client in facts.clients}
    for row in facts.record.turns:
        own = totals[row["client"]]
        for name in ("domain", "examples"):
            own[name] = row.get(name, own.get(name, ""))
        for name in ("up_bytes", "down_bytes", "seconds"):
            own[name] = own.get(name, 0) + row.get(name, 0)
        own["turns"] = own.get("turns", 0) + ("examples" in row)
    rows = []
    for client, own in totals.items():
        before = facts.initial_clients.get(client, {}).get(facts.metric)
        cells = [client, str(own.get("domain", "")), str(own.get("examples", "")), str(own.get("turns", 0))]
        cells += [_score(before), _score(after.get(client)), _change(before, after.get(client))]
        cells += [readable_bytes(own.get("up_bytes", 0)), readable_bytes(own.get("down_bytes", 0))]
        rows.append([*cells, _time(own.get("seconds", 0.0))])
    names = ["client", "domain", "examples", "turns", "before", "after", "change", "up", "down", "time"]
    if not any(row[1] for row in rows):
        names, rows = names[:1] + names[2:], [row[:1] + row[2:] for row in rows]
    spread = [_spread(facts)] if found else []
    shown = _figure("clients", f"{facts.metric} of every client", draw_clients(found), "small") if found else None
    gain = _figure("personal", f"{facts.metric} of personal and global servings", pictures.personal(facts.record))
    listed = _folded(table(names, rows, ("client", "domain")), len(rows), "clients")
    return _section("Clients", *spread, shown, gain, listed)


def _spread(facts: Facts) -> Markup:
    words = {"mean": "mean", "std": "standard deviation", "worst": "worst", "worst_10_percent": "worst tenth"}
    parts = {key: value for key in words if (value := facts.latest.get(f"personal/{facts.metric}_{key}")) is not None}
    listed = ", ".join(f"{words[key]} {_score(value)}" for key, value in parts.items())
    return tag("p", f"{facts.metric.capitalize()} over clients at the end: {listed}." if listed else "")


def method(facts: Facts) -> Markup:
    """What the algorithm is, how it was set, and what it did."""
    algorithm = facts.config.get("algorithm")
    options = _options(algorithm if isinstance(algorithm, Mapping) else {})
    server = {name: value for row in facts.record.rounds for name, value in row.items() if name.startswith("server/")}
    allocation = pictures.allocation(facts.record)
    parts = [
        tag("p", _first_line(facts.algorithm)),
        table(["setting", "value"], [[name, _value(value)] for name, value in options.items()], ("setting", "value"))
        if options
        else None,
    ]
    if allocation is not None:
        parts.append(tag("p", "Which blocks of the model were run by how many clients, round by round:"))
        parts.append(_figure("allocation", "blocks held by clients over rounds", allocation))
    if (active := pictures.active(facts.record)) is not None:
        parts.append(tag("p", "Which blocks of the model were trained by how many clients, round by round:"))
        parts.append(_figure("active", "blocks trained by clients over rounds", active))
    if (gate := pictures.gate(facts.record)) is not None:
        parts.append(tag("p", "How much the gate gives to each client's own expert:"))
        parts.append(_figure("gate", "weight of the local expert over rounds", gate))
    if (fusion := fusion_weights(facts.record.turns)) is not None:
        parts.append(tag("p", "How each client weighed its own LoRA and the global one when it fused them:"))
        parts.append(_figure("fusion", "weights of each client's fusion", draw_fusion(fusion)))
    if server:
        parts.append(tag("p", "What the server says of its rounds:"))
        parts.append(_figure("server", "numbers of the server over rounds", pictures.server(facts.record)))
        last = [[name.removeprefix("server/"), _value(value)] for name, value in server.items()]
        parts.append(table(["number", "last value"], last, ("number",)))
    if facts.kept:
        names = list(dict.fromkeys(name for own in facts.kept.values() for name in own))
        rows = [[client, *(own.get(name, "") for name in names)] for client, own in facts.kept.items()]
        parts.append(tag("p", "Numbers in the private states of the clients, read where the run has them:"))
        parts.append(_folded(table(["client", *names], rows, ("client",)), len(rows), "clients"))
    return _section("What the algorithm did", *parts)


def costs(facts: Facts) -> Markup:
    """Bytes and seconds, by round and by client."""
    return _section(
        "Bytes and time",
        _figure("costs", "bytes and seconds over rounds", draw_costs(facts.record.rounds)),
        _figure("turns", "bytes and seconds of each client", pictures.clients(facts.record)),
        _figure("stages", "bytes of each stage", pictures.stages(facts.record)),
    )


def failures(facts: Facts) -> Markup | None:
    """Turns that failed, and why."""
    failed = [row for row in facts.record.turns if "failure" in row]
    if not failed:
        return None
    rows = [[str(row["round"]), row["client"], row["failure"]] for row in failed]
    shown = table(["round", "client", "reason"], rows, ("client", "reason"))
    return _section("Failures", _folded(shown, len(rows), "turns that failed"))


def again(facts: Facts) -> Markup:
    """The commands that repeat it, and use it."""
    run = shlex.quote(str(facts.path))
    lines = ["# the same run again, to the same state_digest", f"lit-fed fit --config {run}/config.yaml"]
    if not facts.from_command_line:
        return _section(
            "Run it again",
            tag("p", "This run was started from Python: what it was is below, and the script that made it repeats it."),
            _code(f"lit-fed compare {run}"),
        )
    if not facts.summary:
        lines += ["# go on where it stopped", f"lit-fed fit --config {run}/config.yaml --ckpt_path {run}"]
    else:
        lines += ["# its scores on the test data", f"lit-fed test --run {run}"]
        lines += ["# what it predicts for new pictures, texts, tables", f"lit-fed predict --run {run} --input FILE ..."]
        lines += ["# the adapter for PEFT; --merge for the whole model", f"lit-fed export {run} --to adapter/"]
    digest = facts.summary.get("state_digest")
    same = tag("p", "Its state_digest, which an equal run has too: ", tag("code", str(digest))) if digest else None
    return _section("Run it again", _code("\n".join(lines)), same)


def settings(facts: Facts) -> Markup:
    """All settings."""
    text = yaml.safe_dump(dict(facts.config), sort_keys=False, allow_unicode=True)
    return _section(
        "Settings", tag("details", tag("summary", "config.yaml: everything, defaults included"), _code(text))
    )


def _section(title: str, *parts: str | None) -> Markup:
    return tag("section", tag("h2", title), *parts)


def _figure(name: str, alt: str, figure: "Figure | None", size: str = "wide") -> Markup | None:
    return None if figure is None else tag("figure", scroll(Markup(svg(figure, name, alt))), class_=size)


def _folded(shown: Markup, rows: int, what: str) -> Markup:
    return shown if rows <= _MOST_OPEN else tag("details", tag("summary", f"all {rows} {what}"), shown)


def _code(text: str) -> Markup:
    return tag("pre", tag("code", text), tabindex="0")


def _first_line(name: str) -> str:
    """The first sentence of one of our algorithms' docstring."""
    from lit_fed import algorithms

    known: Callable[..., Any] | None = getattr(algorithms, name, None)
    return (inspect.getdoc(known) or "").partition("\n\n")[0].replace("\n", " ").replace("`", "") if known else ""


def _options(algorithm: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the algorithm, from a command line's settings or from what a run from Python notes down."""
    given = algorithm.get("init_args")
    own = given if isinstance(given, Mapping) else {k: v for k, v in algorithm.items() if k != "class"}
    return {name: value for name, value in own.items() if value is not None}


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, str):
        return value
    return str(yaml.safe_dump(value, default_flow_style=True, width=10**6)).split("\n")[0]


def _score(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _change(before: float | None, after: float | None) -> str:
    known = before is not None and after is not None and math.isfinite(before) and math.isfinite(after)
    return f"{after - before:+.3f}" if known else ""  # type: ignore[operator]


def _time(seconds: float) -> str:
    """``"12.3 s"``, ``"4 min 05 s"``, ``"3 h 20 min"``."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"
