"""Step times at the sizes of the `quick` preset under each runtime setting: the figures behind their defaults.

Ratios are to the default. Run: `python benchmarks/steps.py [--compile]` (its first steps take a minute more).
"""

from common import (
    Step,
    interleaved,
    machine,
    one_step,
    parser,
    photographs_like,
    prepare,
    preset,
    quartiles,
    record,
    show,
)

from hydramix_dist.config.schema import RuntimeSettings
from hydramix_dist.training.classifier import ClassifierInputs, ClassifierTraining, HeldOut
from hydramix_dist.training.generator import GeneratorTraining


def main() -> None:
    """Measure generator and classifier steps, and print a table and a JSON line for each."""
    command = parser(__doc__, repeats=15)
    command.add_argument("--compile", action="store_true", help="also torch.compile")
    arguments = command.parse_args()
    device = prepare(arguments)
    settings = preset("quick")
    generator, classifier = settings.generators["hydramix"], settings.classifier
    shots = photographs_like(generator.network.side)
    inputs = ClassifierInputs(shots, "basic", None, HeldOut(shots.images_NCHW, shots.labels_N), None)
    runtimes = {
        "bf16 channels-last (default)": RuntimeSettings(),
        "bf16 contiguous": RuntimeSettings(channels_last=False),
        "fp32 channels-last": RuntimeSettings(precision="fp32"),
        "fp32 contiguous": RuntimeSettings(precision="fp32", channels_last=False),
    }
    if arguments.compile:
        runtimes["bf16 channels-last compile"] = RuntimeSettings(compile=True)

    kinds: dict[str, dict[str, Step]] = {
        f"generator, K={generator.mix.count}, batch {generator.batch}": {
            name: one_step(GeneratorTraining(generator, runtime, shots, 0, device, {}))
            for name, runtime in runtimes.items()
        },
        f"classifier, {classifier.network}, batch {classifier.batch}": {
            name: one_step(ClassifierTraining(classifier, runtime, inputs, 0, device, {}))
            for name, runtime in runtimes.items()
        },
    }
    for kind, steps in kinds.items():
        times = interleaved(steps, arguments.repeats, device, warm_up=3)
        default = next(iter(times.values()))
        rows = [
            {
                "runtime": name,
                "ms": quartiles(taken.wall, 1),
                "CPU ms": quartiles(taken.cpu, 1),
                "ratio": quartiles(taken.over(default).wall),
                "by CPU time": quartiles(taken.over(default).cpu),
            }
            for name, taken in times.items()
        ]
        show(f"step of a {kind}, {machine(device)}", rows)
        record("steps", kind=kind, machine=machine(device), ms=times)


if __name__ == "__main__":
    main()
