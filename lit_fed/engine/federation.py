"""The object users hold: a federation of clients around one LightningModule."""

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.fabric import Fabric
from lightning.pytorch.loggers import Logger

from lit_fed.adapters.state import AdapterView
from lit_fed.algorithms.base import Algorithm
from lit_fed.callbacks.base import Callback
from lit_fed.callbacks.progress import Progress
from lit_fed.core.errors import ConfigError
from lit_fed.core.sampling import Sampling
from lit_fed.core.seeding import isolated_rng
from lit_fed.data.federated import FederatedDataModule
from lit_fed.engine.build import attach_as_in
from lit_fed.engine.checks import check_settings
from lit_fed.engine.dry_run import dry_run
from lit_fed.engine.identity import identity
from lit_fed.engine.launch import launch
from lit_fed.engine.local_loop import LoopSettings
from lit_fed.engine.new_examples import predict_new
from lit_fed.engine.offload import offloaded
from lit_fed.engine.outcome import finish, predictions
from lit_fed.engine.pictures import draw_pictures
from lit_fed.engine.precision import Kernels, Precision, with_kernels
from lit_fed.engine.result import Result
from lit_fed.engine.run import Run
from lit_fed.engine.run_folder import RunFolder
from lit_fed.engine.setup import Prepared, prepare


class Federation:
    """Tunes one module over many clients, round by round.

    ``Federation(FedAvg(local_epochs=1), rounds=10).fit(ImageClassifier(num_labels=10), data)``

    Args:
        algorithm: The federated method.
        rounds: Rounds to run.
        cohort: Clients of a round: a number (int), or a fraction of all (float in (0, 1]).
        sampling: How they are drawn: ``"uniform"``, or ``"per_domain"``, as many from each domain.
        accelerator: Fabric's: ``"auto"``, ``"cpu"``, ``"cuda"``, ...
        devices: Processes on this machine, or a list of GPUs.
        threads: Of each process's arithmetic on the CPU; `None`: as torch is set. Small models are faster with one, and
            results are equal to the bit only for equal numbers.
        num_nodes: Machines; all must see the same `run_dir`.
        strategy: How processes are started: ``"auto"``, ``"ddp"``, ``"ddp_spawn"``, ``"ddp_notebook"``; ``"fsdp"`` also
            shards the frozen weights of a client that is a cluster (with ``parallel="within"``).
        precision: ``"32-true"``, ``"bf16-mixed"``, ``"bf16-true"`` (frozen weights in bfloat16) or ``"16-mixed"``.
        kernels: What steps run with: ``"lean"`` computes of the last block only what the head of a ViT reads, on a CPU
            LoRA as one function and a step of Adam or AdamW in one kernel, and there in bfloat16 casts frozen weights
            once (which takes memory for a copy of half the size) and has attention as matrix products; ``"torch"``
            leaves all to PyTorch, PEFT and Hugging Face. Results differ by roundings.
        parallel: ``"clients"`` deals the cohort over processes; ``"within"`` trains one client at a time over all of
            them.
        batch_clients: Clients that are trained together, at most, where they do the same: one forward and backward pass
            for all of them. Pays where batches are small. Results are the same up to rounding, so it is part of what a
            run is; what cannot be done together is done one after another, and said.
        gradient_clip_val: As Trainer's; `None` does not clip.
        gradient_clip_algorithm: ``"norm"`` or ``"value"``.
        accumulate_grad_batches: Batches to an optimizer step.
        offload_blocks: Keep the frozen weights of blocks on disk, in the run folder, and in memory only those of blocks
            that run: what a weak client is spared. Results are the same to the bit.
        cache: Memory, such as ``"1 GB"``, of each process for what clients' training cannot change (hidden states below
            the lowest block that is trained; logits and features of frozen slots): it is computed once, and what does
            not fit is in files of the run folder. Results are the same to the bit. `None`: everything is computed.
        run_dir: Every run makes a new ``version_N`` folder here.
        failure: What a failing client does: ``"raise"`` ends the run, ``"drop"`` leaves it out of the round. With
            ``strategy="fsdp"`` an error in one process alone ends the run.
        min_updates: Fewer updates than this end the run, whatever `failure` says.
        evaluate_every: Rounds between evaluations; 0 evaluates only at the end.
        checkpoint_every: Rounds between checkpoints.
        dry_run: Build, plan and count; train nothing and download nothing.
        callbacks: lit_fed's own callbacks, and Lightning's, which see one client's training each.
        logger: Lightning loggers, beside the tables of the run folder.
        progress: Whether to show progress and the final table.
        pictures: Whether to draw the run's pictures when it ends.
        seed: All randomness of the run is a function of it and of names.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        rounds: int = 10,
        cohort: int | float = 1.0,
        *,
        sampling: Sampling = "uniform",
        accelerator: str = "auto",
        devices: int | str | list[int] = 1,
        threads: int | None = None,
        num_nodes: int = 1,
        strategy: str = "auto",
        precision: Precision = "32-true",
        kernels: Kernels = "lean",
        parallel: Literal["clients", "within"] = "clients",
        batch_clients: int = 1,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: Literal["norm", "value"] = "norm",
        accumulate_grad_batches: int = 1,
        offload_blocks: bool = False,
        cache: str | None = "1 GB",
        run_dir: str | Path = "runs",
        failure: Literal["raise", "drop"] = "raise",
        min_updates: int = 1,
        evaluate_every: int = 1,
        checkpoint_every: int = 1,
        dry_run: bool = False,
        callbacks: Sequence[Callback | pl.Callback] | None = None,
        logger: Logger | list[Logger] | None = None,
        progress: bool = True,
        pictures: bool = True,
        seed: int = 0,
    ) -> None:
        self.algorithm, self.rounds, self.cohort, self.seed = algorithm, rounds, cohort, seed
        self.sampling: Sampling = sampling
        self.threads = threads
        self.accelerator, self.devices, self.num_nodes, self.strategy = accelerator, devices, num_nodes, strategy
        self.precision, self.parallel, self.batch_clients = precision, parallel, batch_clients
        self.kernels: Kernels = kernels
        self.gradient_clip_val, self.gradient_clip_algorithm = gradient_clip_val, gradient_clip_algorithm
        self.accumulate_grad_batches, self.offload_blocks = accumulate_grad_batches, offload_blocks
        self.cache, self.run_dir = cache, Path(run_dir)
        self.failure, self.min_updates = failure, min_updates
        self.evaluate_every, self.checkpoint_every, self.dry_run = evaluate_every, checkpoint_every, dry_run
        given = list(callbacks or [])
        self.callbacks: list[Callback] = [callback for callback in given if isinstance(callback, Callback)]
        self.lightning_callbacks = [callback for callback in given if isinstance(callback, pl.Callback)]
        self.unknown_callbacks = [c for c in given if not isinstance(c, Callback | pl.Callback)]
        self.loggers = logger if isinstance(logger, list) else [logger] if logger is not None else []
        self.progress, self.pictures = progress, pictures
        if progress:
            self.callbacks.append(Progress())
        self.should_stop = self._fitted_here = False
        self.metric = "accuracy"
        self.identity: dict[str, Any] = {}
        self._run: Run | None = None

    # -- what callbacks may ask -------------------------------------------------------------------------------------

    @property
    def run_path(self) -> Path:
        """The run's folder."""
        return self._current.folder.path

    @property
    def rounds_done(self) -> int:
        """Rounds finished so far."""
        return self._current.server.round

    @property
    def is_global_zero(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self._current.fabric.is_global_zero

    @property
    def num_processes(self) -> int:
        """Processes that clients are dealt over."""
        return 1 if self.parallel == "within" else self._current.fabric.world_size

    @property
    def loop_settings(self) -> LoopSettings:
        """How local steps are made."""
        return LoopSettings(
            self.gradient_clip_val,
            self.gradient_clip_algorithm,
            self.accumulate_grad_batches,
            fuse_optimizers=self.kernels == "lean",
        )

    @property
    def _current(self) -> Run:
        if self._run is None:
            raise RuntimeError("The federation is not running.")
        return self._run

    # -- what users call --------------------------------------------------------------------------------------------

    def fit(
        self,
        module: pl.LightningModule,
        data: FederatedDataModule,
        ckpt_path: str | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> Result:
        """Run the federation.

        Args:
            module: The module every client tunes; afterwards it holds the final global adapter.
            data: Everybody's data.
            ckpt_path: ``"last"`` continues the newest run of `run_dir` (and starts anew, saying so, if there is none);
                or a run folder, or a checkpoint in one.
            config: What is written as ``config.yaml``; the command line gives its resolved YAML.

        Raises:
            ConfigError: With every problem found in the settings, before work starts.
            ClientFailure: If a client fails and `failure` is ``"raise"``, or too few are left.
            StateMismatchError: If the checkpoint is damaged or belongs to another configuration.
        """
        check_settings(self, module, data)
        self._fitted_here = False
        result: Result = self._launch(self._fit, module, data, ckpt_path, config)
        if not self._fitted_here and not self.dry_run:  # by processes that were spawned or forked, and are gone
            with isolated_rng(self.seed, "init"):
                module.configure_model()
            attach_as_in(module, result.adapter, self.seed)
            view = AdapterView(module)
            view.write(result.adapter)
            view.fold(self.algorithm.serve(result.server, {}).folded)
        return result

    def validate(self, module: pl.LightningModule, data: FederatedDataModule, run: str | Path) -> dict[str, float]:
        """Score a stored run on the clients' validation data."""
        check_settings(self, module, data)
        return self._launch(self._score, module, data, Path(run), "val")

    def test(self, module: pl.LightningModule, data: FederatedDataModule, run: str | Path) -> dict[str, float]:
        """Score a stored run on the domains' and the clients' test data."""
        check_settings(self, module, data)
        return self._launch(self._score, module, data, Path(run), "test")

    def predict(
        self, module: pl.LightningModule, data: FederatedDataModule, run: str | Path, client: str | None = None
    ) -> list[Any]:
        """Predict with a stored run: what ``predict_step`` returns, a batch each.

        Args:
            module: The module the run was made with.
            data: Its data; ``predict_loader()`` gives the examples.
            run: The run folder.
            client: Whose serving to use; `None` is what a new client gets.
        """
        check_settings(self, module, data)
        return self._launch(self._predict, module, data, Path(run), client)

    def predict_new(
        self, module: pl.LightningModule, batches: Iterable[Any], run: str | Path, client: str | None = None
    ) -> list[Any]:
        """Predict what the run's data never held, with the run folder alone: what ``predict_step`` returns.

        Args:
            module: The module the run was made with.
            batches: What its ``predict_step`` takes.
            run: The run folder.
            client: Whose serving to use; `None` is what a new client gets.
        """
        return self._launch(self._predict_new, module, batches, Path(run), client)

    # -- in every process -------------------------------------------------------------------------------------------

    def _launch(self, function: Any, *args: Any) -> Any:
        threads = torch.get_num_threads()
        try:
            return launch(self, function, *args)
        finally:
            self._run = None
            if self.threads is not None:
                torch.set_num_threads(threads)

    def _fit(
        self,
        fabric: Fabric,
        module: pl.LightningModule,
        data: FederatedDataModule,
        ckpt_path: str | None,
        config: Mapping[str, Any] | None,
    ) -> Result:
        started = time.perf_counter()
        prepared = self._prepare(fabric, module, data)
        self.identity = identity(prepared, self.algorithm, self._identity_settings(), config)
        if self.dry_run:
            return dry_run(self, prepared)
        folder, version = self._open(fabric, ckpt_path)
        disk = offloaded(prepared.view, folder.path, fabric) if self.offload_blocks else nullcontext()
        with disk, self._kernels(prepared.view):
            return self._train(fabric, prepared, folder, ckpt_path, version, config, started)

    def _train(
        self,
        fabric: Fabric,
        prepared: Prepared,
        folder: RunFolder,
        ckpt_path: str | None,
        version: int | None,
        config: Mapping[str, Any] | None,
        started: float,
    ) -> Result:
        run = self._run = Run(self, fabric, prepared, folder)
        self._fitted_here, self.should_stop = True, False
        if ckpt_path is not None:
            run.resume(version)
        if fabric.is_global_zero:
            folder.write_config(config or self.identity)
        for logger in fabric.loggers:
            logger.log_hyperparams(dict(config or self.identity))
        setup_s = time.perf_counter() - started
        try:
            run.rounds()
        except BaseException as error:
            if prepared.view.blocks is not None:
                prepared.view.blocks.select(None)  # the module is whole, whoever's turn it was
            for callback in self.callbacks:
                callback.on_exception(self, error)
            for logger in fabric.loggers:
                logger.finalize("failed")
            raise
        finally:
            if run.cache is not None:
                run.cache.close()
        result = finish(self, run, setup_s)
        if self.pictures and fabric.is_global_zero:
            draw_pictures(folder.path)
        for callback in self.callbacks:
            callback.on_fit_end(self)
        for logger in fabric.loggers:
            logger.finalize("success")
        if self.progress and fabric.is_global_zero:
            from rich.console import Console

            Console().print(result.table())
        return result

    def _score(
        self, fabric: Fabric, module: pl.LightningModule, data: FederatedDataModule, path: Path, split: str
    ) -> dict[str, float]:
        run = self._restore(fabric, module, data, path)
        with self._kernels(run.prepared.view):
            return run.scorer.score(run.server, split)

    def _predict(
        self, fabric: Fabric, module: pl.LightningModule, data: FederatedDataModule, path: Path, client: str | None
    ) -> list[Any]:
        run = self._restore(fabric, module, data, path)
        with self._kernels(run.prepared.view):
            return predictions(run, client)

    def _predict_new(
        self, fabric: Fabric, module: pl.LightningModule, batches: Iterable[Any], path: Path, client: str | None
    ) -> list[Any]:
        return predict_new(
            fabric, module, batches, self.algorithm, path, client, self.precision, self.seed, self._kernels
        )

    def _kernels(self, view: AdapterView) -> AbstractContextManager[None]:
        """A scope with the kernels that were chosen."""
        spared = self.offload_blocks or self.strategy == "fsdp"  # whose point it is not to have all weights in memory
        return with_kernels(view, self.precision, self.kernels, keep=not spared)

    def _restore(self, fabric: Fabric, module: pl.LightningModule, data: FederatedDataModule, path: Path) -> Run:
        """A run as its last checkpoint left it; nothing in its folder is touched."""
        prepared = self._prepare(fabric, module, data)
        folder = RunFolder(path)
        found = folder.checkpoints.load()
        if found is None:
            raise ConfigError(f"Expected `run` to be the folder of a run, but {path} has no checkpoints.")
        run = self._run = Run(self, fabric, prepared, folder)
        run.server = replace(found.server, seed=self.seed)
        return run

    def _prepare(self, fabric: Fabric, module: pl.LightningModule, data: FederatedDataModule) -> Prepared:
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        return prepare(
            module, data, self.algorithm, fabric, cohort=self.cohort, sampling=self.sampling,
            min_updates=self.min_updates, precision=self.precision, kernels=self._kernels, loop=self.loop_settings,
            shard=self.strategy == "fsdp" and fabric.world_size > 1, offload=self.offload_blocks, seed=self.seed,
            dry_run=self.dry_run, rounds=self.rounds,
        )  # fmt: skip

    def _open(self, fabric: Fabric, ckpt_path: str | None) -> tuple[RunFolder, int | None]:
        """The run folder, chosen by the first process."""
        path, version = None, None
        if fabric.is_global_zero:
            folder = None
            if ckpt_path is not None:
                folder, version = RunFolder.find(ckpt_path, self.run_dir)
                if folder is None:
                    print(f"Nothing to continue in {self.run_dir}: starting from the beginning.")
            path = str((folder or RunFolder.new(self.run_dir)).path)
        path, version = fabric.broadcast((path, version))
        return RunFolder(Path(str(path))), version

    # -- settings ---------------------------------------------------------------------------------------------------

    def _identity_settings(self) -> dict[str, Any]:
        names = (
            "seed", "cohort", "sampling", "threads", "precision", "parallel", "gradient_clip_val",
            "gradient_clip_algorithm", "accumulate_grad_batches", "failure", "min_updates", "kernels",
        )  # fmt: skip
        settings = {name: getattr(self, name) for name in names}
        return settings if self.batch_clients == 1 else {**settings, "batch_clients": self.batch_clients}
