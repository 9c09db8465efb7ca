"""One client's turn does not reach the next through buffers."""

import pytest
import torch
from torch import nn

from lit_fed.adapters import AdapterView


class Counting(nn.Module):
    """Buffers of every kind: persistent, not, integer, replaced rather than written to."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.norm = nn.BatchNorm1d(3, affine=False)
        self.tuned_norm = nn.BatchNorm1d(3)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("hidden", torch.zeros(3), persistent=False)
        self.register_buffer("replaced", torch.zeros(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.hidden.add_(1)
        self.replaced = self.replaced + 1
        return self.tuned_norm(self.norm(self.linear(x)))


@pytest.fixture
def module() -> Counting:
    return Counting()


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_all_are_put_back_but_the_exchanged_ones(module, mode):
    view = AdapterView(module)
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    objects = dict(module.named_buffers())
    view.snapshot_buffers()
    for _ in range(2):  # the second client, too
        with mode():
            module(torch.randn(4, 3))
        view.restore_buffers()
        now = dict(module.named_buffers())
        differ = {name for name, buffer in now.items() if not torch.equal(buffer, before[name])}
        assert differ == {"tuned_norm.running_mean", "tuned_norm.running_var"}
        assert all(now[name] is objects[name] for name in now)


def test_exchanged_statistics_follow_the_state(module):
    view = AdapterView(module)
    state = view.read()
    assert "other.tuned_norm.running_mean" in state
    assert not any("num_batches_tracked" in name or "other.norm." in name for name in state)
    module(torch.randn(4, 3))
    view.write(state)
    assert torch.equal(module.tuned_norm.running_mean, state["other.tuned_norm.running_mean"])


def test_first_restore_takes_the_snapshot(module):
    view = AdapterView(module)
    view.restore_buffers()
    module(torch.randn(4, 3))
    view.restore_buffers()
    assert module.calls.item() == 0


def test_a_moved_module_keeps_its_new_dtype(module):
    view = AdapterView(module)
    view.snapshot_buffers()
    module.double()
    module(torch.randn(4, 3, dtype=torch.float64))
    view.restore_buffers()
    assert module.replaced.dtype == torch.float64
    assert module.replaced.tolist() == [0.0] * 3
    assert module.norm.running_mean.tolist() == [0.0] * 3


def test_statistics_that_move_no_version_counter():
    """The kernel of batch normalisation writes past the counter; a module of one's own may call it directly."""

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 3)
            self.register_buffer("mean", torch.zeros(3))
            self.register_buffer("variance", torch.ones(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.batch_norm(self.linear(x), self.mean, self.variance, training=True)

    module = Own()
    view = AdapterView(module)
    view.snapshot_buffers()
    module(torch.randn(4, 3))
    assert module.mean.any()
    view.restore_buffers()
    assert (module.mean.tolist(), module.variance.tolist()) == ([0.0] * 3, [1.0] * 3)


def test_expanded_buffers_are_no_obstacle(module):
    module.register_buffer("wide", torch.zeros(1).expand(3))
    wide = module.wide
    view = AdapterView(module)
    view.snapshot_buffers()
    module.wide = torch.ones(3)
    view.restore_buffers()
    assert module.wide is wide
