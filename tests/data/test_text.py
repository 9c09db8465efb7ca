import pytest
import torch

from lit_fed.data.text import TrimPadding


def batch(*masks: list[int]) -> dict[str, torch.Tensor]:
    mask = torch.tensor(masks)
    ids = torch.arange(mask.numel()).view_as(mask)
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": torch.arange(len(mask)),
        "domain": torch.zeros(len(mask)),
    }


def test_padding_on_the_right_is_cut_to_the_longest() -> None:
    given = batch([1, 0, 0, 0], [1, 1, 0, 0])
    cut = TrimPadding()(given)
    assert torch.equal(cut["input_ids"], torch.tensor([[0, 1], [4, 5]]))
    assert torch.equal(cut["attention_mask"], torch.tensor([[1, 0], [1, 1]]))
    assert cut["labels"] is given["labels"]  # one a row: not a sequence
    assert given["input_ids"].shape == (2, 4)


def test_padding_on_the_left_is_cut_too() -> None:
    assert torch.equal(TrimPadding()(batch([0, 0, 1, 1], [0, 0, 0, 1]))["input_ids"], torch.tensor([[2, 3], [6, 7]]))


def test_holes_inside_stay() -> None:
    assert TrimPadding()(batch([1, 0, 1, 0]))["attention_mask"].tolist() == [[1, 0, 1]]


def test_labels_of_tokens_are_cut_with_their_tokens() -> None:
    given = batch([1, 1, 0, 0]) | {"labels": torch.tensor([[5, 6, -100, -100]])}
    assert TrimPadding()(given)["labels"].tolist() == [[5, 6]]


@pytest.mark.parametrize(("mask", "width"), [([1, 1, 1, 0, 0, 0], 4), ([0, 0, 0, 1, 1, 1], 4), ([1, 1, 1, 1, 1, 0], 6)])
def test_a_width_may_be_kept_a_multiple(mask: list[int], width: int) -> None:
    cut = TrimPadding(multiple=4)(batch(mask))
    assert cut["input_ids"].shape == (1, width)  # six are no multiple, but all there are
    assert cut["attention_mask"].sum() == sum(mask)


def test_a_batch_of_padding_alone_keeps_one_column() -> None:
    assert TrimPadding()(batch([0, 0, 0]))["input_ids"].shape == (1, 1)


def test_batches_without_a_mask_pass() -> None:
    given = {"pixel_values": torch.zeros(2, 3)}
    assert TrimPadding()(given) is given


def test_a_list_of_examples_is_collated_as_torch_does() -> None:
    assert TrimPadding()([{"text": "a", "labels": 0}, {"text": "b", "labels": 1}])["text"] == ["a", "b"]
