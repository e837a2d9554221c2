"""`Cluster`: our workers beside Ray's own figures of nodes, GPUs, tasks and actors.

Names are those of Ray 2.60. Its `ray_node_gram_used` and `ray_node_gram_available` are megabytes, whatever their help
says; utilizations are percent.
"""

from board import Board, choice
from expressions import TRAINING, gauge, highest, rate, series, total
from limits import LIMITS
from panels import above, graph, number

MEGABYTE = 1024 * 1024
NODE = 'ip=~"$node"'
SKEW = f"abs({series('exporter_clock_timestamp_seconds')} - timestamp({series('exporter_clock_timestamp_seconds')}))"

_NOW = (
    number(
        "Nodes of Ray",
        "Nodes that Ray counts as alive. Healthy: as many as were started. Fewer: `ray status` says which is gone. "
        "Without Ray there are none, and none are needed.",
        {"nodes": "sum (ray_cluster_active_nodes)"},
        base="text",
        none="no Ray",
    ),
    number(
        "Exporters answering",
        "Exporters of ours that answered Prometheus' last question, among all that it knows of. Healthy: all; one a "
        "node that trains. An exporter that ended without taking its address away is asked in vain.",
        {"up": 'sum (up{job="hydramix"})', "known": 'count (up{job="hydramix"})'},
        base="text",
    ),
    number(
        "Workers",
        "Processes that train, all workers of all trainings. Healthy: trainings under way times workers of each.",
        {"workers": gauge("workers")},
        base="text",
    ),
    number(
        "Lost and started again",
        "Processes that were killed or crashed, and times that lost workers were started again, in the time range "
        "above. Healthy: none; some on machines that are taken away. Else the training's log names the cause: memory, "
        "a lost node, an error.",
        {"lost": highest("processes_lost_total"), "restarts": highest("worker_restarts_total")},
        steps=above(yellow=1),
    ),
    number(
        "Use of GPUs",
        "Mean over all GPUs that Ray knows of. Healthy: high while trainings run. Low while trainings are pending: "
        "they do not fit (Sweep, Waiting), or wait for images (Data and checkpoints).",
        {"GPUs": f"avg (ray_node_gpus_utilization{{{NODE}}})"},
        "percent",
        decimals=0,
        base="text",
        none="no GPU",
    ),
    number(
        "Fullest disk of a node",
        "Free share of the disk of Ray's folder, the fullest node. Healthy: green. Red, where the alert is: "
        "clear old sessions out of it before what runs there ends.",
        {
            "free": f"min (ray_node_disk_free{{{NODE}}}"
            f" / (ray_node_disk_free{{{NODE}}} + ray_node_disk_usage{{{NODE}}}))"
        },
        "percentunit",
        decimals=0,
        base="text",  # of no value
        steps=[(0.0, "red"), (LIMITS["HydramixDiskNearlyFull"], "green")],
        none="no Ray",
    ),
)
_WORKERS = (
    graph(
        "Workers and world size",
        "Processes that train and, dashed, workers of one training. Healthy: workers are a multiple of the world size. "
        "Below it: workers are lost and on their way back.",
        {
            "workers {{role}} · {{run}}": gauge("workers", TRAINING, role="generator|classifier"),
            "world size {{role}} · {{run}}": gauge("world_size", TRAINING, role="generator|classifier"),
        },
        width=12,
        dashed="^world.*",
    ),
    graph(
        "Memory of trainings",
        "What trainings hold: memory of the GPU, or of their processes on a CPU. Healthy: flat after the first steps. "
        "It climbs without an end: a leak; lower `runtime.micro_batch` where it comes near what there is.",
        {"{{role}} · {{run}}": gauge("device_memory_bytes", TRAINING)},
        "bytes",
        width=12,
    ),
    graph(
        "Processes lost, workers started again",
        "Processes that were killed or crashed, counted while their run has others on that node and some minutes more; "
        "dashed, times that lost workers were started again, counted since their training began. Healthy: flat. Lost "
        "and not started again: a command, or a training of a sweep. A staircase: the same worker again and again.",
        {
            "lost {{role}} · {{run}}": total("processes_lost_total", TRAINING),
            "started again {{role}} · {{run}}": total("worker_restarts_total", TRAINING),
        },
        width=12,
        most=1,
        dashed="^started again.*",
    ),
    graph(
        "Time to prepare a step's images",
        "What each node's slowest worker takes to augment and mix its images of one step, before it meets the others. "
        "Healthy: the same on all nodes of a training. One above the rest holds up all workers: its alert is "
        "HydramixStraggler.",
        {"{{role}} {{instance}} · {{run}}": gauge("batch_seconds", ("run", "role", "instance"))},
        "s",
        width=12,
    ),
)
_DEVICES = (
    graph(
        "Use of each GPU",
        "From Ray. Healthy: high and even while trainings run. One idle among busy ones: it has no training; all low: "
        "small batches, or waiting for images.",
        {"{{ip}} GPU {{GpuIndex}}": f"avg by (ip, GpuIndex) (ray_node_gpus_utilization{{{NODE}}})"},
        "percent",
        most=100,
    ),
    graph(
        "Memory of each GPU",
        "Used, from Ray, other programs' included. Healthy: flat, below what the card has. What is not ours is the "
        "difference to Memory of trainings.",
        {"{{ip}} GPU {{GpuIndex}}": f"sum by (ip, GpuIndex) (ray_node_gram_used{{{NODE}}}) * {MEGABYTE}"},
        "bytes",
    ),
    graph(
        "Use of processors",
        "Of all cores of a node, from Ray. Healthy: below 100 %. At 100 % on a node with GPUs: the processors hold "
        "them up, so give trainings more of `distributed.cpus` or start fewer at a time.",
        {"{{ip}}": f"avg by (ip) (ray_node_cpu_utilization{{{NODE}}})"},
        "percent",
        most=100,
    ),
    graph(
        "Memory of nodes",
        "Used and, dashed, total, from Ray. Healthy: well below the total. Near it Ray kills workers, which shows as "
        "Lost and started again.",
        {
            "used {{ip}}": f"sum by (ip) (ray_node_mem_used{{{NODE}}})",
            "total {{ip}}": f"sum by (ip) (ray_node_mem_total{{{NODE}}})",
        },
        "bytes",
        dashed="^total.*",
    ),
    graph(
        "Network of nodes",
        "Received and, dashed, sent, from Ray. Healthy: below what the links can do. Workers of one training exchange "
        "gradients at every step; where that fills the link, take fewer workers with more images each.",
        {
            "received {{ip}}": f"sum by (ip) (ray_node_network_receive_speed{{{NODE}}})",
            "sent {{ip}}": f"sum by (ip) (ray_node_network_send_speed{{{NODE}}})",
        },
        "Bps",
        dashed="^sent.*",
    ),
    graph(
        "Free disk of nodes",
        "Of the disk with Ray's folder. Healthy: steady. It falls: Ray spills objects, or logs and caches grow.",
        {"{{ip}}": f"sum by (ip) (ray_node_disk_free{{{NODE}}})"},
        "bytes",
    ),
)
_RAY = (
    graph(
        "Processors and GPUs handed out",
        "What Ray has handed out and, dashed, has in all. Healthy: near the total while trainings are pending. Far "
        "below: trainings ask for more at a time than any node has free.",
        {
            "used {{Name}}": 'sum by (Name) (ray_resources{Name=~"CPU|GPU",State="USED"})',
            "total {{Name}}": 'sum by (Name) (ray_resources{Name=~"CPU|GPU"})',
        },
        "none",
        dashed="^total.*",
    ),
    graph(
        "Tasks by state",
        "Ray's tasks that are not finished. Healthy: pending ones go away. They stay: nothing has room for them.",
        {"{{State}}": 'sum by (State) (ray_tasks{State!~"FINISHED|FAILED"}) > 0'},
        "none",
        stacked=True,
    ),
    graph(
        "Actors by state",
        "Ray's actors (workers, trials, the desk). Healthy: alive, and dead once they are done. Restarting ones: "
        "workers are lost.",
        {"{{State}}": 'sum by (State) (ray_actors{Source="gcs"})'},
        "none",
    ),
)
_EXPORTERS = (
    graph(
        "Processes that send",
        "Processes that send to a node's exporter. Healthy: one for each worker of a training, one for each driver. "
        "None while trainings run: they were started without `--metrics-port` or HYDRAMIX_METRICS.",
        {"{{instance}}": f"sum by (instance) ({series('exporter_sources')})"},
    ),
    graph(
        "Processor time of exporters",
        "Share of one core. Healthy: hardly any. Else: very many runs at a time, or Prometheus asks too often.",
        {"{{instance}}": rate("exporter_cpu_seconds_total", ("instance",))},
        "percentunit",
    ),
    graph(
        "Clocks of nodes",
        "Distance of a node's clock from that of Prometheus, the time of asking included. Healthy: far below "
        "the line. Above it ages are still right, for they are taken by the node's own clock, but times of day are "
        "wrong: set up NTP there.",
        {"{{instance}}": f"max by (instance) ({SKEW})"},
        "s",
        limit=LIMITS["HydramixClockSkew"],
    ),
    graph(
        "Series not taken",
        "Series that an exporter refused, for there were too many. Healthy: flat at 0. Else panels miss runs or arms: "
        "end old exporters, or give long sweeps one of their own (`hydramix exporter`).",
        {"{{instance}}": total("exporter_dropped_series_total", ("instance",))},
        width=24,
        height=6,
        most=1,
    ),
)

BOARD = Board(
    uid="hydramix-cluster",
    title="Cluster",
    description="Workers, GPUs, nodes and exporters; Ray's own figures where it runs.",
    rows={"Now": _NOW, "Workers": _WORKERS, "Nodes": _DEVICES, "Ray": _RAY, "Exporters": _EXPORTERS},
    variables=(
        choice("run", "Run", "label_values(hydramix_trainings, run)"),
        choice("node", "Node", "label_values(ray_node_cpu_count, ip)"),
    ),
)
