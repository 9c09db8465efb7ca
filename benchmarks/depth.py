"""What a frozen model knows after fewer blocks: the first c of them, and c drawn at random, as FedRA's clients hold.

``python -m benchmarks.depth --json FILE --threads 1`` fits one linear classifier (logistic regression, on the training
pictures of all six domains of `Digits`) to the features of the embedded model with all of its blocks, with the first c
and with several draws of c, then with each block alone left out, and prints the mean test accuracy over domains. No
adapter is there: what is measured is how far the model bears the loss of blocks before anything is tuned. The nearer
"drawn" is to "first", the less a method that trains random sub-models has to repair.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from lit_fed import Digits, ImageClassifier
from lit_fed.adapters.blocks import require_blocks
from lit_fed.core.seeding import generator
from lit_fed.data.table import TensorTable

HELD = (10, 8, 6, 4, 3)


def features(module: ImageClassifier, table: TensorTable, blocks: Sequence[int] | None) -> Tensor:
    """What the classifier would see of every picture, ``(N, width)`` float32, with some blocks and gaps closed."""
    with torch.no_grad(), require_blocks(module).selecting(blocks):
        return torch.cat([module.features(table[at : at + 225]) for at in range(0, len(table), 225)])


def probe(module: ImageClassifier, data: Digits, blocks: Sequence[int] | None) -> float:
    """Mean test accuracy over domains of a linear classifier on these blocks' features."""
    seen, new = features(module, data.train, blocks), features(module, data.test, blocks)
    mean, std = seen.mean(0), seen.std(0).clamp_min(1e-6)
    linear = LogisticRegression(max_iter=1000).fit((seen - mean) / std, data.train.column("labels"))
    right = torch.from_numpy(linear.predict((new - mean) / std)) == data.test.column("labels")
    domain = data.test.column("domain")
    return statistics.mean(right[domain == code].float().mean().item() for code in range(len(data.domains)))


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="where to write the numbers")
    parser.add_argument("--draws", type=int, default=10, help="sub-models drawn of each size")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    module, data = ImageClassifier(num_labels=Digits.num_labels), Digits()
    module.configure_model()
    module.eval()
    data.setup()
    total, random = len(require_blocks(module)), generator(0, "depth")
    report: dict[str, Any] = {"all": probe(module, data, None)}
    print(f"all {total} blocks  {report['all']:.3f}", flush=True)
    for held in HELD:
        drawn = [
            probe(module, data, torch.randperm(total, generator=random)[:held].sort().values.tolist())
            for _ in range(arguments.draws)
        ]
        report[str(held)] = {"first": probe(module, data, range(held)), "drawn": drawn}
        print(
            f"{held:2} of {total}: first {report[str(held)]['first']:.3f}"
            f"  drawn {statistics.mean(drawn):.3f} ± {statistics.stdev(drawn):.3f} ({len(drawn)} draws)",
            flush=True,
        )
    report["without"] = [
        probe(module, data, [block for block in range(total) if block != without]) for without in range(total)
    ]
    print("each left out:", *(f"{accuracy:.3f}" for accuracy in report["without"]), flush=True)
    arguments.json.write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
