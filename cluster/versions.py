"""The versions that every file of cluster/ must name: those of pyproject.toml and constraints.txt."""

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Versions:
    """What the files of a cluster agree on."""

    package: str  # of this program
    python: str  # major.minor; Ray wants the same on all nodes and where jobs are submitted from
    ray: str
    botocore: str

    def image_tag(self, variant: str) -> str:
        """Return the tag of the image for `cpu` or `cuda`."""
        return f"{self.package}-ray{self.ray}-{variant}"


def versions(root: Path = ROOT) -> Versions:
    """Return the versions that a checkout says."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", (root / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE))
    python = project["requires-python"].removeprefix(">=")
    return Versions(project["version"], python, pins["ray"], pins["botocore"])
