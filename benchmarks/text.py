"""Real text: what a federation reaches, with the settings in ``configs/text``.

``python -m benchmarks.text --clinc150 FOLDER --encoder FOLDER --json FILE``: ten domains of CLINC150 as ten clients,
federated against centralized at equal optimizer steps, learning rate and batch size. ``--lr`` gives several learning
rates, each tried for both.

``python -m benchmarks.text --shakespeare FOLDER --llama FOLDER --json FILE``: speakers as clients, the held-out loss of
every client before and after, computed here with plain torch, not taken from the run's own tables.
"""

import argparse
import json
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


def federate(settings: Settings) -> Result:
    """One run as its settings say, its folder thrown away."""
    with tempfile.TemporaryDirectory() as folder:
        federation = settings.federation()
        federation.run_dir = Path(folder)
        return federation.fit(settings.module(), settings.data())


def clinc150(data: Path, encoder: str, lrs: Sequence[float | None], more: Sequence[str]) -> list[dict[str, Any]]:
    """Federated and centralized, for each learning rate (`None`: the configuration's)."""
    given = [
        "--config", str(CONFIGS / "clinc150.yaml"), "--model.model", encoder,
        "--data.source.data_files", str(data / "data_full.jsonl.gz"),
        "--data.source.domain_map", str(data / "domains.json"), *more,
    ]  # fmt: skip
    rows = []
    for lr in lrs:
        own = given if lr is None else [*given, "--model.init_args.optimizer.init_args.lr", str(lr)]
        settings = Settings(own)
        local_steps = settings.resolved()["algorithm"]["init_args"]["local_steps"]
        pooled = Settings([*own, "--algorithm", "Centralized", "--algorithm.local_steps", str(local_steps)])
        for each in (settings, pooled):
            values, result = each.resolved(), federate(each)
            rows.append(
                {
                    "algorithm": result.summary["algorithm"],
                    "lr": values["model"]["init_args"]["optimizer"]["init_args"]["lr"],
                    "seed": result.summary["seed"],
                    "rounds": result.summary["rounds"],
                    "steps": result.summary["rounds"] * local_steps * result.summary["num_clients"],
                    "accuracy": result.metrics["global/accuracy"],
                    "history": {
                        row["round"] + 1: row["global/accuracy"] for row in result.history if "global/accuracy" in row
                    },
                    "traffic": result.summary["traffic"],
                    "seconds": result.summary["seconds"],
                    "total_parameters": result.summary["total_parameters"],
                    "trainable_parameters": result.summary["trainable_parameters"],
                }
            )
    return rows


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
    parser.add_argument("--lr", type=float, nargs="+", help="learning rates of CLINC150, not the configuration's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    if not (arguments.clinc150 and arguments.encoder) and not (arguments.shakespeare and arguments.llama):
        parser.error("Expected --clinc150 with --encoder, or --shakespeare with --llama.")
    torch.set_num_threads(arguments.threads)
    more = [f"--seed_everything={arguments.seed}", "--federation.accelerator=cpu", "--federation.progress=false"]
    more += [f"--federation.rounds={arguments.rounds}"] if arguments.rounds else []
    report: dict[str, Any] = {"threads": arguments.threads, "torch": torch.__version__}
    if arguments.clinc150 and arguments.encoder:
        report["clinc150"] = rows = clinc150(arguments.clinc150, arguments.encoder, arguments.lr or [None], more)
        best = max(row["accuracy"] for row in rows if row["algorithm"] == "Centralized")
        for row in rows:
            print(
                f"{row['algorithm']:12} lr {row['lr']:.0e}  {row['steps']} steps  accuracy {row['accuracy']:.4f}"
                f"  of the best centralized {row['accuracy'] / best:.3f}"
                f"  up {row['traffic']['up_bytes'] / 1e6:.0f} MB  {row['seconds']['train']:.0f} s"
            )
    if arguments.shakespeare and arguments.llama:
        report["shakespeare"] = found = shakespeare(arguments.shakespeare, arguments.llama, more)
        for client, loss in sorted(found["clients"].items(), key=lambda item: item[1]["after"] - item[1]["before"]):
            print(f"{client:24} held-out loss {loss['before']:.3f} -> {loss['after']:.3f} nats a token")
        print(f"{found['improved']} of {len(found['clients'])} clients improved")
    arguments.json.write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
