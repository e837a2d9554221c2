"""The schema of `results.json`: what a pilot measured, typed, with the meaning and unit of every field.

Shares and accuracies lie in [0, 1]; times are seconds; lengths of training are images seen. A value that could not
be computed is null and a `note` beside it says why.
"""

import json
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hydramix_dist.errors import UserError
from hydramix_dist.store import Store

SCHEMA_VERSION = 1
RESULTS_FILE = "results.json"

Share = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[float, Field(ge=0)]
Curve = Annotated[tuple[tuple[int, float], ...], Field(description="(images seen, value), in order")]
Outcome = Literal["helped", "did not help", "cannot tell", "mixed", "too short to judge", "nothing to compare"]


class Record(BaseModel):
    """Base of all records: frozen, unknown keys refused, no NaN and no infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


R = TypeVar("R", bound=Record)


class ArmInfo(Record):
    """One method in the comparison."""

    name: str
    augmentation: Annotated[str, Field(description="augmentation of the real images")]
    generator: Annotated[
        str | None, Field(description="key of its generator's settings; null: no mixing, or mixing of pixels")
    ] = None
    count: Annotated[int | None, Field(description="K, images in one mix; null: no mixing")] = None
    mask: Annotated[
        str | None, Field(description="kind of mask, and whether a region takes shares; null: no mixing")
    ] = None
    classifier: Annotated[dict[str, Any], Field(description="classifier settings that this arm alone has")] = {}

    @property
    def mixing(self) -> bool:
        """Return whether this arm trains on mixed images, a generator's or mixes of pixels."""
        return self.count is not None


class DataSummary(Record):
    """The images that everything was measured on."""

    name: str
    classes: tuple[str, ...]
    counts: Annotated[dict[str, int], Field(description="training images available a class, before the N-shot draw")]
    side: Annotated[int, Field(description="stored side, pixels")]
    test_images: Annotated[int, Field(description="test images in the data set")]
    source: str | None = None
    licence: str | None = None
    fingerprint: Annotated[str, Field(description="sha256 over ids, labels, pixels and classes")]


class Measured(Record):
    """What is compared of one classifier, trained for one arm on one subset: the last test result, never the best."""

    arm: str
    shots: Annotated[int, Field(description="N, labelled images a class")]
    seed: int
    accuracy: Share
    balanced_accuracy: Annotated[Share, Field(description="mean of the classes' accuracies")]
    seconds: Annotated[Seconds, Field(description="training of the classifier")]
    generator_seconds: Annotated[Seconds, Field(description="training of the generator it used; 0: none")] = 0.0
    generator_key: str | None = None
    test_images: int


class RunResult(Measured):
    """One classifier, trained for one arm on one subset: the last test result counts, never the best."""

    per_class: Annotated[dict[str, Share | None], Field(description="null: no test image of that class")]
    confusion: Annotated[tuple[tuple[int, ...], ...], Field(description="[true class][predicted class], test images")]
    test_curve: Curve
    train_loss_curve: Curve
    images_seen: int
    peak_memory_bytes: int | None = None


class ArmSummary(Record):
    """One arm at one N, over its seeds."""

    arm: str
    shots: int
    n: Annotated[int, Field(description="finished seeds")]
    mean: Annotated[Share, Field(description="of the accuracies")]
    sd: Annotated[float | None, Field(description="sample standard deviation of the accuracies")] = None
    interval_low: Annotated[float | None, Field(description="95 % t interval of the mean")] = None
    interval_high: float | None = None
    balanced_mean: Annotated[Share, Field(description="of the balanced accuracies")]
    seconds: Annotated[Seconds, Field(description="mean training time of one classifier")]
    generator_seconds: Annotated[Seconds, Field(description="mean training time of its generator")]
    note: str | None = None


class PairResult(Record):
    """One arm against another at one N: differences of accuracy (arm minus reference) over the seeds both have."""

    arm: str
    reference: str
    shots: int
    seeds: Annotated[tuple[int, ...], Field(description="seeds that both arms have finished")]
    arm_mean: Annotated[Share, Field(description="the arm's accuracy over these seeds")]
    reference_mean: Annotated[Share, Field(description="the reference's accuracy over these seeds")]
    mean_difference: float
    spread: Annotated[float | None, Field(description="sample standard deviation of the differences")] = None
    interval_low: Annotated[float | None, Field(description="95 % paired t interval of the mean difference")] = None
    interval_high: float | None = None
    p_value: Annotated[float | None, Field(description="two-sided paired t test")] = None
    p_holm: Annotated[float | None, Field(description="p_value corrected by Holm over the comparisons at this N")] = (
        None
    )
    in_family: Annotated[bool, Field(description="false: for information, not among the corrected comparisons")] = True
    note: str | None = None


class Answer(Record):
    """The answer at one N. `reference` is the best arm without mixing, `arm` the mixing arm compared with it."""

    shots: int
    outcome: Outcome
    arm: str | None = None
    reference: str | None = None
    cost_ratio: Annotated[
        float | None, Field(description="training time with mixing, generator included / without")
    ] = None
    sentences: tuple[str, str]


class Verdict(Record):
    """Does mixing add to the best arm without mixing? Two sentences for a reader who does no machine learning."""

    outcome: Outcome
    sentences: tuple[str, str]
    answers: Annotated[tuple[Answer, ...], Field(description="one for each N")]


class PilotResults(Record):
    """Everything a pilot measured and concluded: the content of `results.json`."""

    schema_version: Literal[1] = 1
    name: Annotated[str, Field(description="the run's name")]
    preset: str | None = None
    created: Annotated[str, Field(description="time of writing, ISO 8601")]
    arms: tuple[ArmInfo, ...]
    shots: tuple[int, ...]
    seeds: tuple[int, ...]
    runs: tuple[RunResult, ...]
    summaries: tuple[ArmSummary, ...]
    pairs: tuple[PairResult, ...]
    verdict: Verdict
    data: DataSummary
    warnings: Annotated[tuple[str, ...], Field(description="on the data")] = ()
    inputs: str = "Nothing came in from outside: no pretrained weights, no other data, no download."
    settings: Annotated[dict[str, Any], Field(description="the resolved settings, every default written out")]
    versions: dict[str, str]
    machine: dict[str, str]

    @property
    def missing(self) -> tuple[tuple[str, int, int], ...]:
        """Return (arm, shots, seed) of each planned run without a result, in the pilot's order."""
        return missing_runs(self.arms, self.shots, self.seeds, self.runs)


def missing_runs(
    arms: Sequence[ArmInfo], shots: Sequence[int], seeds: Sequence[int], runs: Iterable[Measured]
) -> tuple[tuple[str, int, int], ...]:
    """Return (arm, shots, seed) of each planned run that is not among `runs`, in the order of N, seed, arm."""
    have = {(run.arm, run.shots, run.seed) for run in runs}
    planned = ((arm.name, n, seed) for n in shots for seed in seeds for arm in arms)
    return tuple(run for run in planned if run not in have)


def save_results(store: Store, results: PilotResults) -> None:
    """Write `results.json` into a run folder, as a whole. Raises UserError where the disk refuses."""
    store.put(RESULTS_FILE, (results.model_dump_json(indent=1) + "\n").encode())


def load_results(store: Store) -> PilotResults:
    """Return a run's results. Raises UserError where they are absent, broken, a sweep's or of a newer schema."""
    return read_record(
        store,
        PilotResults,
        version=SCHEMA_VERSION,
        key="data",
        writer="pilot",
        anew="delete it and run the pilot's command again, which writes it anew",
    )


def read_record(store: Store, model: type[R], *, version: int, key: str, writer: str, anew: str) -> R:
    """Return what `results.json` holds, as `model`; by its field `key` it is known as what a `writer` wrote.

    Raises UserError where the file is absent, broken, of another writer or of a schema newer than `version`; `anew`
    says how a broken one is replaced.
    """
    path = store.path(RESULTS_FILE)
    try:
        text = store.read(RESULTS_FILE)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"{path} does not exist; name the folder of a {writer} run (its --out)") from error
    try:
        tree = json.loads(text)
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); {anew}") from error
    if isinstance(tree, dict):
        found = tree.get("schema_version")
        if isinstance(found, int) and key not in tree:
            raise UserError(
                f"{path} has no '{key}': no {writer} wrote it; name the folder of a {writer} run (its --out)"
            )
        if isinstance(found, int) and found > version:
            raise UserError(
                f"{path} was written by a newer hydramix_dist (schema {found}, this one reads {version}); "
                "install the newer version to read it"
            )
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise UserError(f"{path} is damaged: {where}: {first['msg']}; {anew}") from error
