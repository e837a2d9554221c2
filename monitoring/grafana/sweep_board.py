"""`Sweep`: how far is it, what does it find, does anything hold it up?"""

from board import Board, choice
from expressions import gauge, highest, rate, series, total
from grafana_foundation_sdk.models.dashboard import VariableSort
from limits import LIMITS
from panels import above, graph, grid, number

FINISHED = "done|early"
ACCURACY = gauge("sweep_accuracy_ratio", ("arm", "shots"), data="$data", arm="$arm", shots="$shots")
FAILED_SHARE = 'run:hydramix_sweep_failures:ratio_increase1h{run=~"$run"}'  # recorded; none where none failed
STATES = {"done": "green", "early": "blue", "running": "yellow", "pending": "#6e7079", "failed": "red"}
ARMS_BY_SHOTS = (
    ("convertFieldType", {"conversions": [{"targetField": "shots", "destinationType": "number"}]}),
    ("sortBy", {"sort": [{"field": "shots"}]}),
    ("groupingToMatrix", {"columnField": "shots", "rowField": "arm", "valueField": "Value", "emptyValue": "empty"}),
    ("organize", {"renameByName": {"arm\\shots": "arm \\ images a class"}}),
)


def _trials(states: str = "") -> str:
    """Return how many trainings of the sweep are in these states, or in any."""
    match = {"state": states} if states else {}
    return f"sum ({gauge('sweep_trials', ('run', 'state'), **match)})"


_NOW = (
    number(
        "Finished",
        "Share of the sweep's trainings that are done or were stopped early as planned. Healthy: it grows till 100 %. "
        "It stands still: see Waiting and Failed attempts.",
        {"finished": f"{_trials(FINISHED)} / ({_trials()} > 0)"},
        "percentunit",
        base="blue",
        decimals=0,
    ),
    number(
        "Running",
        "Trainings that run now. Healthy: as many as the machines have room for while some are pending; "
        "`hydramix sweep run --dry-run` says how many that is.",
        {"running": _trials("running")},
        base="text",
    ),
    number(
        "Pending",
        "Trainings that have not begun. Healthy: it falls to 0.",
        {"pending": _trials("pending")},
        base="text",
    ),
    number(
        "Failed",
        "Trainings given up after their last attempt. Healthy: none. `hydramix sweep status NAME` gives the reasons, "
        "`hydramix sweep resume NAME --only-failed` tries them again.",
        {"failed": _trials("failed")},
        steps=above(red=1),
    ),
    number(
        "Waiting",
        "Time since a training was begun, while some wait that could begin. Healthy: less than one training takes. "
        "Longer: no room is found; look at what the cluster has free (Cluster) and what a training reserves.",
        {"waiting": gauge("sweep_queue_age_seconds")},
        "s",
        base="text",
    ),
    number(
        "Trainings an hour",
        "Finished over the last 30 minutes, times two. Healthy: steady, with some spread, for sizes differ. Too low "
        "until the sweep has run for half an hour.",
        {"an hour": f"2 * sum (clamp_min(delta({gauge('sweep_trials', ('run', 'state'), state=FINISHED)}[30m:]), 0))"},
        base="text",
    ),
    grid(
        "Accuracy on test images",
        "Mean over the seeds that are done, one row an arm, one column a number of labelled images a class; darker is "
        "better. Healthy: it rises to the right. Early means are of few seeds; what counts is the paired comparison of "
        "`hydramix sweep results NAME`.",
        ACCURACY,
        ARMS_BY_SHOTS,
        "percentunit",
        width=12,
        height=10,
        heat=True,
        none="",
        overrides={"^arm.*": {"custom.cellOptions": {"type": "auto"}, "unit": "string"}},
    ),
    graph(
        "Trainings by state",
        "All trainings of the sweep, stacked. Healthy: done and early grow, pending shrinks, failed stays away.",
        {state: f"{_trials(state)} > 0" for state in STATES},  # a line of none would lie on that of another state
        width=12,
        height=10,
        stacked=True,
        colors=STATES,
    ),
)
_COURSE = (
    graph(
        "Accuracy over time",
        "The table's numbers as they come in, one line an arm and N. Healthy: a line settles as seeds are added.",
        {"{{arm}} · N={{shots}}": ACCURACY},
        "percentunit",
        width=12,
        most=1,
    ),
    graph(
        "Speed by role",
        "Training images a second of all the sweep's trainings. Healthy: steady while Running is. It falls while as "
        "many run: they share processors or wait for data, see Data and checkpoints.",
        {"{{role}}": gauge("images_per_second", ("role",), role="generator|classifier")},
        width=12,
    ),
)
_COST = (
    number(
        "Failed attempts",
        "Attempts of trainings that failed, those included that a later attempt made good, in the time range above. "
        "Healthy: none; a few on machines that are taken away. Reasons: `hydramix sweep status NAME`.",
        {"attempts": highest("sweep_failures_total")},
        width=6,
        steps=above(yellow=1),
    ),
    number(
        "Share of attempts that failed",
        "Failed attempts among all that ended within the last hour, as the alert takes it. Healthy: 0. Red from where "
        "the alert is, if three failed or all: `hydramix sweep status NAME` gives the reasons.",
        {"share": f"max ({FAILED_SHARE}) or 0 * {total('sweep_failures_total')}"},
        "percentunit",
        width=6,
        decimals=0,
        steps=above(yellow=0.001, red=LIMITS["HydramixTrialsFailing"]),
    ),
    number(
        "Generators reused",
        "Generators that were found finished and not trained again, in the time range above. Healthy: a sweep that is "
        "gone on with finds all that it had.",
        {"reused": highest("sweep_generators_reused_total")},
        width=6,
        base="text",
    ),
    number(
        "GPU hours",
        "GPU time that trainings have reserved since the sweep's process began, those under way included; shares of a "
        "GPU count as shares. Healthy: within `limits.gpu_hours`, beyond which no training is begun any more; that "
        "limit also counts what the sweep's processes before this one reserved.",
        {"GPU hours": f"{total('sweep_gpu_seconds_total')} / 3600"},
        "h",
        width=6,
        decimals=2,
        base="text",
    ),
    graph(
        "Waiting",
        "Time since a training was begun, while some wait that could begin. Healthy: a saw of the length of a "
        "training. A long climb: nothing finds room, or trainings hang.",
        {"waiting": gauge("sweep_queue_age_seconds", ("run",))},
        "s",
    ),
    graph(
        "Failed attempts",
        "Counted since the sweep's process began. Healthy: flat. Steps of many at once: a machine was lost; one after "
        "the other: a setting that cannot work, see `hydramix sweep status NAME`.",
        {"failed attempts": total("sweep_failures_total", ("run",))},
        most=1,
    ),
    graph(
        "GPUs reserved",
        "GPUs that the trainings under way hold, shares of a GPU added up. Healthy: as many as the sweep may use while "
        "trainings are pending; 0 where it trains on processors. Compare with their use on Cluster: reserved and idle "
        "points at too small batches.",
        {"GPUs": rate("sweep_gpu_seconds_total", ("run",))},
        "none",
    ),
)

BOARD = Board(
    uid="hydramix-sweep",
    title="Sweep",
    description="One sweep: how far it is, its accuracies so far, failures, waiting and cost.",
    rows={"How far": _NOW, "Course": _COURSE, "Failures, waiting, cost": _COST},
    variables=(
        choice("run", "Sweep", "label_values(hydramix_sweep_trials, run)", several=False),
        choice("data", "Data", 'label_values(hydramix_sweep_accuracy_ratio{run=~"$run"}, data)', several=False),
        choice("arm", "Arm", f"label_values({series('sweep_accuracy_ratio', data='$data')}, arm)"),
        choice(
            "shots",
            "Images a class",
            f"label_values({series('sweep_accuracy_ratio', data='$data')}, shots)",
            sort=VariableSort.NUMERICAL_ASC,
        ),
    ),
)
