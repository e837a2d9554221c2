"""`Run health`: is this training well, and is it learning?"""

from board import Board, choice, entry
from expressions import ARM, TRAINING, gauge, highest, oldest, quantile, rate
from limits import LIMITS
from panels import above, graph, grid, number, words

FIRING = (
    "max by (alertname, severity, run, role) "
    '(ALERTS{alertname=~"Hydramix.*",alertstate="firing",run=~"$run|"})'  # those without a run as well
)
COLUMNS = ("Time", "Value")
SEVERITIES = {"critical": "red", "warning": "orange", "info": "blue"}

_NOW = (
    number(
        "Trainings under way",
        "Trainings that run at this moment, by role. Healthy: as many as were started. Zero while a run should train: "
        "it has ended, or its process was killed; status.json in the training's folder says which.",
        {"{{role}}": gauge("trainings", ("role",), role="generator|classifier")},
        base="text",
    ),
    number(
        "Speed",
        "Training images a second (mixes, for a generator), all trainings together. Healthy: steady. A fall without "
        "more trainings on the machine points at waiting for data or for a checkpoint: see Data and checkpoints.",
        {"{{role}}": rate("images_seen_total", ("role",), role="generator|classifier")},
        base="text",
    ),
    number(
        "Progress",
        "Share of a training that is done, the mean where several are under way. Healthy: it grows. It stands still "
        "while a training evaluates or saves; for minutes: the process hangs. How far a sweep is: see Sweep.",
        {"{{role}}": gauge("progress_ratio", ("role",), role="generator|classifier")},
        "percentunit",
        base="text",
    ),
    number(
        "Under way since",
        "Time since the oldest training of these was begun or gone on with. Healthy: about what was forecast, by the "
        "pilot itself or by `hydramix sweep run --dry-run`. Much longer: see Time of a step.",
        {"longest": oldest("training_start_timestamp_seconds")},
        "s",
        base="text",
    ),
    number(
        "Ended by an error",
        "Trainings that ended by an error and, among them, those whose loss was not finite, in the time range above. "
        "Healthy: none. status.json in the training's folder has the error; where a loss was not finite look at the "
        "last loss terms and gradient norms below, then lower the learning rate.",
        {"all": highest("trainings_failed_total"), "not finite": highest("nonfinite_stops_total")},
        steps=above(red=1),
    ),
    number(
        "Firing alerts",
        "Alerts of these runs, and those of no run in particular. Healthy: none. The table below names them; each has "
        "a section in docs/runbook.md.",
        {"alerts": f"count ({FIRING}) or vector(0)"},
        steps=above(red=1),
    ),
    graph(
        "Images a second",
        "Speed of each run's trainings, together. Healthy: steady after the first minute. Drops that come in turns are "
        "evaluations and checkpoints.",
        {"{{role}} · {{run}}": gauge("images_per_second", TRAINING, role="generator|classifier")},
    ),
    graph(
        "Time of a step",
        "Median and 95th percentile, checkpoints and evaluations aside; estimated within the histogram's buckets. "
        "Healthy: both flat and close. A p95 far above the median: stalls, see Data and checkpoints.",
        {
            "p50 {{role}} · {{run}}": quantile(0.5, "step_seconds", TRAINING),
            "p95 {{role}} · {{run}}": quantile(0.95, "step_seconds", TRAINING),
        },
        "s",
        dashed="^p95.*",
    ),
    grid(
        "Firing alerts",
        "What Prometheus holds to be wrong now, with the run that it concerns. Healthy: empty. docs/runbook.md has a "
        "section for each name.",
        FIRING,
        [
            ("sortBy", {"sort": [{"field": "severity"}]}),  # critical, info, warning
            (
                "organize",
                {
                    "excludeByName": dict.fromkeys(COLUMNS, True),
                    "indexByName": {"severity": 0, "alertname": 1, "run": 2, "role": 3},
                },
            ),
        ],
        width=8,
        none="–",
        overrides={
            "^severity$": {
                "custom.width": 75,
                "custom.cellOptions": {"type": "color-text"},
                "mappings": [
                    {"type": "value", "options": {name: {"color": color, "text": name}}}
                    for name, color in SEVERITIES.items()
                ],
            },
            "^alertname$": {"custom.width": 215},
            "^run$": {"custom.width": 130},
            "^role$": {"custom.width": 80},
        },
    ),
)
_GENERATOR = (
    graph(
        "Generator: losses",
        "The four terms, on a logarithmic axis. Healthy: reconstruction and perceptual fall and level off; adversarial "
        "and discriminator stay within a band. Adversarial climbs while discriminator goes to 0: the discriminator has "
        "won, see its accuracies.",
        {
            "reconstruction · {{run}}": gauge("loss_reconstruction", ("run",)),
            "perceptual · {{run}}": gauge("loss_perceptual", ("run",)),
            "adversarial · {{run}}": gauge("loss_adversarial", ("run",)),
            "discriminator · {{run}}": gauge("loss_discriminator", ("run",)),
        },
        "sci",
        log=True,
    ),
    graph(
        "Generator: who is right",
        "Shares of one batch's scores on the right side of 0.5: of the discriminator on real images and on mixes, and "
        "of the generator (mixes taken for real). Healthy: the discriminator is better than a guess. At 100 % with "
        "both: see the scores, which say how sure it is.",
        {
            "D, real · {{run}}": gauge("discriminator_accuracy_real_ratio", ("run",)),
            "D, mixes · {{run}}": gauge("discriminator_accuracy_mixed_ratio", ("run",)),
            "G · {{run}}": gauge("generator_accuracy_ratio", ("run",)),
        },
        "percentunit",
        most=1,
    ),
    graph(
        "Generator: scores",
        "Mean score of real images, whose target is 1, of mixes, where the discriminator aims at 0 and the generator "
        "at 1, and, dashed, how far they are apart. Healthy: apart, but below the line. Above it for long the "
        "discriminator has won: the adversarial term teaches the generator little more.",
        {
            "real · {{run}}": gauge("score_real", ("run",)),
            "mixes · {{run}}": gauge("score_mixed", ("run",)),
            "apart · {{run}}": f"{gauge('score_real', ('run',))} - {gauge('score_mixed', ('run',))}",
        },
        most=1,
        dashed="^apart.*",
        limit=LIMITS["HydramixDiscriminatorSaturated"],
    ),
    graph(
        "Generator: diversity of mixes",
        "Variance of a batch's mixes over that of their sources. Healthy: steady and well above the line. Below it all "
        "mixes look alike: more weight on reconstruction, or less on the adversarial term.",
        {"{{run}}": gauge("mix_diversity_ratio", ("run",))},
        "percentunit",
        most=1,
        limit=LIMITS["HydramixMixesCollapsing"],
    ),
    graph(
        "Generator: entropy of masks",
        "How evenly the sources share a mix: 1 all alike, 0 one source alone. Healthy: it stays where it is, for the "
        "mask's settings fix it. Near 0 mixes are copies: change `mix.mask`.",
        {"{{run}}": gauge("mask_entropy_ratio", ("run",))},
        "percentunit",
        most=1,
    ),
    graph(
        "Gradient norms",
        "Euclidean norm of all gradients of a model in one step, on a logarithmic axis. Healthy: they wander within "
        "a band. A steep climb comes before a loss that is not finite: lower the learning rate.",
        {"{{engine}} · {{run}}": gauge("gradient_norm", ("run", "engine"))},
        "sci",
        log=True,
    ),
)
_CLASSIFIER = (
    graph(
        "Classifier: accuracy on test images",
        "Of each arm at its last evaluation, the mean where several seeds train at a time. Healthy: rises and levels "
        "off. Compare arms in the report, not here: there the comparison is paired over seeds.",
        {"{{arm}} · {{run}}": gauge("test_accuracy_ratio", ARM, arm="$arm")},
        "percentunit",
        most=1,
    ),
    graph(
        "Classifier: training and validation",
        "Accuracy on training batches (mixed ones included, so it may stay below) and, dashed, on the validation part "
        "of the subset. Healthy: both rise. Training at 100 % while validation "
        "stands: the arm has learnt its few images by heart.",
        {
            "training {{arm}} · {{run}}": gauge("train_accuracy_ratio", ARM, arm="$arm"),
            "validation {{arm}} · {{run}}": gauge("validation_accuracy_ratio", ARM, arm="$arm"),
        },
        "percentunit",
        most=1,
        dashed="^validation.*",
    ),
    graph(
        "Classifier: cross-entropy",
        "On the training batches, in nats, mixed ones included. Healthy: falls and levels off. The logarithm of the "
        "number of classes is chance (10 classes: 2.3).",
        {"{{arm}} · {{run}}": gauge("loss_cross_entropy", ARM, arm="$arm")},
        "none",
    ),
    graph(
        "Classifier: generalization gap",
        "Accuracy on training batches minus that on images it does not train on. Few images give a large gap. "
        "Healthy: the arms with mixes have a smaller one. Above the line: more augmentation or a larger share of "
        "mixes.",
        {"{{arm}} · {{run}}": gauge("generalization_gap_ratio", ARM, arm="$arm")},
        "percentunit",
        limit=LIMITS["HydramixOverfittingGap"],
    ),
    graph(
        "Classifier: share of mixed batches",
        "Batches of mixes among all steps of a run's classifiers, arms without mixes included. Healthy: what the "
        "settings say (`classifier.mix_share`), times the share of arms that mix. Zero: no arm that trains now mixes.",
        {
            "{{run}}": f"{rate('mixed_batches_total', ('run',))}"
            f" / ({rate('step_seconds_count', ('run',), role='classifier')} > 0)"
        },
        "percentunit",
        most=1,
    ),
    graph(
        "Learning rate",
        "Of the last step, the mean where several train at a time. Healthy: the schedule's curve; a training that was "
        "gone on with starts where it left off.",
        {"{{role}} · {{run}}": gauge("learning_rate", TRAINING, role="generator|classifier")},
        "sci",
    ),
)
_IDENTITY = (
    grid(
        "What runs",
        "What each run is: data (first digits of its fingerprint), device, precision, version. Healthy: one of each "
        "in a run; else its numbers are not of one make. A click on a run opens its report.",
        gauge("run_info", ("run", "role", "data", "device", "precision", "version")),
        [
            (
                "organize",
                {
                    "excludeByName": dict.fromkeys(COLUMNS, True),
                    "indexByName": {
                        name: place
                        for place, name in enumerate(("run", "role", "data", "device", "precision", "version"))
                    },
                },
            )
        ],
        width=16,
        height=7,
        overrides={
            "^run$": {"links": [{"title": "report", "url": "${runs_url}/${__data.fields.run}/report.html"}]},
        },
    ),
    words(
        "Mixes and report",
        "Where the pictures of a run's mixes and its report lie. It needs a server of the runs folder: `make monitor` "
        "has one, at the address in the box above.",
        "Choose one run above, then open\n\n"
        "- [its report with the sheets of mixes](${runs_url}/${run}/report.html), once it is finished\n"
        "- [its folder](${runs_url}/${run}/), at any time\n\n"
        "`make monitor` serves the folder `runs/` at the address in the box **Runs at**; for runs elsewhere, "
        "`python -m http.server 8000 --bind 127.0.0.1 --directory FOLDER` does.",
        width=8,
        height=7,
    ),
)

BOARD = Board(
    uid="hydramix-run",
    title="Run health",
    description="Generators and classifiers while they train: speed, losses, accuracies, alerts.",
    rows={"Now": _NOW, "Generator": _GENERATOR, "Classifier": _CLASSIFIER, "Which run": _IDENTITY},
    variables=(
        choice("run", "Run", "label_values(hydramix_run_info, run)"),
        choice("arm", "Arm", 'label_values(hydramix_loss_cross_entropy{run=~"$run"}, arm)'),
        entry("runs_url", "Runs at", "http://127.0.0.1:8000"),
    ),
)
