"""How long a training is, and which sample numbers each process computes in one go.

The batch of the settings is that of all processes. It is cut into pieces, as equal as whole units allow: a process
computes `passes` of them a step, on every process the same number, so that all make the same collective calls.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hydramix_dist.errors import UserError


@dataclass(frozen=True)
class Piece:
    """What one process computes in one go: sample numbers of one step, and their share of the step's batch.

    `index` counts the pieces of a step over all processes.
    """

    step: int
    numbers: npt.NDArray[np.int64]
    share: float
    index: int


@dataclass(frozen=True)
class Length:
    """How long a training is, in images; a step shows `batch` of them, in units that are not divided."""

    images: int
    batch: int
    unit: int = 1

    @property
    def steps(self) -> int:
        """Return the number of steps: the images in whole batches, rounded up."""
        return -(-self.images // self.batch)

    def passes(self, world_size: int, micro_batch: int | None) -> int:
        """Return how many pieces each process computes a step.

        A piece has at most `micro_batch` samples, but for one unit more where the batch cannot be divided evenly.
        Raises UserError where a batch has fewer units than processes, or a piece could not hold a unit.
        """
        units = self.batch // self.unit
        if units < world_size:
            of_groups = f" (groups of {self.unit} are not divided)" if self.unit > 1 else ""
            raise UserError(
                f"a batch of {self.batch} cannot be shared by {world_size} workers{of_groups}; use at most {units}, "
                f"or a batch of {world_size * self.unit} or more"
            )
        if micro_batch is None:
            return 1
        if micro_batch < self.unit:
            raise UserError(
                f"runtime.micro_batch {micro_batch} is below the group of {self.unit}, which is not divided; give "
                f"{self.unit} or more, or a smaller generator.group"
            )
        largest = -(-units // world_size)
        return min(-(-largest // (micro_batch // self.unit)), units // world_size)

    def pieces(self, step: int, rank: int, world_size: int, micro_batch: int | None) -> list[Piece]:
        """Return the pieces of a step that one process computes, in order. Raises UserError as `passes`."""
        passes = self.passes(world_size, micro_batch)
        count, units = passes * world_size, self.batch // self.unit
        pieces = []
        for index in range(rank * passes, (rank + 1) * passes):
            first, end = (self.unit * (i * units // count) for i in (index, index + 1))
            numbers = np.arange(step * self.batch + first, step * self.batch + end)
            pieces.append(Piece(step, numbers, (end - first) / self.batch, index))
        return pieces
