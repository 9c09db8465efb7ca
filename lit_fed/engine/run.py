"""The outer loop of a federation, as one process runs it."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from lightning.fabric import Fabric

from lit_fed.algorithms.base import GLOBAL, Algorithm
from lit_fed.core.errors import ClientFailure
from lit_fed.core.sampling import Population, deal, sample_cohort
from lit_fed.core.tree import all_finite, digest, num_bytes
from lit_fed.core.types import Client, ClientId, Private, Server, Task, Tree, Update
from lit_fed.core.units import bytes_of
from lit_fed.engine.checkpoint import Checkpoint, check_identity
from lit_fed.engine.evaluator import Evaluator
from lit_fed.engine.exchange import Exchange, Report
from lit_fed.engine.group_turn import GroupTurn
from lit_fed.engine.learner import ModuleLearner
from lit_fed.engine.local_loop import LocalLoop
from lit_fed.engine.pace import Pace
from lit_fed.engine.peak import peak_resident_bytes
from lit_fed.engine.prefix_cache import PrefixCache
from lit_fed.engine.run_folder import RunFolder
from lit_fed.engine.scoring import Scorer
from lit_fed.engine.setup import Prepared
from lit_fed.engine.together import Together
from lit_fed.engine.within import Cluster

if TYPE_CHECKING:
    from lit_fed.engine.federation import Federation


class Run:
    """Rounds over a prepared module and data.

    Every process holds the server's state and computes the same merge from the same reports, so one exchange a round is
    all that processes say to one another.
    """

    def __init__(self, federation: "Federation", fabric: Fabric, prepared: Prepared, folder: RunFolder) -> None:
        self.federation, self.fabric, self.prepared, self.folder = federation, fabric, prepared, folder
        self.algorithm: Algorithm = federation.algorithm
        self.seed = federation.seed
        self.exchange = Exchange(fabric)
        within = federation.parallel == "within" and fabric.world_size > 1
        self.cluster = Cluster(fabric, self.exchange, federation.strategy == "fsdp") if within else None
        module, view = prepared.module, prepared.view
        loop = LocalLoop(fabric, module, federation.loop_settings, federation.lightning_callbacks, self.cluster)
        evaluator = Evaluator(fabric, module, view)
        limit = bytes_of(federation.cache) if federation.cache is not None and view.blocks is not None else None
        files = folder.path / f"cache_{fabric.global_rank}"
        self.cache = PrefixCache(view, fabric.device, limit, files) if limit is not None else None
        self.learner = ModuleLearner(
            module, view, prepared.initial, loop, evaluator, prepared.data, prepared.members, self.seed, self.cache
        )
        self.together = Together(
            federation.batch_clients, self.algorithm, prepared, loop, self.learner, self.cache, self.seed,
            federation.precision,
        )  # fmt: skip
        self.scorer = Scorer(self.algorithm, evaluator, prepared, folder.private, self.exchange, self.cluster, fabric)
        self.server: Server = self._seeded(self.algorithm.init(prepared.initial[GLOBAL], prepared.setting))
        self.population = Population(prepared.setting.clients)
        self.pace = Pace()
        self.touched: list[set[ClientId]] = [set(), set()]
        """Who had a turn before the last checkpoint, since the one before it; and who had one since the last."""
        self.private_digests: dict[ClientId, str] = {}
        self.progress: dict[str, Any] = {
            "up_bytes": 0, "down_bytes": 0, "train_s": 0.0, "evaluate_s": 0.0, "stopped": False,
        }  # fmt: skip

    # -- rounds -----------------------------------------------------------------------------------------------------

    def rounds(self) -> None:
        """Run the rounds that are left."""
        federation = self.federation
        if self.server.round == 0 and federation.evaluate_every:
            self._evaluate(self.server.round)
        self._call("on_fit_start")
        while self.server.round < federation.rounds and not federation.should_stop:
            round = self.server.round
            started = time.perf_counter()
            rows = self._round(round)
            seconds = time.perf_counter() - started
            self.progress["train_s"] += seconds
            metrics = {"round": round, "seconds": seconds, **_summary_of(rows)}
            metrics.update({f"server/{name}": value for name, value in self.server.metrics.items()})
            last = self.server.round == federation.rounds
            if last or (federation.evaluate_every and self.server.round % federation.evaluate_every == 0):
                metrics.update(self._evaluate(self.server.round))
            self._write(metrics, rows)
            self._call("on_round_end", round, metrics)
            self.progress["stopped"] = federation.should_stop
            if last or federation.should_stop or self.server.round % federation.checkpoint_every == 0:
                self._checkpoint()

    def _round(self, round: int) -> list[dict[str, Any]]:
        """Plan, local work, one exchange, merge; returns a row a client."""
        federation = self.federation
        cohort = self._cohort(round)
        tasks = self.algorithm.plan(self.server, cohort)
        cohort = [client for client in cohort if client.id in tasks]
        self._call("on_round_start", round, tuple(client.id for client in cohort))
        expected = self._expected_costs(cohort, tasks)
        turns = self.together.turns(self._mine(cohort, expected), tasks, round, self.folder.private.get)
        reports = [self._turn(client, tasks[client.id], round, made) for client, made in turns]
        # What a cluster's first process says goes for all: others have logged, and counted, their shares alone.
        reports = self.exchange.gather(reports if self.cluster is None or self.fabric.is_global_zero else [])
        failures = [report.failure for report in reports if report.failure is not None]
        updates = [report.update for report in reports if report.update is not None]
        if failures and federation.failure == "raise":
            raise failures[0]
        if failures and len(updates) < federation.min_updates:
            raise ClientFailure(
                failures[0].client, round, failures[0].stage,
                f"{len(updates)} updates are left, fewer than `federation.min_updates` = {federation.min_updates}. The"
                f" last reason was: {failures[-1].reason}",
            )  # fmt: skip
        merged = self.algorithm.merge(replace(self.server, metrics={}), updates)
        self.server = replace(merged, round=round + 1)
        for report in reports:
            if "private" in report.row:
                self.private_digests[report.row["client"]] = report.row.pop("private")
        rows = [report.row for report in reports]
        self.pace.note({row["client"]: row["seconds"] for row in rows if not row["failure"]}, expected)
        self.touched[-1].update(row["client"] for row in rows)
        for name in ("up_bytes", "down_bytes"):
            self.progress[name] += sum(row[name] for row in rows)
        return rows

    def _cohort(self, round: int) -> list[Client]:
        if self.algorithm.pools_clients:
            return list(self.prepared.setting.clients)
        return sample_cohort(self.population, self.federation.cohort, self.seed, round, self.federation.sampling)

    def _expected_costs(self, cohort: Sequence[Client], tasks: Mapping[ClientId, Task]) -> dict[ClientId, float]:
        """Steps, or examples, times blocks."""
        steps = self.algorithm.budget.steps
        return {
            client.id: float(steps or max(1, client.num_examples)) * max(1, self._num_blocks(tasks[client.id]))
            for client in cohort
        }

    def _mine(self, cohort: Sequence[Client], expected: Mapping[ClientId, float]) -> list[Client]:
        """This process's part of the cohort, in client-id order."""
        if self.cluster is not None or self.fabric.world_size == 1:
            return list(cohort)
        # Who is trained together with whom changes roundings, so there times may not decide.
        dealt = (deal if self.together.size > 1 else self.pace.deal)(expected, self.fabric.world_size)
        hand = set(dealt[self.fabric.global_rank])
        return [client for client in cohort if client.id in hand]

    def _num_blocks(self, task: Task) -> int:
        return len(task.blocks) if task.blocks is not None else self.prepared.blocks_of

    def _allocation(self, task: Task) -> str:
        """The blocks of a task by number, or nothing if they are all there are."""
        some = task.blocks is not None and len(task.blocks) < self.prepared.blocks_of
        return " ".join(str(block) for block in task.blocks or ()) if some else ""

    def _turn(self, client: Client, task: Task, round: int, made: GroupTurn | None) -> Report:
        """One client's turn, unless it was made with others, with whatever happens to it told in the report."""
        self._call("on_client_start", round, client.id)
        started = time.perf_counter()
        row: dict[str, Any] = {
            "round": round, "client": client.id, "domain": client.domain or "", "examples": client.num_examples,
            "steps": 0, "loss": "", "seconds": 0.0, "up_bytes": 0, "down_bytes": num_bytes(task.adapter),
            "blocks": self._num_blocks(task), "allocation": self._allocation(task), "failure": "",
        }  # fmt: skip
        try:
            update = self._local(client, task, round, row, made)
            if self.cluster is not None:
                self.cluster.meet()
            report = Report(update, row)
        except Exception as error:  # a user's module may raise anything, and other processes wait for the report
            failure = error if isinstance(error, ClientFailure) else _failure_of(client, round, error)
            if self.cluster is not None:
                failure = self.cluster.tell(error, failure)
            if self.federation.failure == "raise" and (self.fabric.world_size == 1 or self.cluster is not None):
                raise failure from (None if failure is error else error)  # with the traceback, while it is at hand
            self.learner.abandon()
            report = Report(None, {**row, "failure": " ".join(failure.reason.split())}, failure)  # a row is a line
        row = report.row
        row["seconds"] = time.perf_counter() - started + (made.seconds if made is not None else 0.0)
        self._call("on_client_end", round, client.id)
        return report

    def _local(self, client: Client, task: Task, round: int, row: dict[str, Any], made: GroupTurn | None) -> Update:
        private: Private = self.folder.private.get(client.id, round) if made is None else made.private
        if made is None:
            self.learner.begin(client, round)
            update, kept = self.algorithm.local(self.learner, task, private)
        else:
            update, kept = made.outcome()
        if not all_finite(update.adapter):
            raise ClientFailure(client.id, round, "update", "its update is not finite.")
        writes = self.cluster is None or self.fabric.is_global_zero  # a cluster's processes all hold the same
        if writes and kept is not private and (kept or private):
            row["private"] = self.folder.private.put(client.id, round + 1, kept)
        row.update(loss=update.metrics.get("loss", ""), steps=int(update.metrics.get("steps", 0)))
        row.update({f"turn/{name}": v for name, v in update.metrics.items() if name not in ("loss", "steps")})
        row["up_bytes"] = num_bytes(update.adapter)
        return update

    # -- evaluation, files ------------------------------------------------------------------------------------------

    def _evaluate(self, round: int) -> dict[str, float]:
        self._call("on_evaluate_start", round)
        started = time.perf_counter()
        metrics = self.scorer.score(self.server)
        self.progress["evaluate_s"] += time.perf_counter() - started
        if round == 0 and self.fabric.is_global_zero:
            self.folder.write_initial({"metrics": metrics, "clients": self.scorer.personal})
        self.federation.metric = self.scorer.primary
        self._call("on_evaluate_end", round, metrics)
        return metrics

    def _write(self, metrics: dict[str, Any], rows: list[dict[str, Any]]) -> None:
        evaluated = any(name.startswith(("global/", "personal/")) for name in metrics)
        if evaluated:
            scores = self.scorer.personal
            known = {row["client"] for row in rows}
            absent = [{"round": metrics["round"], "client": client} for client in scores if client not in known]
            # A client's row has the loss of its training; that of its evaluation stands beside it.
            rows = [
                {**row, **{f"test_{k}" if k == "loss" else k: v for k, v in scores.get(row["client"], {}).items()}}
                for row in [*rows, *absent]
            ]
        if self.fabric.is_global_zero:
            self.folder.add_round(metrics, rows)
        for logger in self.fabric.loggers:
            numbers = {k: v for k, v in metrics.items() if k != "round"}
            logger.log_metrics(numbers, step=metrics["round"])

    def _checkpoint(self) -> None:
        """Write a checkpoint, then drop private states that no checkpoint needs.

        Those are of clients that had a turn since the checkpoint that has just become too old, or since it was made.
        """
        if not self.fabric.is_global_zero:
            return
        callbacks: dict[str, Tree] = {}
        for i, callback in enumerate(self.federation.callbacks):
            if state := callback.state_dict():
                callbacks[f"{i}_{type(callback).__name__}"] = state
        checkpoints = self.folder.checkpoints
        checkpoints.save(Checkpoint(self.server, self.federation.identity, self.progress, callbacks))
        versions = checkpoints.versions()
        for client in sorted(set().union(*self.touched)):
            self.folder.private.prune(client, versions)
        self.touched = [self.touched[-1], set()]

    def resume(self, version: int | None) -> None:
        """Take up where a checkpoint left off; without one, begin at the beginning."""
        found = self.folder.checkpoints.load(version)
        if found is not None:
            check_identity(found.identity, self.federation.identity, self.folder.checkpoints.directory)
            self.server = self._seeded(found.server)
            self.progress = dict(found.progress)
            self.federation.should_stop = self.progress["stopped"]
            for i, callback in enumerate(self.federation.callbacks):
                state = found.callbacks.get(f"{i}_{type(callback).__name__}")
                if state is not None:
                    callback.load_state_dict(state)
        self.fabric.barrier()  # nobody rewinds while another still reads
        if self.fabric.is_global_zero:
            self.folder.rewind(self.server.round)
        self.fabric.barrier()
        clients = [client.id for client in self.prepared.setting.clients]
        self.private_digests = self.folder.private.digests(self.server.round, clients)

    # -- the end ----------------------------------------------------------------------------------------------------

    def state_digest(self) -> str:
        """One digest over the server and every client's private state."""
        server = {"round": self.server.round, "adapter": self.server.adapter, "state": self.server.state}
        private = sorted(self.private_digests.items())
        return digest({"server": server, "private": [list(item) for item in private]})

    def peak_memory_bytes(self) -> int:
        """Peak resident memory, summed over processes; on a GPU also what was allocated there."""
        own = peak_resident_bytes()
        if self.fabric.device.type == "cuda":
            own += torch.cuda.max_memory_allocated(self.fabric.device)
        return sum(self.exchange.gather_json(own))

    def _seeded(self, server: Server) -> Server:
        """The seed is the federation's, and in no checkpoint."""
        return replace(server, seed=self.seed)

    def _call(self, hook: str, *args: Any) -> None:
        for callback in self.federation.callbacks:
            getattr(callback, hook)(self.federation, *args)


def _failure_of(client: Client, round: int, error: Exception) -> ClientFailure:
    return ClientFailure(client.id, round, "local", f"{type(error).__name__}: {error}")


def _summary_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """A round's numbers from its clients': the loss weighted by examples, bytes added."""
    trained = [row for row in rows if row["loss"] != ""]
    weight = sum(row["examples"] for row in trained)
    loss = sum(row["loss"] * row["examples"] for row in trained) / weight if weight else float("nan")
    return {
        "train/loss": loss,
        "num_updates": len([row for row in rows if not row["failure"]]),
        "num_failures": len([row for row in rows if row["failure"]]),
        "up_bytes": sum(row["up_bytes"] for row in rows),
        "down_bytes": sum(row["down_bytes"] for row in rows),
    }
