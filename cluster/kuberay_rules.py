"""Writes kuberay/base/prometheusrule.yaml from monitoring/prometheus/rules: `python cluster/kuberay_rules.py`."""

from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
PATH = ROOT / "cluster" / "kuberay" / "base" / "prometheusrule.yaml"
HEAD = """\
# Written by cluster/kuberay_rules.py from monitoring/prometheus/rules; change those.
# yamllint disable rule:line-length
"""


class _Indented(yaml.SafeDumper):
    """Indents lists below their key, as the other manifests do."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        """Indent also where the format would not ask for it."""
        super().increase_indent(flow, False)


def page() -> str:
    """Return the PrometheusRule that has the groups of all files of rules as they are."""
    groups: list[Any] = []
    for path in sorted((ROOT / "monitoring" / "prometheus" / "rules").glob("*.yml")):
        groups += yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]
    rule = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "hydramix", "labels": {"release": "prometheus"}},
        "spec": {"groups": groups},
    }
    return HEAD + yaml.dump(rule, Dumper=_Indented, sort_keys=False, width=1000, allow_unicode=True)


if __name__ == "__main__":
    PATH.write_text(page(), encoding="utf-8")
    print(f"wrote {PATH}")
