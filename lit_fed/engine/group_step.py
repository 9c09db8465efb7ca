"""What a joint batch offers to the objectives of the clients whose batches it is made of."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from torch import Tensor

from lit_fed.adapters.stacked import Stack
from lit_fed.algorithms.base import GLOBAL, Blend
from lit_fed.engine.group_turn import NotTogetherError, Request
from lit_fed.engine.joint import Joint


class Answers:
    """What a joint batch gives, each thing computed once for all clients.

    Args:
        module: The resident module, with the clients' adapters in it.
        request: A client's; what matters here is alike in all.
        joint: The batch.
        stack: The adapters.
    """

    def __init__(self, module: Any, request: Request, joint: Joint, stack: Stack) -> None:
        self.module, self.slot, self.joint, self._request, self._stack = module, request.slot, joint, request, stack

    @cached_property
    def logits(self) -> list[Tensor]:
        """Each client's, (B, ..., C)."""
        return self.joint.parts(self.module.logits(self.joint.whole))

    @cached_property
    def targets(self) -> list[Tensor]:
        """Each client's, (B, ...), where its logits have theirs."""
        return self.joint.parts(self.module.targets(self.joint.whole))

    @cached_property
    def parameters(self) -> list[dict[str, Tensor]]:
        """Each client's part of what is trained."""
        shares = {name: self._stack.parameters[name].unbind() for name in self._request.trained}
        return [{name: share[k] for name, share in shares.items()} for k in range(len(self.joint.sizes))]


class ClientStep:
    """A `lit_fed.algorithms.base.Step` of one client of a group; it offers what does not take another forward pass.

    Args:
        answers: The group's.
        k: Which client.
    """

    def __init__(self, answers: Answers, k: int) -> None:
        self._answers, self._k = answers, k
        self.batch = answers.joint.batches[k]

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        """The client's part of what is trained."""
        return self._answers.parameters[self._k]

    def loss(self, blend: Blend | None = None) -> Tensor:
        """The module's own loss of the client's rows."""
        if blend is not None:
            raise NotTogetherError("their losses are of a blend of slots")
        loss: Tensor = self._answers.module.loss(self._answers.logits[self._k], self.targets())
        return loss

    def logits(self, slot: str | Blend | None = GLOBAL) -> Tensor:
        """Logits of the client's rows, of the slot that is trained."""
        if slot != self._answers.slot:
            raise NotTogetherError("their losses ask for several slots")
        return self._answers.logits[self._k]

    def targets(self) -> Tensor:
        """Targets of the client's rows."""
        return self._answers.targets[self._k]

    def __getattr__(self, name: str) -> Any:
        """All else is refused."""
        raise NotTogetherError(f"their losses ask for `{name}` of a step")
