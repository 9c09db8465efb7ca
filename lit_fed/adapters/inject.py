"""Another PEFT adapter beside those a module holds."""

import copy
import warnings

from torch import nn

from lit_fed.adapters.structure import is_peft_model, peft_hosts
from lit_fed.core.errors import ConfigError
from lit_fed.core.seeding import isolated_rng

_PREFIX = "lora_"  # PEFT looks for it in parameter names, and confuses adapters whose name is part of it


def inject_slot(module: nn.Module, slot: str, like: str) -> None:
    """Add a PEFT adapter with the settings of another one; its values are of no meaning yet.

    Args:
        module: The module that holds the adapters, anywhere in it.
        slot: PEFT's name of the new adapter.
        like: PEFT's name of the adapter whose settings it gets.

    Raises:
        ConfigError: If PEFT cannot hold an adapter of that name.
    """
    from peft import inject_adapter_in_model
    from peft.tuners.tuners_utils import cast_adapter_dtype

    if not slot.isidentifier() or slot in _PREFIX or hasattr(nn.ModuleDict, slot):
        raise ConfigError(
            f"Expected a slot's name to be a word that is no part of {_PREFIX!r}, but got {slot!r}. "
            'PEFT would confuse it with names of its own: choose another one, e.g. "local".'
        )
    for host in peft_hosts(module):
        config = copy.deepcopy(host.peft_config[like])
        with isolated_rng(0, "slot"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT's, that there is an adapter already
            if is_peft_model(host):
                host.add_adapter(slot, config)
            else:
                inject_adapter_in_model(config, host, adapter_name=slot)
                cast_adapter_dtype(host, slot)
