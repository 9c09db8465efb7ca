"""`benchmarks.throughput` by pfl-research: one resident model a process, clients in turn, FedAvg of the framework.

Several processes are pfl's own workers. If they did not find one another, each would do the whole work alone and the
result would look right: their number is checked.
"""

import itertools
import os
from pathlib import Path
from typing import Any

import torch

from benchmarks.contender import Adapter, Contender
from benchmarks.turns import Rounds
from benchmarks.workload import LR, PlainLoop, Regime


def run(regime: Regime, contender: Contender, folder: Path, rounds: Rounds) -> Adapter:
    """Run the regime."""
    os.environ["PFL_PYTORCH_DEVICE"] = "cpu"
    if contender.processes > 1:  # read when pfl is imported
        os.environ["PFL_WORKER_RANK"] = os.environ["BENCHMARK_RANK"]
        first = int(os.environ["MASTER_PORT"]) + 1
        ports = range(first, first + contender.processes)
        os.environ["PFL_WORKER_ADDRESSES"] = ",".join(f"127.0.0.1:{port}" for port in ports)
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.aggregate.weighting import WeightByUser
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.callback.base import TrainingProcessCallback
    from pfl.data.dataset import Dataset
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.hyperparam import NNTrainHyperParams
    from pfl.internal.ops import pytorch_ops
    from pfl.metrics import Metrics, Weighted
    from pfl.model.pytorch import PyTorchModel

    if (found := pytorch_ops.distributed.world_size) != contender.processes:
        raise RuntimeError(f"Expected pfl to have {contender.processes} workers, but it found {found}.")
    loop = PlainLoop(regime, contender.bf16)
    clients = sorted(loop.shares)

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = loop.model

        def loss(self, pixels: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return loop.loss({"pixel_values": pixels, "labels": labels})

        def metrics(self, pixels: torch.Tensor, labels: torch.Tensor) -> dict[str, Any]:
            return {"examples": Weighted(len(labels), len(labels))}

    class Turns(TrainingProcessCallback[Any]):
        def on_train_begin(self, *, model: Any) -> Any:
            rounds.next()
            return Metrics()

        def after_central_iteration(self, aggregate_metrics: Any, model: Any, *, central_iteration: int) -> Any:
            if rounds.begun == regime.rounds:
                rounds.end()
            else:
                rounds.next()
            return False, Metrics()

    def examples_of(client: str) -> Any:
        batches = loop.batches(rounds.begun - 1, client)
        return Dataset([torch.cat([batch[name] for batch in batches]) for name in ("pixel_values", "labels")])

    everybody = itertools.cycle(clients)
    data = FederatedDataset(examples_of, lambda: next(everybody))
    model = Model()
    wrapped = PyTorchModel(
        model,
        lambda parameters, lr: torch.optim.AdamW([p for p in parameters if p.requires_grad], lr=lr, fused=True),
        torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0),
    )
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=regime.rounds, evaluation_frequency=regime.rounds + 1,
            train_cohort_size=len(clients), val_cohort_size=None,
        ),
        backend=SimulatedBackend(training_data=data, val_data=data, postprocessors=[WeightByUser()]),
        model=wrapped,
        model_train_params=NNTrainHyperParams(
            local_num_epochs=1, local_learning_rate=LR, local_batch_size=regime.batch_size
        ),
        callbacks=[Turns()],
        send_metrics_to_platform=False,
    )  # fmt: skip
    return loop.named(loop.values())
