"""Text classification with any encoder or decoder of Hugging Face."""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, Literal, cast

from torch import Tensor, nn

from lit_fed.core.errors import ConfigError
from lit_fed.modules.base import Batch, ClientModule
from lit_fed.modules.foundation import Loaded, Source
from lit_fed.modules.labels import label_problems
from lit_fed.modules.pooled import PooledClassifier, Pooling
from lit_fed.modules.prompted import prompted
from lit_fed.modules.tokens import column, load_tokenizer

__all__ = ["TextClassifier"]

_SENTENCE_POOLING = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
}


class TextClassifier(ClientModule):
    """A text model and a head.

    Batches hold ``input_ids`` and ``attention_mask`` (B, T), for some models ``token_type_ids``, and ``labels`` (B).

    =============  =================================================================================================
    ``"model"``    Hugging Face's own classifier for the architecture. What the checkpoint lacks of it (a pooler, a
                   dense layer) is trained with the head. Not for decoders, whose class looks for padding by token.
    ``"cls"``      A linear head on the first token.
    ``"mean"``     A linear head on the mean over all tokens: what sentence encoders are trained for.
    ``"last"``     A linear head on the last token: all that a decoder has read.
    ``"auto"``     What the folder of a sentence encoder says, ``"last"`` for decoders, else ``"model"``.
    =============  =================================================================================================

    With a learned prompt (see `lit_fed.PromptFL`), its vectors are the first tokens, as in PEFT: ``"cls"`` reads the
    first of them.

    Args:
        num_labels: Number of classes.
        max_length: Longer texts are cut, in tokens.
        pooling: How a text becomes one vector; see the table.
        dropout: Probability of dropping a feature before the head, unless pooling is ``"model"``.
        tokenizer: A hub id or folder, if not that of the model.
        **base: See `ClientModule`.
    """

    inputs = ("input_ids", "attention_mask", "token_type_ids")
    padding: ClassVar[Mapping[str, int]] = dict.fromkeys(inputs, 0)

    def __init__(
        self,
        num_labels: int,
        max_length: int = 128,
        pooling: Literal["auto", "model", "cls", "mean", "last"] = "auto",
        dropout: float = 0.1,
        tokenizer: str | None = None,
        **base: Any,
    ) -> None:
        self.num_labels, self.max_length = num_labels, max_length
        self.pooling, self.dropout, self._tokenizer_name = pooling, dropout, tokenizer
        super().__init__(**base)
        self.prompt: nn.Module | None = None

    def problems(self) -> list[str]:
        """What is wrong with the settings."""
        found = super().problems()
        if self.num_labels < 2:
            found.append(f"Expected `model.num_labels` to be >= 2, but got {self.num_labels}.")
        if self.max_length < 1:
            found.append(f"Expected `model.max_length` to be >= 1, but got {self.max_length}.")
        if not 0 <= self.dropout < 1:
            found.append(f"Expected `model.dropout` to be in [0, 1), but got {self.dropout}.")
        return found

    def load_model(self) -> Loaded:
        """The model with a head of `num_labels` classes."""
        from transformers import AutoModel, AutoModelForSequenceClassification

        pooling = self._resolved_pooling()
        if pooling == "model":
            return self.source.load(AutoModelForSequenceClassification, num_labels=self.num_labels)
        backbone, untrained = self.source.load(AutoModel)
        if hasattr(backbone.config, "use_cache"):
            backbone.config.use_cache = False
        model = PooledClassifier(backbone, self.num_labels, cast(Pooling, pooling), self.dropout)
        held = {name for name, _ in backbone.named_parameters()}  # without the pooler
        return Loaded(model, frozenset(f"backbone.{name}" for name in untrained & held))

    def word_embeddings(self) -> nn.Embedding:
        """The vectors of the tokens, which a prompt stands before."""
        words: nn.Embedding = self.backbone.base_model.get_input_embeddings()  # type: ignore[operator, union-attr]
        return words

    def prompt_room(self) -> int | None:
        """How many vectors a prompt may have beside a text of `max_length`; `None`: there is no limit."""
        positions = getattr(self.source.read_config(), "max_position_embeddings", None)
        return None if positions is None else int(positions) - self.max_length

    def model_inputs(self, batch: Batch) -> dict[str, Tensor]:
        """Tokens; or their vectors, with the prompt before them."""
        inputs = super().model_inputs(batch)
        return inputs if self.prompt is None else prompted(inputs, self.prompt(), self.word_embeddings())

    def _resolved_pooling(self) -> str:
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

        kind = type(self.source.read_config())
        decoder = kind in MODEL_FOR_CAUSAL_LM_MAPPING and kind not in MODEL_FOR_MASKED_LM_MAPPING
        if self.pooling == "model" and decoder:
            raise ConfigError(
                f"Expected `model.pooling` to be 'last' or 'mean' for {kind.model_type}, a decoder, but got 'model'."
            )
        if self.pooling != "auto":
            return self.pooling
        file = self.source.find_file("1_Pooling/config.json")
        said = json.loads(file.read_text("utf-8")) if file else {}
        sentence = [pooling for key, pooling in _SENTENCE_POOLING.items() if said.get(key)]
        return sentence[0] if sentence else "last" if decoder else "model"

    def check_targets(self, labels: Tensor) -> list[str]:
        """What is wrong with the labels: none may be outside 0 to ``num_labels - 1``."""
        return label_problems(labels, self.num_labels, "model.num_labels")

    @cached_property
    def tokenizer(self) -> Any:
        """The model's tokenizer; loaded when first used."""
        source = Source(self._tokenizer_name, None) if self._tokenizer_name else self.source
        return load_tokenizer(source, self.max_length)

    def encode(self, rows: Mapping[str, Sequence[Any]]) -> dict[str, Tensor]:
        """Turns the column ``text`` into ``input_ids``, ``attention_mask`` (and ``token_type_ids``), (N, T), int64.

        Raises:
            ConfigError: If there is no such column, or no tokenizer.
        """
        texts = column(rows, "text")
        encoded = self.tokenizer(
            texts, padding="longest", truncation=True, max_length=self.max_length, return_tensors="pt"
        )
        return {name: encoded[name] for name in self.inputs if name in encoded}
