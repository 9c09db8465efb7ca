"""A prediction rule in the place of a module's own logits."""

from typing import Any

from torch import Tensor

from lit_fed.adapters.state import AdapterView
from lit_fed.algorithms.base import Predict
from lit_fed.engine.step import ModuleStep


def put_in_place(module: Any, view: AdapterView, predict: Predict) -> None:
    """From now on the rule answers whoever asks for ``module.logits(batch)``, until ``del module.logits``."""

    def ruled(batch: Any) -> Tensor:
        del module.logits  # what the rule asks a step for is the module's own
        try:
            return predict(ModuleStep(module, view, batch))
        finally:
            module.logits = ruled

    module.logits = ruled
