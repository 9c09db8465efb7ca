"""The page of a run: what it says is what the folder says, and it asks nobody for anything."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from lit_fed.algorithms import FDLoRA
from lit_fed.cli import main
from lit_fed.core.errors import ConfigError
from lit_fed.engine.storage import load_tree
from lit_fed.report import write_report
from tests.engine.tiny import fit, pictures, tiny_vit

METRICS = """\
round,seconds,up_bytes,down_bytes,train/loss,server/drift,global/accuracy,global/accuracy/x,personal/accuracy_mean,personal/accuracy_worst
0,1.5,150,300,2.0,0.5,,,,
1,2.5,150,300,1.0,0.25,0.75,0.75,0.625,0.5
"""
CLIENTS = """\
round,client,examples,seconds,up_bytes,down_bytes,blocks,allocation,failure,accuracy
0,a,10,0.5,100,200,3,0 1 2,,
0,<b>&,20,0.25,50,100,1,2,OSError: <lost>,
1,a,10,0.5,100,200,3,0 1 2,,0.75
1,<b>&,20,0.25,50,100,1,0,,0.5
"""
CONFIG = """\
seed_everything: 5
model: {class_path: lit_fed.modules.ImageClassifier, init_args: {num_labels: 2}}
data: {source: {class_path: lit_fed.data.Digits}}
algorithm: {class_path: lit_fed.algorithms.FedRA, init_args: {capacities: [3, 1], coverage: keep, seedless: null}}
federation: {rounds: 2}
"""
SUMMARY = {
    "algorithm": "FedRA", "num_blocks": 4, "trainable_parameters": 1234, "total_parameters": 56789,
    "peak_memory_bytes": 2.5e9, "seconds": {"evaluate": 7.0}, "state_digest": "d1ge57",
}  # fmt: skip
VOID = {"meta", "br", "path", "use", "image", "rect"}


class Page(HTMLParser):
    """The text of a page, by tag; fails where tags do not close as they open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.cells: list[list[str]] = []
        self.text: dict[str, list[str]] = {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, key, value) for key, value in attrs]
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes += [(tag, key, value) for key, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open:
            return
        self.text.setdefault(self.open[-1], []).append(data)
        if self.open[-1] in ("td", "th"):
            self.cells[-1][-1] += data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    run = tmp_path / "version_0"
    run.mkdir()
    (run / "metrics.csv").write_text(METRICS)
    (run / "clients.csv").write_text(CLIENTS)
    (run / "config.yaml").write_text(CONFIG)
    initial = {"metrics": {"global/accuracy": 0.25, "global/accuracy/x": 0.5}, "clients": {"a": {"accuracy": 0.25}}}
    (run / "initial.json").write_text(json.dumps(initial))
    (run / "summary.json").write_text(json.dumps(SUMMARY))
    return run


def page_of(run: Path) -> Page:
    return Page(write_report(run).read_text())


def test_it_says_what_the_folder_says(folder: Path) -> None:
    page = page_of(folder)
    assert page.text["h1"] == ["FedRA: version_0"]
    tiles = dict(zip(page.text["dt"], page.text["dd"], strict=True))
    assert tiles == {
        "global accuracy": "0.750", "mean accuracy of clients": "0.625", "sent up": "300 B", "training": "4.0 s",
        "tuned parameters": "1,234", "peak memory": "2.5 GB",
    }  # fmt: skip
    assert ["accuracy", "all domains", "0.250", "0.750", "+0.500"] in page.cells
    assert ["accuracy", "x", "0.500", "0.750", "+0.250"] in page.cells
    # client, examples, turns, before, after, change, up, down, time
    assert ["a", "10", "2", "0.250", "0.750", "+0.500", "200 B", "400 B", "1.0 s"] in page.cells
    assert ["<b>&", "20", "2", "", "0.500", "", "100 B", "200 B", "0.5 s"] in page.cells
    assert ["drift", "0.25"] in page.cells
    assert ["capacities", "[3, 1]"] in page.cells
    assert not any(row[:1] == ["seedless"] for row in page.cells)
    assert ["0", "<b>&", "OSError: <lost>"] in page.cells
    assert "d1ge57" in page.text["code"]
    assert any(f"lit-fed fit --config {folder}/config.yaml" in text for text in page.text["code"])
    labels = [value for tag, key, value in page.attributes if (tag, key) == ("svg", "aria-label")]
    assert labels == [
        "accuracy over rounds", "accuracy of every client", "blocks held by clients over rounds",
        "numbers of the server over rounds", "bytes and seconds over rounds", "bytes and seconds of each client",
    ]  # fmt: skip


def test_it_needs_nothing_but_itself(folder: Path) -> None:
    page = page_of(folder)
    links = [value for _, key, value in page.attributes if key in ("src", "href", "xlink:href", "srcset", "action")]
    assert links
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in links)
    assert not {tag for tag, _, _ in page.attributes} & {"script", "link", "iframe", "object", "base"}
    said = [value for tag, key, value in page.attributes if (tag, key) == ("meta", "content")]
    assert any("default-src 'none'" in value for value in said)  # so the browser would not fetch anything either
    text = (folder / "report.html").read_text()
    assert "@import" not in text
    assert set(re.findall(r"url\((.)", text)) == {"#"}


def test_parts_of_pictures_are_found_and_nobody_elses(folder: Path) -> None:
    page = page_of(folder)
    ids = [value for _, key, value in page.attributes if key == "id"]
    assert len(ids) == len(set(ids)) > 100
    text = (folder / "report.html").read_text()
    assert set(re.findall(r'(?:url\(#|href="#)([^")]+)', text)) <= set(ids)


def test_every_colour_that_a_theme_must_change_is_a_variable(folder: Path) -> None:
    text = write_report(folder).read_text()
    style, body = text.split("</style>", 1)
    named = set(re.findall(r"var\((--[\w-]+)", body))
    light, dark = style.split("@media (prefers-color-scheme: dark)")
    for part in (light, dark.split("@media print")[0]):
        assert named <= set(re.findall(r"(--[\w-]+):", part))
    # Neither black nor white is written out: on the other theme it would not be seen.
    assert not re.findall(r"(?<!var\(--ink, )#000000|(?<!var\(--paper, )#ffffff", body)


def test_equal_folders_give_equal_files(folder: Path, tmp_path: Path) -> None:
    first = write_report(folder, tmp_path / "one.html").read_bytes()
    assert write_report(str(folder), tmp_path / "new" / "two.html").read_bytes() == first


def test_a_run_that_is_not_finished(folder: Path) -> None:
    (folder / "summary.json").unlink()
    page = page_of(folder)
    assert page.text["h1"] == ["FedRA: version_0"]
    assert "This run is not finished: this is what 2 rounds gave." in page.text["p"]
    assert any(f"--ckpt_path {folder}" in text for text in page.text["code"])


def test_what_was_not_evaluated_is_not_shown(folder: Path) -> None:
    lines = METRICS.splitlines(keepends=True)
    (folder / "metrics.csv").write_text("".join(lines[:2]))
    (folder / "clients.csv").write_text("".join(CLIENTS.splitlines(keepends=True)[:3]))
    page = page_of(folder)
    assert "Nothing was evaluated yet." in page.text["p"]
    assert not any(label.startswith("accuracy") for label in page.text["dt"])


def test_many_clients_are_folded_away(folder: Path) -> None:
    rows = [f"1,c{i:03},10,0.5,100,200,3,0 1 2,,0.5\n" for i in range(60)]
    (folder / "clients.csv").write_text(CLIENTS + "".join(rows))
    assert "all 62 clients" in page_of(folder).text["summary"]


def test_fusion_weights_are_shown_as_they_were_found(tmp_path: Path, one_thread: None) -> None:
    algorithm = FDLoRA(federated_rounds=1, sync_every="never", search="grid", budget=4, few_shot=2)
    result = fit(algorithm, tiny_vit(), pictures(), tmp_path, rounds=3)
    page = Page(write_report(result).read_text())
    for client in ("00", "01", "02"):
        stored = load_tree(max((result.path / "private" / client).glob("*.safetensors")))
        weights = ", ".join(f"{weight:.3g}" for weight in stored["fused"]["weights"])
        assert [client, weights] in page.cells
    assert ("svg", "aria-label", "weights of each client's fusion") in page.attributes
    assert any("was started from Python" in text for text in page.text["p"])


def test_from_the_command_line(folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["report", str(folder)]) == 0
    assert capsys.readouterr().out == f"report: {folder / 'report.html'}\n"
    assert main(["report", str(folder), "--to", str(tmp_path / "r.html")]) == 0
    assert (tmp_path / "r.html").read_bytes() == (folder / "report.html").read_bytes()


def test_no_run_folder(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Expected `run` to be a run folder .* Did you mean '.*version_0'\?"):
        write_report(tmp_path)
    (folder / "initial.json").write_text("{")
    with pytest.raises(ConfigError, match="is damaged"):
        write_report(folder)
