"""The page of security: its policies permit what commands ask a bucket for, and it names the ports that there are."""

import json
import re
from typing import Any

import yaml
from versions import ROOT

from hydramix_dist.store import probe

PAGES = {name: (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8") for name in ("security", "object-storage")}
RIGHTS = {request.right for request in vars(probe).values() if isinstance(request, probe.Request)}
READING = {request.right for request in (probe.LIST, probe.GET, probe.RANGED_GET)}


def policies(page: str) -> list[dict[str, set[str]]]:
    """Return each policy of a page as rights by resource."""
    found = []
    for block in re.findall(r"^```json\n(.*?)^```", PAGES[page], flags=re.MULTILINE | re.DOTALL):
        tree: Any = json.loads(block)
        assert tree.keys() == {"Version", "Statement"} and tree["Version"] == "2012-10-17"
        rights: dict[str, set[str]] = {}
        for each in tree["Statement"]:
            assert each.keys() == {"Effect", "Action", "Resource"} and each["Effect"] == "Allow"
            actions = [each["Action"]] if isinstance(each["Action"], str) else each["Action"]
            rights.setdefault(each["Resource"].removeprefix("arn:aws:s3:::"), set()).update(actions)
        found.append(rights)
    return found


def test_policies_permit_what_the_doctor_tries() -> None:
    reader, importer = policies("security")
    (trainer,) = policies("object-storage")
    assert reader == {"BUCKET": {"s3:ListBucket"}, "BUCKET/*": {"s3:GetObject"}}
    assert reader["BUCKET"] | reader["BUCKET/*"] == READING
    for rights, folder in ((importer, "BUCKET/data/*"), (trainer, "BUCKET/runs/*")):
        # An upload of several parts is ended with a right of its own, which the doctor cannot try apart.
        assert rights["BUCKET"] | rights[folder] == RIGHTS | {"s3:AbortMultipartUpload"}


def test_ports_are_those_of_the_cluster_files() -> None:
    table = re.findall(r"^\| ([\d, ]+) \|", PAGES["security"], flags=re.MULTILINE)
    named = {int(port) for row in table for port in row.split(",")}
    cluster = yaml.safe_load((ROOT / "cluster/kuberay/base/raycluster.yaml").read_text(encoding="utf-8"))
    containers = cluster["spec"]["headGroupSpec"]["template"]["spec"]["containers"]
    assert {port["containerPort"] for one in containers for port in one["ports"]} <= named
