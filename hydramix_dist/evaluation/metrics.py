"""Scores of one classifier on its test images, all derived from the confusion matrix.

torchmetrics is not used here: importing it imports torchvision, which cannot be imported plainly beside every torch
build, for what is one count of pairs.

Legend: N test images, L classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Scores:
    """Accuracies in [0, 1]; a class without test images has None and does not enter the balanced accuracy."""

    accuracy: float
    balanced_accuracy: float
    per_class: dict[str, float | None]
    confusion: tuple[tuple[int, ...], ...]


def confusion_matrix(predictions_N: Tensor, labels_N: Tensor, num_classes: int) -> Tensor:
    """Return int64 [L, L]: how many images of true class (row) were given each class (column).

    Raises ValueError where the lengths differ or a value lies outside {0..L-1}.
    """
    if predictions_N.shape != labels_N.shape:
        raise ValueError(f"{len(predictions_N)} predictions for {len(labels_N)} labels")
    both = torch.stack((labels_N.long(), predictions_N.long()))
    if both.numel() and not 0 <= int(both.min()) <= int(both.max()) < num_classes:
        raise ValueError(f"a label or prediction lies outside 0..{num_classes - 1}")
    pairs_N = both[0] * num_classes + both[1]
    return torch.bincount(pairs_N, minlength=num_classes**2).reshape(num_classes, num_classes)


def score(output: Tensor, labels_N: Tensor, classes: Sequence[str]) -> Scores:
    """Return the scores of predictions [N] (int) or logits [N, L] against labels [N].

    Balanced accuracy is the mean of the classes' accuracies over the classes that have test images.
    Raises ValueError for no test image, for logits that are not finite, and as `confusion_matrix` does.
    """
    if len(labels_N) == 0:
        raise ValueError("no test images to score")
    if output.ndim == 2:
        if not bool(torch.isfinite(output).all()):
            raise ValueError("the classifier's output is not finite")
        output = output.argmax(dim=1)
    counts = confusion_matrix(output, labels_N, len(classes)).tolist()
    shares = [row[i] / sum(row) if sum(row) else None for i, row in enumerate(counts)]
    present = [share for share in shares if share is not None]
    return Scores(
        accuracy=sum(row[i] for i, row in enumerate(counts)) / len(labels_N),
        balanced_accuracy=sum(present) / len(present),
        per_class=dict(zip(classes, shares, strict=True)),
        confusion=tuple(tuple(row) for row in counts),
    )
