"""Pictures in local folders, with lists that say which ones train and test in which domain: DomainNet, NICO++."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from lit_fed.core.errors import ConfigError
from lit_fed.core.seeding import generator
from lit_fed.data.listed import Listed, read_list
from lit_fed.data.picture_table import PictureTable
from lit_fed.data.table import collate_table

__all__ = ["SplitLists"]

Split: TypeAlias = Literal["train", "test"]
_SPLITS: tuple[Split, ...] = ("train", "test")


class SplitLists(LightningDataModule):
    """Pictures that text files list, two for each domain: one to train on, one to test on.

    A line of a list is the path of a picture, relative to `root`, and its label: ``clipart/ant/007_000012.jpg 6``. The
    path may hold spaces. Blank lines count for nothing.

    A batch has ``pixel_values`` float32 ``(B, 3, image_size, image_size)``, ``labels`` int64 ``(B,)`` and ``domain``
    int64 ``(B,)``. Pictures are decoded when a batch asks for them; see `PictureTable` for what becomes of them. The
    defaults of `mean` and `std` send them to [-1, 1].

    A dry run reads the lists and no pictures. Where lists are not there either, it takes each to hold `dry_run_size`
    pictures of all labels in turn, and says so.

    Args:
        root: The folder that paths in the lists start from.
        domains: The domains; the codes in ``domain`` are places in this list.
        num_labels: Number of classes: labels 0 to ``num_labels - 1`` are used.
        lists: Path of a list, relative to `root`, with ``{domain}`` and ``{split}`` (``train`` or ``test``) in it.
        num_listed_labels: Number of classes that the lists know. Pictures with labels from `num_labels` on are left
            out. By default it is `num_labels`: then there may be none.
        image_size: Height and width that pictures are resized to.
        mean: Subtracted from red, green and blue, which are in [0, 1].
        std: What they are divided by afterwards.
        num_threads: Pictures that are decoded at a time.
        batch_size: Pictures a batch.
        dry_run_size: Pictures that a dry run takes a missing list to hold.
        seed: Of the order of training batches.

    Raises:
        ConfigError: Here, if a setting cannot be right; when it is set up, if the folder, lists or pictures are
            missing, a line cannot be read, a label is out of range, or a domain has no pictures.

    Example::

        SplitLists("DomainNet", ["clipart", "sketch"], num_labels=100, num_listed_labels=345)
        SplitLists("NICOpp", ["autumn", "dim"], num_labels=60, lists="NICO_DG_official/{domain}_{split}.txt")
    """

    def __init__(
        self,
        root: str,
        domains: Sequence[str],
        num_labels: int,
        *,
        lists: str = "splits/{domain}_{split}.txt",
        num_listed_labels: int | None = None,
        image_size: int = 224,
        mean: tuple[float, float, float] = (0.5, 0.5, 0.5),
        std: tuple[float, float, float] = (0.5, 0.5, 0.5),
        num_threads: int = 8,
        batch_size: int = 32,
        dry_run_size: int = 1000,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.root, self.domains, self.lists = Path(root).expanduser(), tuple(domains), lists
        self.num_labels = num_labels
        self.num_listed_labels = num_labels if num_listed_labels is None else num_listed_labels
        self.batch_size, self.dry_run_size, self.seed = batch_size, dry_run_size, seed
        self._pictures: dict[str, Any] = {"size": image_size, "mean": mean, "std": std, "num_threads": num_threads}
        self._tables: dict[Split, PictureTable] = {}
        self._is_dry = False
        if problems := self._problems():
            raise ConfigError(problems)

    def setup(self, stage: str | None = None) -> None:
        """Reads the lists and looks for the pictures, once, for every ``stage`` together."""
        if self._tables and not self._is_dry:
            return
        if not self.root.is_dir():
            raise ConfigError(
                f"Expected `data.source.root` to be a folder that exists, but got '{self.root}'. Give the folder that"
                " the paths in the lists start from."
            )
        paths = self._paths()
        if missing := [path for path in paths.values() if not path.is_file()]:
            raise ConfigError(
                "Expected `data.source.lists` to name two lists for each of the domains, to train and to test, but"
                f" {len(missing)} of {len(paths)} are missing. The first is '{missing[0]}'."
            )
        listed = self._read(paths)
        files = [file for found in listed.values() for file in found.files]
        if gone := [file for file in files if not (self.root / file).is_file()]:
            raise ConfigError(
                f"Expected the pictures of the lists under `data.source.root`, but {len(gone)} of {len(files)} are"
                f" missing. The first is '{self.root / gone[0]}'. Fetch them, or give the folder that the paths in the"
                " lists start from."
            )
        self._make(listed, is_dry=False)

    def setup_dry_run(self) -> str | None:
        """Sets up what a dry run counts: from the lists, or without them from `dry_run_size`. Looks at no picture.

        Returns:
            What was assumed, as a sentence; `None` if all lists are there.
        """
        paths = self._paths()
        missing = [key for key, path in paths.items() if not path.is_file()]
        listed = self._read({key: path for key, path in paths.items() if key not in missing})
        labels = [place % self.num_labels for place in range(self.dry_run_size)]
        listed.update({key: Listed([""] * self.dry_run_size, labels) for key in missing})
        self._make(listed, is_dry=True)
        if not missing:
            return None
        return (
            f"The pictures are not here: {len(missing)} of {len(paths)} lists are missing, the first is"
            f" '{paths[missing[0]]}'. Each of them was taken to hold {self.dry_run_size} pictures"
            " (`data.source.dry_run_size`)."
        )

    @property
    def train(self) -> PictureTable:
        """The training pictures, one domain after the other."""
        return self._table("train")

    @property
    def test(self) -> PictureTable:
        """The test pictures, one domain after the other."""
        return self._table("test")

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Shuffled batches of :attr:`train`; the order is the same for every loader made."""
        return self._loader("train", shuffle=True)

    def test_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Batches of :attr:`test`, in order."""
        return self._loader("test")

    def _problems(self) -> list[str]:
        problems = []
        if not self.domains or len(set(self.domains)) < len(self.domains):
            problems.append(
                f"Expected `data.source.domains` to be at least one, each once, but got {list(self.domains)}."
            )
        if not ("{domain}" in self.lists and "{split}" in self.lists):
            problems.append(
                f"Expected `data.source.lists` to have {{domain}} and {{split}} in it, but got '{self.lists}'."
            )
        if self.num_listed_labels < self.num_labels:
            problems.append(
                f"Expected `data.source.num_listed_labels` to be at least `num_labels`, {self.num_labels}, but got"
                f" {self.num_listed_labels}."
            )
        if min(self._pictures["std"]) <= 0:
            problems.append(f"Expected `data.source.std` to be > 0, but got {self._pictures['std']}.")
        counts = {
            "num_labels": self.num_labels,
            "image_size": self._pictures["size"],
            "num_threads": self._pictures["num_threads"],
            "batch_size": self.batch_size,
            "dry_run_size": self.dry_run_size,
        }
        return problems + [
            f"Expected `data.source.{key}` to be >= 1, but got {count}." for key, count in counts.items() if count < 1
        ]

    def _paths(self) -> dict[tuple[Split, str], Path]:
        """Split and domain to the list's path."""
        keys = [(split, domain) for split in _SPLITS for domain in self.domains]
        return {key: self.root / self.lists.replace("{split}", key[0]).replace("{domain}", key[1]) for key in keys}

    def _read(self, paths: Mapping[tuple[Split, str], Path]) -> dict[tuple[Split, str], Listed]:
        listed, problems = {}, []
        for (split, domain), path in paths.items():
            found, wrong = read_list(path, self.num_labels, self.num_listed_labels)
            if not wrong and not found.files:
                wrong = [
                    f"Expected pictures to {split} in domain {domain!r}, but '{path}' lists none with a label below"
                    f" {self.num_labels}. Leave the domain out, or correct `data.source.num_labels`."
                ]
            listed[split, domain] = found
            problems += wrong
        if problems:
            raise ConfigError(problems)
        return listed

    def _make(self, listed: Mapping[tuple[Split, str], Listed], is_dry: bool) -> None:
        for split in _SPLITS:
            own = [listed[split, domain] for domain in self.domains]
            columns = {
                "labels": torch.tensor([label for found in own for label in found.labels]),
                "domain": torch.repeat_interleave(torch.tensor([len(found.files) for found in own])),
            }
            files = [file for found in own for file in found.files]
            names = {"domain": self.domains}
            self._tables[split] = PictureTable(self.root, files, columns, names, **self._pictures)
        self._is_dry = is_dry

    def _table(self, split: Split) -> PictureTable:
        if not self._tables:
            self.setup()
        return self._tables[split]

    def _loader(self, split: Split, **options: Any) -> DataLoader[dict[str, Tensor]]:
        # A loader without a generator of its own takes a number from the global one for each pass.
        order = generator(self.seed, "split_lists", "order", split)
        return DataLoader(self._table(split), self.batch_size, collate_fn=collate_table, generator=order, **options)
