"""Tables as text."""

from io import StringIO

from rich.console import Console

from lit_fed.suite import Comparison
from tests.suite.runs import record

MIB = 2_000_000


def comparison(metric: str = "accuracy", setting: str = "") -> Comparison:
    """Two seeds of three experiments; `Even` is as good as `Ours` on b, to three places."""
    values = {
        "Ours": [{"a": 0.5, "b": 0.75}, {"a": 0.7, "b": 0.75}],
        "Even": [{"a": 0.3, "b": 0.7501}, {"a": 0.5, "b": 0.7502}],
        "Low | [b]": [{"a": 0.1, "b": 0.1}, {"a": 0.1, "b": 0.1}],
    }
    runs = [
        record(name, seed, domains, setting, metric=metric, up_bytes=MIB)
        for name, own in values.items()
        for seed, domains in enumerate(own)
    ]
    return Comparison(runs, None, "Ours")


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.replace(r"\|", "/").strip("|").split("|")]


def test_markdown_has_the_best_in_bold_and_the_baseline_named() -> None:
    head, rule, ours, even, low, *_ = comparison().markdown().splitlines()
    assert cells(head) == ["", "mean", "a", "b", "up", "down", "train", "vs Ours", "p"]
    assert cells(rule) == ["---", *["---:"] * 8]
    assert cells(ours) == [
        "Ours", "**0.675 ± 0.071**", "**0.600 ± 0.141**", "**0.750 ± 0.000**", "1.0 MB", "2.0 MB", "3.0 s", "baseline",
        "",
    ]  # fmt: skip
    # Differences of the means: -0.09995 and -0.0999, nearly the same: t = -0.099925 / 0.000025, p = 2 / (pi |t|).
    assert cells(even) == [
        "Even", "0.575 ± 0.071", "0.400 ± 0.141", "**0.750 ± 0.000**", "1.0 MB", "2.0 MB", "3.0 s", "-0.100", "0.00016",
    ]  # fmt: skip
    # Differences -0.525 and -0.625: t = -0.575 / 0.05 = -11.5, p = 1 - 2 atan(11.5) / pi.
    assert cells(low)[0] == "Low / [b]"
    assert cells(low)[-2:] == ["-0.575", "0.055"]


def test_of_a_loss_the_lowest_is_best() -> None:
    lines = comparison("loss").markdown().splitlines()
    assert [("**" in line) for line in lines[2:5]] == [False, False, True]
    assert any("loss on test data (lower is better)" in line for line in lines)


def test_where_all_are_equal_none_is_best() -> None:
    same = Comparison([record("A", 0, 0.5), record("B", 0, 0.5)], baseline="A")
    assert "**" not in same.markdown()
    assert cells(same.markdown().splitlines()[3])[-2:] == ["+0.000", "one seed"]


def test_without_a_baseline_there_is_nothing_of_one() -> None:
    text = Comparison([record("A", 0, 0.5), record("B", 0, 0.4)]).markdown()
    assert cells(text.splitlines()[0]) == ["", "mean", "up", "down", "train"]
    assert "t-test" not in text


def test_what_must_be_known_is_said() -> None:
    runs = [*comparison().records[:-1], record("Late", 1, {"a": 0.1, "b": 0.1})]
    said = Comparison(runs, None, "Ours", missing=["Late/seed_0"]).notes
    assert said[0] == "Not finished, and so not here: Late/seed_0."
    assert "mean ± standard deviation (n - 1) over seeds. “mean” is the unweighted mean over domains." in said[1]
    assert "Seeds: 0, 1; Low | [b] 0 only; Late 1 only." in said
    # With two seeds: tan(0.475 pi) / sqrt(2) = 8.98.
    assert any("With 2 seeds such a test has little power: p < 0.05 takes a mean difference of 9.0" in s for s in said)


def test_the_mean_over_clients_is_called_as_its_column() -> None:
    runs = [record("A", 0, 0.5, personal__accuracy_mean=0.7, personal__accuracy_worst=0.4)]
    for metric, columns in {"accuracy": ["mean", "personal", "worst"], "personal/accuracy": ["mean", "worst"]}.items():
        found = Comparison(runs, metric)
        assert cells(found.markdown().splitlines()[0])[1:-3] == columns
        assert sum(note.startswith(f"“{columns[-2]}” is the mean over clients,") for note in found.notes) == 1


def test_settings_with_other_seeds_are_told_apart() -> None:
    runs = [
        record("A", seed, 0.5, setting)
        for setting, seeds in {"x": (0, 1), "y": (0, 1), "z": (2,)}.items()
        for seed in seeds
    ]
    said = Comparison(runs).notes
    assert said[-2:] == ["Seeds of x, y: 0, 1.", "Seeds of z: 2."]


def shown(found: Comparison, width: int) -> list[str]:
    console = Console(file=StringIO(), width=width)
    console.print(found)
    return console.file.getvalue().splitlines()


def test_a_terminal_that_is_wide_enough_has_one_table_and_a_narrow_one_two() -> None:
    found = comparison(setting="skewed")
    wide, narrow = shown(found, 120), shown(found, 66)
    (head,) = [line.split() for line in wide if "mean" in line and "train" in line]
    assert head == ["mean", "a", "b", "up", "down", "train", "vs", "Ours", "p"]
    assert "by domain" not in "\n".join(wide)
    heads = [line.split() for line in narrow if {"mean", "a"} & set(line.split()) and "difference" not in line]
    assert ["mean", "up", "down", "train", "vs", "Ours", "p"] in heads
    assert ["a", "b"] in heads
    for lines in (wide, narrow):
        text = "\n".join(lines)
        assert "skewed" in text
        assert "…" not in text
        assert "Low | [b]" in text  # and no markup


def test_a_notebook_shows_picture_tables_and_notes() -> None:
    page = comparison(setting="<skewed>")._repr_html_()
    assert 'src="data:image/png;base64,' in page
    assert "&lt;skewed&gt;" in page
    assert "<skewed>" not in page
    assert page.count("<tr>") == 4
    assert "<b>0.675 ± 0.071</b>" in page
    assert "t-test" in page


def test_long_form_has_a_row_a_run_and_every_metric() -> None:
    found = Comparison([record("A", 0, {"x": 0.5}, "s"), record("B", 3, {"x": 0.25}, "s", global__loss=1.5)])
    head, *rows = [line.split(",") for line in found.csv().splitlines()]
    table = [dict(zip(head, row, strict=True)) for row in rows]
    assert [row["setting"] + row["experiment"] + row["seed"] for row in table] == ["sA0", "sB3"]
    assert [row["global/accuracy/x"] for row in table] == ["0.5", "0.25"]
    assert [row["global/loss"] for row in table] == ["", "1.5"]
    assert [row["up_bytes"] for row in table] == ["4000", "4000"]
    assert [row["state_digest"] for row in table] == ["FedAvg0", "FedAvg3"]
