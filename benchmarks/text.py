"""Real text: what a federation reaches, with the settings in ``configs/text``.

``python -m benchmarks.text --clinc150 FOLDER --encoder FOLDER --json FILE``: ten domains of CLINC150 as ten clients,
federated against centralized at equal optimizer steps and batch size. Each has as many candidate settings
(`CANDIDATES`), tried for ``--tune_rounds`` rounds with seed 0 and chosen on validation sentences; test sentences are
scored with the chosen ones.

``python -m benchmarks.text --shakespeare FOLDER --llama FOLDER --json FILE``: speakers as clients, the held-out loss of
every client before and after, computed here with plain torch, not taken from the run's own tables.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lit_fed import FederatedDataModule
from lit_fed.cli.settings import Settings
from lit_fed.engine.result import Result
from lit_fed.modules import CausalLM
from lit_fed.modules.labels import IGNORED

CONFIGS = Path(__file__).parents[1] / "configs" / "text"
LR = "--model.init_args.optimizer.init_args.lr"
SERVER = ("--algorithm.init_args.server_lr", "--algorithm.init_args.momentum")
CANDIDATES: dict[str, list[list[str]]] = {  # the first is the configuration's own
    "FedAvgM": [
        [f"{LR}=2e-3", f"{SERVER[0]}=3", f"{SERVER[1]}=0.7"],
        [f"{LR}=2e-3", f"{SERVER[0]}=1", f"{SERVER[1]}=0.9"],
        [f"{LR}=1e-3", f"{SERVER[0]}=3", f"{SERVER[1]}=0.7"],
    ],
    "Centralized": [
        ["--algorithm=Centralized", "--algorithm.local_steps=5", f"{LR}={lr}"] for lr in ("2e-3", "1e-3", "4e-3")
    ],
}


def federate(settings: Settings) -> tuple[Result, float]:
    """One run as its settings say, its folder thrown away; and the mean accuracy on the clients' validation data."""
    with tempfile.TemporaryDirectory() as folder:
        federation = settings.federation()
        federation.run_dir = Path(folder)
        result = federation.fit(settings.module(), settings.data())
        found = federation.validate(settings.module(), settings.data(), result.path)
        return result, found["personal/accuracy_mean"]


def clinc150(
    data: Path, encoder: str, seeds: Sequence[int], tune_rounds: int, more: Sequence[str]
) -> dict[str, list[dict[str, Any]]]:
    """Federated and centralized at equal steps: as many candidates for each, chosen on validation, then every seed."""
    given = [
        "--config", str(CONFIGS / "clinc150.yaml"), "--model.model", encoder,
        "--data.source.data_files", str(data / "data_full.jsonl.gz"),
        "--data.source.domain_map", str(data / "domains.json"), *more,
    ]  # fmt: skip
    found: dict[str, list[dict[str, Any]]] = {"trials": [], "results": []}
    for algorithm, candidates in CANDIDATES.items():
        scores = []
        for candidate in candidates if tune_rounds else ():
            row = _row([*given, *candidate, f"--federation.rounds={tune_rounds}", "--seed_everything=0"], candidate)
            scores.append(row["validation_accuracy"])
            found["trials"].append(row)
        best = candidates[scores.index(max(scores))] if scores else candidates[0]
        for seed in seeds:
            found["results"].append(_row([*given, *best, f"--seed_everything={seed}"], best))
        print(f"{algorithm}: {' '.join(best)}", flush=True)
    return found


def _row(args: Sequence[str], candidate: Sequence[str]) -> dict[str, Any]:
    """One run in numbers."""
    settings = Settings(list(args))
    local_steps = settings.resolved()["algorithm"]["init_args"]["local_steps"]
    result, validation = federate(settings)
    row = {
        "algorithm": result.summary["algorithm"],
        "settings": " ".join(candidate),
        "seed": result.summary["seed"],
        "rounds": result.summary["rounds"],
        "steps": result.summary["rounds"] * local_steps * result.summary["num_clients"],
        "validation_accuracy": validation,
        "accuracy": result.metrics["global/accuracy"],
        "history": {row["round"] + 1: row["global/accuracy"] for row in result.history if "global/accuracy" in row},
        **{key: result.summary[key] for key in ("traffic", "seconds", "total_parameters", "trainable_parameters")},
    }
    print(
        f"{row['algorithm']:12} {row['settings']}  seed {row['seed']}  {row['steps']} steps  validation "
        f"{validation:.4f}  test {row['accuracy']:.4f}  up {row['traffic']['up_bytes'] / 1e6:.0f} MB  "
        f"{row['seconds']['train']:.0f} s",
        flush=True,
    )
    return row


def shakespeare(data: Path, llama: str, more: Sequence[str]) -> dict[str, Any]:
    """Loss of every client's held-out speeches, in nats a token, without and with the federated adapter."""
    given = ["--config", str(CONFIGS / "shakespeare.yaml"), "--model.model", llama]
    settings = Settings([*given, "--data.source.data_files", str(data / "speeches.jsonl.gz"), *more])
    module, held = settings.module(), settings.data()
    assert isinstance(module, CausalLM)
    with tempfile.TemporaryDirectory() as folder:
        federation = settings.federation()
        federation.run_dir = Path(folder)
        result = federation.fit(module, held)
    module.eval()
    after = {client.id: held_out_loss(module, held, client.id) for client in held.clients}
    with module.model.disable_adapter():  # type: ignore[operator, union-attr]
        before = {client.id: held_out_loss(module, held, client.id) for client in held.clients}
    return {
        "clients": {client: {"before": before[client], "after": after[client]} for client in before},
        "improved": sum(after[client] < before[client] for client in before),
        "summary": {key: result.summary[key] for key in ("algorithm", "seed", "rounds", "traffic", "seconds")},
        "total_parameters": result.summary["total_parameters"],
        "trainable_parameters": result.summary["trainable_parameters"],
    }


@torch.no_grad()
def held_out_loss(module: CausalLM, data: FederatedDataModule, client: str) -> float:
    """Nats a token over all of a client's held-out rows: next token from the tokens before it."""
    loader = data.eval_loader("test", client)
    total, count = 0.0, 0
    for batch in loader or ():
        logits: Tensor = module.logits(batch)[:, :-1]
        tokens = batch["labels"][:, 1:]
        total += float(cross_entropy(logits.mT, tokens, ignore_index=IGNORED, reduction="sum"))
        count += int((tokens != IGNORED).sum())
    return total / count


def main() -> None:
    """Run what there are folders for, print tables, and write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clinc150", type=Path, help="folder with data_full.jsonl.gz and domains.json")
    parser.add_argument("--encoder", help="sentence encoder, a folder in Hugging Face's layout")
    parser.add_argument("--shakespeare", type=Path, help="folder with speeches.jsonl.gz")
    parser.add_argument("--llama", help="small language model, a folder in Hugging Face's layout")
    parser.add_argument("--json", type=Path, required=True, help="where to write the numbers")
    parser.add_argument("--rounds", type=int, help="instead of the configurations' own")
    parser.add_argument("--tune_rounds", type=int, default=10, help="rounds of a trial on CLINC150; 0: no trials")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    if not (arguments.clinc150 and arguments.encoder) and not (arguments.shakespeare and arguments.llama):
        parser.error("Expected --clinc150 with --encoder, or --shakespeare with --llama.")
    torch.set_num_threads(arguments.threads)
    more = ["--federation.accelerator=cpu", "--federation.progress=false"]
    more += [f"--federation.rounds={arguments.rounds}"] if arguments.rounds else []
    report: dict[str, Any] = {"threads": arguments.threads, "torch": torch.__version__}
    if arguments.clinc150 and arguments.encoder:
        report["clinc150"] = found = clinc150(
            arguments.clinc150, arguments.encoder, arguments.seeds, arguments.tune_rounds, more
        )
        accuracy = {
            name: statistics.mean(row["accuracy"] for row in found["results"] if row["algorithm"] == name)
            for name in CANDIDATES
        }
        print(f"of centralized: {accuracy['FedAvgM'] / accuracy['Centralized']:.3f}", flush=True)
    if arguments.shakespeare and arguments.llama:
        report["shakespeare"] = spoken = shakespeare(arguments.shakespeare, arguments.llama, more)
        for client, loss in sorted(spoken["clients"].items(), key=lambda item: item[1]["after"] - item[1]["before"]):
            print(f"{client:24} held-out loss {loss['before']:.3f} -> {loss['after']:.3f} nats a token")
        print(f"{spoken['improved']} of {len(spoken['clients'])} clients improved")
    arguments.json.write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
