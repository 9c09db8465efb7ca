"""Foundation models from a hub id, a local folder or a configuration."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from lit_fed.assets import embedded_model_path
from lit_fed.core.errors import ConfigError
from lit_fed.modules.quantization import bits_and_bytes, quantization_problems

__all__ = ["EMBEDDED", "Loaded", "Source"]

EMBEDDED = "embedded"


class Loaded(NamedTuple):
    """A model, and which of its parameters its checkpoint did not hold."""

    model: nn.Module
    untrained: frozenset[str]
    """Names of parameters with fresh random values beside loaded ones; empty if all were drawn."""


class Source(NamedTuple):
    """Where a model comes from: weights by name, or an architecture by configuration, or both.

    With a configuration alone, weights are random. With both, the configuration says what the architecture is, so that
    nothing is looked up for a model on the meta device.
    """

    name: str | None
    """Hub id or local folder."""
    config: Mapping[str, Any] | None
    """``model_type`` and the settings of its Hugging Face configuration; or, without it, changes to the model's own."""
    quantization: Mapping[str, Any] | None = None
    """Settings of Hugging Face's ``BitsAndBytesConfig``, for weights in 4 or 8 bits."""

    @classmethod
    def of(
        cls, model: str | None, config: Mapping[str, Any] | None, quantization: Mapping[str, Any] | None = None
    ) -> "Source":
        """From the settings of those names; the model ``"embedded"`` becomes its folder."""
        return cls(str(embedded_model_path()) if model == EMBEDDED else model, config, quantization)

    @property
    def is_folder(self) -> bool:
        """Whether the model is a folder on this machine; else its name is a hub id."""
        return self.name is not None and Path(self.name).expanduser().is_dir()

    def problems(self) -> list[str]:
        """What is wrong with the settings, without loading anything."""
        found = []
        if self.name is None and self.config is None:
            found.append(
                "Expected `model.model` or `model.config` to be given, but got neither. Name a hub id or a folder."
            )
        if self.name is None and self.config is not None and not self._has_architecture:
            found.append(
                f"Expected `model.config` without `model.model` to have the key `model_type`, but got "
                f"{sorted(self.config)}. Add the Hugging Face name of the architecture, e.g. `model_type: vit`."
            )
        if self.name is not None and self.name.startswith((".", "/", "~")) and not self.is_folder:
            found.append(f"Expected `model.model` to be an existing folder or a hub id, but got {self.name!r}.")
        if self.quantization is not None:
            found += quantization_problems(self.quantization, self.name)
        return found

    def options(self) -> dict[str, Any]:
        """Arguments of every ``from_pretrained``: a folder is never looked up on the network."""
        return {"local_files_only": True} if self.is_folder else {}

    @property
    def _has_architecture(self) -> bool:
        """Whether the configuration is a whole one, and nothing need be looked up."""
        return self.config is not None and "model_type" in self.config

    @property
    def path(self) -> str:
        """What ``from_pretrained`` takes.

        Raises:
            ConfigError: If there is a configuration only.
        """
        if self.name is None:
            raise ConfigError(
                "Expected `model.model` to be given, but got only `model.config`, which has neither a tokenizer nor an "
                "image processor. Name a hub id or a folder in `model.model` or `model.tokenizer`."
            )
        return str(Path(self.name).expanduser()) if self.is_folder else self.name

    def read_config(self, **overrides: Any) -> Any:
        """The Hugging Face configuration."""
        from transformers import AutoConfig

        changes = self.config or {}
        if self._has_architecture:
            with _in_our_words("model.config", changes):
                return AutoConfig.for_model(**{**changes, **overrides})
        with _in_our_words("model.model", self.name):
            config = AutoConfig.from_pretrained(self.path, **self.options(), **overrides)
        if unknown := [key for key in changes if not hasattr(config, key)]:
            raise ConfigError(
                f"Expected `model.config` to change settings that {config.model_type} has, but got {unknown}. "
                "Settings and their names are those of the model's config.json."
            )
        with _in_our_words("model.config", changes):
            for key, value in changes.items():
                setattr(config, key, value)
        return config

    def find_file(self, name: str) -> Path | None:
        """A file of the folder or of the hub repository, fetched if need be; `None` if there is none.

        With a configuration, and on the meta device, nothing is fetched: a file counts if it is in the cache.
        """
        from huggingface_hub import try_to_load_from_cache
        from transformers.utils import cached_file

        if self.name is None:
            return None
        if self._has_architecture and torch.get_default_device().type == "meta" and not self.is_folder:
            cached = try_to_load_from_cache(self.name, name)
            return Path(cached) if isinstance(cached, str) else None
        found = cached_file(self.path, name, **self.options(), _raise_exceptions_for_missing_entries=False)
        return Path(found) if found else None

    def load(self, auto: Any, **overrides: Any) -> Loaded:
        """Build the model: weights where there are some, else random; on the meta device without either.

        New weights are drawn from the global generators, so seed them around the call.

        Args:
            auto: A Hugging Face auto class, such as ``AutoModelForImageClassification``.
            overrides: Settings of the configuration, such as ``num_labels``.

        Raises:
            ConfigError: If the model is not there, the auto class does not know it, or it cannot be quantized here.
        """
        config = self.read_config(**overrides)
        if config.architectures is None:  # the auto classes look through it where they have two classes, as for DeiT
            config.architectures = []
        dtype = torch.get_default_dtype()  # what the precision plugin has set; not what the file happens to hold
        key, value = ("model.config", self.config) if self.name is None else ("model.model", self.name)
        with _quiet(), _in_our_words(key, value):
            if self.name is None or torch.get_default_device().type == "meta":
                return Loaded(auto.from_config(config, dtype=dtype), frozenset())
            quantized = {} if self.quantization is None else {"quantization_config": bits_and_bytes(self.quantization)}
            # A head of another size is replaced. What else does not fit is refused by `trained_in_full`.
            model, info = auto.from_pretrained(
                self.path,
                config=config,
                dtype=dtype,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **quantized,
                **self.options(),
            )
        return Loaded(model, frozenset(info["missing_keys"]) | {name for name, *_ in info["mismatched_keys"]})


@contextmanager
def _in_our_words(key: str, value: object) -> Iterator[None]:
    """Turn the errors that Hugging Face raises for a setting into ours, with its first line as the reason."""
    from huggingface_hub.errors import StrictDataclassError

    try:
        yield
    except (
        OSError,
        LookupError,
        ValueError,
        TypeError,
        AttributeError,
        ArithmeticError,
        StrictDataclassError,
    ) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(f"Expected `{key}` to be a model that can be built, but got {value!r}. {reason}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """No report about a missing head, and no progress bar, while a model loads: the head is meant to be missing."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
