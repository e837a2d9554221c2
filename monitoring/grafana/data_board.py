"""`Data and checkpoints`: does storage keep up, and how much work would be lost now?"""

from board import Board, choice
from expressions import TRAINING, gauge, highest, rate, total
from limits import LIMITS
from panels import above, graph, number

INTERVAL = gauge("checkpoint_interval_seconds", TRAINING)
AGE = 'run_role:hydramix_checkpoint_age_seconds:max{run=~"$run"}'  # recorded, for the alert asks the same
READS = f"{rate('cache_hits_total', ('run',))} + {rate('cache_misses_total', ('run',))}"


def _stalled(by: tuple[str, ...]) -> str:
    """Return the share of their time that processes waited for images; each of them counts its own seconds."""
    return f"{rate('data_stall_seconds_total', by)} / ({gauge('workers', by)} > 0)"


def _retried(by: tuple[str, ...] = ()) -> str:
    return f"{rate('store_retries_total', by)} / ({rate('store_requests_total', by)} > 0)"


_NOW = (
    number(
        "Oldest checkpoint",
        "Age of the oldest last checkpoint of a training under way: the work that would be lost now. Healthy: less "
        "than the interval of its training, see below.",
        {"age": f"max ({AGE})"},
        "s",
        base="text",
    ),
    number(
        "Age in intervals",
        "The same over the expected time between two checkpoints, the worst training. Healthy: below 1, now and then "
        "a little over. Red from where the alert is: saving fails, hangs or is far too slow.",
        {"intervals": f"max ({AGE} / {INTERVAL})"},
        "none",
        decimals=1,
        steps=above(yellow=1.5, red=LIMITS["HydramixCheckpointTooOld"]),
    ),
    number(
        "Time waiting for images",
        "Share of their time that training processes waited for images that were not there yet. Healthy: about 0. Red "
        "from where the alert is: storage or network is too slow, or the node's cache does not hold.",
        {"share": _stalled(())},
        "percentunit",
        decimals=1,
        steps=above(red=LIMITS["HydramixDataStalls"]),
    ),
    number(
        "Requests tried again",
        "Share of requests to object storage that were tried again. Healthy: about 0. Yellow and red from where the "
        "alerts are: first throttling or a weak network, then a storage that is as good as away.",
        {"share": _retried()},
        "percentunit",
        decimals=1,
        steps=above(LIMITS["HydramixStoreRetries"], LIMITS["HydramixStoreAway"]),
        none="no requests",
    ),
    number(
        "Damaged bytes",
        "Reads whose bytes were not those recorded, and checkpoints of which a file was missing or not what was "
        "written, in the time range above. Healthy: none. `hydramix data verify` and `hydramix checkpoint verify` find "
        "the files.",
        {
            "data": highest("checksum_failures_total"),
            "checkpoints": highest("checkpoint_verification_failures_total"),
        },
        steps=above(red=1),
    ),
    number(
        "Free on disk",
        "Free share of the disk that a run's folder lies on, the fullest one. Healthy: green. Red, where the alert is, "
        "checkpoints will soon fail to be written: delete old runs, or lower how many checkpoints are kept.",
        {"free": f"min ({gauge('disk_free_bytes', ('run',))} / {gauge('disk_size_bytes', ('run',))})"},
        "percentunit",
        decimals=0,
        base="text",  # of no value
        steps=[(0.0, "red"), (LIMITS["HydramixDiskNearlyFull"], "green")],
        none="no disk",
    ),
)
_CHECKPOINTS = (
    graph(
        "Age of the last checkpoint",
        "By the clock of the node that wrote it, while the training is under way; since its beginning where there is "
        "none yet. Dashed, the expected interval. Healthy: a saw whose teeth end near the dashed line. At twice its "
        "height the alert comes: see Time for a checkpoint, and the training's log.",
        {"{{role}} · {{run}}": AGE, "interval {{role}} · {{run}}": INTERVAL},
        "s",
        dashed="^interval.*",
    ),
    graph(
        "Time for a checkpoint",
        "Until the last checkpoint was whole and, dashed, for how long training stood still for it. Healthy: far below "
        "the interval, and standing still far below the whole.",
        {
            "whole {{role}} · {{run}}": gauge("checkpoint_seconds", TRAINING),
            "standing still {{role}} · {{run}}": gauge("checkpoint_stall_seconds", TRAINING),
        },
        "s",
        dashed="^standing.*",
    ),
    graph(
        "Size of a checkpoint",
        "Healthy: constant; it follows from the model and its optimizer alone.",
        {"{{role}} · {{run}}": gauge("checkpoint_bytes", TRAINING)},
        "bytes",
    ),
    graph(
        "Checkpoints broken or passed over",
        "Checkpoints of which a file was missing or not what was written, and those passed over at loading for that, "
        "counted since each training began. Healthy: flat at 0. A training that passed one over has lost one "
        "interval's work; look for the cause: disk, memory, somebody who writes into the folder.",
        {
            "broken · {{run}}": total("checkpoint_verification_failures_total", ("run",)),
            "passed over · {{run}}": total("checkpoint_fallbacks_total", ("run",)),
        },
        width=12,
        most=1,
    ),
    graph(
        "Free space where runs lie",
        "Free bytes of the disk with the run's folder. Healthy: it falls slower than the run goes on. Runs in object "
        "storage have none.",
        {"{{run}}": gauge("disk_free_bytes", ("run",))},
        "bytes",
        width=12,
    ),
)
_DATA = (
    graph(
        "Requests to storage",
        "Requests a second, tries included. Healthy: a burst at the start of a run, then little: images come from the "
        "node's cache, checkpoints remain.",
        {"{{role}} · {{run}}": rate("store_requests_total", TRAINING)},
        "reqps",
    ),
    graph(
        "Tried again, by cause",
        "Requests a second that were tried again. Healthy: none. throttled: fewer trainings at a time, or larger "
        "blocks; server, connection, timeout, short: ask who runs the storage or the network. `hydramix doctor "
        "--store URL` tries the way.",
        {
            "{{cause}} · {{run}}": rate("store_retries_total", ("run", "cause")),
            "given up · {{run}}": rate("store_given_up_total", ("run",)),
        },
        "reqps",
    ),
    graph(
        "Share of requests tried again",
        "By run. Healthy: about 0. Above the line the alert comes; near 100 % nothing gets through any more, and "
        "trainings end when their patience does.",
        {"{{run}}": _retried(("run",))},
        "percentunit",
        limit=LIMITS["HydramixStoreRetries"],
    ),
    graph(
        "Bytes to and from storage",
        "Read from object storage and, dashed, written to it. Healthy: reading ends when the node's cache has the "
        "data; writing comes with each checkpoint.",
        {
            "read · {{run}}": rate("store_read_bytes_total", ("run",)),
            "written · {{run}}": rate("store_written_bytes_total", ("run",)),
        },
        "Bps",
        dashed="^written.*",
    ),
    graph(
        "Share of time waiting for images",
        "Of the time of all processes that train in a role. Healthy: about 0 once the first images are there. Above "
        "the line the alert comes: see bytes, retries and cache beside it.",
        {"{{role}} · {{run}}": _stalled(TRAINING)},
        "percentunit",
        limit=LIMITS["HydramixDataStalls"],
    ),
    graph(
        "Answered by the node's cache",
        "Share of the reads of a data set that needed no network. Healthy: 100 % from the second training on a node. "
        "Low for long: the cache is too small for the data, or its folder is emptied.",
        {"{{run}}": f"{rate('cache_hits_total', ('run',))} / ({READS} > 0)"},
        "percentunit",
        most=1,
    ),
    graph(
        "Reads with wrong bytes",
        "Reads of a data set or of its cache whose bytes were not those recorded, counted since each training began. "
        "Healthy: flat at 0. A single one was read again; more: `hydramix data verify URL`.",
        {"{{role}} · {{run}}": total("checksum_failures_total", TRAINING)},
        width=24,
        height=6,
        most=1,
    ),
)

BOARD = Board(
    uid="hydramix-data",
    title="Data and checkpoints",
    description="Object storage, the node's cache, waiting for images; checkpoints and the disk they lie on.",
    rows={"Now": _NOW, "Checkpoints": _CHECKPOINTS, "Data": _DATA},
    variables=(choice("run", "Run", "label_values(hydramix_trainings, run)"),),
)
