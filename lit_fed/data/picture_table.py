"""Columns in memory, with pictures that stay in their files until a batch asks for them."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from lit_fed.core.errors import LitFedError
from lit_fed.data.table import TensorTable

__all__ = ["PictureTable"]


class PictureTable(TensorTable):
    """A table with one more column, ``pixel_values`` float32 ``(B, 3, size, size)``, read from files for each batch.

    A picture becomes RGB (gray is repeated, a palette looked up, transparency left out) in [0, 1], is resized to a
    square by bicubic interpolation without antialiasing, and is normalized: ``(pixels - mean) / std`` by channel. That
    is torchvision's ``ToTensor``, ``Resize((size, size), BICUBIC, antialias=False)``, ``Normalize``, which resize
    floats with torch's own function; PIL's bicubic would always antialias. Values may overshoot a little at edges.

    Args:
        folder: What `files` are relative to.
        files: The pictures, N of them.
        tensors: Column name to tensor, ``(N, ...)`` each.
        names: Column name to what its integer codes stand for.
        size: Height and width, in pixels.
        mean: Of red, green and blue, in [0, 1].
        std: Of red, green and blue.
        num_threads: Pictures that are decoded at a time.
    """

    def __init__(
        self,
        folder: Path,
        files: Sequence[str],
        tensors: Mapping[str, Tensor],
        names: Mapping[str, Sequence[str]] | None = None,
        *,
        size: int,
        mean: Sequence[float],
        std: Sequence[float],
        num_threads: int,
    ) -> None:
        super().__init__(tensors, names)
        if len(files) != len(self):
            raise ValueError(f"Expected `files` to be as many as the rows, {len(self)}, but got {len(files)}.")
        self.folder, self.files, self.size, self.num_threads = folder, files, size, num_threads
        self._mean, self._std = torch.tensor(mean).view(3, 1, 1), torch.tensor(std).view(3, 1, 1)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: rows[0] for name, rows in self.__getitems__([index]).items()}

    def __getitems__(self, indices: Sequence[int] | Tensor) -> dict[str, Tensor]:
        rows = torch.as_tensor(indices, dtype=torch.int64)
        with ThreadPoolExecutor(self.num_threads) as pool:  # decoders let other threads run
            pictures = list(pool.map(self._read, (self.folder / self.files[row] for row in rows.tolist())))
        return {**super().__getitems__(rows), "pixel_values": torch.stack(pictures)}

    def _read(self, path: Path) -> Tensor:
        try:
            with Image.open(path) as opened:
                array = np.array(opened.convert("RGB"))
        except Exception as error:  # each of PIL's decoders raises what it likes
            raise LitFedError(
                f"Expected '{path}' to be a picture, but it cannot be read: {error}. Replace it, or take its line out"
                " of the list."
            ) from error
        pixels = torch.from_numpy(array).permute(2, 0, 1).contiguous().float().div_(255)  # (3, H, W)
        resized = interpolate(pixels[None], (self.size, self.size), mode="bicubic", align_corners=False)[0]
        return (resized - self._mean) / self._std
