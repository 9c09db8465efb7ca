"""Pre-trains the embedded ViT on handwritten characters and digits: the command that made ``vit_glyphs``.

    python -m lit_fed.assets.pretrain --omniglot omniglot_small.npz --mnist mnist_t10k.npz --to vit_glyphs

One classifier over all glyphs (242 characters, 10 digits) on top of the CLS token; only the backbone is kept. All
pictures are white ink on black, plain for the first half of training and mildly deformed in the second. Inversion,
strong rotation, strong shear, blur and noise never occur: they are what a federation is to learn on top (see
:class:`lit_fed.data.digits.Digits`).
"""

import argparse
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import ViTConfig, ViTModel

SIZE = 32


@dataclass(frozen=True)
class Glyphs:
    """Labelled pictures: ``pixels`` float32 (N, 1, 32, 32) in [0, 1], ``labels`` int64 (N,), ``held_out`` bool (N,)."""

    pixels: Tensor
    labels: Tensor
    held_out: Tensor

    def part(self, held_out: bool) -> tuple[Tensor, Tensor]:
        """The pictures and labels that are, or are not, held out."""
        chosen = self.held_out == held_out
        return self.pixels[chosen], self.labels[chosen]


def read_characters(path: Path, held_out_drawers: int = 3) -> Glyphs:
    """Reads the Omniglot background sets; of the 20 drawers, the last ``held_out_drawers`` are held out."""
    archive = np.load(path)
    ink = np.unpackbits(archive["images_packed"], axis=1)[:, : 105 * 105].reshape(-1, 1, 105, 105)
    # Omniglot's strokes are thinner than a pixel at this size; thickened, they look like pen strokes of the digits.
    thick = functional.max_pool2d(torch.from_numpy(ink).float(), 5, stride=1, padding=2)
    pixels = functional.interpolate(thick, size=(SIZE, SIZE), mode="area")
    labels = torch.from_numpy(np.unique(archive["character"], return_inverse=True)[1]).long()
    drawers = torch.from_numpy(archive["drawer"].astype(np.int64))
    return Glyphs(pixels, labels, drawers > int(drawers.max()) - held_out_drawers)


def read_digits(path: Path, held_out: int) -> Glyphs:
    """Reads the MNIST test set, cut to the middle 22x22 pixels and enlarged; its last ``held_out`` are held out."""
    archive = np.load(path)
    ink = torch.from_numpy(archive["images"][:, None, 3:25, 3:25]).float() / 255
    pixels = functional.interpolate(ink, size=(SIZE, SIZE), mode="bilinear", antialias=True)
    labels = torch.from_numpy(archive["labels"]).long()
    return Glyphs(pixels, labels, torch.arange(len(labels)) >= len(labels) - held_out)


def join(first: Glyphs, second: Glyphs) -> Glyphs:
    """Puts two sets into one, with the labels of ``second`` after those of ``first``."""
    labels = torch.cat([first.labels, second.labels + first.labels.max() + 1])
    return Glyphs(torch.cat([first.pixels, second.pixels]), labels, torch.cat([first.held_out, second.held_out]))


def deform(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Moves, turns (12 degrees at most), scales, shears (15 %), thickens or thins each of (B, 1, 32, 32) at random."""

    def draw(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(len(pixels), generator=generator)

    angle, shear = math.pi / 15 * draw(-1, 1), draw(-0.15, 0.15)
    wide, high = draw(0.85, 1.15), draw(0.85, 1.15)
    rows = [
        wide * angle.cos(),
        shear - angle.sin(),
        draw(-0.16, 0.16),
        angle.sin(),
        high * angle.cos(),
        draw(-0.16, 0.16),
    ]
    grid = functional.affine_grid(torch.stack(rows, dim=1).view(-1, 2, 3), list(pixels.shape), align_corners=False)
    moved = functional.grid_sample(pixels, grid, align_corners=False)
    thicker, thinner = functional.max_pool2d(moved, 3, 1, 1), -functional.max_pool2d(-moved, 3, 1, 1)
    weight = draw(-0.6, 0.6).view(-1, 1, 1, 1)
    return moved + weight.clamp(min=0) * (thicker - moved) - weight.clamp(max=0) * (thinner - moved)


def build(num_classes: int, seed: int) -> tuple[ViTModel, nn.Linear]:
    """Builds the backbone and its throw-away classifier from ``seed``; the global random state stays as it was."""
    config = ViTConfig(
        hidden_size=96,
        num_hidden_layers=12,
        num_attention_heads=3,
        intermediate_size=384,
        image_size=SIZE,
        patch_size=8,
        encoder_stride=8,
        num_channels=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ViTModel(config, add_pooling_layer=False), nn.Linear(config.hidden_size, num_classes)


def forward(backbone: ViTModel, head: nn.Linear, pixels: Tensor) -> Tensor:
    """Logits (B, classes) of pictures (B, 1, 32, 32) in [0, 1]; the model itself sees [-1, 1]."""
    with torch.autocast(pixels.device.type, dtype=torch.bfloat16):
        return head(backbone(pixel_values=2 * pixels - 1).last_hidden_state[:, 0]).float()


@torch.no_grad()
def accuracy(backbone: ViTModel, head: nn.Linear, pixels: Tensor, labels: Tensor) -> float:
    """Share of pictures whose class is found."""
    logits = torch.cat([forward(backbone, head, batch) for batch in pixels.split(500)])
    return (logits.argmax(dim=1) == labels).float().mean().item()


def train(backbone: ViTModel, head: nn.Linear, glyphs: Glyphs, args: argparse.Namespace) -> None:
    """Trains in place, ``args.epochs`` passes over what is not held out, and prints a line per pass."""
    pixels, labels = glyphs.part(held_out=False)
    generator = torch.Generator().manual_seed(args.seed)
    parameters = [*backbone.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=args.lr, weight_decay=0.05)
    steps = args.epochs * (len(labels) // args.batch_size)
    warm_up = max(1, steps // 20)

    def factor(step: int) -> float:
        return min((step + 1) / warm_up, 0.5 * (1 + math.cos(math.pi * step / steps)))

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    started = time.perf_counter()
    for epoch in range(args.epochs):
        backbone.train()
        order = torch.randperm(len(labels), generator=generator)
        total, batches = 0.0, order.split(args.batch_size)[: len(labels) // args.batch_size]
        for batch in batches:
            # Deformed from the first step on, the loss stays at that of a guess: hence plain pictures first.
            shown = pixels[batch] if epoch < args.epochs // 2 else deform(pixels[batch], generator)
            loss = functional.cross_entropy(forward(backbone, head, shown), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            scheduler.step()
            total += loss.item()
        print(
            f"epoch {epoch + 1}/{args.epochs}  loss {total / len(batches):.3f}  {time.perf_counter() - started:.0f} s",
            flush=True,
        )
    backbone.eval()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m lit_fed.assets.pretrain", description="Pre-trains the embedded ViT."
    )
    parser.add_argument("--omniglot", type=Path, required=True, help="npz with images_packed, character, drawer")
    parser.add_argument("--mnist", type=Path, required=True, help="npz with images, labels")
    parser.add_argument("--to", type=Path, required=True, help="folder for config.json and model.safetensors")
    parser.add_argument("--held-out-digits", type=int, default=1500)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    characters, digits = read_characters(args.omniglot), read_digits(args.mnist, args.held_out_digits)
    glyphs = join(characters, digits)
    backbone, head = build(num_classes=int(glyphs.labels.max()) + 1, seed=args.seed)
    train(backbone, head, glyphs, args)

    pixels, labels = glyphs.part(held_out=True)
    is_digit = labels > characters.labels.max()
    for name, chosen in {"characters": ~is_digit, "digits": is_digit}.items():
        share = accuracy(backbone, head, pixels[chosen], labels[chosen])
        print(f"held-out {name}: {share:.4f} of {int(chosen.sum())}")
    # Half precision: half the size, and far finer than what tuning changes.
    backbone.half().save_pretrained(args.to)


if __name__ == "__main__":
    main()
