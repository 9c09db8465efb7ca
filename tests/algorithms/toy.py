"""A learner without Lightning: the loss is half the squared distance to the client's target, training is plain SGD."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from lit_fed.algorithms.base import GLOBAL, Algorithm, Objective, Predict, Where
from lit_fed.core.names import block_of, exit_of
from lit_fed.core.types import AdapterState, Client, FitResult, ModelInfo, Private, Server, Setting, Update

NAMES = ("blocks.0.q.lora_A", "blocks.0.q.lora_B", "head.weight")
SHAPES = ((2, 2), (2, 2), (2,))  # a layer of two inputs and two outputs with LoRA of rank 2, and a bias
INFO = ModelInfo(num_blocks=1, has_head=True, total_parameters=100, trainable_parameters=10, rank=2)
LR, BATCHES = 0.25, 2  # an epoch has two batches


def setting_of(clients: Iterable[Client]) -> Setting:
    """A federation in which everybody takes part in every round."""
    everyone = tuple(clients)
    return Setting(INFO, everyone, len(everyone))


def adapter(*values: float) -> dict[str, Tensor]:
    """An adapter whose tensors hold one value each, in all places."""
    named = zip(NAMES, SHAPES, values, strict=True)
    return {name: torch.full(shape, float(value)) for name, shape, value in named}


@dataclass(frozen=True)
class ToyStep:
    """What a step offers to an objective."""

    parameters: Mapping[str, Tensor]
    target: Mapping[str, Tensor]
    batch: Any = None
    slots: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)

    def loss(self) -> Tensor:
        return sum((p - self.target[name]).square().sum() / 2 for name, p in self.parameters.items())

    def logits(self, slot: str = GLOBAL) -> Tensor:
        return _total({name: t for name, t in self.slots[slot].items() if exit_of(name) is None})

    def features(self, slot: str = GLOBAL) -> Tensor:
        return _total({name: t for name, t in self.slots[slot].items() if block_of(name) is not None})

    def exit_logits(self, depths: Sequence[int]) -> list[Tensor]:
        return [depth * _total(self.parameters) for depth in depths]

    def targets(self) -> Tensor:
        return _total(self.target).argmax(1)


def _total(tensors: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([tensor.reshape(-1, 2).sum(0) for tensor in tensors.values()]).sum(0, keepdim=True)


class ToyLearner:
    """A client's turn over a module that is a dict of tensors for each slot."""

    def __init__(
        self,
        client: Client,
        round: int,
        target: Mapping[str, Tensor],
        initial: AdapterState,
        slots: Sequence[str] = (GLOBAL,),
    ) -> None:
        self.client, self.round, self.target = client, round, target
        self.slots = {slot: {name: tensor.clone() for name, tensor in initial.items()} for slot in slots}
        self.folded: AdapterState = {}
        self.evaluated: list[int | None] = []
        self.activate()

    def load(self, adapter: AdapterState, slot: str = GLOBAL) -> None:
        for name, tensor in adapter.items():
            self.slots[slot][name].copy_(tensor)

    def fold(self, deltas: AdapterState) -> None:
        """The loss knows no frozen weights, but they have a shape."""
        assert all(name == "blocks.0.q.delta" and delta.shape == (2, 2) for name, delta in deltas.items())
        self.folded = dict(deltas)

    def state(self, slot: str = GLOBAL) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in self.slots[slot].items()}

    def select_blocks(self, blocks: Sequence[int] | None) -> None:
        assert blocks is None or tuple(blocks) == (0,), "the toy has one block"

    def activate(
        self, slot: str = GLOBAL, where: Where | None = None, beside: Mapping[str, Where | None] | None = None
    ) -> None:
        chosen = {**(beside or {}), slot: where}
        self.slot = slot
        self.trained = {
            one: {name for name in self.slots[one] if picks is None or picks(name)} for one, picks in chosen.items()
        }

    def fit(
        self, *, steps: int | None = None, epochs: int | None = None, objective: Objective | None = None
    ) -> FitResult:
        assert (steps is None) != (epochs is None)
        number = steps if steps is not None else epochs * BATCHES
        for _ in range(number):
            chosen = [(slot, name) for slot, names in sorted(self.trained.items()) for name in sorted(names)]
            live = [self.slots[slot][name].requires_grad_() for slot, name in chosen]
            parameters = {name: self.slots[self.slot][name] for name in sorted(self.trained[self.slot])}
            step = ToyStep(parameters, self.target, slots=self.slots)
            loss = objective(step) if objective is not None else step.loss()
            gradients = torch.autograd.grad(loss, live, allow_unused=True, materialize_grads=True)
            for (slot, name), tensor, gradient in zip(chosen, live, gradients, strict=True):
                self.slots[slot][name] = tensor.detach() - LR * gradient
        return FitResult(self.client.num_examples, number, float(loss.detach()))

    def targets(self) -> Tensor:
        return ToyStep({}, self.target).targets()

    def evaluate(
        self, split: str = "val", predict: Predict | None = None, limit: int | None = None
    ) -> dict[str, float]:
        """The loss that training minimises, of the adapter alone."""
        assert split == "val", "training has no business with test data"
        assert predict is None
        self.evaluated.append(limit)
        return {"loss": float(ToyStep(self.slots[GLOBAL], self.target).loss()), "num_examples": 1.0}


class ToyFederation:
    """Rounds in order over all clients, in memory."""

    def __init__(
        self, algorithm: Algorithm, clients: Mapping[Client, Mapping[str, Tensor]], start: AdapterState
    ) -> None:
        self.algorithm, self.clients, self.start = algorithm, dict(clients), start
        self.server: Server = replace(algorithm.init(start, setting_of(clients)), seed=0)
        self.private: dict[str, Private] = {client.id: {} for client in clients}
        self.updates: list[Update] = []

    def run(self, rounds: int) -> "ToyFederation":
        for _ in range(rounds):
            plan = self.algorithm.plan(self.server, list(self.clients))
            self.updates = []
            for client, target in self.clients.items():
                learner = ToyLearner(client, self.server.round, target, self.start, self.algorithm.slots)
                update, self.private[client.id] = self.algorithm.local(
                    learner, plan[client.id], self.private[client.id]
                )
                self.updates.append(update)
            merged = self.algorithm.merge(self.server, self.updates)
            assert merged.round == self.server.round, "rounds are counted here, as by the engine"
            self.server = replace(merged, round=merged.round + 1)
        return self

    def served(self, client: str | None = None) -> dict[str, Tensor]:
        private = self.private[client] if client is not None else {}
        return dict(self.algorithm.serve(self.server, private).adapters[GLOBAL])


def values(state: AdapterState) -> list[float]:
    """The one value of each tensor, by the order of `NAMES`; an error if a tensor holds several."""
    flat = {name: tensor.flatten() for name, tensor in state.items()}
    assert all(torch.equal(tensor, tensor[:1].expand_as(tensor)) for tensor in flat.values())
    return [flat[name][0].item() for name in NAMES if name in flat]
