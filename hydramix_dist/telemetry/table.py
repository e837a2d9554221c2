"""The one table of all metrics: what each is called, which kind it is, what it carries, what it means.

Names follow Prometheus: base units, `_total` on counters only, and `hydramix_` before each where it is exported; the
JSON-lines file leaves that away. `docs/metrics.md` is written from here, and tests hold dashboards and rules to it.
Labels stay few: never a trial, a path or the text of an error, so that a sweep of a thousand trainings has as many
series as one of ten.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["counter", "gauge", "histogram"]
Combine = Literal["mean", "sum", "max", "min"]
PREFIX = "hydramix_"

# Between a step of a small network on a GPU and one of a large batch on a few cores.
STEP_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


@dataclass(frozen=True)
class Metric:
    """One metric's definition.

    `combine` says what a gauge is of several processes of one node that carry the same labels: a `sum` is of those that
    live, anything else stays as it was when the last of them has ended. Counters and histograms always add up.
    """

    name: str
    kind: Kind
    unit: str
    labels: tuple[str, ...]
    meaning: str
    combine: Combine = "mean"
    known: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # all values of a label, where they are known
    bounds: tuple[float, ...] = ()  # upper bounds of a histogram's buckets, infinity aside
    most: int | None = None  # series that an exporter takes for one run, where an arm is among the labels


# With all that has no arm less than 2,000 series for a sweep of 1,000 trainings, even of 1,000 arms.
MOST_ARMS, MOST_CELLS = 100, 1000
_RUN = ("run", "role")
_ARM = ("run", "role", "arm")
RETRY_CAUSES = ("throttled", "server", "connection", "timeout", "short")
TRIAL_STATES = ("pending", "running", "done", "early", "failed")
ENGINES = ("generator", "discriminator", "classifier")

_TRAINING = (
    Metric("trainings", "gauge", "", _RUN, "trainings under way", "sum"),
    Metric("workers", "gauge", "", _RUN, "processes that train, all workers of all trainings", "sum"),
    Metric("world_size", "gauge", "", _RUN, "workers of one training", "max"),
    Metric(
        "training_start_timestamp_seconds",
        "gauge",
        "Unix time",
        _RUN,
        "when the first step was begun, or gone on with; of several trainings, the first",
        "min",
    ),
    Metric("images_seen_total", "counter", "images", _RUN, "training images seen (mixes, for the generator)"),
    Metric("progress_ratio", "gauge", "ratio", _RUN, "share of a training that is done, at the last record"),
    Metric("images_per_second", "gauge", "images/s", _RUN, "training speed since the last record", "sum"),
    Metric(
        "step_seconds",
        "histogram",
        "seconds",
        _RUN,
        "time of a step, from the end of the step before; work on checkpoints and evaluations aside",
        bounds=STEP_SECONDS,
    ),
    Metric("learning_rate", "gauge", "", _RUN, "learning rate of the last step"),
    Metric(
        "gradient_norm",
        "gauge",
        "",
        (*_RUN, "engine"),
        "Euclidean norm of all gradients of one model in one step",
        known={"engine": ENGINES},
    ),
    Metric(
        "trainings_failed_total",
        "counter",
        "trainings",
        _RUN,
        "trainings that ended by an error; not those that were asked to stop",
    ),
    Metric("nonfinite_stops_total", "counter", "stops", _RUN, "trainings stopped by a loss that was not finite"),
    Metric(
        "run_info",
        "gauge",
        "",
        (*_RUN, "data", "device", "precision", "version"),
        "always 1; what a run is: first digits of the data's fingerprint, device, precision, version of hydramix_dist",
        "max",
    ),
)
_GENERATOR = (
    Metric(
        "loss_reconstruction", "gauge", "", _RUN, "mean squared reconstruction error summed over sources, times 2/K"
    ),
    Metric("loss_perceptual", "gauge", "", _RUN, "Laplacian-pyramid L1 between reconstruction and source, times 2/K"),
    Metric("loss_adversarial", "gauge", "", _RUN, "generator's least-squares loss on the score of its mixes"),
    Metric("loss_discriminator", "gauge", "", _RUN, "discriminator's least-squares loss on real and mixed images"),
    Metric("score_real", "gauge", "", _RUN, "mean discriminator score of real images; 1 is the target"),
    Metric("score_mixed", "gauge", "", _RUN, "mean discriminator score of mixed images; the discriminator aims at 0"),
    Metric(
        "discriminator_accuracy_real_ratio",
        "gauge",
        "ratio",
        _RUN,
        "share of the scores of real images that lie above 0.5, in one batch",
    ),
    Metric(
        "discriminator_accuracy_mixed_ratio",
        "gauge",
        "ratio",
        _RUN,
        "share of the scores of mixes that lie below 0.5, in one batch",
    ),
    Metric(
        "generator_accuracy_ratio",
        "gauge",
        "ratio",
        _RUN,
        "share of the scores of mixes that lie above 0.5, in one batch, before the discriminator's step",
    ),
    Metric(
        "mix_diversity_ratio",
        "gauge",
        "ratio",
        _RUN,
        "variance of the mixes of a batch over that of their sources, per pixel; 0: all mixes are one picture",
    ),
    Metric(
        "mask_entropy_ratio",
        "gauge",
        "ratio",
        _RUN,
        "entropy of the sources' shares of a mask over that of equal shares, mean of a batch; 0: one source alone",
    ),
)
_CLASSIFIER = (
    *(
        Metric(name, "gauge", unit, _ARM, meaning, most=MOST_ARMS)
        for name, unit, meaning in (
            ("loss_cross_entropy", "nats", "classifier's cross-entropy on its batches"),
            ("train_accuracy_ratio", "ratio", "accuracy on the training batches, mixed ones included"),
            ("validation_accuracy_ratio", "ratio", "accuracy on the validation part of the subset"),
            ("test_accuracy_ratio", "ratio", "accuracy on the test images"),
            (
                "generalization_gap_ratio",
                "ratio",
                "mean accuracy on the training batches recorded since the evaluation before, minus that on validation "
                "images, or on test images where there are none",
            ),
        )
    ),
    Metric("mixed_batches_total", "counter", "batches", _RUN, "batches of mixes that the classifier has seen"),
)
_CHECKPOINTS = (
    Metric(
        "checkpoint_last_success_timestamp_seconds",
        "gauge",
        "Unix time",
        _RUN,
        "when the last checkpoint was whole; of several trainings, the oldest",
        "min",
    ),
    Metric(
        "checkpoint_interval_seconds",
        "gauge",
        "seconds",
        _RUN,
        "expected time between two checkpoints: their distance in images over the speed since the training began",
        "max",
    ),
    Metric("checkpoint_seconds", "gauge", "seconds", _RUN, "time the last checkpoint took until it was whole"),
    Metric("checkpoint_stall_seconds", "gauge", "seconds", _RUN, "time training stood still for the last checkpoint"),
    Metric("checkpoint_bytes", "gauge", "bytes", _RUN, "size of the last checkpoint"),
    Metric(
        "checkpoint_verification_failures_total",
        "counter",
        "checkpoints",
        _RUN,
        "checkpoints of which a file was missing or not what was written",
    ),
    Metric("checkpoint_fallbacks_total", "counter", "checkpoints", _RUN, "broken checkpoints passed over at loading"),
)
_DATA = (
    Metric("store_requests_total", "counter", "requests", _RUN, "requests to object storage, tries included"),
    Metric(
        "store_retries_total",
        "counter",
        "requests",
        (*_RUN, "cause"),
        "requests to object storage that were tried again",
        known={"cause": RETRY_CAUSES},
    ),
    Metric(
        "store_given_up_total", "counter", "requests", _RUN, "requests to object storage that were given up in the end"
    ),
    Metric("store_read_bytes_total", "counter", "bytes", _RUN, "bytes read from object storage"),
    Metric("store_written_bytes_total", "counter", "bytes", _RUN, "bytes written to object storage"),
    Metric(
        "data_stall_seconds_total", "counter", "seconds", _RUN, "time spent waiting for images that were not there yet"
    ),
    Metric("cache_hits_total", "counter", "reads", _RUN, "reads of a data set that the node's cache answered"),
    Metric("cache_misses_total", "counter", "reads", _RUN, "reads of a data set that it did not"),
    Metric(
        "checksum_failures_total",
        "counter",
        "reads",
        _RUN,
        "reads of a data set or of its cache whose bytes were not those recorded",
    ),
)
_WORKERS = (
    Metric(
        "batch_seconds",
        "gauge",
        "seconds",
        _RUN,
        "time in which a worker prepares its images of one step (augmentation, masks, mixes), waiting for nobody; of a "
        "node, its slowest worker. Where nodes differ the slower one holds up all workers of a training",
        "max",
    ),
    Metric(
        "device_memory_bytes",
        "gauge",
        "bytes",
        _RUN,
        "memory that the trainings hold: of the GPU, or resident memory of the process on a CPU",
        "sum",
    ),
    Metric("worker_restarts_total", "counter", "restarts", _RUN, "times that lost workers were started again"),
    Metric("disk_free_bytes", "gauge", "bytes", ("run",), "free space where a run's folder lies, on a disk", "min"),
    Metric("disk_size_bytes", "gauge", "bytes", ("run",), "size of the disk that a run's folder lies on", "min"),
)
_SWEEP = (
    Metric(
        "sweep_trials",
        "gauge",
        "trainings",
        ("run", "state"),
        "trainings of a sweep by state",
        "max",
        known={"state": TRIAL_STATES},
    ),
    Metric(
        "sweep_accuracy_ratio",
        "gauge",
        "ratio",
        ("run", "data", "arm", "shots"),
        "mean test accuracy of an arm at N shots, over the seeds that are done",
        "max",
        most=MOST_CELLS,
    ),
    Metric("sweep_failures_total", "counter", "attempts", ("run",), "attempts of trainings that failed"),
    Metric(
        "sweep_generators_reused_total",
        "counter",
        "trainings",
        ("run",),
        "finished trainings that took a generator which was trained for another one, or found finished",
    ),
    Metric(
        "sweep_queue_age_seconds",
        "gauge",
        "seconds",
        ("run",),
        "time since a training was begun, while some wait that could begin",
        "max",
    ),
    Metric(
        "sweep_gpu_seconds_total",
        "counter",
        "seconds",
        ("run",),
        "GPU time that trainings reserved, those under way included",
    ),
)
_EXPORTER = (
    Metric(
        "processes_lost_total",
        "counter",
        "processes",
        _RUN,
        "processes that ended without a word to the exporter: killed, or crashed",
    ),
    Metric("exporter_sources", "gauge", "", (), "processes that send to this exporter", "sum"),
    Metric(
        "exporter_clock_timestamp_seconds",
        "gauge",
        "Unix time",
        (),
        "this node's clock when it was asked; ages are taken against it, not against the clock of Prometheus",
        "max",
    ),
    Metric("exporter_cpu_seconds_total", "counter", "seconds", (), "CPU time of the exporter"),
    Metric(
        "exporter_dropped_series_total",
        "counter",
        "series",
        (),
        "series that were not taken, for there were too many",
    ),
)

SECTIONS: dict[str, tuple[Metric, ...]] = {
    "Every training": _TRAINING,
    "Generator": _GENERATOR,
    "Classifier": _CLASSIFIER,
    "Checkpoints": _CHECKPOINTS,
    "Data": _DATA,
    "Workers and disk": _WORKERS,
    "Sweep": _SWEEP,
    "The exporter itself": _EXPORTER,
}
METRICS: dict[str, Metric] = {metric.name: metric for section in SECTIONS.values() for metric in section}
