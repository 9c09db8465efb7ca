"""Batches of texts that are no wider than their longest text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils.data import default_collate

__all__ = ["TrimPadding"]


@dataclass(frozen=True)
class TrimPadding:
    """Cuts the padding that a whole batch shares, on the left and on the right.

    Texts are encoded once, to the length of the longest of the data set. A batch of short ones then costs what short
    ones cost. Batches without the mask, and lists of examples (which are collated as torch does), pass as they are.

    Args:
        columns: What is cut, where a batch has it and it is as wide as the mask.
        mask: The column that is 0 on padding, ``(B, T)``.
        multiple: Keep a width that is a multiple of this, if the batch was that wide: 8 suits tensor cores, and
            compiled models meet fewer shapes.
    """

    columns: Sequence[str] = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "labels")
    mask: str = "attention_mask"
    multiple: int = 1

    def __call__(self, batch: Any) -> Any:
        """The batch, cut."""
        if not isinstance(batch, Mapping):
            batch = default_collate(batch)
        mask = batch.get(self.mask) if isinstance(batch, Mapping) else None
        if not isinstance(mask, Tensor) or mask.ndim != 2:
            return batch
        used = mask.any(dim=0).nonzero()
        first, end = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 1)
        over = -(end - first) % self.multiple
        end += min(over, mask.shape[1] - end)
        first = max(0, first - (-(end - first) % self.multiple))
        if (first, end) == (0, mask.shape[1]):
            return dict(batch)
        return {
            name: value[:, first:end].contiguous() if self._fits(name, value, mask) else value
            for name, value in batch.items()
        }

    def _fits(self, name: str, value: Any, mask: Tensor) -> bool:
        wide = isinstance(value, Tensor) and value.ndim >= 2 and value.shape[:2] == mask.shape
        return wide and name in {self.mask, *self.columns}
