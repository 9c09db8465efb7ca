import pytest
import torch
from sklearn.datasets import load_digits

from lit_fed.data.digits import DOMAINS, Digits
from lit_fed.data.table import TensorTable


@pytest.fixture(scope="module")
def digits() -> Digits:
    return Digits()


def in_domain(table: TensorTable, column: str, code: int) -> torch.Tensor:
    return table.column(column)[table.column("domain") == code]


def equal(one: TensorTable, other: TensorTable) -> bool:
    return one.columns == other.columns and all(
        torch.equal(one.column(name), other.column(name)) for name in one.columns
    )


@pytest.mark.parametrize("share_pictures", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_no_picture_is_in_two_parts_in_any_domain(share_pictures: bool, seed: int) -> None:
    data = Digits(share_pictures=share_pictures, seed=seed)
    parts = [set(table.column("picture").tolist()) for table in (data.train, data.validation, data.test)]
    assert not (parts[0] & parts[1])
    assert not (parts[0] & parts[2])
    assert not (parts[1] & parts[2])
    assert set.union(*parts) == set(range(1797))


@pytest.mark.parametrize("part", ["train", "validation"])
def test_domains_have_pictures_of_their_own(digits: Digits, part: str) -> None:
    picture = getattr(digits, part).column("picture")
    assert len(picture.unique()) == len(picture)


def test_shared_pictures_are_in_every_domain() -> None:
    table = Digits(share_pictures=True).train
    first = in_domain(table, "picture", 0)
    assert len(first) > 1000
    assert all(torch.equal(in_domain(table, "picture", code), first) for code in range(6))


def test_every_domain_is_tested_on_the_same_pictures(digits: Digits) -> None:
    first = in_domain(digits.test, "picture", 0)
    assert all(torch.equal(in_domain(digits.test, "picture", code), first) for code in range(6))


def test_sizes(digits: Digits) -> None:
    sizes = [table.column("domain").bincount() for table in (digits.train, digits.validation, digits.test)]
    assert sizes[0].min() >= 179
    assert sizes[0].max() <= 180
    assert sizes[1].min() >= 44
    assert sizes[1].max() <= 45
    assert sizes[2].tolist() == [450] * 6


@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_every_domain_has_every_class_about_equally_often(digits: Digits, part: str) -> None:
    table = getattr(digits, part)
    for code in range(6):
        counts = in_domain(table, "labels", code).bincount(minlength=10)
        assert counts.min() > 0
        assert counts.max() - counts.min() <= 2


def test_pixels_are_what_the_model_reads(digits: Digits) -> None:
    pixels = digits.train.column("pixel_values")
    assert pixels.shape == (1078, 1, 32, 32)
    assert pixels.dtype == torch.float32
    assert pixels.min() >= -1
    assert pixels.max() <= 1


def test_domains_are_shown_differently_and_inverted_is_plain_negated(digits: Digits) -> None:
    shown = [in_domain(digits.test, "pixel_values", code) for code in range(6)]
    assert torch.equal(shown[DOMAINS.index("inverted")], -shown[DOMAINS.index("plain")])
    for one in range(6):
        for other in range(one):
            assert (shown[one] - shown[other]).abs().mean() > 0.1


def test_labels_are_those_of_the_source(digits: Digits) -> None:
    target = torch.from_numpy(load_digits().target)
    assert torch.equal(digits.test.column("labels"), target[digits.test.column("picture")])


def test_two_constructions_are_equal_whatever_the_global_random_state() -> None:
    torch.manual_seed(1)
    one = Digits()
    tables = [one.train, one.validation, one.test]
    order = torch.cat([batch["picture"] for batch in one.train_dataloader()])
    torch.manual_seed(2)
    other = Digits()
    assert all(equal(a, b) for a, b in zip(tables, [other.train, other.validation, other.test], strict=True))
    assert torch.equal(order, torch.cat([batch["picture"] for batch in other.train_dataloader()]))


def test_the_global_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    data = Digits()
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        list(loader)
    assert torch.equal(torch.get_rng_state(), before)


def test_another_seed_is_another_split() -> None:
    assert not torch.equal(Digits(seed=0).test.column("picture"), Digits(seed=1).test.column("picture"))


def test_noise_of_a_picture_does_not_depend_on_the_other_domains(digits: Digits) -> None:
    alone = Digits(domains=("noisy",)).test
    assert torch.equal(alone.column("pixel_values"), in_domain(digits.test, "pixel_values", DOMAINS.index("noisy")))


def test_codes_are_places_among_the_chosen_domains() -> None:
    table = Digits(domains=("sheared", "plain")).train
    assert table.names["domain"] == ["sheared", "plain"]
    assert table.column("domain").bincount().tolist() == [539, 539]


def test_loaders(digits: Digits) -> None:
    batches = list(Digits(batch_size=100).train_dataloader())
    assert [len(batch["labels"]) for batch in batches] == [100] * 10 + [78]
    assert batches[0]["pixel_values"].shape == (100, 1, 32, 32)
    assert len(batches[0]["domain"].unique()) == 6
    tested = torch.cat([batch["picture"] for batch in digits.test_dataloader()])
    assert torch.equal(tested, digits.test.column("picture"))
    assert len(digits.val_dataloader()) == 9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"domains": ("plain", "cubist")}, r"among .* but got \['cubist'\]"),
        ({"domains": ()}, "at least one"),
        ({"domains": ("plain", "plain")}, "each once"),
        ({"batch_size": 0}, "at least 1, but got 0"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Digits(**arguments)  # type: ignore[arg-type]
