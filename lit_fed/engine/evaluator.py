"""What a serving scores on a set of examples, in the module's own metrics."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import lightning.pytorch as pl
import torch
from lightning.fabric import Fabric
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.utilities.data import extract_batch_size
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from lit_fed.adapters.stacked import stacked
from lit_fed.adapters.state import AdapterView
from lit_fed.algorithms.base import Predict, Serving, Step
from lit_fed.core.errors import ConfigError
from lit_fed.core.types import AdapterState
from lit_fed.engine.local_trainer import BatchMover, LocalTrainer
from lit_fed.engine.log_recorder import Logged, LogRecorder
from lit_fed.engine.rule import put_in_place
from lit_fed.engine.step import ModuleStep

T = TypeVar("T")
_PREFIXES = ("val_", "val/", "valid_", "validation_", "test_", "test/")


class Evaluator:
    """Runs the module's ``validation_step`` or ``test_step`` with the adapters of a serving.

    A module that has only one of the two is evaluated with that one. Metric names lose their ``val_`` or ``test_``
    prefix, so that one name means one thing in the run folder.
    """

    def __init__(self, fabric: Fabric, module: pl.LightningModule, view: AdapterView) -> None:
        self.fabric, self.module, self.view = fabric, module, view
        self._mover = BatchMover(fabric, module)
        self._loaded: dict[str, AdapterState] = {}
        self._folded: AdapterState | None = None

    def load(self, serving: Serving) -> None:
        """Put a serving's adapters into their slots and fold its deltas; what is there already is not copied again."""
        self.view.restore_buffers()  # frozen running statistics as the last client's training left them
        if self.view.blocks is not None:
            self.view.blocks.select(serving.blocks)
        for slot, adapter in serving.adapters.items():
            if self._loaded.get(slot) is not adapter:
                self.view.write(adapter, slot)
                self._loaded[slot] = adapter
        if self._folded is not serving.folded:
            self.view.fold(serving.folded)
            self._folded = serving.folded
        self.view.use(next(iter(serving.adapters)))

    def forget(self) -> None:
        """Slots and frozen weights have changed since: load again next time."""
        self._loaded.clear()
        self._folded = None

    def score(self, serving: Serving, loader: Iterable[Any], stage: str = "test") -> dict[str, Logged]:
        """Load a serving and score it on a loader."""
        self.load(serving)
        return self.score_loaded(loader, stage, serving.predict)

    @torch.no_grad()
    def score_loaded(
        self, loader: Iterable[Any], stage: str = "test", predict: Predict | None = None
    ) -> dict[str, Logged]:
        """Score what is in the slots now."""
        module, recorder = self.module, LogRecorder()
        trainer = LocalTrainer(self.fabric, module, recorder)
        trainer.testing, trainer.validating = stage == "test", stage != "test"
        step_name = self._step_name(stage)
        step = getattr(module, step_name)
        takes_batch_idx = is_param_in_hook_signature(step, "batch_idx", explicit=True)
        num_examples = 0
        was_training = module.training
        module.eval()
        hook = f"on_{step_name.removesuffix('_step')}"
        with trainer.attached(), self._predicting(predict, step_name):
            getattr(module, f"{hook}_start")()
            getattr(module, f"{hook}_epoch_start")()
            for batch_idx, drawn in enumerate(loader):
                recorder.batch = batch = self._mover(drawn)
                num_examples += extract_batch_size(batch)
                with self.fabric.autocast():
                    step(batch, batch_idx) if takes_batch_idx else step(batch)
            getattr(module, f"{hook}_epoch_end")()
            getattr(module, f"{hook}_end")()
        module.train(was_training)
        scores = {_plain(name): logged for name, logged in recorder.compute(num_examples).items()}
        return {**scores, "num_examples": Logged(float(num_examples), 1.0)}

    @torch.no_grad()
    def score_each(
        self, adapters: Sequence[AdapterState], loader: Iterable[Any], stage: str = "test"
    ) -> list[dict[str, Logged]]:
        """Score each of some adapters in slot ``"global"``; the module's forward runs once for all of them.

        The module offers ``logits``, which its step asks for, of a batch or of batches that it makes of one; they are
        of tensors with a row an example.
        """
        module: Any = self.module
        number = len(adapters)
        heard: list[tuple[Tensor, ...]] = []  # for every time that the step asks, what each adapter says

        def of_first(step: Step) -> Tensor:
            with stacked(self.view, adapters, extract_batch_size(step.batch) * number):
                logits: Tensor = module.logits(_repeated(step.batch, number))
            heard.append(logits.chunk(number))
            return heard[-1][0]

        scores = [self.score_loaded(loader, stage, of_first)]
        following = list(zip(*heard, strict=True))[1:]
        return scores + [self.score_loaded(loader, stage, _replies(logits)) for logits in following]

    @torch.no_grad()
    def said(self, rule: Callable[[Step], T], loader: Iterable[Any]) -> list[T]:
        """What a rule makes of each batch, with what is in the slots now and the module in evaluation mode."""
        module = self.module
        was_training = module.training
        module.eval()
        with self.fabric.autocast():
            found = [rule(ModuleStep(module, self.view, self._mover(drawn))) for drawn in loader]
        module.train(was_training)
        return found

    @torch.no_grad()
    def predict(self, serving: Serving, loader: Iterable[Any]) -> list[Any]:
        """What the module's ``predict_step`` returns with a serving's adapters, a batch each, on the host."""
        self.load(serving)
        module = self.module
        was_training = module.training
        module.eval()
        results = []
        trainer = LocalTrainer(self.fabric, module, LogRecorder())
        with trainer.attached(), self._predicting(serving.predict, "predict_step"):
            for batch_idx, drawn in enumerate(loader):
                with self.fabric.autocast():
                    results.append(move_data_to_device(module.predict_step(self._mover(drawn), batch_idx), "cpu"))
        module.train(was_training)
        return results

    def _step_name(self, stage: str) -> str:
        order = ("test_step", "validation_step") if stage == "test" else ("validation_step", "test_step")
        return next((name for name in order if is_overridden(name, self.module)), order[0])

    @contextmanager
    def _predicting(self, predict: Predict | None, step_name: str) -> Iterator[None]:
        """Within the scope, the module's `logits` come from a prediction rule over slots or exits."""
        if predict is None:
            yield
            return
        module: Any = self.module
        asked = False

        def noted(step: Step) -> Tensor:
            nonlocal asked
            asked = True
            return predict(step)

        put_in_place(module, self.view, noted)
        try:
            yield
        finally:
            del module.logits
        if not asked:
            raise ConfigError(
                f"Expected `{step_name}` of {type(module).__name__} to ask `self.logits(batch)` for its logits, since "
                "this algorithm predicts by a rule that takes its place, but it did not. Call it there."
            )


def _replies(logits: Iterable[Tensor]) -> Predict:
    """A rule that gives these logits, one whenever it is asked."""
    following = iter(logits)
    return lambda _: next(following)


def _repeated(batch: Any, times: int) -> Any:
    """A batch with all its rows several times, one batch after another."""
    num_rows = extract_batch_size(batch)

    def repeat(tensor: Tensor) -> Tensor:
        return tensor.repeat(times, *[1] * (tensor.ndim - 1)) if tensor.ndim and len(tensor) == num_rows else tensor

    return apply_to_collection(batch, Tensor, repeat)


def _plain(name: str) -> str:
    prefix = next((prefix for prefix in _PREFIXES if name.startswith(prefix)), "")
    return name[len(prefix) :]
