"""Rows that were computed in one batch and are used in another, if that makes no difference to the bit.

How a kernel adds up may depend on the size of a batch, on an example's place in it, on the number of threads. So before
a row that was computed in a batch of s examples is used in one of b, that is tried: batches of b whose rows are known
from batches of s are computed once more, and compared. Only if two of them are equal in every bit, rows are used from
then on without computing; after one that is not, never. What is multiplied by zeros would show nothing: where other
tensors of the adapter are zero, it is tried anew.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

from lit_fed.engine.row_store import RowStore

_TRIALS = 2
_VIEWS = 2  # a step may look at an example in two ways


class Trials:
    """What came out when rows were computed in a second batch. One for a process: kernels do not know of clients."""

    def __init__(self) -> None:
        self._equal: Counter[Hashable] = Counter()
        self._unequal: set[Hashable] = set()

    def note(self, case: Hashable, equal: bool) -> None:
        """Note one down."""
        if equal:
            self._equal[case] += 1
        else:
            self._unequal.add(case)

    def allow(self, case: Hashable) -> bool:
        """Whether rows may be used from one batch in the other."""
        return self._equal[case] >= _TRIALS and case not in self._unequal

    def forbid(self, case: Hashable) -> bool:
        """Whether they may not, ever."""
        return case in self._unequal


class Shelf:
    """What is known of one fixed function of one client's examples; see `lit_fed.adapters.prefix.Remembered`.

    Args:
        function: Says which function it is; the same for all clients.
        rows: Where rows are kept, each with the size of the batch it was computed in.
        trials: Shared with others.
        num_examples: The client's. Many more different inputs than these mean that an example is never the same.
        refuse: Is told why rows cannot be used.
    """

    def __init__(
        self, function: Hashable, rows: RowStore, trials: Trials, num_examples: int, refuse: Callable[[str], None]
    ) -> None:
        self._function, self._rows, self._trials = function, rows, trials
        self._num_examples, self._refuse = num_examples, refuse
        self._tried: Tensor | None = None
        self._seen: Counter[Hashable] = Counter()

    def recall(self, keys: Sequence[bytes], device: torch.device) -> Tensor | None:
        """The rows (B, ...) of these B examples, or `None` if they have to be computed."""
        self._tried = None
        sizes = self._sizes(keys)
        if None in sizes or any(self._trials.forbid(self._case(size, len(keys))) for size in sizes):
            return None
        found = self._rows.gather(keys)
        if all(self._trials.allow(self._case(size, len(keys))) for size in sizes):
            return found.to(device)
        self._tried = found
        return None

    def keep(self, keys: Sequence[bytes], rows: Tensor) -> None:
        """Remember rows (B, ...) that were computed as one batch, and compare them with what was remembered."""
        rows, sizes = rows.detach().cpu(), self._sizes(keys)
        if self._tried is not None:
            for size in set(sizes):
                same_size = [row for row, one in enumerate(sizes) if one == size]
                self._trials.note(self._case(size, len(keys)), torch.equal(rows[same_size], self._tried[same_size]))
        self._tried = None
        if self._trials.forbid(self._case(len(keys), len(keys))):
            self._refuse(
                "the last bits of an example depend on its place in a batch here; they do not with "
                "`federation.threads: 1`, in most models"
            )
            return
        before = len(self._rows)
        for key, row, size in zip(keys, rows, sizes, strict=True):
            if size is None or (size < len(keys) and self._trials.forbid(self._case(size, len(keys)))):
                self._rows.put(key, row, len(keys))
        self._count(len(self._rows) - before, rows)

    def close(self) -> None:
        """Forget everything."""
        self._rows.close()

    def _count(self, new: int, rows: Tensor) -> None:
        kind = (len(rows), rows.shape[1:])
        self._seen[kind] += new
        if self._seen[kind] > _VIEWS * self._num_examples:
            self._refuse("examples are different whenever they are drawn (augmentation)")

    def _sizes(self, keys: Sequence[bytes]) -> list[int | None]:
        return [self._rows.number(key) for key in keys]

    def _case(self, computed_in: int | None, used_in: int) -> Hashable:
        return self._function, computed_in, used_in
