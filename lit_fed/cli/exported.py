"""An export as a module that predicts. It is here since the module is built from the export's settings."""

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from lit_fed.core.errors import ConfigError

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule

__all__ = ["load_export"]


def load_export(folder: str | PathLike[str], module: "LightningModule | None" = None) -> "LightningModule":
    """What ``lit-fed export`` wrote without ``--merge``, as a module in evaluation mode, on the CPU, in float32.

    Its ``logits``, ``predict_step``, ``validation_step`` and ``test_step`` are those of the client or of the new client
    whose export it is, whatever its algorithm serves: one adapter, two slots and a gate, heads beside the head.

    Args:
        folder: The export.
        module: The module that was tuned, not built yet; `None` builds it as the export's settings say.

    Raises:
        ConfigError: If the folder is no export, or a script made the module and it is not given.
        StateMismatchError: If a file is damaged, or not of this module.
    """
    from lightning.fabric import Fabric

    from lit_fed.adapters.state import AdapterView
    from lit_fed.cli.settings import Settings
    from lit_fed.engine.evaluator import Evaluator
    from lit_fed.engine.rule import put_in_place
    from lit_fed.engine.run_folder import RunFolder
    from lit_fed.engine.served import is_serving, load_serving

    folder, config = Path(folder), Path(folder, "config.yaml")
    if not (is_serving(folder) and config.is_file()):
        raise ConfigError(
            f"Expected `folder` to be an export, but got {folder}. `lit-fed export RUN --to FOLDER` makes one; what"
            " `--merge` wrote is loaded with transformers."
        )
    if module is None:
        model = (yaml.safe_load(config.read_text("utf-8")) or {}).get("model")
        if not (isinstance(model, dict) and "class_path" in model):
            raise ConfigError(
                f"Expected {config} to say how the module is made, but it was made by a script. Make it as the script"
                " does, and give it as `module`."
            )
        module = Settings(["--config", str(config)]).module()
    fabric = Fabric(accelerator="cpu", devices=1)
    serving = load_serving(module, fabric, RunFolder(folder).summary()["seed"], folder)
    view = AdapterView(module)
    Evaluator(fabric, module, view).load(serving)
    if serving.predict is not None:
        put_in_place(module, view, serving.predict)
    return module.eval()
