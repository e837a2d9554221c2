"""What a job takes along: the checkout, as far as `.rayignore` lets it, and settings that are no secret."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import hydramix_dist
from hydramix_dist.config.metrics import portable_metrics
from hydramix_dist.config.store import portable
from hydramix_dist.errors import UserError
from hydramix_dist.orchestration.preflight import NODES

STOP_SECONDS = 60  # from a stop to the kill: Ray's own 3 s are too few for a checkpoint


def checkout() -> Path:
    """Return the folder that is uploaded: the checkout that this program runs from, else the working folder's.

    Raises UserError where there is none.
    """
    here = Path.cwd()
    for folder in (Path(hydramix_dist.__file__).resolve().parents[1], here, *here.parents):
        if (folder / "jobs" / "sweep.py").is_file() and (folder / "hydramix_dist").is_dir():
            return folder
    raise UserError(
        f"a job takes jobs/, configs/ and hydramix_dist/ along, and neither {here} nor a folder above it has them; run "
        "the command in a checkout of the project"
    )


def config_inside(config: str, root: Path) -> str:
    """Return CONFIG as the job finds it: a ready name as it is, a file by its path below `root`.

    Raises UserError for a file that is not uploaded.
    """
    if not config.endswith((".yaml", ".yml")):
        return config
    path = Path(config).resolve()
    if not path.is_relative_to(root / "configs"):
        raise UserError(
            f"{config} does not go along to the cluster, for only jobs/, configs/ and hydramix_dist/ do; copy it into "
            f"{root / 'configs'}"
        )
    return path.relative_to(root).as_posix()


def environment(nodes: Sequence[Mapping[str, float]] = ()) -> dict[str, str]:
    """Return the variables that every process of the job gets; `nodes` are those that an autoscaler may start.

    Anyone who can ask the cluster can read them.
    """
    kinds = Counter(tuple(node.items()) for node in nodes)
    own = {NODES: json.dumps([[count, dict(kind)] for kind, count in kinds.items()])} if nodes else {}
    return {**portable(), **portable_metrics(), **own, "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)}
