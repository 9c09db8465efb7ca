import math

import pytest
import torch

from lit_fed.core.tree import all_finite, digest, flatten, map_states, num_bytes, unflatten

pytestmark = pytest.mark.usefixtures("global_rng_untouched")


def tree() -> dict:
    return {
        "adapter": {"head.weight": torch.arange(6.0).reshape(2, 3), "head.bias": torch.zeros(2)},
        "momentum": {},
        "stage": 2,
        "ids": ["a", "b"],
        "deep": {"er": {"scalar": torch.tensor(3), "none": None, "empty": {}}},
    }


def same(one: object, other: object) -> bool:
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    return one == other


def test_flatten() -> None:
    tensors, values = flatten(tree())
    assert sorted(tensors) == ["adapter/head.bias", "adapter/head.weight", "deep/er/scalar"]
    assert values == {"momentum": {}, "stage": 2, "ids": ["a", "b"], "deep/er/none": None, "deep/er/empty": {}}


@pytest.mark.parametrize("original", [{}, {"a": {}}, tree(), {"x": torch.zeros(0, 4)}, {"": {"": 1}}])
def test_unflatten_is_the_inverse(original: dict) -> None:
    assert same(unflatten(*flatten(original)), original)


@pytest.mark.parametrize("key", ["a/b", 3])
def test_flatten_refuses_keys_it_could_not_give_back(key: object) -> None:
    with pytest.raises(TypeError, match="keys to be strings without '/', but got"):
        flatten({"outer": {key: 1}})


@pytest.mark.parametrize("leaf", [object(), {1, 2}, [torch.zeros(1)]])
def test_flatten_refuses_other_leaves_by_path(leaf: object) -> None:
    with pytest.raises(TypeError, match="`outer/inner` to be a tensor or a JSON value"):
        flatten({"outer": {"inner": leaf}})


def test_digest_is_of_content_not_of_order_or_layout() -> None:
    one = tree()
    other = dict(reversed(tree().items()))
    other["adapter"] = dict(reversed(other["adapter"].items()))
    other["adapter"]["head.weight"] = one["adapter"]["head.weight"].T.contiguous().T  # column-major
    assert digest(one) == digest(other)
    assert len(digest(one)) == 32


@pytest.mark.parametrize(
    "other",
    [
        {"w": torch.tensor([1.0, 2.0]).nextafter(torch.tensor(9.0))},  # one bit
        {"v": torch.tensor([1.0, 2.0])},  # name
        {"w": torch.tensor([[1.0, 2.0]])},  # shape
        {"w": torch.tensor([1.0, 2.0]).view(torch.int32)},  # dtype, same bytes
        {"w": torch.tensor([1.0, 2.0]), "n": 0},  # a value more
        {"w": torch.tensor([1.0, 2.0]), "e": {}},  # an empty mapping more
        {"o": {"w": torch.tensor([1.0, 2.0])}},  # depth
        {"w": [1.0, 2.0]},  # numbers for a tensor
    ],
)
def test_digest_sees_every_difference(other: dict) -> None:
    assert digest(other) != digest({"w": torch.tensor([1.0, 2.0])})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool])
@pytest.mark.parametrize("shape", [(), (0,), (2, 3)])
def test_digest_of_any_dtype_and_shape(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    ones, zeros = torch.ones(shape, dtype=dtype), torch.zeros(shape, dtype=dtype)
    assert digest({"w": ones}) == digest({"w": ones.clone().requires_grad_(dtype.is_floating_point)})
    assert (digest({"w": ones}) == digest({"w": zeros})) == (ones.numel() == 0)


def test_digest_does_not_depend_on_the_process() -> None:
    # blake2b of what the docstring says, put together by hand.
    from hashlib import blake2b

    text = b"w|(2,)|torch.int16|" + bytes([1, 0, 2, 0]) + b'{"n": 5}'
    expected = blake2b(text, digest_size=16).hexdigest()
    assert digest({"n": 5, "w": torch.tensor([1, 2], dtype=torch.int16)}) == expected


def test_num_bytes() -> None:
    assert num_bytes(tree()) == 6 * 4 + 2 * 4 + 8
    assert num_bytes({"w": torch.zeros(3, dtype=torch.bfloat16), "n": 1}) == 6
    assert num_bytes({}) == 0


@pytest.mark.parametrize(("value", "finite"), [(1.0, True), (math.inf, False), (-math.inf, False), (math.nan, False)])
def test_all_finite(value: float, finite: bool) -> None:
    assert all_finite({"a": torch.zeros(2), "b": torch.tensor([[0.0, value]])}) is finite


def test_map_states_pairs_by_name() -> None:
    one = {"a": torch.tensor(1.0), "b": torch.tensor(2.0)}
    other = {"b": torch.tensor(20.0), "a": torch.tensor(10.0)}
    assert map_states(torch.add, one, other) == {"a": 11.0, "b": 22.0}
    with pytest.raises(KeyError):
        map_states(torch.add, one, {"a": torch.tensor(1.0)})
