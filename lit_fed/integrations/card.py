"""The model card of an export: what it is, what it was made of, how good it is, how to use it."""

import json
import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from lit_fed.adapters.folder import CONFIG_FILE, OTHER_FILE
from lit_fed.adapters.layout import GLOBAL
from lit_fed.assets import embedded_model_path
from lit_fed.engine.pictures import Record
from lit_fed.engine.run_folder import RunFolder
from lit_fed.engine.served import RULE_FILE, rule_in, slots_of
from lit_fed.metrics.names import primary
from lit_fed.pictures.clients import client_scores

__all__ = ["Card"]

_MOST_CLASSES = 20
_COLUMNS = {"ImageClassifier": "image", "ZeroShotClassifier": "image", "TextClassifier": "text"}  # what they encode


class Card:
    """Writes the ``README.md`` of an export.

    Args:
        run: The run folder.
        export: What was exported, complete but for the card.
        to: Where it will be.
        client: Whose it is; `None`: everybody's.
        merged_class: The class of the Hugging Face model, if the adapter is merged into it.
    """

    def __init__(self, run: Path, export: Path, to: Path, client: str | None, merged_class: str | None = None) -> None:
        self._run, self._export, self._to, self._client, self._merged = run, export, to, client, merged_class
        self._folder = RunFolder(run)
        self._summary = self._folder.summary()
        self._config: dict[str, Any] = yaml.safe_load((run / "config.yaml").read_text("utf-8")) or {}
        self._slots = slots_of(export)

    def text(self) -> str:
        """The card."""
        kind = "model" if self._merged else "adapters and gate" if self._slots else "adapter"
        whose = "new clients" if self._client is None else f"client {self._client}"
        said = (
            f"Tuned by federated learning with lit_fed: {self._summary['num_clients']} clients trained on data of their"
            " own, which never left them."
        )
        parts = [
            self._front_matter(), f"# {self._algorithm}: the {kind} for {_cell(whose)}", said, self._facts(),
            "## Scores", self._scores(), "## Use", *self._use(), "## How it was made", *self._made(),
        ]  # fmt: skip
        return "\n\n".join(parts) + "\n"

    @property
    def _algorithm(self) -> str:
        return str(self._summary["algorithm"])

    @cached_property
    def _model(self) -> dict[str, Any]:
        """Arguments of the module, from a command line's settings or from what a run from Python notes down."""
        found = self._config.get("model")
        found = found if isinstance(found, Mapping) else {}
        given = found.get("init_args", found)
        return dict(given) if isinstance(given, Mapping) else {}

    @property
    def _class_path(self) -> str:
        """Of the module; empty if a script made it."""
        found = self._config.get("model")
        return str(found.get("class_path") or "") if isinstance(found, Mapping) else ""

    @cached_property
    def _settings(self) -> dict[str, Any]:
        """PEFT's, of the adapter; none of a merged model."""
        file = (self._export / self._slots[0] if self._slots else self._export) / CONFIG_FILE
        return dict(json.loads(file.read_text())) if file.is_file() else {}

    @cached_property
    def _base(self) -> str | None:
        """The hub id or folder of the base model; `None` if it is the embedded one, or was drawn at random."""
        named = self._model.get("model") or self._settings.get("base_model_name_or_path")
        return None if named in (None, "", "embedded", str(embedded_model_path())) else str(named)

    @property
    def _drawn(self) -> bool:
        return self._base is None and self._model.get("model") is None and self._model.get("config") is not None

    def _front_matter(self) -> str:
        known: dict[str, Any] = {"library_name": "transformers" if self._merged else "peft"}
        if self._base is not None and not self._base.startswith((".", "/", "~")):
            known["base_model"] = self._base
        known["tags"] = ["federated-learning", "lit_fed", self._algorithm.lower(), *([] if self._merged else ["lora"])]
        return f"---\n{yaml.safe_dump(known, sort_keys=False)}---"

    def _facts(self) -> str:
        summary, data = self._summary, self._config.get("data") or {}
        source, partitioner = (_class_of(data.get(name)) for name in ("source", "partitioner"))
        base = f"`{self._base}`" if self._base else "the small ViT that comes with lit_fed"
        rows = {
            "base model": "drawn at random from a configuration" if self._drawn else base,
            "data": f"{source}, divided by {partitioner}" if partitioner else source or "of a script",
            "algorithm": f"{self._algorithm}, {summary['rounds']} rounds, seed {summary['seed']}",
            "tuned parameters": f"{summary['trainable_parameters']:,} of {summary['total_parameters']:,}",
        }
        if self._client is not None:
            turns = [row for row in self._folder.turns() if row["client"] == self._client and "examples" in row]
            rows["training examples of this client"] = f"{turns[-1]['examples']:,}" if turns else ""
        if names := summary.get("label_names"):
            more = f" and {len(names) - _MOST_CLASSES} more" if len(names) > _MOST_CLASSES else ""
            rows["classes"] = ", ".join(names[:_MOST_CLASSES]) + more
        return _table(["", ""], ["---", "---"], rows.items())

    def _scores(self) -> str:
        """Before and after, on test data; a client's are on its own."""
        record, metrics = Record.read(self._run), self._summary["metrics"]
        rows = []
        if self._client is None:
            for name, value in metrics.items():
                kind, _, rest = name.partition("/")
                metric, _, domain = rest.partition("/")
                if kind == "global":
                    before = record.initial.get(name)
                    rows.append([f"{metric}, {domain or 'all domains'}", _score(before), _score(value)])
        elif found := client_scores(primary(metrics), record.turns, self._folder.initial()["clients"]):
            pairs = zip(found.clients, found.before.tolist(), found.after.tolist(), strict=True)
            rows = [
                [f"{found.metric}, own test data", _score(before), _score(after)]
                for client, before, after in pairs
                if client == self._client
            ]
        return _table(["test data", "before", "after"], ["---", "---:", "---:"], rows)

    def _use(self) -> list[str]:
        if not self._class_path:
            return [self._in_python()]  # the command line knows nothing of a script's module
        client = f" --client {shlex.quote(self._client)}" if self._client is not None else ""
        told = f"{shlex.quote(str(self._run))}{client}" if self._merged else shlex.quote(str(self._to))
        where = "With the run folder" if self._merged else "With this folder and lit_fed"
        command = f"lit-fed predict --run {told} --input FILE ..."
        return [self._in_python(), f"{where}, on new pictures, texts or tables:", _block("bash", command)]

    def _in_python(self) -> str:
        to, loaded = repr(str(self._to)), self._settings.get("auto_mapping") or {}
        name = str(loaded.get("base_model_class"))
        if self._merged:
            return _block(
                "python",
                f"from transformers import {self._merged}",
                "",
                f"model = {self._merged}.from_pretrained({to})",
            )
        if (self._export / RULE_FILE).is_file() or (self._settings and (self._export / OTHER_FILE).is_file()):
            return f"{self._more_than_an_adapter()}\n\n{self._with_lit_fed()}"
        if not self._settings:
            return (
                "Tensors by canonical name, for the module that was tuned:"
                " `lit_fed.adapters.AdapterView(module).write(...)`."
            )
        if self._drawn:
            return "The base model was drawn at random, and is nowhere else: export the whole model with `--merge`."
        if not str(loaded.get("parent_library")).startswith("transformers."):
            return f"`PeftModel.from_pretrained(base, {to})`, where `base` is the model that was tuned."
        labels = (
            f", num_labels={self._model['num_labels']}, ignore_mismatched_sizes=True"
            if "num_labels" in self._model
            else ""
        )
        where = repr(self._base) if self._base else "embedded_model_path()"
        embedded = [] if self._base else ["from lit_fed.assets import embedded_model_path"]
        return _block(
            "python",
            *embedded,
            "from peft import PeftModel",
            f"from transformers import {name}",
            "",
            f'base = {name}.from_pretrained({where}, dtype="float32"{labels})',
            f"model = PeftModel.from_pretrained(base, {to})",
        )

    def _more_than_an_adapter(self) -> str:
        """What the folder holds, where PEFT alone does not make a prediction of it."""
        held = " and ".join(f"`{slot}/`" for slot in self._slots)
        told = f"{len(self._slots)} adapters, {held}," if held else "An adapter"
        gate = " A gate weighs them, example by example." if (self._export / GLOBAL / OTHER_FILE).is_file() else ""
        if not (self._export / RULE_FILE).is_file():
            return f"{told} in PEFT's layout, and what else was trained, in `{OTHER_FILE}`. lit_fed has both:"
        blocks, rule = rule_in(self._export)
        how = f" Of the model, {len(blocks)} blocks run." if blocks else ""
        how += f" `{type(rule).__qualname__}` makes one prediction of all." if rule is not None else ""
        return f"{told} in PEFT's layout.{gate}{how} No one set of weights predicts so, but lit_fed does:"

    def _with_lit_fed(self) -> str:
        """Five lines of Python that predict."""
        column = _COLUMNS.get(self._class_path.rpartition(".")[2])
        given = "" if self._class_path else ", module"  # of a script, which alone can make it
        use = (
            [f'batch = module.encode({{"{column}": [{column}]}})', 'print(module.predict_step(batch)["probs"])']
            if column
            else ["print(module.predict_step(batch))"]
        )
        loaded = f"module = load_export({str(self._to)!r}{given})"
        return _block("python", "from lit_fed import load_export", "", loaded, *use)

    def _made(self) -> list[str]:
        settings, model = self._run / "config.yaml", self._config.get("model")
        said = f"The settings are in `{settings}`. The run's state_digest is `{self._summary['state_digest']}`."
        if isinstance(model, Mapping) and "class_path" in model:
            return [_block("bash", f"lit-fed fit --config {shlex.quote(str(settings))}"), said]
        return [f"From a script. {said}"]


def _class_of(value: Any) -> str:
    path = value.get("class_path", "") if isinstance(value, Mapping) else value or ""
    return str(path).rpartition(".")[2]


def _block(language: str, *lines: str) -> str:
    return "\n".join([f"```{language}", *lines, "```"])


def _table(names: Sequence[str], rule: Sequence[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [names, rule, *([_cell(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", r"\|").replace("\n", " ")


def _score(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.3f}"
