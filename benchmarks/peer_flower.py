"""`benchmarks.throughput` by Flower's simulation (flwr with ray), as a careful user writes it.

The model is built once in each worker, not once a task. Workers are as many as processes; training is FedAvg of the
framework, over arrays with as many examples from every client.
"""

import os
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from benchmarks.contender import Adapter, Contender
from benchmarks.turns import Rounds
from benchmarks.workload import PlainLoop, Regime


@lru_cache(maxsize=1)
def resident(regime: Regime, bf16: bool, threads: int) -> PlainLoop:
    """The model of this worker, and all data."""
    torch.set_num_threads(threads)
    return PlainLoop(regime, bf16, fused=True)


class Timed(FedAvg):
    """FedAvg whose rounds have their turns."""

    def __init__(self, rounds: Rounds, **settings: Any) -> None:
        super().__init__(**settings)
        self.rounds = rounds

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Any:
        """A round begins where the one before ends."""
        self.rounds.next()
        return super().configure_train(server_round, arrays, config, grid)


def run(regime: Regime, contender: Contender, folder: Path, rounds: Rounds) -> Adapter:
    """Run the regime."""
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    here = PlainLoop(regime)
    clients = sorted(here.shares)
    strategy = Timed(
        rounds, fraction_train=1.0, fraction_evaluate=0.0, min_train_nodes=len(clients),
        min_available_nodes=len(clients),
    )  # fmt: skip
    client_app, server_app = ClientApp(), ServerApp()
    final: dict[str, Any] = {}

    @client_app.train()
    def train(message: Message, context: Context) -> Message:
        loop = resident(regime, contender.bf16, contender.threads)
        client = clients[int(context.node_config["partition-id"])]
        round = int(message.content["config"]["server-round"]) - 1
        start = message.content["arrays"].to_torch_state_dict()
        loop.turn(round, client, [start[name] for name in loop.names])
        content = {
            "arrays": ArrayRecord(loop.named(loop.trained)),
            "metrics": MetricRecord({"num-examples": regime.examples}),
        }
        return Message(content=RecordDict(content), reply_to=message)

    @server_app.main()
    def serve(grid: Grid, context: Context) -> None:
        grid.pull_interval = 0.005  # in place of 0.1 s, which small rounds would feel
        initial = ArrayRecord(here.named(here.values()))
        final["arrays"] = strategy.start(grid, initial, num_rounds=regime.rounds).arrays
        rounds.end()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the function is to go in favour of a command line
        resources = {"num_cpus": 1, "num_gpus": 0.0}
        run_simulation(
            server_app, client_app, len(clients),
            backend_config={"init_args": {"num_cpus": contender.processes}, "client_resources": resources},
        )  # fmt: skip
    return final["arrays"].to_torch_state_dict()
