"""The fields of KubeRay's and Prometheus' objects that our manifests may use, and their types: all others are refused.

Written from the descriptions of KubeRay 1.6 and 1.7 and of Prometheus' operator. What a pod template may hold is no
part of it: that is Kubernetes' own and checked against its own schemas.
"""

# ruff: noqa: D101  (each class is the object, or the part of one, that it is named after)

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

Text = Annotated[str, StringConstraints(strict=True, min_length=1)]
Count = Annotated[int, Field(strict=True, ge=0)]
Switch = Annotated[bool, Field(strict=True)]
Labels = dict[Text, Text]
Tree = dict[str, Any]


class Strict(BaseModel):
    """A part of an object; a field that is not named here is an error."""

    model_config = ConfigDict(extra="forbid")


class Metadata(Strict):
    name: Text
    namespace: Text | None = None
    labels: Labels = {}
    annotations: Labels = {}


class AuthOptions(Strict):
    mode: Literal["token"]
    secretName: Text


class AutoscalerOptions(Strict):
    version: Literal["v2"]
    idleTimeoutSeconds: Count
    securityContext: Tree
    volumeMounts: list[Tree]
    resources: Tree


class HeadGroup(Strict):
    serviceType: Literal["ClusterIP"]  # nothing outside of the cluster may reach it
    rayStartParams: Labels
    template: Tree


class WorkerGroup(Strict):
    groupName: Text
    replicas: Count
    minReplicas: Count
    maxReplicas: Count
    rayStartParams: Labels
    template: Tree


class JobCluster(Strict):
    rayVersion: Text
    authOptions: AuthOptions
    headGroupSpec: HeadGroup
    workerGroupSpecs: Annotated[list[WorkerGroup], Field(min_length=1)]


class Cluster(JobCluster):
    enableInTreeAutoscaling: Switch
    autoscalerOptions: AutoscalerOptions


class RayCluster(Strict):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayCluster"]
    metadata: Metadata
    spec: Cluster


class SubmitterConfig(Strict):
    backoffLimit: Literal[0]  # a second submitter reads logs, and says that all is well


class Job(Strict):
    suspend: Switch
    entrypoint: Annotated[str, StringConstraints(pattern=r"^python /opt/hydramix/jobs/\w+\.py ")]
    submissionMode: Literal["K8sJobMode"]
    backoffLimit: Count
    submitterConfig: SubmitterConfig
    shutdownAfterJobFinishes: Literal[True]  # without it a job may not be suspended
    ttlSecondsAfterFinished: Count
    preRunningDeadlineSeconds: Annotated[int, Field(strict=True, ge=1)]
    activeDeadlineSeconds: Annotated[int, Field(strict=True, ge=1)] | None = None
    submitterPodTemplate: Tree
    rayClusterSpec: JobCluster


class RayJob(Strict):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: Metadata
    spec: Job


class Relabeling(Strict):
    targetLabel: Text
    replacement: Text


class Endpoint(Strict):
    port: Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=15)]
    interval: Annotated[str, StringConstraints(pattern=r"^\d+s$")]
    relabelings: list[Relabeling]


class Selector(Strict):
    matchLabels: Annotated[Labels, Field(min_length=1)]


class Monitor(Strict):
    selector: Selector
    podMetricsEndpoints: Annotated[list[Endpoint], Field(min_length=1)]


class PodMonitor(Strict):
    apiVersion: Literal["monitoring.coreos.com/v1"]
    kind: Literal["PodMonitor"]
    metadata: Metadata
    spec: Monitor


class Rule(Strict):
    alert: Text | None = None
    record: Text | None = None
    expr: Text
    for_: Annotated[Text | None, Field(alias="for")] = None
    keep_firing_for: Text | None = None
    labels: Labels = {}
    annotations: Labels = {}


class Group(Strict):
    name: Text
    interval: Text | None = None
    rules: Annotated[list[Rule], Field(min_length=1)]


class Groups(Strict):
    groups: Annotated[list[Group], Field(min_length=1)]


class PrometheusRule(Strict):
    apiVersion: Literal["monitoring.coreos.com/v1"]
    kind: Literal["PrometheusRule"]
    metadata: Metadata
    spec: Groups


MODELS: dict[str, type[Strict]] = {
    "RayCluster": RayCluster,
    "RayJob": RayJob,
    "PodMonitor": PodMonitor,
    "PrometheusRule": PrometheusRule,
}
