"""What is wrong with rendered manifests for KubeRay, as sentences: fields, pod templates, what must fit together."""

import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from kuberay_fields import MODELS
from pydantic import ValidationError
from versions import versions

KUBERNETES = "1.37.0"  # whose schemas pod templates are held against
HYDRAMIX_PORT = 9464
LEAVING_SECONDS = 20  # beyond what leave.py has for trainings: it stops Ray in that time
_BYTES = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
_SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|ACCESS_KEY|CREDENTIAL")


@dataclass(frozen=True)
class Group:
    """The head or a group of workers of one cluster."""

    where: str
    is_head: bool
    params: Mapping[str, str]
    template: Mapping[str, Any]

    @property
    def containers(self) -> Sequence[Mapping[str, Any]]:
        """Return the containers of its pods, Ray's first."""
        return list(self.template["spec"]["containers"])

    @property
    def ports(self) -> dict[str, int]:
        """Return all named ports of its pods."""
        return {port["name"]: port["containerPort"] for one in self.containers for port in one.get("ports", [])}


def kuberay_problems(objects: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what Kubernetes, KubeRay or this project object to; what is to be filled in is none of it."""
    found = [problem for one in objects for problem in _fields(one)]
    if found:
        return found
    groups = [group for one in objects for group in _groups(one)]
    for group in groups:
        found += [*_resources(group), *_ports(group), *_locked(group.where, group.template), *_leaves(group)]
        found += _absent(group, objects)
    for where, template in _submitters(objects):
        found += _locked(where, template)
    return [
        *found,
        *_versions(objects, groups),
        *_monitored(objects, groups),
        *_fenced(objects, groups),
        *_settings(objects),
    ]


# --- one object ---


def _fields(one: Mapping[str, Any]) -> Iterator[str]:
    """Yield what the fields of an object are wrong in: our lists, or Kubernetes' own schemas."""
    kind, name = str(one.get("kind")), one.get("metadata", {}).get("name")
    if kind in ("Secret", "PersistentVolumeClaim"):
        yield f"{kind} {name}: secrets stand in no manifest, and the bucket is the only thing that nodes share"
        return
    if kind not in MODELS:
        yield from _kubernetes_refuses(f"{kind} {name}", one)
        return
    try:
        MODELS[kind].model_validate(one)
    except ValidationError as error:
        for each in error.errors():
            yield f"{kind} {name}: {'.'.join(map(str, each['loc']))}: {each['msg']}"
        return
    for group in _groups(one):
        yield from _template_refused(group.where, group.template)
    for where, template in _submitters([one]):
        yield from _template_refused(where, template)


def _template_refused(where: str, template: Mapping[str, Any]) -> list[str]:
    return _kubernetes_refuses(where, {"apiVersion": "v1", "kind": "PodTemplate", "template": template})


def _kubernetes_refuses(where: str, one: Mapping[str, Any]) -> list[str]:
    return [f"{where}: {said}" for said in _said_of(json.dumps(one, sort_keys=True))]


@functools.cache  # the same pods come several times, and each is held against megabytes
def _said_of(text: str) -> list[str]:
    """Return what Kubernetes' schemas say against an object."""
    import kubernetes_validate

    try:
        kubernetes_validate.validate(json.loads(text), KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"{'.'.join(map(str, error.path))}: {error.message}"]
    except (kubernetes_validate.SchemaNotFoundError, kubernetes_validate.InvalidSchemaError):
        return [f"Kubernetes {KUBERNETES} has no such kind, and cluster/kuberay_fields.py does not know it"]
    return []


def _groups(one: Mapping[str, Any]) -> Iterator[Group]:
    """Yield head and workers of the cluster that an object brings, if it brings any."""
    if one.get("kind") not in ("RayCluster", "RayJob"):
        return
    spec = one["spec"] if one["kind"] == "RayCluster" else one["spec"]["rayClusterSpec"]
    name = f"{one['kind']} {one['metadata']['name']}"
    head = spec["headGroupSpec"]
    yield Group(f"{name}, head", True, head["rayStartParams"], head["template"])
    for group in spec["workerGroupSpecs"]:
        yield Group(f"{name}, {group['groupName']}", False, group["rayStartParams"], group["template"])


def _submitters(objects: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for one in objects:
        if one["kind"] == "RayJob":
            yield f"RayJob {one['metadata']['name']}, submitter", one["spec"]["submitterPodTemplate"]


# --- one group ---


def _resources(group: Group) -> Iterator[str]:
    """Yield where what Kubernetes gives and what Ray is told differ."""
    ray, params = group.containers[0], group.params
    for container in group.containers:
        asked, limits = container["resources"].get("requests"), container["resources"].get("limits")
        if asked != limits:
            yield f"{group.where}: container {container['name']} asks for {asked} but is limited to {limits}"
    limits = ray["resources"].get("limits", {})
    given = {"num-cpus": limits.get("cpu"), "num-gpus": limits.get("nvidia.com/gpu", "0")}
    told = {"num-cpus": "0", "num-gpus": "0"} if group.is_head else given
    for name, value in told.items():
        if params.get(name) != value:
            yield f"{group.where}: Ray is told {name}={params.get(name)}, but it should be {value}"
    volumes = {volume["name"]: volume for volume in group.template["spec"]["volumes"]}
    mounted = {mount["mountPath"]: volumes[mount["name"]] for mount in ray["volumeMounts"]}
    shared = mounted.get("/dev/shm", {}).get("emptyDir", {})
    objects = int(params.get("object-store-memory", 0))
    if shared.get("medium") != "Memory" or not objects or _bytes(shared.get("sizeLimit", "0Gi")) < objects:
        yield f"{group.where}: /dev/shm is no memory of at least object-store-memory ({objects} bytes)"


def _ports(group: Group) -> Iterator[str]:
    names = [port["name"] for container in group.containers for port in container.get("ports", [])]
    if len(names) != len(set(names)) or any(len(name) > 15 for name in names):
        yield f"{group.where}: port names must differ and have at most 15 characters: {names}"
    wanted = {"metrics": int(group.params.get("metrics-export-port", 0)), "hydramix": HYDRAMIX_PORT}
    if group.is_head:
        wanted |= {"gcs-server": 6379, "dashboard": 8265, "as-metrics": 44217, "dash-metrics": 44227}
    if group.ports != wanted:
        yield f"{group.where}: the ports are {group.ports}, but should be {wanted}"


def _locked(where: str, template: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a pod may do beyond what it needs."""
    spec = template["spec"]
    pod = spec.get("securityContext", {})
    if (
        not pod.get("runAsNonRoot")
        or pod.get("seccompProfile") != {"type": "RuntimeDefault"}
        or not pod.get("runAsUser")
    ):
        yield f"{where}: pods must run as a user of their own (runAsNonRoot, runAsUser) with seccomp RuntimeDefault"
    if not where.endswith("head") and spec.get("automountServiceAccountToken") is not False:
        yield f"{where}: only the head needs an account's token (automountServiceAccountToken: false)"
    locked = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    for container in spec["containers"]:
        if container.get("securityContext") != locked:
            yield f"{where}: container {container['name']} must have securityContext {locked}"
        for variable in container.get("env", []):
            if "value" in variable and _SECRET.search(variable["name"]):
                yield f"{where}: {variable['name']} stands in the manifest; refer to a Secret"
    for volume in spec.get("volumes", []):
        if "emptyDir" not in volume:
            yield f"{where}: volume {volume['name']} is shared or lasts, but the bucket is all that nodes share"


def _leaves(group: Group) -> Iterator[str]:
    """Yield where a pod that is taken away has no time to save."""
    hook = group.containers[0].get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", [])
    seconds = next((int(word.partition("=")[2]) for word in hook if word.startswith("--seconds=")), None)
    if "/opt/hydramix/cluster/node/leave.py" not in hook or seconds is None:
        yield f"{group.where}: preStop of the Ray container must run cluster/node/leave.py --seconds=N"
    elif group.template["spec"].get("terminationGracePeriodSeconds", 30) < seconds + LEAVING_SECONDS:
        yield f"{group.where}: terminationGracePeriodSeconds must be {seconds + LEAVING_SECONDS} or more"


def _absent(group: Group, objects: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield what a pod refers to without there being such a thing."""
    there = {(one["kind"], one["metadata"]["name"]) for one in objects}
    spec = group.template["spec"]
    named = [("ServiceAccount", spec["serviceAccountName"])] if "serviceAccountName" in spec else []
    sources = [source for container in group.containers for source in container.get("envFrom", [])]
    named += [("ConfigMap", source["configMapRef"]["name"]) for source in sources if "configMapRef" in source]
    for kind, name in dict.fromkeys(named):
        if (kind, name) not in there:
            yield f"{group.where}: there is no {kind} {name}"
    volumes = {volume["name"] for volume in spec.get("volumes", [])}
    for container in group.containers:
        for mount in container.get("volumeMounts", []):
            if mount["name"] not in volumes:
                yield f"{group.where}: container {container['name']} mounts a volume {mount['name']}, and there is none"


# --- all of it ---


def _versions(objects: Sequence[Mapping[str, Any]], groups: Sequence[Group]) -> Iterator[str]:
    known = versions()
    for one in objects:
        spec = one["spec"].get("rayClusterSpec", one["spec"]) if one["kind"] in ("RayCluster", "RayJob") else {}
        if spec.get("rayVersion", known.ray) != known.ray:
            yield f"{one['kind']} {one['metadata']['name']}: rayVersion is {spec['rayVersion']}, not {known.ray}"
    templates = [(group.where, group.template) for group in groups] + list(_submitters(objects))
    images = {one["image"] for _, template in templates for one in template["spec"]["containers"]}
    if len(images) > 1:
        yield f"one image is wanted for all, for Ray and Python must be the same everywhere: {sorted(images)}"
    wanted = {known.image_tag("cpu"), known.image_tag("cuda")}
    for image in sorted(images):
        if ":" in image and image.rpartition(":")[2] not in wanted:
            yield f"the image is {image}, but its tag should be one of {sorted(wanted)}"


def _monitored(objects: Sequence[Mapping[str, Any]], groups: Sequence[Group]) -> Iterator[str]:
    monitors = [one for one in objects if one["kind"] == "PodMonitor"]
    for monitor in monitors:
        chosen = monitor["spec"]["selector"]["matchLabels"]
        ports = [endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]]
        for group in groups:
            if not _selects(chosen, group.template):
                yield f"PodMonitor {monitor['metadata']['name']} does not find the pods of {group.where}"
            missing = {"hydramix", "metrics"} - set(ports)
            missing |= set(ports) - set(group.ports) if group.is_head else set()
            for port in sorted(missing):
                yield f"PodMonitor {monitor['metadata']['name']} and {group.where} do not agree on port {port}"
    if not monitors and groups:
        yield "no PodMonitor: nobody would see the metrics"


def _fenced(objects: Sequence[Mapping[str, Any]], groups: Sequence[Group]) -> Iterator[str]:
    """Yield what network policies leave open, or name without there being such a thing."""
    policies = [one for one in objects if one["kind"] == "NetworkPolicy"]
    templates = [(group.where, group.template) for group in groups] + list(_submitters(objects))
    for where, template in templates:
        mine = [one for one in policies if _selects(one["spec"]["podSelector"].get("matchLabels", {}), template)]
        if not {"Ingress", "Egress"} <= {kind for one in mine for kind in one["spec"]["policyTypes"]}:
            yield f"{where}: no NetworkPolicy fences its pods in both directions"
    known = {name for group in groups for name in group.ports}
    for one in policies:
        for rule in one["spec"].get("ingress", []):
            if any(_anybody(peer) for peer in rule.get("from") or [{}]):
                yield f"NetworkPolicy {one['metadata']['name']} lets everybody in"
            for port in rule.get("ports", []):
                if port["port"] not in known:
                    yield f"NetworkPolicy {one['metadata']['name']}: no pod has a port {port['port']}"
        if not any(_selects(one["spec"]["podSelector"].get("matchLabels", {}), template) for _, template in templates):
            yield f"NetworkPolicy {one['metadata']['name']} selects no pod"


def _anybody(peer: Mapping[str, Any]) -> bool:
    """Return whether a peer of a policy is every pod of all namespaces, or every address."""
    if "ipBlock" in peer:
        return str(peer["ipBlock"]["cidr"]).endswith("/0")
    namespaces, pods = peer.get("namespaceSelector"), peer.get("podSelector")
    own_namespace = namespaces is None and pods is not None
    return not own_namespace and not any((namespaces or {}).values()) and not any((pods or {}).values())


def _settings(objects: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for one in objects:
        if one["kind"] != "ConfigMap":
            continue
        data = one["data"]
        metrics = yaml.safe_load(data.get("HYDRAMIX_METRICS", "{}"))
        if metrics != {"port": HYDRAMIX_PORT, "host": "0.0.0.0"}:
            yield f"ConfigMap {one['metadata']['name']}: HYDRAMIX_METRICS must have port {HYDRAMIX_PORT}, host 0.0.0.0"
        for name in data:
            if _SECRET.search(name):
                yield f"ConfigMap {one['metadata']['name']}: {name} stands in the manifest; it belongs into a Secret"


def _selects(labels: Mapping[str, str], template: Mapping[str, Any]) -> bool:
    return labels.items() <= template["metadata"]["labels"].items()


def _bytes(quantity: str) -> int:
    return int(quantity[:-2]) * _BYTES[quantity[-2:]]
