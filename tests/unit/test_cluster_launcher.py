"""Files for the launcher: Ray's own schema takes them, Amazon's takes the nodes, and what we promise of both holds."""

import copy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from check import checked, placeholders
from launcher_check import launcher_problems
from versions import ROOT, versions

from hydramix_dist.cli.exporter import DEFAULT_PORT

CLUSTER = ROOT / "cluster"
FILES = {name: yaml.safe_load((CLUSTER / f"{name}.yaml").read_text(encoding="utf-8")) for name in ("local", "aws")}
BIN = Path(sys.executable).parent
Change = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize("name", FILES)
def test_ray_and_amazon_take_a_file(name: str) -> None:
    assert launcher_problems(FILES[name]) == []


WRONG: dict[str, tuple[str, Change, str]] = {
    "a field": ("local", lambda tree: tree.update(maxworkers=2), "maxworkers"),
    "a type": ("local", lambda tree: tree.update(max_workers="two"), "Ray refuses"),
    "a machine": ("local", lambda tree: tree["provider"].pop("head_ip"), "head_ip"),
    "work on the head": (
        "local",
        lambda tree: start(tree, "head", "--num-cpus=0", "--num-cpus=4"),
        "lacks --num-cpus=0",
    ),
    "a port of metrics": (
        "aws",
        lambda tree: start(tree, "worker", "export-port=8080", "export-port=8081"),
        "--metrics-export-port=8080",
    ),
    "an open dashboard": (
        "aws",
        lambda tree: start(tree, "head", "host=127.0.0.1", "host=0.0.0.0"),
        "--dashboard-host=127.0.0.1",
    ),
    "no token": ("local", lambda tree: start(tree, "worker", ". ~/hydramix/cluster/node/env.sh; ", ""), "token"),
    "no exporter": ("aws", lambda tree: tree["worker_start_ray_commands"].pop(1), "exporter"),
    "no autoscaler": ("local", lambda tree: start(tree, "head", "--autoscaling-config", "--x"), "autoscaling-config"),
    "no pins": ("local", lambda tree: tree.update(setup_commands=["pip install ray"]), "constraints.txt"),
    "another boto3": (
        "aws",
        lambda tree: tree.update(head_setup_commands=["bash setup.sh boto3==1.42.0"]),
        "boto3 is 1.42.0",
    ),
    "no boto3": ("aws", lambda tree: tree.pop("head_setup_commands"), "boto3"),
    "another ray": ("aws", lambda tree: tree["setup_commands"].append("pip install ray==2.59.0"), "ray is 2.59.0"),
    "a node's field": (
        "aws",
        lambda tree: node(tree, "gpu").update(IamProfile={}),
        'Unknown parameter in input: "IamPro',
    ),
    "a node's size": (
        "aws",
        lambda tree: node(tree, "cpu")["BlockDeviceMappings"][0]["Ebs"].update(VolumeSize="100"),
        "VolumeSize",
    ),
    "a machine that is not sold": (
        "aws",
        lambda tree: node(tree, "gpu").update(InstanceType="g6.enormous"),
        "g6.enormous",
    ),
    "no role": ("aws", lambda tree: node(tree, "gpu-spot").pop("IamInstanceProfile"), "no role"),
    "no fallback": ("aws", lambda tree: tree["available_node_types"].pop("cpu"), "stands in for cpu-spot"),
    "a fallback of another size": (
        "aws",
        lambda tree: tree["available_node_types"]["gpu"]["resources"].update(CPU=8),
        "stands in for gpu-spot",
    ),
    "a fallback that comes first": (
        "aws",
        lambda tree: tree["available_node_types"]["gpu"].update(priority=20),
        "stands in for gpu-spot",
    ),
    "a head for work": (
        "aws",
        lambda tree: tree["available_node_types"]["head"]["resources"].update(CPU=4),
        "runs no training",
    ),
    "no limit": ("aws", lambda tree: tree["available_node_types"]["cpu"].pop("max_workers"), "no max_workers"),
    "ssh for all": ("aws", lambda tree: node(tree, "head").pop("SecurityGroupIds"), "ssh open to all"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_said(what: str) -> None:
    name, change, said = WRONG[what]
    tree = copy.deepcopy(FILES[name])
    change(tree)
    problems = launcher_problems(tree)
    assert len(problems) >= 1 and any(said in problem for problem in problems), problems


def start(tree: dict[str, Any], kind: str, old: str, new: str) -> None:
    """Change the command that starts Ray."""
    commands = tree[f"{kind}_start_ray_commands"]
    assert old in commands[-1] and "ray start" in commands[-1]
    commands[-1] = commands[-1].replace(old, new)


def node(tree: dict[str, Any], kind: str) -> dict[str, Any]:
    found: dict[str, Any] = tree["available_node_types"][kind]["node_config"]
    return found


def test_what_is_to_be_filled_in_is_named_once(tmp_path: Path) -> None:
    assert [line.partition(":")[0] for line in placeholders([FILES["local"]])] == [
        "provider.head_ip is still to be filled in",
        "provider.worker_ips.0 is still to be filled in",
        "provider.worker_ips.1 is still to be filled in",
        "auth.ssh_user is still to be filled in",
    ]
    said = placeholders([FILES["aws"]])
    assert len(said) == 5 and "(and 2 more)" in said[0]
    text = (CLUSTER / "local.yaml").read_text(encoding="utf-8")
    filled = tmp_path / "local.yaml"
    filled.write_text(text.replace("FILL-IN-USER", "ada").replace("FILL-IN-ADDRESS-OF-", "host-"), encoding="utf-8")
    assert checked(filled) == []


def test_a_file_that_is_none_is_an_answer(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    for text, said in (("a: [", "cannot be read"), ("", "holds no mapping"), ("[1]", "holds no mapping")):
        wrong.write_text(text, encoding="utf-8")
        assert [said in problem for problem in checked(wrong)] == [True]
    done = subprocess.run(
        [sys.executable, CLUSTER / "check.py", tmp_path / "none.yaml"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and done.stdout.count("\n") == 1 and "No such file" in done.stdout


def test_shell_in_files_and_scripts_is_sound(tmp_path: Path) -> None:
    scripts = sorted((CLUSTER / "node").glob("*.sh"))
    for name, tree in FILES.items():
        for key in [key for key in tree if key.endswith("_commands")]:
            script = tmp_path / f"{name}-{key}.sh"
            # Sourced files lie on the node; the launcher sets the head's address.
            head = "#!/bin/bash\n# shellcheck disable=SC1090,SC1091\nexport RAY_HEAD_IP=head\n"
            script.write_text(head + "\n".join(f"( {command}\n)" for command in tree[key]) + "\n", encoding="utf-8")
            scripts.append(script)
    assert len(scripts) >= 8
    done = subprocess.run([BIN / "shellcheck", *scripts], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_what_is_sourced_agrees_with_the_page_of_monitoring_and_sets_no_secret() -> None:
    words = ["bash", "-c", ". cluster/node/env.sh; env"]
    plain = {"PATH": "/usr/bin:/bin", "HOME": "/home/ada"}
    done = subprocess.run(words, cwd=ROOT, env=plain, capture_output=True, text=True, check=True)
    told = dict(line.split("=", 1) for line in done.stdout.splitlines())
    assert yaml.safe_load(told["HYDRAMIX_METRICS"]) == {"port": DEFAULT_PORT, "host": "0.0.0.0"}
    assert told["RAY_AUTH_MODE"] == "token" and told["RAY_AUTH_TOKEN_PATH"] == "/home/ada/hydramix-token"
    assert "RAY_AUTH_TOKEN" not in told and not [name for name in told if name.startswith("AWS_")]


@pytest.mark.parametrize("python", [versions().python])
def test_the_python_of_nodes_is_the_oldest_that_the_package_takes(python: str) -> None:
    """Nodes of the launcher and pods have the same one, so that jobs can be submitted from either's environment."""
    assert f"PYTHON=python{python} " in (CLUSTER / "node" / "setup.sh").read_text(encoding="utf-8")
    assert f"ARG BASE=python:{python}-slim" in (CLUSTER / "Dockerfile").read_text(encoding="utf-8")


def test_yaml_is_tidy() -> None:
    assert shutil.which(BIN / "yamllint"), "make venv brings it"
    done = subprocess.run(
        [BIN / "yamllint", "--strict", "-c", CLUSTER / "yamllint.yaml", CLUSTER],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
