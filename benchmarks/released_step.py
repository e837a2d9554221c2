"""A training step of the generator against the released procedure on the same networks, and with sources shared.

What the released code does in a step stands in `released.py`. Ours encodes each image once, decodes three times, hands
the mixes on to the discriminator's phase, and has the segments from the import. "live": the decoder applies its
residual blocks; "skip": the released wiring. "shared": the batch is one group of one class, whose images are encoded
and reconstructed once; compared with mixes that have sources of their own, at the same K.

The bound is the two steps' ratio of arithmetic, forward and backward of all networks; the measured ratio stands beside
it without the segmentation, and then with it. Run: `python benchmarks/released_step.py` (about 2 minutes on one core),
on a GPU with `--repeats 30 --peak-tflops N`.
"""

from typing import Any, NamedTuple

import common
import numpy as np
import torch
from released import ReleasedTraining, segment_augmented

from hydramix_dist.config.load import build
from hydramix_dist.config.schema import GeneratorSettings, RuntimeSettings, SegmentSettings
from hydramix_dist.training.generator import GeneratorTraining
from hydramix_dist.training.group import Alone

SIDE = 64
RELEASED_MIX = {"count": 2, "self_pairs": True, "mask": {"kind": "chimera-segments"}}
SEGMENTING = "segmentation"


class Comparison(NamedTuple):
    """Two variants by name, and whether arithmetic alone bounds their ratio (at equal precision it does)."""

    slow: str
    fast: str
    bounded: bool


def main() -> None:
    """Measure, and print two tables and a JSON line."""
    command = common.parser(__doc__, repeats=4)
    command.add_argument("--batch", type=int, default=8, help="mixes a step, at least 3 (default 8)")
    command.add_argument("--width", type=int, default=64, help="channels after the first layer (default 64, the full)")
    command.add_argument("--peak-tflops", type=float, help="the device's bf16 peak, to print the share of it")
    arguments = command.parse_args()
    device, batch = common.prepare(arguments), arguments.batch

    trainings, comparisons = _variants(batch, arguments.width, device)
    steps: dict[str, common.Step] = {name: common.one_step(training) for name, training in trainings.items()}
    work = {name: common.gigaflop(step) / batch for name, step in steps.items()}
    views_NCHW = common.whole_batch(trainings["released, live, fp32"], 0)["sources"].flatten(0, 1)
    segments = SegmentSettings()
    times = common.interleaved(
        steps | {SEGMENTING: lambda number: segment_augmented(views_NCHW, segments)}, arguments.repeats, device
    )
    segmenting = times.pop(SEGMENTING)

    rows = []
    for name, taken in times.items():
        speed = work[name] * batch / float(np.median(taken.wall))  # GFLOP a millisecond are TFLOP/s
        row = {
            "step": name,
            "ms a mix": common.quartiles(taken.wall / batch, 1),
            "CPU ms a mix": common.quartiles(taken.cpu / batch, 1),
            "GFLOP a mix": f"{work[name]:.1f}",
            "TFLOP/s": f"{speed:.3f}",
        }
        peak = {"of peak": f"{100 * speed / arguments.peak_tflops:.1f} %"} if arguments.peak_tflops else {}
        rows.append(row | peak)
    common.show(f"steps, {SIDE}x{SIDE}, width {arguments.width}, batch {batch}, {common.machine(device)}", rows)
    print(f"  segmentation of both images, in each released step: {common.quartiles(segmenting.wall / batch)} ms a mix")

    rows, ratios = [], {}
    for slow, fast, bounded in comparisons:
        networks = times[slow] - segmenting if slow.startswith("released") else times[slow]
        gain, whole = networks.over(times[fast]), times[slow].over(times[fast])
        bound = work[slow] / work[fast] if bounded else None
        ratios[f"{slow} / {fast}"] = {"bound": bound, "networks": gain, "whole step": whole}
        rows.append(
            {
                "ratio": f"{slow} / {fast}",
                "bound": f"{bound:.2f}" if bound else "",
                "networks": common.quartiles(gain.wall),
                "by CPU time": common.quartiles(gain.cpu),
                "whole step": common.quartiles(whole.wall),
                "whole by CPU time": common.quartiles(whole.cpu),
            }
        )
    common.show("ratios of times; bound: of arithmetic, at equal precision", rows)
    common.record(
        "released_step", machine=common.machine(device), batch=batch, width=arguments.width, ms=times, ratios=ratios
    )


def _variants(batch: int, width: int, device: torch.device) -> tuple[dict[str, common.Stepping], list[Comparison]]:
    """Return the trainings by name, and which of them are compared."""
    shots = common.photographs_like(SIDE)
    trainings: dict[str, common.Stepping] = {}
    comparisons: list[Comparison] = []
    for precision in ("fp32", "bf16"):
        runtime = RuntimeSettings(precision=precision)

        def ours(name: str, settings: GeneratorSettings, runtime: RuntimeSettings = runtime) -> str:
            trainings[name] = GeneratorTraining(settings, runtime, shots, 0, Alone(device), {})
            return name

        for blocks in ("live", "skip"):
            settings, released = _settings(blocks, batch, width, RELEASED_MIX), f"released, {blocks}, {precision}"
            trainings[released] = ReleasedTraining(settings, runtime, shots, 0, device)
            name = ours(f"ours, {blocks}, {precision}", settings)
            comparisons.append(Comparison(released, name, bounded=True))
            if precision == "bf16":
                comparisons.append(Comparison(f"released, {blocks}, fp32", name, bounded=False))

        two = f"ours, live, {precision}"
        shared_two = ours(f"{two}, K=2 shared", _settings("live", batch, width, {"count": 2}, group=batch))
        three = ours(f"{two}, K=3", _settings("live", batch, width, {"count": 3}))
        shared_three = ours(f"{two}, K=3 shared", _settings("live", batch, width, {"count": 3}, group=batch))
        comparisons += [Comparison(two, shared_two, bounded=True), Comparison(three, shared_three, bounded=True)]
    return trainings, comparisons


def _settings(blocks: str, batch: int, width: int, mix: dict[str, Any], group: int | None = None) -> GeneratorSettings:
    """Return the released settings but for what is mixed."""
    tree = {
        "network": {"side": SIDE, "width": width, "decoder_blocks": {"live": "apply", "skip": "skip"}[blocks]},
        "discriminator": {"width": width, "score": "sigmoid", "augment": False, "real_per_batch": True},
        "mix": mix,
        "batch": batch,
        "group": group,
    }
    return build(GeneratorSettings, tree, "the benchmark's settings")


if __name__ == "__main__":
    main()
