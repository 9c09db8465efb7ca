"""Language modelling with any decoder of Hugging Face.

Shapes: B rows, T positions, V tokens of the vocabulary, D width.
"""

from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from inspect import signature
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchmetrics import Metric

from lit_fed.core.errors import ConfigError
from lit_fed.metrics.mean import Mean, Perplexity
from lit_fed.modules.answers import AnswerScore, Scored, score, with_answer
from lit_fed.modules.base import Batch, ClientModule, Measured
from lit_fed.modules.foundation import Loaded, Source
from lit_fed.modules.labels import IGNORED, label_problems
from lit_fed.modules.packing import pack
from lit_fed.modules.prompted import prompted
from lit_fed.modules.prompts import PROMPT, PromptEncoder, Tokens
from lit_fed.modules.tokens import column, load_tokenizer, pad

__all__ = ["CausalLM"]

_PACKED = "Expected `model.packing` to be false with an algorithm that asks for features, but got true."


class CausalLM(ClientModule):
    """A decoder that learns to predict the next token.

    Batches hold ``input_ids`` and ``attention_mask`` (B, T), and ``labels`` (B, T): the same tokens, `IGNORED` where
    they are not to be learnt (a prompt, padding). Labels stand where their tokens stand, as in Hugging Face; `targets`
    moves them one to the left, so that they stand where they are predicted, and `logits` are left as they are. So
    ``loss(logits, targets)`` compares (B, T, V) with (B, T), and the last target of a row is always `IGNORED`.

    Metrics are over targets, not over rows: ``loss`` in nats a token, ``perplexity`` its exponential, and ``accuracy``
    of the next token. ``exact_match`` is the share of rows whose every target is the likeliest token: greedy decoding
    would give the response, word for word, and end.

    With `answers`, texts are classified as generation: the texts are prompts, each class is an answer, and what is
    learnt is the right one. ``accuracy`` is then that of the answer with the highest score, see
    `lit_fed.modules.answers`; an evaluation makes a forward pass for each answer. Such batches also hold ``answer``
    (B,), the class.

    Args:
        max_length: Longer rows are cut, in tokens.
        end: What is put after a text or response: the tokenizer's ``"eos"`` or ``"bos"`` token, or nothing. A model
            that was trained with BOS between texts (stories260K) never learned EOS. A chat template has its own end.
        tokenizer: A hub id or folder, if not that of the model.
        template: What a prompt becomes, with ``{prompt}`` in it. Plain texts stay as they are.
        chat: Whether prompts and responses go through the tokenizer's chat template, as messages of user and
            assistant; by default if it has one.
        answers: The classes in words, in the order of their codes.
        answer_score: Whether an answer's score is the ``"sum"`` or the ``"mean"`` of its tokens' log-likelihoods.
        packing: Whether the rows of a training batch are packed into fewer ones of up to `max_length` tokens, in place
            of padding; the loss is the same. For decoders that Hugging Face tells of packed rows by their positions,
            and algorithms that ask for no features and learn no prompt.
        **base: See `ClientModule`.
    """

    inputs = ("input_ids", "attention_mask", "position_ids")
    padding: ClassVar[Mapping[str, int]] = {"input_ids": 0, "attention_mask": 0, "labels": IGNORED}
    classify = None  # type: ignore[assignment]  # features are one vector a sequence, logits are those of its tokens

    def __init__(
        self,
        max_length: int = 512,
        end: Literal["eos", "bos"] | None = "eos",
        tokenizer: str | None = None,
        template: str = PROMPT,
        chat: bool | None = None,
        answers: Sequence[str] | None = None,
        answer_score: AnswerScore = "sum",
        packing: bool = False,
        **base: Any,
    ) -> None:
        self.max_length, self.end, self._tokenizer_name = max_length, end, tokenizer
        self.template, self.chat, self.packing = template, chat, packing
        self.answers = None if answers is None else tuple(answers)
        self.answer_score: AnswerScore = answer_score
        super().__init__(**base)
        self.prompt: nn.Module | None = None

    def problems(self) -> list[str]:
        """What is wrong with the settings."""
        own = [] if self.max_length >= 2 else [f"Expected `model.max_length` to be >= 2, but got {self.max_length}."]
        if self.lora is None:
            own.append("Expected `model.lora` to be given, but got None. A language model has no head to train alone.")
        if self.template.count(PROMPT) != 1:
            own.append(f"Expected `model.template` to have {PROMPT} in it, once, but got {self.template!r}.")
        answers = self.answers
        if answers is not None and (len(set(answers)) < max(2, len(answers)) or not all(map(str.strip, answers))):
            own.append(
                f"Expected `model.answers` to be two texts or more, all different and none empty, but got {answers}."
            )
        return [*super().problems(), *own]

    def check_targets(self, labels: Tensor) -> list[str]:
        """What is wrong with the labels: with answers, each must be the place of one."""
        return [] if self.answers is None else label_problems(labels, len(self.answers), "model.answers")

    def make_metrics(self) -> dict[str, Metric]:
        """Adds ``perplexity`` and ``exact_match``."""
        return {**super().make_metrics(), "perplexity": Perplexity(), "exact_match": Mean()}

    def load_model(self) -> Loaded:
        """The model with the head it was trained with."""
        from transformers import AutoModelForCausalLM

        loaded = self.source.load(AutoModelForCausalLM)
        loaded.model.config.use_cache = False  # type: ignore[union-attr]
        if self.packing and "position_ids" not in signature(loaded.model.forward).parameters:
            raise ConfigError(
                f"Expected a decoder that takes positions for `model.packing`, but got {type(loaded.model).__name__}. "
                "Set it to false."
            )
        return loaded

    def find_heads(self, loaded: Loaded) -> list[str]:
        """None: the language model's own head stays as it is.

        Raises:
            ConfigError: If the checkpoint does not hold all of the model; the rest would be frozen noise.
        """
        if loaded.untrained:
            raise ConfigError(
                f"Expected the checkpoint in `model.model` to hold all of {type(loaded.model).__name__}, but got "
                f"nothing that fits for {sorted(loaded.untrained)[:3]}. Use a checkpoint of a language model."
            )
        return []

    def word_embeddings(self) -> nn.Embedding:
        """The vectors of the tokens, which a prompt stands before."""
        words: nn.Embedding = self.backbone.get_input_embeddings()  # type: ignore[operator]
        return words

    def prompt_room(self) -> int | None:
        """How many vectors a prompt may have beside a text of `max_length`; `None`: there is no limit.

        Raises:
            ConfigError: If rows are packed: a prompt would stand before the first of their texts alone.
        """
        if self.packing:
            raise ConfigError(
                "Expected `model.packing` to be false with an algorithm that learns a prompt, but got true. Texts are "
                "padded then."
            )
        positions = getattr(self.source.read_config(), "max_position_embeddings", None)
        return None if positions is None else int(positions) - self.max_length

    def model_inputs(self, batch: Batch) -> dict[str, Tensor]:
        """Tokens; or their vectors, with the prompt before them."""
        inputs = super().model_inputs(batch)
        return inputs if self.prompt is None else prompted(inputs, self.prompt(), self.word_embeddings())

    def logits(self, batch: Batch) -> Tensor:
        """Scores of the token that comes after each of a batch, (B, T, V)."""
        return self._after_prompt(super().logits(batch), batch)

    def _after_prompt(self, values: Tensor, batch: Batch) -> Tensor:
        """What belongs to a batch's own tokens, (B, T, ...)."""
        return values if self.prompt is None else values[:, -batch["input_ids"].shape[1] :]

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy in nats over the targets that are not `IGNORED`; 0, not NaN, if all are."""
        total = cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED, reduction="sum")
        return total / (targets != IGNORED).sum().clamp(min=1)

    def targets(self, batch: Batch) -> Tensor:
        """For each position the token that comes next, (B, T). Without ``labels``, all tokens of the mask count."""
        labels = batch.get("labels")
        if labels is None:
            labels = batch["input_ids"]
            if "attention_mask" in batch:
                labels = labels.masked_fill(batch["attention_mask"] == 0, IGNORED)
        return torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED)

    def offer_problems(self, needs: Collection[str]) -> list[str]:
        """Rows that are packed have no features of their own."""
        # Who asks for targets too makes a loss of them, in training; in an evaluation nothing is packed.
        asked = self.packing and {"features", "targets"} <= set(needs)
        return [*super().offer_problems(needs), *([_PACKED] if asked else [])]

    def feature_readers(self) -> list[nn.Module]:
        """The output embeddings: the projection from D to V."""
        return [self.backbone.get_output_embeddings()]  # type: ignore[operator]

    def pool_features(self, features: Tensor, batch: Batch) -> Tensor:
        """The mean over the prompt's tokens, (B, D); over all tokens in rows without a prompt.

        The prompt ends where the first target is predicted; what comes after would give the answer away.

        Raises:
            ConfigError: If rows are packed: they are of several texts then.
        """
        if "position_ids" in batch:
            raise ConfigError(_PACKED)
        features = self._after_prompt(features, batch)
        mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
        learnt = (self.targets(batch) != IGNORED).int()
        prompt = mask & (learnt.cumsum(1) == learnt)  # before the first target, and where it is predicted
        prompt = torch.where(prompt.sum(1, keepdim=True) > 1, prompt, mask)  # a BOS alone is no prompt
        weights = prompt.to(features.dtype).unsqueeze(-1)
        return (features * weights).sum(1) / weights.sum(1).clamp(min=1)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int = 0) -> Any:
        """Packs the rows of a training batch, if asked to."""
        return pack(batch, self.max_length) if self.packing and self.training else batch

    def measured(self, batch: Batch) -> Measured:
        """What a batch adds to the metrics, a row at a time."""
        if self.answers is None:
            return self._measured(score(self.logits(batch), self.targets(batch)))
        scored, answer = self._score_answers(batch), batch["answer"]
        of_right = Scored(*(values.gather(1, answer.unsqueeze(1)).squeeze(1) for values in scored))
        right = (self._answer_scores(scored).argmax(1) == answer).float()
        return {**self._measured(of_right), "accuracy": (right, torch.ones_like(right))}

    def _measured(self, scored: Scored) -> Measured:
        counts = scored.num_tokens.float()
        losses, hits = -scored.log_likelihood / counts.clamp(min=1), scored.num_right / counts.clamp(min=1)
        exact = (scored.num_right == scored.num_tokens).float(), (counts > 0).float()
        per_token = {"loss": losses, "perplexity": losses, "accuracy": hits}
        return {**{name: (values, counts) for name, values in per_token.items()}, "exact_match": exact}

    def predict_step(self, batch: Batch, batch_idx: int = 0) -> dict[str, Tensor]:
        """What it says of each row.

        Returns:
            With `answers`, ``probs`` (B, C) of the answers against each other, and ``labels`` (B). Else ``labels``
            (B, T), the likeliest next token at each position, and ``loss`` (B), nats a target of each row.
        """
        if self.answers is not None:
            probs = self._answer_scores(self._score_answers(batch)).softmax(-1)
            return {"probs": probs, "labels": probs.argmax(-1)}
        logits = self.logits(batch)
        scored = score(logits, self.targets(batch))
        return {"labels": logits.argmax(-1), "loss": -scored.log_likelihood / scored.num_tokens.clamp(min=1)}

    def _score_answers(self, batch: Batch) -> Scored:
        """What the model makes of every answer after every prompt, (B, C) each."""
        found = []
        for answer in self._answers:
            asked = with_answer(batch, torch.tensor(answer, device=batch["input_ids"].device), self.max_length)
            found.append(score(self.logits(asked), self.targets(asked)))
        return Scored(*(torch.stack(values, 1) for values in zip(*found, strict=True)))

    def _answer_scores(self, scored: Scored) -> Tensor:
        return scored.log_likelihood / (scored.num_tokens if self.answer_score == "mean" else 1)

    @cached_property
    def tokenizer(self) -> Any:
        """The model's tokenizer; loaded when first used."""
        source = Source(self._tokenizer_name, None) if self._tokenizer_name else self.source
        return load_tokenizer(source, self.max_length)

    @cached_property
    def prompt_encoder(self) -> PromptEncoder:
        """What makes tokens of texts, prompts and responses."""
        return PromptEncoder(self.tokenizer, self.max_length, self.template, self.chat, self.end)

    @cached_property
    def _answers(self) -> list[Tokens]:
        """The tokens of the answers, and of their ends."""
        found = self.prompt_encoder.responses(self.answers or ())
        if len(set(map(tuple, found))) < len(found) or max(map(len, found)) >= self.max_length - 1:
            raise ConfigError(
                "Expected `model.answers` to be different tokens, and so few that `model.max_length` "
                f"({self.max_length}) leaves room for a prompt, but got "
                f"{dict(zip(self.answers or (), found, strict=True))}. Say them in other words."
            )
        return found

    def encode(self, rows: Mapping[str, Sequence[Any]]) -> dict[str, Tensor]:
        """Turns ``prompt`` and ``response``, or ``text``, into ``input_ids``, ``attention_mask``, ``labels``, (N, T).

        Rows are BOS, prompt, response, end; only response and end are learnt. The response follows the prompt as
        `template` or the chat template has it, without anything in between: put a separator into `template`, be it a
        blank at its end. Plain texts are BOS, text, end. Where a row is too long, the prompt loses its beginning, then
        the response or text its end.

        With `answers`, ``text`` is the prompt, and the response is the answer that ``labels`` say, also returned as
        ``answer`` (N,). All answers find the same prompt: it is cut to leave room for the longest.

        Raises:
            ConfigError: If the columns are not there, or there is no tokenizer.
        """
        encoder, more = self.prompt_encoder, {}
        if self.answers is not None:
            classes = self._classes(rows)
            longest = max(map(len, self._answers))
            texts = column(rows, "text")
            prompts = encoder.prompts(texts, [longest] * len(texts))
            pairs = list(zip(prompts, [self._answers[code] for code in classes], strict=True))
            more["answer"] = torch.tensor(classes)
        elif "prompt" in rows or "response" in rows:
            pairs = encoder.pairs(column(rows, "prompt"), column(rows, "response"))
        else:
            pairs = encoder.texts(column(rows, "text"))
        ids = [prompt + response for prompt, response in pairs]
        labels = [[IGNORED] * len(prompt) + response for prompt, response in pairs]
        return {
            "input_ids": pad(ids, self.tokenizer.pad_token_id),
            "attention_mask": pad([[1] * len(row) for row in ids], 0),
            "labels": pad(labels, IGNORED),
            **more,
        }

    def _classes(self, rows: Mapping[str, Sequence[Any]]) -> list[int]:
        if "labels" not in rows:
            raise ConfigError(
                f"Expected the data to have a column `labels` for `model.answers`, but got {sorted(rows)}. Name it in "
                "`data.source.label_column`."
            )
        labels = torch.as_tensor(list(rows["labels"]))
        if problems := self.check_targets(labels):
            raise ConfigError(problems)
        return [int(code) for code in labels]
