"""Manifests for KubeRay: rendered, strict in their fields, and in one with versions, metrics, rules and jobs."""

import copy
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from kuberay_check import KUBERNETES, kuberay_problems
from kuberay_rules import PATH, page
from versions import ROOT, versions

from hydramix_dist.cli.exporter import DEFAULT_PORT
from hydramix_dist.cli.job_request import parse
from hydramix_dist.orchestration.jobs.capacity import declared_nodes

KUBERAY = ROOT / "cluster" / "kuberay"
KUBECTL = Path(sys.executable).with_name("kubectl")
Objects = list[dict[str, Any]]


def rendered(folder: str) -> Objects:
    done = subprocess.run([KUBECTL, "kustomize", KUBERAY / folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


@pytest.fixture(scope="module")
def cpu() -> Objects:
    return rendered("overlays/cpu")


@pytest.fixture(scope="module")
def gpu() -> Objects:
    return rendered("overlays/gpu")


def find(objects: Objects, kind: str, name: str = "hydramix") -> Any:
    (found,) = [one for one in objects if one["kind"] == kind and one["metadata"]["name"] == name]
    return found


def cluster(objects: Objects) -> Any:
    return find(objects, "RayCluster")["spec"]


def worker(objects: Objects) -> Any:
    return cluster(objects)["workerGroupSpecs"][0]


def ray(objects: Objects) -> Any:
    return worker(objects)["template"]["spec"]["containers"][0]


# --- as they are ---


def test_what_is_rendered_tells_a_submission_what_the_cluster_grows_to(gpu: Objects, tmp_path: Path) -> None:
    (tmp_path / "all.yaml").write_text(yaml.safe_dump_all(gpu))
    nodes = declared_nodes(tmp_path / "all.yaml").workers
    assert len(nodes) == worker(gpu)["maxReplicas"] and {node["GPU"] for node in nodes} == {1.0}


def test_nothing_is_wrong_with_them(cpu: Objects, gpu: Objects) -> None:
    for objects in (rendered("base"), cpu, gpu):
        assert kuberay_problems(objects) == []
        kinds = [one["kind"] for one in objects]
        assert {kind: kinds.count(kind) for kind in ("RayCluster", "RayJob", "PodMonitor", "PrometheusRule")} == {
            "RayCluster": 1,
            "RayJob": 2,
            "PodMonitor": 1,
            "PrometheusRule": 1,
        }
        assert kinds.count("NetworkPolicy") == 3


def test_jobs_bring_the_standing_cluster_of_their_overlay(cpu: Objects, gpu: Objects) -> None:
    for objects in (cpu, gpu):
        for name in ("hydramix-pilot", "hydramix-sweep"):
            brought = find(objects, "RayJob", name)["spec"]["rayClusterSpec"]
            assert len(brought) == 4 and brought == {key: cluster(objects)[key] for key in brought}
    assert worker(cpu)["groupName"] == "cpu" and "nvidia.com/gpu" not in ray(cpu)["resources"]["limits"]
    spec = worker(gpu)["template"]["spec"]
    assert worker(gpu)["groupName"] == "gpu" and worker(gpu)["rayStartParams"]["num-gpus"] == "1"
    assert spec["nodeSelector"] == {"nvidia.com/gpu.present": "true"}
    assert spec["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert cluster(gpu)["headGroupSpec"]["template"]["spec"].get("tolerations") is None, "the head needs no GPU"


def test_images_are_of_this_version(cpu: Objects, gpu: Objects) -> None:
    assert ray(cpu)["image"].endswith(f":{versions().image_tag('cpu')}")
    assert ray(gpu)["image"].endswith(f":{versions().image_tag('cuda')}")


@pytest.mark.parametrize("name", ["pilot", "sweep"])
def test_jobs_ask_for_what_our_jobs_take(cpu: Objects, name: str) -> None:
    """The entry point is read as the job itself reads it, once the bucket is filled in, which till then is refused."""
    spec = find(cpu, "RayJob", f"hydramix-{name}")["spec"]
    python, script, *arguments = shlex.split(spec["entrypoint"].replace("FILL-IN-BUCKET", "bucket"))
    assert (python, script) == ("python", f"/opt/hydramix/jobs/{name}.py")
    assert (ROOT / "jobs" / Path(script).name).is_file()
    assert parse(name, arguments).out == f"s3://bucket/runs/{name}"
    assert spec["suspend"] is True, "nothing runs because a folder was applied"
    assert find(cpu, "RayJob", f"hydramix-{name}")["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "hydramix"


def test_rules_are_those_of_monitoring() -> None:
    assert PATH.read_text(encoding="utf-8") == page(), "run python cluster/kuberay_rules.py"


def test_metrics_are_found_as_the_rest_of_monitoring_says(cpu: Objects) -> None:
    """The names of ports, and the jobs that alerts, boards and the page of monitoring know."""
    endpoints = find(cpu, "PodMonitor")["spec"]["podMetricsEndpoints"]
    jobs = {each["port"]: each["relabelings"][0]["replacement"] for each in endpoints}
    assert jobs == {"hydramix": "hydramix", "metrics": "ray", "as-metrics": "ray", "dash-metrics": "ray"}
    prometheus = yaml.safe_load((ROOT / "monitoring/prometheus/prometheus.yml").read_text(encoding="utf-8"))
    assert set(jobs.values()) == {each["job_name"] for each in prometheus["scrape_configs"]}
    told = find(cpu, "ConfigMap")["data"]["HYDRAMIX_METRICS"]
    assert yaml.safe_load(told)["port"] == DEFAULT_PORT


def test_the_example_of_secrets_is_applied_by_nobody_and_holds_none(cpu: Objects) -> None:
    named = "".join(path.read_text(encoding="utf-8") for path in KUBERAY.rglob("kustomization.yaml"))
    assert "secrets.example" not in named
    secrets = list(yaml.safe_load_all((KUBERAY / "secrets.example.yaml").read_text(encoding="utf-8")))
    assert {value for one in secrets for value in one["stringData"].values()} == {"FILL-IN"}
    names = {one["metadata"]["name"] for one in secrets}
    asked = {source["secretRef"]["name"] for source in ray(cpu)["envFrom"] if "secretRef" in source}
    assert asked | {cluster(cpu)["authOptions"]["secretName"]} == names
    assert secrets[0]["stringData"].keys() == {"auth_token"}, "the key that KubeRay reads"


def test_a_check_of_rendered_manifests_takes_and_refuses(tmp_path: Path, cpu: Objects) -> None:
    from check import checked

    file = tmp_path / "cpu.yaml"
    text = yaml.safe_dump_all(cpu)
    file.write_text(text, encoding="utf-8")
    assert len(checked(file)) == 3 and all("still to be filled in" in line for line in checked(file))
    file.write_text(re.sub("FILL-IN(-BUCKET)?", "mine", text), encoding="utf-8")
    assert checked(file) == []
    for lacking in ("resources", "volumeMounts"):  # Kubernetes would take such a pod
        objects = copy.deepcopy(cpu)
        del ray(objects)[lacking]
        file.write_text(yaml.safe_dump_all(objects), encoding="utf-8")
        (problem,) = checked(file)
        assert f"KeyError('{lacking}')" in problem


# --- what would be wrong ---

Change = Callable[[Objects], object]
ONE_GPU = {"nvidia.com/gpu": "1"}
WRONG: dict[str, tuple[Change, str]] = {
    "a field of the cluster": (lambda all_: cluster(all_).update(rayversion="2.60.0"), "rayversion"),
    "a field of a group": (lambda all_: worker(all_).update(replica=2), "replica"),
    "a type": (lambda all_: worker(all_).update(maxReplicas="8"), "maxReplicas"),
    "a field of a job": (
        lambda all_: find(all_, "RayJob", "hydramix-pilot")["spec"].update(backofLimit=1),
        "backofLimit",
    ),
    "a submitter that tries again": (
        lambda all_: find(all_, "RayJob", "hydramix-sweep")["spec"]["submitterConfig"].update(backoffLimit=2),
        "submitterConfig.backoffLimit",
    ),
    "a job that stays when suspended": (
        lambda all_: find(all_, "RayJob", "hydramix-pilot")["spec"].update(shutdownAfterJobFinishes=False),
        "shutdownAfterJobFinishes",
    ),
    "a field of a pod": (lambda all_: ray(all_).update(imagee="x"), "imagee"),
    "a field of a policy": (
        lambda all_: find(all_, "NetworkPolicy", "hydramix-head")["spec"].update(ingres=[]),
        "ingres",
    ),
    "a field of a monitor": (lambda all_: find(all_, "PodMonitor")["spec"].update(selectr={}), "selectr"),
    "a field of a rule": (
        lambda all_: find(all_, "PrometheusRule")["spec"]["groups"][0]["rules"][0].update(fore="5m"),
        "fore",
    ),
    "an object that nobody knows": (lambda all_: all_.append({"apiVersion": "x/v1", "kind": "Foo"}), "no such kind"),
    "another version of Ray": (lambda all_: cluster(all_).update(rayVersion="2.59.0"), "rayVersion is 2.59.0"),
    "another image": (lambda all_: ray(all_).update(image="hydramix:0.1.0-ray2.59.0-cpu"), "ray2.59.0"),
    "more than Kubernetes gives": (
        lambda all_: worker(all_)["rayStartParams"].update({"num-cpus": "8"}),
        "num-cpus=8",
    ),
    "a GPU that Ray is not told of": (
        lambda all_: ray(all_)["resources"].update(requests=ONE_GPU, limits=ONE_GPU),
        "num-gpus=0",
    ),
    "requests below limits": (lambda all_: ray(all_)["resources"]["requests"].update(cpu="1"), "is limited to"),
    "a head for work": (
        lambda all_: cluster(all_)["headGroupSpec"]["rayStartParams"].update({"num-cpus": "2"}),
        "num-cpus=2",
    ),
    "a small /dev/shm": (
        lambda all_: worker(all_)["template"]["spec"]["volumes"][3]["emptyDir"].update(sizeLimit="64Mi"),
        "/dev/shm",
    ),
    "a port's name": (lambda all_: ray(all_)["ports"][0].update(name="metric"), "the ports are"),
    "a long name of a port": (lambda all_: ray(all_)["ports"][0].update(name="metrics-of-ray-1"), "15 characters"),
    "a port's number": (lambda all_: ray(all_)["ports"][0].update(containerPort=8081), "the ports are"),
    "a port of the exporter": (
        lambda all_: find(all_, "ConfigMap")["data"].update(HYDRAMIX_METRICS="{port: 9465, host: 0.0.0.0}"),
        "HYDRAMIX_METRICS",
    ),
    "a monitor of another port": (
        lambda all_: find(all_, "PodMonitor")["spec"]["podMetricsEndpoints"][0].update(port="hydra"),
        "do not agree on port hydra",
    ),
    "a monitor of other pods": (
        lambda all_: find(all_, "PodMonitor")["spec"]["selector"].update(matchLabels={"app": "x"}),
        "does not find the pods",
    ),
    "no monitor": (lambda all_: all_.remove(find(all_, "PodMonitor")), "no PodMonitor"),
    "pods beyond the fence": (
        lambda all_: worker(all_)["template"]["metadata"]["labels"].pop("app.kubernetes.io/part-of"),
        "no NetworkPolicy fences",
    ),
    "a policy of another port": (
        lambda all_: find(all_, "NetworkPolicy", "hydramix-head")["spec"]["ingress"][0]["ports"][0].update(port="dash"),
        "no pod has a port dash",
    ),
    "a gate": (
        lambda all_: find(all_, "NetworkPolicy", "hydramix-head")["spec"]["ingress"][0].pop("from"),
        "lets everybody in",
    ),
    "a gate in another's name": (
        lambda all_: find(all_, "NetworkPolicy", "hydramix-head")["spec"]["ingress"][0].update(
            {"from": [{"namespaceSelector": {}}]}
        ),
        "lets everybody in",
    ),
    "a gate by address": (
        lambda all_: find(all_, "NetworkPolicy", "hydramix-head")["spec"]["ingress"][0].update(
            {"from": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]}
        ),
        "lets everybody in",
    ),
    "settings that are not there": (lambda all_: all_.remove(find(all_, "ConfigMap")), "there is no ConfigMap"),
    "an account that is not there": (
        lambda all_: worker(all_)["template"]["spec"].update(serviceAccountName="x"),
        "there is no ServiceAccount x",
    ),
    "a volume that is not there": (
        lambda all_: worker(all_)["template"]["spec"]["containers"][1]["volumeMounts"][0].update(name="x"),
        "mounts a volume x",
    ),
    "root": (
        lambda all_: worker(all_)["template"]["spec"]["securityContext"].update(runAsNonRoot=False),
        "runAsNonRoot",
    ),
    "a disk to write on": (lambda all_: ray(all_)["securityContext"].update(readOnlyRootFilesystem=False), "readOnly"),
    "an account for workers": (
        lambda all_: worker(all_)["template"]["spec"].pop("automountServiceAccountToken"),
        "automountServiceAccountToken",
    ),
    "a shared disk": (
        lambda all_: worker(all_)["template"]["spec"]["volumes"].append(
            {"name": "x", "persistentVolumeClaim": {"claimName": "x"}}
        ),
        "the bucket is all",
    ),
    "a claim": (lambda all_: all_.append({"kind": "PersistentVolumeClaim", "metadata": {"name": "x"}}), "bucket"),
    "a secret": (lambda all_: all_.append({"kind": "Secret", "metadata": {"name": "x"}}), "secrets stand in no"),
    "a token in the manifest": (
        lambda all_: ray(all_).update(env=[{"name": "RAY_AUTH_TOKEN", "value": "0123"}]),
        "refer to a Secret",
    ),
    "a key among settings": (
        lambda all_: find(all_, "ConfigMap")["data"].update(AWS_SECRET_ACCESS_KEY="0123"),
        "belongs into a Secret",
    ),
    "no token": (lambda all_: cluster(all_).pop("authOptions"), "authOptions"),
    "no time to save": (
        lambda all_: worker(all_)["template"]["spec"].update(terminationGracePeriodSeconds=60),
        "terminationGracePeriodSeconds must be 110",
    ),
    "no leaving": (lambda all_: ray(all_).pop("lifecycle"), "leave.py"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_said(cpu: Objects, what: str) -> None:
    change, said = WRONG[what]
    objects = copy.deepcopy(cpu)
    change(objects)
    problems = kuberay_problems(objects)
    assert any(said in problem for problem in problems), problems


def test_pod_templates_are_held_against_the_newest_schemas_there_are() -> None:
    import kubernetes_validate

    assert kubernetes_validate.latest_version() == KUBERNETES
