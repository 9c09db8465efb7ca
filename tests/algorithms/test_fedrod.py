"""FedRoD by hand: two classes, logits and counts whose softmax is known."""

from dataclasses import replace
from math import log
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from lit_fed.algorithms import FedRoD
from lit_fed.algorithms.base import GLOBAL
from lit_fed.algorithms.fedrod import BothHeads, class_counts, decoupled
from lit_fed.core.types import Client
from tests.algorithms.toy import INFO, ToyFederation, adapter, setting_of

A, B = Client("a", 1), Client("b", 3)
BODY, GENERIC, OWN = "blocks.0.q.lora_A", "head.weight", "exits.1.weight"


class Linear:
    """One feature, which the body makes; a head a class each. What a step offers, without a module."""

    def __init__(self, body: float, generic: list[float], own: list[float], targets: list[int]) -> None:
        values = {BODY: [body], GENERIC: generic, OWN: own}
        self.parameters = {name: torch.tensor(value, requires_grad=True) for name, value in values.items()}
        self._targets = torch.tensor(targets)

    def logits(self) -> Tensor:
        return (self.parameters[BODY] * self.parameters[GENERIC]).expand(len(self._targets), 2)

    def exit_logits(self, depths: list[int]) -> list[Tensor]:
        assert depths == [1]
        return [(self.parameters[BODY] * self.parameters[OWN]).expand(len(self._targets), 2)]

    def targets(self) -> Tensor:
        return self._targets


def test_the_loss_and_who_learns_from_what_by_hand() -> None:
    """Body 1, generic logits (0, log 3), counts (3, 1): the prior makes them even, log 3 each. Own logits (log 3, 0).

    Balanced softmax is (1/2, 1/2) and the sum of the heads is (1/2, 1/2) too: log 2 each, for any target. With target 0
    the gradient of each to its logits is (-1/2, 1/2). The body gets it through the generic head alone:
    -1/2 * 0 + 1/2 * log 3. Would the private head reach it, there would be -1/2 log 3 more, and nothing would be left.
    """
    step = Linear(1.0, [0.0, log(3)], [log(3), 0.0], [0, 0, 0])
    loss = decoupled([3, 1], 1)(step)
    assert loss.item() == pytest.approx(2 * log(2), rel=1e-6)
    loss.backward()
    assert step.parameters[GENERIC].grad.tolist() == pytest.approx([-0.5, 0.5])
    assert step.parameters[OWN].grad.tolist() == pytest.approx([-0.5, 0.5])
    assert step.parameters[BODY].grad.item() == pytest.approx(log(3) / 2)
    assert all(parameter.requires_grad for parameter in step.parameters.values())


def test_a_class_that_a_client_does_not_have_is_left_alone() -> None:
    """Counts end before class 1: it has probability 0, and its row of the generic head no gradient; no NaN either."""
    step = Linear(1.0, [0.0, 5.0], [0.0, 0.0], [0])
    decoupled([7], 1)(step).backward()
    assert step.parameters[GENERIC].grad.tolist() == [0, 0]
    assert torch.isfinite(step.parameters[OWN].grad).all()
    assert step.parameters[OWN].grad[1] > 0.9  # the private head learns that there are none


def test_equal_counts_are_plain_cross_entropy() -> None:
    step = Linear(2.0, [0.3, -0.4], [0.0, 0.0], [0, 1, 1])
    plain = torch.nn.functional.cross_entropy(step.logits(), step.targets())
    assert decoupled([4, 4], 1)(step).item() == pytest.approx(2 * plain.item(), rel=1e-6)


def test_what_was_frozen_stays_frozen() -> None:
    step = Linear(1.0, [0.0, 0.0], [0.0, 0.0], [0])
    step.parameters[BODY].requires_grad_(False)
    decoupled([1, 1], 1)(step)
    assert not step.parameters[BODY].requires_grad


def test_class_counts() -> None:
    assert class_counts(torch.tensor([2, 0, 2, -100, 2])) == [1, 0, 3]
    assert class_counts(torch.zeros(0, dtype=torch.long)) == []


def test_both_heads() -> None:
    step = SimpleNamespace(logits=lambda: torch.tensor([1.0, 2.0]), exit_logits=lambda depths: [torch.tensor(depths)])
    assert BothHeads(3)(step).tolist() == [4.0, 5.0]


START = {**adapter(0.1, 0.2, 0.3), OWN: torch.full((2,), 0.3)}


def test_the_private_head_stays() -> None:
    rng = torch.Generator().manual_seed(0)
    targets = [{n: torch.randn(t.shape, generator=rng) for n, t in START.items()} for _ in range(2)]
    federation = ToyFederation(FedRoD(local_steps=2), dict(zip((A, B), targets, strict=True)), START).run(2)
    shared = START.keys() - {OWN}
    assert all(update.adapter.keys() == shared for update in federation.updates)
    assert all(task.adapter.keys() == shared for task in federation.algorithm.plan(federation.server, [A, B]).values())
    assert torch.equal(federation.server.adapter[OWN], START[OWN])
    heads = [federation.private[client]["head"] for client in "ab"]
    assert [head.keys() for head in heads] == [{OWN}] * 2
    assert not torch.equal(heads[0][OWN], START[OWN])
    assert torch.equal(federation.served("a")[OWN], heads[0][OWN])
    assert federation.algorithm.serve(federation.server, {}).predict is None
    assert federation.algorithm.serve(federation.server, federation.private["a"]).predict is not None
    assert federation.algorithm.serve(federation.server, {}).adapters[GLOBAL].keys() == START.keys()


def test_what_it_needs() -> None:
    setting = setting_of([A, B])
    assert FedRoD().exits(setting) == (1,)
    assert FedRoD().exits(replace(setting, model=replace(INFO, num_blocks=12))) == (12,)
    bare = replace(setting, model=replace(INFO, num_blocks=0, has_head=False))
    no_head, no_blocks = FedRoD().problems(bare)
    assert "from a method `head_module`" in no_head
    assert "no blocks were found in the model" in no_blocks
