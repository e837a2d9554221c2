"""Step times at the sizes of the `quick` preset under each runtime setting: the figures behind their defaults.

Ratios are to the default. Run: `python benchmarks/steps.py [--compile]` (its first steps take a minute more).
"""

import common

from hydramix_dist.config.schema import RuntimeSettings
from hydramix_dist.data.held_out import HeldOut
from hydramix_dist.training.classifier import ClassifierInputs, ClassifierTraining
from hydramix_dist.training.generator import GeneratorTraining
from hydramix_dist.training.group import Alone


def main() -> None:
    """Measure generator and classifier steps, and print a table and a JSON line for each."""
    command = common.parser(__doc__, repeats=15)
    command.add_argument("--compile", action="store_true", help="also torch.compile")
    arguments = command.parse_args()
    device = common.prepare(arguments)
    settings = common.preset("quick")
    generator, classifier = settings.generators["hydramix"], settings.classifier
    shots = common.photographs_like(generator.network.side)
    inputs = ClassifierInputs(shots, "basic", None, HeldOut(shots.images_NCHW, shots.labels_N), None)
    runtimes = {
        "bf16 channels-last (default)": RuntimeSettings(),
        "bf16 contiguous": RuntimeSettings(channels_last=False),
        "fp32 channels-last": RuntimeSettings(precision="fp32"),
        "fp32 contiguous": RuntimeSettings(precision="fp32", channels_last=False),
    }
    if arguments.compile:
        runtimes["bf16 channels-last compile"] = RuntimeSettings(compile=True)

    kinds: dict[str, dict[str, common.Step]] = {
        f"generator, K={generator.mix.count}, batch {generator.batch}": {
            name: common.one_step(GeneratorTraining(generator, runtime, shots, 0, Alone(device), {}))
            for name, runtime in runtimes.items()
        },
        f"classifier, {classifier.network}, batch {classifier.batch}": {
            name: common.one_step(ClassifierTraining(classifier, runtime, inputs, 0, Alone(device), {}))
            for name, runtime in runtimes.items()
        },
    }
    for kind, steps in kinds.items():
        times = common.interleaved(steps, arguments.repeats, device, warm_up=3)
        default = next(iter(times.values()))
        rows = [
            {
                "runtime": name,
                "ms": common.quartiles(taken.wall, 1),
                "CPU ms": common.quartiles(taken.cpu, 1),
                "ratio": common.quartiles(taken.over(default).wall),
                "by CPU time": common.quartiles(taken.over(default).cpu),
            }
            for name, taken in times.items()
        ]
        common.show(f"step of a {kind}, {common.machine(device)}", rows)
        common.record("steps", kind=kind, machine=common.machine(device), ms=times)


if __name__ == "__main__":
    main()
