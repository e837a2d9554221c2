"""What mixing adds to the training of a classifier, for each arm of a preset that mixes.

The plain step is that of the same classifier and augmentation without mixing, the mixed one shows a mixed batch in
every step. A training takes a share of them, `mix_share` while it mixes and less over the whole where `mix_until` ends
that early: the mean at each share is what counts. The bound is the same ratio of arithmetic: K encodes and a decode
for each image, forward only, beside the classifier's forward and
backward. Run: `python benchmarks/classifier_step.py [--preset quick]` (half a minute on one core).
"""

import common
import numpy as np
import torch

from hydramix_dist.config.schema import PilotSettings
from hydramix_dist.data.held_out import HeldOut
from hydramix_dist.mixing.mixer import Mixer, PixelMixing
from hydramix_dist.models.generator import Generator
from hydramix_dist.models.placement import placed
from hydramix_dist.training.classifier import ClassifierInputs, ClassifierTraining
from hydramix_dist.training.group import Alone


def main() -> None:
    """Measure, and print a table and a JSON line."""
    command = common.parser(__doc__, repeats=40)
    command.add_argument("--preset", default="quick", help="name of a preset, or a YAML file (default quick)")
    arguments = command.parse_args()
    device, settings = common.prepare(arguments), common.preset(arguments.preset)
    arms = [name for name in settings.arms if settings.mix_of(name) is not None]

    steps: dict[str, common.Step] = {}
    for arm in arms:
        steps[f"{arm}: real images"] = _step(settings, arm, None, device)
        steps[f"{arm}: mixed images"] = _step(settings, arm, _mixer(settings, arm, device), device)
    work = {name: common.gigaflop(step) for name, step in steps.items()}
    times = common.interleaved(steps, arguments.repeats, device, warm_up=3)

    rows, ratios = [], {}
    for arm in arms:
        classifier = settings.classifier_of(arm)
        plain, mixed = f"{arm}: real images", f"{arm}: mixed images"
        # While batches may be mixed, and over the whole training; one row where the two are the same.
        for share in sorted({classifier.mix_share, classifier.mix_share * classifier.mix_until}, reverse=True):
            mean = times[plain] * (1 - share) + times[mixed] * share
            ratio, bound = mean.over(times[plain]), 1 - share + share * work[mixed] / work[plain]
            ratios[f"{arm}, share {share:g}"] = {"share": share, "bound": bound, "ratio": ratio}
            rows.append(
                {
                    "arm": arm,
                    "plain ms": common.quartiles(times[plain].wall, 1),
                    "mixed ms": common.quartiles(times[mixed].wall, 1),
                    "share": f"{share:g}",
                    "mean ms": f"{np.median(mean.wall):.1f}",
                    "mean / plain": common.quartiles(ratio.wall),
                    "by CPU time": common.quartiles(ratio.cpu),
                    "bound": f"{bound:.2f}",
                }
            )
    title = (
        f"classifier step, {settings.classifier.network}, batch {settings.classifier.batch}, {common.machine(device)}"
    )
    common.show(title, rows)
    common.record(
        "classifier_step",
        machine=common.machine(device),
        preset=arguments.preset,
        gigaflop=work,
        ms=times,
        ratios=ratios,
    )


def _step(settings: PilotSettings, arm: str, mixer: Mixer | None, device: torch.device) -> common.Step:
    """Return the step of an arm's classifier: on real images without a mixer, else on mixed ones."""
    classifier = settings.classifier_of(arm).model_copy(update={"mix_share": 1.0, "mix_until": 1.0})
    shots = common.photographs_like(classifier.side)
    held_out = HeldOut(shots.images_NCHW, shots.labels_N)
    inputs = ClassifierInputs(shots, settings.arms[arm].augmentation, mixer, held_out, None)
    return common.one_step(ClassifierTraining(classifier, settings.runtime, inputs, 0, Alone(device), {}))


def _mixer(settings: PilotSettings, arm: str, device: torch.device) -> Mixer:
    """Return an arm's mixer; its generator is untrained, which its speed does not mind."""
    mix, trained = settings.mix_of(arm), settings.arms[arm].generator
    assert mix is not None
    generator: Generator | PixelMixing
    if trained is None:
        side = settings.classifier_of(arm).side
        generator = PixelMixing(side)
    else:
        network = settings.generators[trained].network
        side = network.side
        generator = placed(Generator(network), device, channels_last=settings.runtime.channels_last)
    shots, bf16 = common.photographs_like(side).to(device), settings.runtime.precision == "bf16"
    return Mixer(generator, shots, mix, 0, settings.arms[arm].augmentation, bf16=bf16)


if __name__ == "__main__":
    main()
