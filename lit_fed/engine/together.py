"""Clients of equal shape trained together: one forward and one backward pass for several of them.

Their adapters lie side by side (see `lit_fed.adapters.stacked`), their batches one after another; the frozen model
runs once, on all rows. Each client's loss is that of its own rows, by the module's own `loss`: whatever that is a mean
over, the gradient of the sum of all losses is to each client's adapter that of its own loss. Optimizers that work
element by element then do to each what they would do alone. The result is that of one client after another, up to the
rounding of sums in other shapes.

It takes a module whose logits of a row do not depend on other rows, and that draws no random numbers. Neither is taken
for granted: before clients are first trained together, one batch is computed both ways and compared, and whether random
numbers were drawn is looked at after every training. Where clients cannot be trained together they are trained one
after another, and once it is said why.
"""

import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from lit_fed.adapters.stacked import Stack, stacked_parameters
from lit_fed.adapters.transfer import to_cpu
from lit_fed.algorithms.base import Algorithm, Step
from lit_fed.core.errors import ConfigError
from lit_fed.core.names import block_of, is_added, is_head
from lit_fed.core.seeding import RandomStream, generator, isolated_rng, random_state
from lit_fed.core.types import Client, ClientId, FitResult, Private, Task
from lit_fed.engine.group_step import Answers, ClientStep
from lit_fed.engine.group_turn import GroupTurn, NotTogetherError, Request
from lit_fed.engine.joint import Draws, Joint, JointLoader
from lit_fed.engine.learner import ModuleLearner
from lit_fed.engine.local_loop import LocalLoop
from lit_fed.engine.local_trainer import LocalTrainer
from lit_fed.engine.log_recorder import LogRecorder
from lit_fed.engine.prefix_cache import PrefixCache
from lit_fed.engine.setup import Prepared
from lit_fed.engine.step import ModuleStep

_TOLERANCE = {"32-true": 1e-2}  # of a gradient, relative; what is to be found (rows that mix) is off by far more
_TOLERANCE_OF_16_BITS = 1e-1
_SMALL = 1e-3  # below it a loss or a gradient is that of data which are learnt, and mostly rounding


class Together:
    """Deals a process's clients into groups, and trains each group.

    Args:
        size: Clients of a group, at most; 1: everyone alone.
        algorithm: The method.
        prepared: Module and data.
        loop: Local training.
        learner: Puts the module into the state that a turn begins in.
        cache: What is known of what training does not change.
        seed: The federation's.
        precision: The federation's.
    """

    def __init__(
        self,
        size: int,
        algorithm: Algorithm,
        prepared: Prepared,
        loop: LocalLoop,
        learner: ModuleLearner,
        cache: PrefixCache | None,
        seed: int,
        precision: str,
    ) -> None:
        self.size, self.algorithm, self.loop, self.learner = size, algorithm, loop, learner
        self.cache, self.seed = cache, seed
        self.module: Any = prepared.module
        self.view, self.initial, self.data = prepared.view, prepared.initial, prepared.data
        self._tolerance = _TOLERANCE.get(precision, _TOLERANCE_OF_16_BITS)
        self._verdicts: dict[Hashable, str | None] = {}
        """What can be done together (`None`), and why all else cannot."""
        self.said: list[str] = []
        """The lines that were printed."""

    def turns(
        self,
        clients: Sequence[Client],
        tasks: Mapping[ClientId, Task],
        round: int,
        private_of: Callable[[ClientId, int], Private],
    ) -> Iterator[tuple[Client, GroupTurn | None]]:
        """All clients, each with its turn, if that was made with others; `None`: it is to be made now."""
        if self.size == 1:
            yield from ((client, None) for client in clients)
            return
        waiting: dict[Hashable, list[GroupTurn]] = {}
        for client in clients:
            private = private_of(client.id, round)
            turn = GroupTurn(self.algorithm, client, round, tasks[client.id], private, self.view, self.initial)
            try:
                kind = self._kind(turn)
            except NotTogetherError as error:
                self._say(str(error))
                yield client, None
                continue
            group = waiting.setdefault(kind, [])
            group.append(turn)
            if len(group) == self.size:
                yield from self._made(waiting.pop(kind))
        for group in waiting.values():
            yield from self._made(group)

    def _kind(self, turn: GroupTurn) -> Hashable:
        """What is alike in a group: all that is done, and about how many rows each batch has."""
        turn.advance()
        request = turn.request
        if request is None or not request.trained:
            raise NotTogetherError(f"{type(self.algorithm).__name__} trains nothing in a round")
        if reason := self._verdicts.get(request.feature):
            raise NotTogetherError(reason)
        if self.cache is not None and self.cache.off is None and self._begins_frozen(request):
            raise NotTogetherError("blocks below those that are trained are in the cache (`federation.cache: null`)")
        loader = self._loader(request)
        size = min(turn.client.num_examples, getattr(loader.batch_sampler, "batch_size", 1))
        # Rows are filled up to those of the largest batch: to twice as many at most.
        even = request.epochs is not None or self.loop.settings.accumulate_grad_batches > 1
        return request.kind, (size - 1).bit_length(), len(loader) if even else None

    def _begins_frozen(self, request: Request) -> bool:
        blocks = self.view.blocks
        if blocks is None:
            return False
        first = min(range(len(blocks)) if request.blocks is None else request.blocks)
        return not {None, first} & {block_of(n) for n in request.trained if not is_head(n) and not is_added(n)}

    def _made(self, group: list[GroupTurn]) -> Iterator[tuple[Client, GroupTurn | None]]:
        done = len(group) > 1 and self._train(group)
        for turn in group:
            yield turn.client, turn if done else None

    # -- a group ----------------------------------------------------------------------------------------------------

    def _train(self, group: list[GroupTurn]) -> bool:
        """Make the turns of a group; whether that could be done."""
        started = time.perf_counter()
        feature = None if group[0].request is None else group[0].request.feature
        try:
            while requests := [turn.request for turn in group if turn.request is not None]:
                if len(requests) < len(group) or len({request.kind for request in requests}) > 1:
                    raise NotTogetherError("their turns go on in different ways")
                for turn, answer in zip(group, self._fit(requests), strict=True):
                    turn.answer(*answer)
                    turn.advance()
        except Exception as error:  # whatever it is, alone they have it too, or not; a client's error is its own then
            self.learner.abandon()
            reason = _reason(error)
            if isinstance(error, (NotTogetherError, ConfigError, torch.OutOfMemoryError)):
                self._verdicts[feature] = reason  # it is their kind that does not go
            self._say(reason)
            return False
        for turn in group:
            turn.seconds = (time.perf_counter() - started) / len(group)
        return True

    def _fit(self, requests: list[Request]) -> list[tuple[Mapping[str, Tensor], FitResult]]:
        """Train, if it is known, or found out now, that it gives each what it would get alone."""
        feature, was_training = requests[0].feature, self.module.training
        if feature not in self._verdicts:
            self.module.train()
            try:
                if self._compare(requests):
                    self._verdicts[feature] = None
            finally:
                self.module.train(was_training)
        return self._fit_joint(requests)

    def _fit_joint(self, requests: list[Request]) -> list[tuple[Mapping[str, Tensor], FitResult]]:
        first, device = requests[0], self.loop.fabric.device
        self._begin(first)
        draws = self._draws(requests)
        lengths = {draw.num_batches for draw in draws}
        length = lengths.pop() if len(lengths) == 1 else first.steps
        assert length is not None, "clients that train for epochs have equally many batches in one"
        sums = torch.zeros(len(requests), dtype=torch.float64, device=device)
        seen = torch.zeros(len(requests), dtype=torch.int64)
        adapters = [request.adapter for request in requests]
        with (
            isolated_rng(self.seed, "together", first.round, first.client.id, first.fit),
            stacked_parameters(self.view, first.slot, adapters, first.trained) as stack,
        ):
            before = random_state(device)

            def objective(joint: Joint, _: Any) -> Tensor:
                losses = self._losses(requests, joint, stack)
                together = torch.stack(losses)
                sums.add_(together.detach().double() * torch.tensor(joint.sizes, device=device))
                seen.add_(torch.tensor(joint.sizes))
                return together.sum()

            loader = JointLoader(draws, length, self.module.padding)
            result = self.loop.run(
                loader, first.client, first.round, steps=first.steps, epochs=first.epochs,
                objective=objective, rates=self._by_parameter(first), groups=len(requests),
            )  # fmt: skip
            if random_state(device) != before:
                raise NotTogetherError(_RANDOM)
            trained = dict(zip(stack.parameters, to_cpu(list(stack.parameters.values())), strict=True))
        return [
            (
                {name: values[k] for name, values in trained.items()},
                FitResult(request.client.num_examples, result.num_steps, loss),
            )
            for k, (request, loss) in enumerate(zip(requests, (sums.cpu() / seen).tolist(), strict=True))
        ]

    def _losses(self, requests: list[Request], joint: Joint, stack: Stack) -> list[Tensor]:
        """Each client's loss, a scalar."""
        stack.expect(joint.num_rows)
        answers = Answers(self.module, requests[0], joint, stack)
        steps = [ClientStep(answers, k) for k in range(len(requests))]
        losses = [
            step.loss() if request.objective is None else request.objective(cast(Step, step))
            for step, request in zip(steps, requests, strict=True)
        ]
        stack.check()
        return losses

    # -- whether it may be done -------------------------------------------------------------------------------------

    def _compare(self, requests: list[Request]) -> bool:
        """Compute the gradients of a batch together and apart, and raise `NotTogetherError` if they differ.

        Returns:
            Whether there was something to compare: a loss that is finite.
        """
        first, device = requests[0], self.loop.fabric.device
        joint = next(iter(JointLoader(self._draws(requests), 1, self.module.padding)))
        with isolated_rng(self.seed, "compare"):
            before = random_state(device)
            self._begin(first)
            with stacked_parameters(self.view, first.slot, [r.adapter for r in requests], first.trained) as stack:
                losses, gradients = self._computed(
                    lambda: torch.stack(self._losses(requests, joint, stack)), stack.parameters, first.trained
                )
            alone = [self._alone(request, batch) for request, batch in zip(requests, joint.batches, strict=True)]
            if random_state(device) != before:
                raise NotTogetherError(_RANDOM)
        finite = [(k, loss, own) for k, (loss, own) in enumerate(alone) if bool(loss.isfinite())]
        for k, loss, own in finite:
            gap = _norm(gradients[name][k] - gradient for name, gradient in own.items())
            size = _norm(own.values())
            near = abs(float(losses[k] - loss)) <= self._tolerance * (abs(float(loss)) + _SMALL)
            if not (near and gap <= self._tolerance * (size + _SMALL)):
                raise NotTogetherError(
                    f"{type(self.module).__name__} computes something else for rows among other clients' (gradients are"
                    f" off by {gap:.1g} where they are {size:.1g})"
                )
        return bool(finite)

    def _alone(self, request: Request, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """A client's loss of a batch, and its gradients, as in a turn of its own."""
        self._begin(request)
        self.view.write(request.adapter, request.slot)

        def own_loss() -> Tensor:
            return cast(Tensor, self.loop.own_loss(batch, 0))

        step = ModuleStep(self.module, self.view, batch, request.slot, own_loss)
        objective = request.objective
        compute = own_loss if objective is None else lambda: objective(step)
        return self._computed(compute, self.view.parameters(request.slot), request.trained)

    def _computed(
        self, compute: Callable[[], Tensor], parameters: Mapping[str, nn.Parameter], trained: Sequence[str]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        with LocalTrainer(self.loop.fabric, self.module, LogRecorder()).attached(), self.loop.fabric.autocast():
            loss = compute()
        chosen = [parameters[name] for name in trained]
        gradients = torch.autograd.grad(loss.sum(), chosen, allow_unused=True, materialize_grads=True)
        return loss.detach(), dict(zip(trained, gradients, strict=True))

    # -- what both need ---------------------------------------------------------------------------------------------

    def _begin(self, request: Request) -> None:
        self.learner.begin(request.client, request.round)
        self.learner.select_blocks(request.blocks)
        self.learner.activate(request.slot, request.trained.__contains__)

    def _draws(self, requests: Sequence[Request]) -> list[Draws]:
        draws = []
        for request in requests:
            # as `ModuleLearner.fit` seeds them, in a process that has the client for itself
            random = RandomStream(self.seed, "fit", request.round, request.client.id, request.fit, 0)
            draws.append(Draws(self._loader(request), random, self.loop.mover))
        return draws

    def _loader(self, request: Request) -> Any:
        names = ("shuffle", request.round, request.client.id, request.fit)
        loader = self.data.train_loader(request.client.id, generator(self.seed, *names))
        if not len(loader):
            raise NotTogetherError("some have no batch in an epoch")
        return loader

    def _by_parameter(self, request: Request) -> dict[nn.Parameter, float] | None:
        parameters = self.view.parameters(request.slot)
        return {parameters[name]: rate for name, rate in request.rates.items()} or None

    def _say(self, reason: str) -> None:
        key = f"`federation.batch_clients: {self.size}`"
        line = f"Clients train one after another in spite of {key}: {reason.rstrip('.')}."
        if line not in self.said:
            self.said.append(line)
            rank_zero_info(line)


_RANDOM = "random numbers are drawn in the model (dropout), which alone would be others"


def _norm(tensors: Iterable[Tensor]) -> float:
    return float(torch.stack([tensor.float().norm() for tensor in tensors]).norm())


def _reason(error: Exception) -> str:
    """An error as the end of a sentence."""
    if isinstance(error, torch.OutOfMemoryError):
        return "together they do not fit into the device's memory; a smaller number may"
    return str(error) if isinstance(error, (NotTogetherError, ConfigError)) else f"{type(error).__name__}: {error}"
