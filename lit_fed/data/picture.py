"""Who holds what: as a table, as a picture, and both for a notebook."""

import html as escaping
from typing import TYPE_CHECKING, Any

import numpy as np

from lit_fed.data.allocation import Allocation
from lit_fed.pictures.canvas import img, name_rows, new_figure, png, short

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["describe", "draw", "html", "label_counts"]

_BARS_UP_TO = 20  # more colours than these cannot be told apart
_APART_UP_TO = 120  # more bars than these have no room between them


def label_counts(allocation: Allocation) -> tuple[np.ndarray, list[str]] | None:
    """Training examples, ``(clients, labels)``, and the labels' names; `None` without class labels."""
    labels = allocation.labels
    if labels is None or not labels.is_codes:
        return None
    held = {client.id: labels.values[allocation.rows["train"][client.id]] for client in allocation.clients}
    codes = np.arange(len(labels.names)) if labels.names else np.unique(np.concatenate(list(held.values())))
    place = np.zeros(int(codes.max()) + 1, dtype=np.int64)
    place[codes] = np.arange(len(codes))
    counts = np.stack([np.bincount(place[own], minlength=len(codes)) for own in held.values()])
    return counts, [labels.as_names[code] for code in codes.tolist()]


def describe(allocation: Allocation) -> list[dict[str, Any]]:
    """One row a client; see `FederatedDataModule.table`."""
    counted = label_counts(allocation)
    table = []
    for place, client in enumerate(allocation.clients):
        labels, entropy = None, None
        if counted is not None:
            counts, names = counted
            labels = {name: int(count) for name, count in zip(names, counts[place], strict=True) if count}
            entropy = _entropy_bits(counts[place])
        table.append(
            {
                "client": client.id,
                "domain": client.domain,
                **{split: len(allocation.rows[split][client.id]) for split in ("train", "val", "test")},
                "labels": labels,
                "label_entropy_bits": entropy,
            }
        )
    return table


def draw(allocation: Allocation) -> "Figure":
    """Training examples of each client by label: stacked bars, or a heat map for more labels than colours."""
    ids = [client.id for client in allocation.clients]
    counted = label_counts(allocation)
    height = float(np.clip(1.2 + 0.22 * len(ids), 2.4, 16))
    below = 1.6 if counted is not None and len(counted[1]) > _BARS_UP_TO else 0  # inches, for names that stand upright
    figure = new_figure(9, height + below)
    axes = figure.add_subplot()
    if counted is None:
        _bars(axes, np.array([[client.num_examples] for client in allocation.clients]), [])
    elif len(counted[1]) <= _BARS_UP_TO:
        _bars(axes, *counted)
    else:
        _heat(figure, axes, *counted)
    name_rows(axes, ids, height, "client")
    return figure


def _bars(axes: Any, counts: np.ndarray, names: list[str]) -> None:
    from matplotlib import colormaps

    colours = colormaps["tab10" if len(names) <= 10 else "tab20"]
    places = np.arange(len(counts))
    left = np.zeros(len(counts))
    for label in range(counts.shape[1]):
        right, look = left + counts[:, label], {"color": colours(label), "label": names[label] if names else None}
        if len(counts) <= _APART_UP_TO:
            axes.barh(places, counts[:, label], left=left, height=0.85, **look)
        else:  # one outline a label: thousands of single bars take minutes
            axes.stairs(
                right, np.arange(len(counts) + 1) - 0.5, baseline=left, orientation="horizontal", fill=True, **look
            )
        left = right
    axes.set_xlabel("training examples")
    axes.set_xlim(0, 1.05 * max(1, left.max()))
    if names:
        axes.legend(title="label", loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize="small", frameon=False)


def _heat(figure: Any, axes: Any, counts: np.ndarray, names: list[str]) -> None:
    from matplotlib.colors import PowerNorm

    # Labels in the order of the clients that hold most of them, so that a skew shows as a diagonal.
    order = np.lexsort((np.arange(len(names)), counts.argmax(axis=0)))
    counts, names = counts[:, order], [names[label] for label in order]
    shown = np.ma.masked_equal(counts, 0)
    image = axes.imshow(
        shown, aspect="auto", interpolation="nearest", cmap="viridis_r", norm=PowerNorm(0.5, 0, max(1, counts.max()))
    )
    step = -(-len(names) // 60)
    axes.set_xticks(range(0, len(names), step), [short(name) for name in names[::step]], rotation=90, fontsize=6)
    axes.set_xlabel("label" if step == 1 else f"label (one in {step} is named)")
    figure.colorbar(image, ax=axes, label="training examples", pad=0.01)


def html(allocation: Allocation) -> str:
    """The picture, and the table below it."""
    picture = img(png(draw(allocation), dpi=100), "who holds what")
    keys = ["client", "domain", "train", "val", "test", "label_entropy_bits"]
    lines = []
    for row in describe(allocation):
        cells = [
            f"{row[key]:.2f}" if isinstance(row[key], float) else str("" if row[key] is None else row[key])
            for key in keys
        ]
        lines.append("<tr>" + "".join(f"<td>{escaping.escape(cell)}</td>" for cell in cells) + "</tr>")
    head = "<tr>" + "".join(f"<th>{key.replace('_', ' ')}</th>" for key in keys) + "</tr>"
    return f"{picture}<details><summary>{len(lines)} clients</summary><table>{head}{''.join(lines)}</table></details>"


def _entropy_bits(counts: np.ndarray) -> float:
    shares = counts[counts > 0] / max(1, counts.sum())
    return abs(float(-(shares * np.log2(shares)).sum()))  # a single label gives -0.0
