"""What drawing a batch of mixes costs beside the generator's step: tuples, views and masks, apart and together.

A round takes one whole step of a preset's generator, and then each part several times over, of other sample numbers
each time. Run: `python benchmarks/composing.py [--preset quick] [--generator hydramix]` (seconds).

Legend: B mixes of K images each, N views that they are made of, C channels, H W pixels, h w feature cells.
"""

import common
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hydramix_dist.config.schema import GeneratorSettings
from hydramix_dist.data.augmenter import Augmenter
from hydramix_dist.data.draws import Order
from hydramix_dist.data.shots import ShotSet
from hydramix_dist.mixing.masks import draw_regions, masks_from_regions, needs_segments
from hydramix_dist.mixing.tuples import draw_layout, draw_partners, draw_tuples
from hydramix_dist.training.generator import GeneratorTraining
from hydramix_dist.training.group import Alone

CALLS = 20  # of each part in a round


class Parts:
    """The parts of composing a batch, by the same functions as `mixing.compose`, each to be called alone."""

    def __init__(self, settings: GeneratorSettings, shots: ShotSet, feature_side: int) -> None:
        self._settings, self._mix, self._shots, self._feature_side = settings, settings.mix, shots, feature_side
        self._order = Order(0, "composing", len(shots.ids))
        self._augmenter = Augmenter("basic", 0, settings.network.side)
        self._slots = settings.mix.count if settings.group is None else 1
        self._rows_N, self._sources_BK, self._layout_B = self.tuples(0)

    def tuples(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return rows_N of the views in the shot set, sources_BK of the mixes among them, and layout_B."""
        numbers, size = self._numbers(step), self._settings.group
        layout_B = draw_layout(self._mix, numbers, 0).to(self._shots.labels_N.device)
        if size is None:
            rows_BK = draw_tuples(self._order.items(numbers), self._shots, self._mix, numbers, 0)
            return rows_BK.flatten(), torch.arange(rows_BK.numel(), device=rows_BK.device).view(rows_BK.shape), layout_B
        leads, group = numbers[::size] // size, self._mix.model_copy(update={"count": size})
        rows_QG = draw_tuples(self._order.items(leads), self._shots, group, leads, 0)
        return rows_QG.flatten(), draw_partners(rows_QG, self._mix.count, numbers, 0), layout_B

    def views(self, step: int) -> Tensor:
        """Return augmented images [N, 3, H, W]."""
        draws = self._augmenter.draw(self._numbers(step), self._slots)
        return draws.apply(self._shots.images_NCHW[self._rows_N])

    def masks(self, step: int) -> Tensor:
        """Return m_BKhw, from the segments moved as their image."""
        numbers, segments_BHW = self._numbers(step), None
        if needs_segments(self._mix):
            assert self._shots.segments_NHW is not None
            at_B = self._sources_BK.gather(1, self._layout_B[:, None])[:, 0]
            draws = self._augmenter.draw(numbers, self._slots).at(at_B)
            segments_BHW = draws.apply_to_maps(self._shots.segments_NHW[self._rows_N[at_B]])
        regions = draw_regions(segments_BHW, self._mix, numbers, 0, step, self._feature_side)
        return masks_from_regions(regions.to(self._rows_N.device), self._mix, self._feature_side)

    def _numbers(self, step: int) -> npt.NDArray[np.int64]:
        return np.arange(step * self._settings.batch, (step + 1) * self._settings.batch)


def main() -> None:
    """Measure, and print a table and a JSON line."""
    command = common.parser(__doc__, repeats=15)
    command.add_argument("--preset", default="quick", help="name of a preset, or a YAML file (default quick)")
    command.add_argument("--generator", default="hydramix", help="one of its generators (default hydramix)")
    arguments = command.parse_args()
    device, pilot = common.prepare(arguments), common.preset(arguments.preset)
    settings = pilot.generators[arguments.generator]
    shots = common.photographs_like(settings.network.side).to(device)
    training = GeneratorTraining(settings, pilot.runtime, shots, 0, Alone(device), {})
    parts = Parts(settings, shots, common.whole_batch(training, 0)["mask"].shape[-1])

    def often(part: common.Step) -> common.Step:
        return lambda number: [part(number * CALLS + call) for call in range(CALLS)]

    names = {"tuples": parts.tuples, "views": parts.views, "masks": parts.masks, "whole batch": training.batch}
    steps: dict[str, common.Step] = {"step": common.one_step(training)} | {
        name: often(part) for name, part in names.items()
    }
    times = common.interleaved(steps, arguments.repeats, device, warm_up=3)
    times = {name: taken if name == "step" else taken * (1 / CALLS) for name, taken in times.items()}
    times["tuples and masks"] = times["tuples"] + times["masks"]

    shares = {name: taken.over(times["step"]) for name, taken in times.items()}
    rows = [
        {
            "part": name,
            "ms": common.quartiles(times[name].wall, 3),
            "CPU ms": common.quartiles(times[name].cpu, 3),
            "% of the step": common.quartiles(100 * shares[name].wall),
            "by CPU time": common.quartiles(100 * shares[name].cpu),
        }
        for name in times
    ]
    common.show(f"{arguments.generator} of {arguments.preset}, batch {settings.batch}, {common.machine(device)}", rows)
    common.record("composing", machine=common.machine(device), preset=arguments.preset, ms=times, share=shares)


if __name__ == "__main__":
    main()
