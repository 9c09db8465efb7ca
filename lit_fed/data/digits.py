"""The embedded default: scikit-learn's handwritten digits in six domains, with no download."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from torch import Generator, Tensor
from torch.nn import functional
from torch.utils.data import DataLoader

from lit_fed.core.seeding import generator
from lit_fed.data.table import TensorTable, collate_table

__all__ = ["DOMAINS", "Digits"]

_PARTS: dict[Literal["train", "validation", "test"], float] = {"train": 0.60, "validation": 0.15, "test": 0.25}


def _warp(pixels: Tensor, matrix: Sequence[Sequence[float]]) -> Tensor:
    # `matrix` (2, 2) sends a place in the result to a place in the source, both in [-1, 1]; outside there is no ink.
    theta = torch.tensor([[*row, 0.0] for row in matrix]).expand(len(pixels), 2, 3)
    grid = functional.affine_grid(theta, list(pixels.shape), align_corners=False)
    return functional.grid_sample(pixels, grid, align_corners=False)


def _plain(pixels: Tensor, random: Generator) -> Tensor:
    return pixels


def _inverted(pixels: Tensor, random: Generator) -> Tensor:
    return 1 - pixels


def _rotated(pixels: Tensor, random: Generator) -> Tensor:
    # Six times as far as the embedded model has seen; less than 90 degrees, so that corners are cut as well.
    cos, sin = math.cos(math.radians(75)), math.sin(math.radians(75))
    return _warp(pixels, [[cos, -sin], [sin, cos]])


def _blurred(pixels: Tensor, random: Generator) -> Tensor:
    # A Gaussian of 4 pixels, which is one pixel of the 8x8 originals, as a matrix along rows and along columns.
    places = torch.arange(pixels.shape[-1])
    weights = torch.softmax(-((places - places.unsqueeze(1)) ** 2) / (2 * 4.0**2), dim=1)
    return weights @ pixels @ weights.T


def _noisy(pixels: Tensor, random: Generator) -> Tensor:
    return (pixels + 0.5 * torch.randn(pixels.shape, generator=random)).clamp(0, 1)


def _sheared(pixels: Tensor, random: Generator) -> Tensor:
    return _warp(pixels, [[1.4, 1.2], [0.0, 1.0]])


_TRANSFORMS: dict[str, Callable[[Tensor, Generator], Tensor]] = {
    "plain": _plain,
    "inverted": _inverted,
    "rotated": _rotated,
    "blurred": _blurred,
    "noisy": _noisy,
    "sheared": _sheared,
}

DOMAINS = tuple(_TRANSFORMS)
"""The six domains, in their usual order."""


class Digits(LightningDataModule):
    """Scikit-learn's 1,797 handwritten digits, shown in several domains.

    The pictures are dealt to train (60 %), validation (15 %) and test (25 %) first, by class, and turned into domains
    afterwards: no picture is trained on in one domain and tested in another. By default each domain trains on pictures
    of its own (about 180 for six domains), as clients do who drew their own digits; tested is always on every test
    picture in every domain.

    A batch has ``pixel_values`` float32 ``(B, 1, 32, 32)`` in [-1, 1], ``labels`` int64 ``(B,)``, ``domain`` int64
    ``(B,)`` (names in ``table.names["domain"]``) and ``picture`` int64 ``(B,)``, its index in scikit-learn's set.

    Args:
        domains: Which domains, in which order; the codes in ``domain`` are places in this list.
        share_pictures: Whether every domain trains (and validates) on all pictures, rather than on a share of its own.
        batch_size: Pictures a batch.
        seed: Of the split, the shares, the noise and the order of training batches. The same seed gives the same bits.

    Raises:
        ValueError: If ``domains`` is empty, has one twice, or one that is not there; if ``batch_size`` is less than 1.

    Example::

        data = Digits(domains=("plain", "inverted"))
        data.setup("fit")
        data.train.column("pixel_values").shape  # (1077, 1, 32, 32)
    """

    num_labels = 10

    def __init__(
        self, domains: Sequence[str] = DOMAINS, share_pictures: bool = False, batch_size: int = 32, seed: int = 0
    ) -> None:
        super().__init__()
        if unknown := [domain for domain in domains if domain not in _TRANSFORMS]:
            raise ValueError(f"Expected `domains` to be among {list(DOMAINS)}, but got {unknown}.")
        if not domains or len(set(domains)) < len(domains):
            raise ValueError(f"Expected `domains` to be at least one, each once, but got {list(domains)}.")
        if batch_size < 1:
            raise ValueError(f"Expected `batch_size` to be at least 1, but got {batch_size}.")
        self.domains = tuple(domains)
        self.share_pictures = share_pictures
        self.batch_size = batch_size
        self.seed = seed
        self._tables: dict[str, TensorTable] = {}

    @property
    def train(self) -> TensorTable:
        """The training table, all domains one after the other."""
        return self._table("train")

    @property
    def validation(self) -> TensorTable:
        """The validation table."""
        return self._table("validation")

    @property
    def test(self) -> TensorTable:
        """The test table: every test picture in every domain."""
        return self._table("test")

    def setup(self, stage: str | None = None) -> None:
        """Makes the tables, once; they are small, so for every ``stage`` together."""
        if self._tables:
            return
        from sklearn.datasets import load_digits  # a second to import

        source = load_digits()
        pixels = torch.from_numpy(source.images / 16).float().unsqueeze(1)
        pixels = functional.interpolate(pixels, size=(32, 32), mode="bilinear")
        labels = torch.from_numpy(source.target).long()
        shown = {name: 2 * _TRANSFORMS[name](pixels, generator(self.seed, "digits", name)) - 1 for name in self.domains}
        for part, pictures in self._split(labels).items():
            shared = self.share_pictures or part == "test"
            # Pictures are sorted by class, so every n-th of them is a share with all classes.
            own = [pictures if shared else pictures[code :: len(self.domains)] for code in range(len(self.domains))]
            picture = torch.cat(own)
            columns = {
                "pixel_values": torch.cat([shown[name][rows] for name, rows in zip(self.domains, own, strict=True)]),
                "labels": labels[picture],
                "domain": torch.repeat_interleave(torch.tensor([len(rows) for rows in own])),
                "picture": picture,
            }
            names = {"labels": [str(label) for label in range(self.num_labels)], "domain": list(self.domains)}
            self._tables[part] = TensorTable(columns, names=names)

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Shuffled batches of :attr:`train`; the order is the same for every loader made."""
        return self._loader("train", shuffle=True)

    def val_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Batches of :attr:`validation`, in order."""
        return self._loader("validation")

    def test_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Batches of :attr:`test`, in order."""
        return self._loader("test")

    def _split(self, labels: Tensor) -> dict[str, Tensor]:
        """Indices of the pictures of each part, sorted by class, at random within a class."""
        split = generator(self.seed, "digits", "split")
        parts: dict[str, list[Tensor]] = {part: [] for part in _PARTS}
        for label in range(self.num_labels):
            pictures = (labels == label).nonzero().flatten()
            pictures = pictures[torch.randperm(len(pictures), generator=split)]
            train = round(_PARTS["train"] * len(pictures))
            validation = round(_PARTS["validation"] * len(pictures))
            sizes = [train, validation, len(pictures) - train - validation]
            for part, rows in zip(_PARTS, pictures.split(sizes), strict=True):
                parts[part].append(rows)
        return {part: torch.cat(rows) for part, rows in parts.items()}

    def _table(self, part: str) -> TensorTable:
        self.setup()
        return self._tables[part]

    def _loader(self, part: str, **options: Any) -> DataLoader[dict[str, Tensor]]:
        # A loader without a generator of its own takes a number from the global one for each pass.
        order = generator(self.seed, "digits", "order", part)
        return DataLoader(self._table(part), self.batch_size, collate_fn=collate_table, generator=order, **options)
