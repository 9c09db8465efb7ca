import pytest

from lit_fed.core.names import block_of, exit_of, factor_of, is_gate, is_gate_adapter, is_head


@pytest.mark.parametrize(
    ("name", "block", "head", "factor"),
    [
        ("blocks.3.attention.q_proj.lora_A", 3, False, "A"),
        ("blocks.11.mlp.fc2.lora_B", 11, False, "B"),
        ("head.weight", None, True, None),
        ("head.0.lora_B", None, True, "B"),
        ("other.embeddings.projection.lora_A", None, False, "A"),
        ("other.blocks.3.weight", None, False, None),  # a user's name that only looks like ours
        ("other.head.bias", None, False, None),
        ("headroom.weight", None, False, None),
        ("blocks.0.lora_A.weight", 0, False, None),
    ],
)
def test_what_a_name_says(name: str, block: int | None, head: bool, factor: str | None) -> None:
    assert block_of(name) == block
    assert is_head(name) is head
    assert factor_of(name) == factor


@pytest.mark.parametrize(
    ("name", "depth"),
    [
        ("exits.4.weight", 4),
        ("exits.11.pre_classifier.bias", 11),
        ("head.weight", None),
        ("blocks.4.exits.lora_A", None),
        ("other.exits.4.weight", None),  # a user's own
    ],
)
def test_the_exit_a_name_belongs_to(name: str, depth: int | None) -> None:
    assert exit_of(name) == depth


@pytest.mark.parametrize(
    ("name", "gate", "adapter"),
    [
        ("gate.adapter.down.weight", True, True),
        ("gate.head.bias", True, False),
        ("other.gate.adapter.down.weight", False, False),  # a user's own
        ("gateway.adapter.weight", False, False),
        ("blocks.0.gate.lora_A", False, False),
    ],
)
def test_what_belongs_to_the_gate(name: str, gate: bool, adapter: bool) -> None:
    assert is_gate(name) is gate
    assert is_gate_adapter(name) is adapter
