"""The cluster that a job is submitted to: a dashboard that does not answer well, and whether there is room."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from hydramix_dist.errors import UserError
from hydramix_dist.orchestration.jobs.capacity import Ask, check_capacity, declared_nodes
from hydramix_dist.orchestration.jobs.cluster import AwayError, Cluster, RayJob
from hydramix_dist.orchestration.jobs.follow import follow, wait_until_over
from hydramix_dist.orchestration.jobs.upload import environment
from hydramix_dist.orchestration.preflight import NODES, grown

# ---- a dashboard that is not well


@pytest.fixture
def answering() -> Iterator[tuple[str, list[str], list[bytes]]]:
    """Yield an address, the first lines that are asked there, and the answers to give, the last of them ever again."""
    asked: list[str] = []
    answers: list[bytes] = []
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                line, _ = server.accept()
            except OSError:
                return
            with line:
                asked.append(line.recv(65536).split(b"\r\n")[0].decode())
                line.sendall(answers.pop(0) if len(answers) > 1 else answers[0])

    threading.Thread(target=serve, daemon=True).start()
    yield f"http://127.0.0.1:{server.getsockname()[1]}", asked, answers
    server.shutdown(socket.SHUT_RDWR)
    server.close()


def answer(tree: object, status: str = "200 OK") -> bytes:
    body = json.dumps(tree).encode()
    return f"HTTP/1.0 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


OVER = {"submission_id": "x", "status": "SUCCEEDED"}


def test_a_job_id_is_one_word_of_the_question(answering: tuple[str, list[str], list[bytes]]) -> None:
    address, asked, answers = answering
    answers[:] = [answer({}, "404 Not Found"), answer({"submission_id": None, "status": "RUNNING", "type": "DRIVER"})]
    cluster = Cluster(address)
    assert cluster.job("../version?a b") is None
    assert asked == ["GET /api/jobs/..%2Fversion%3Fa%20b HTTP/1.1"]
    assert cluster.job("01000000") is None  # a driver that nobody submitted
    assert cluster.job("") is None and len(asked) == 2


def test_an_answer_that_breaks_off_is_asked_for_again(answering: tuple[str, list[str], list[bytes]]) -> None:
    address, asked, answers = answering
    answers[:] = [answer(OVER)[:-5], answer(OVER)[:-5], answer(OVER)]
    with pytest.raises(AwayError):
        Cluster(address).job("x")
    over = wait_until_over(Cluster(address), "x", 10.0)
    assert over is not None and over.state == "SUCCEEDED" and len(asked) == 3


def test_a_job_is_followed_to_its_end_where_no_connection_for_its_log_is_to_be_had() -> None:
    class Deaf(Cluster):
        def client(self) -> Any:
            time.sleep(0.1)
            raise AwayError("no agent")

        def job(self, submission_id: str) -> RayJob | None:
            return RayJob("x", "SUCCEEDED", {}, "", 0, 1.0, 2.0)

        def logs(self, submission_id: str) -> str:
            return "last words"

    heard: list[str] = []
    assert follow(Deaf("http://127.0.0.1:9"), "x", heard.append, heard.append).over
    assert heard == ["last words"]


# ---- room


LAUNCHER = {
    "head_node_type": "head",
    "max_workers": 3,
    "available_node_types": {
        "head": {"resources": {"CPU": 0}},
        "small": {"resources": {"CPU": 4}, "max_workers": 8},
        "gpu": {"resources": {"CPU": 8, "GPU": 1}, "max_workers": 2},
    },
}
GROUP = {
    "maxReplicas": 2,
    "rayStartParams": {},
    "template": {"spec": {"containers": [{"resources": {"limits": {"cpu": "1500m", "nvidia.com/gpu": 1}}}]}},
}


def declared(tmp_path: Path, tree: object) -> Path:
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def test_declared_nodes_of_launcher_and_kuberay(tmp_path: Path) -> None:
    found = declared_nodes(declared(tmp_path, LAUNCHER))
    sizes = sorted((node["CPU"], node.get("GPU", 0)) for node in found.workers)
    assert (sizes, found.most) == ([(4, 0)] * 3 + [(8, 1)] * 2, 3)
    cluster = {"workerGroupSpecs": [GROUP, GROUP | {"rayStartParams": {"num-cpus": "3", "num-gpus": "0"}}]}
    for tree in ({"spec": cluster}, {"spec": {"rayClusterSpec": cluster}}):
        nodes = [(node["CPU"], node["GPU"]) for node in declared_nodes(declared(tmp_path, tree)).workers]
        assert nodes == [(2, 1)] * 2 + [(3, 0)] * 2
    several = tmp_path / "all.yaml"  # as kubectl renders an overlay: among others two jobs with clusters of their own
    job, standing = {"rayClusterSpec": {"workerGroupSpecs": [GROUP]}}, {"workerGroupSpecs": [GROUP, GROUP]}
    objects = [{"kind": "ConfigMap"}, {"kind": "RayJob", "spec": job}, {"kind": "RayCluster", "spec": standing}]
    several.write_text(yaml.safe_dump_all(objects))
    assert len(declared_nodes(several).workers) == 4
    several.write_text(yaml.safe_dump_all(objects[:2]))
    assert len(declared_nodes(several).workers) == 2
    unlimited = LAUNCHER | {"available_node_types": {"any": {"resources": {"CPU": 4}}}}
    assert len(declared_nodes(declared(tmp_path, unlimited)).workers) == 3  # as Ray takes it: what the whole may have
    several.write_text("")
    with pytest.raises(UserError, match=r"all\.yaml declares no node types"):
        declared_nodes(several)
    several.write_text("a: [")
    with pytest.raises(UserError, match=r"--cluster-file .*all\.yaml is not valid YAML: line 1"):
        declared_nodes(several)
    with pytest.raises(UserError, match=r"--cluster-file nowhere\.yaml: No such file"):
        declared_nodes(Path("nowhere.yaml"))
    for wrong in ({"spec": {}}, {"available_node_types": {"a": 3}}, {"a": 1}):
        with pytest.raises(UserError, match="declares no node types"):
            declared_nodes(declared(tmp_path, wrong))


@pytest.mark.parametrize("kind", [{}, {"resources": {}}, {"resources": None}, {"resources": {"GPU": 1}}])
def test_a_kind_of_node_whose_cpus_are_not_declared_is_named(kind: dict[str, Any], tmp_path: Path) -> None:
    launcher = {"head_node_type": "head", "available_node_types": {"head": {}, "spot": kind}}
    path = declared(tmp_path, launcher)
    with pytest.raises(UserError, match=rf"{path} .*how many CPUs and GPUs.*available_node_types\.spot\.resources"):
        declared_nodes(path)
    group = {"groupName": "spots", "template": {"spec": {"containers": [kind]}}}
    path = declared(tmp_path, {"spec": {"workerGroupSpecs": [GROUP, group]}})
    with pytest.raises(UserError, match=r"how many CPUs and GPUs.*resources\.limits of the worker group spots"):
        declared_nodes(path)
    path = declared(tmp_path, {"spec": {"workerGroupSpecs": [group | {"rayStartParams": {"num-cpus": "4"}}]}})
    assert [node["CPU"] for node in declared_nodes(path).workers] == [4]


def test_a_job_on_a_cluster_that_grows_counts_with_what_was_declared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    living = [{"CPU": 0.0}, {"CPU": 4.0}]
    assert grown(living) == living
    told = environment(declared_nodes(declared(tmp_path, LAUNCHER)).some())
    monkeypatch.setenv(NODES, told[NODES])
    assert sorted(node["CPU"] for node in grown(living)) == [4, 8, 8]  # three nodes at most, the larger ones
    assert grown([{"CPU": 32.0}]) == [{"CPU": 32.0}]


def test_a_cluster_that_can_never_do_it_is_told_before_anything_is_sent(tmp_path: Path) -> None:
    cluster = Cluster("http://127.0.0.1:9")
    living = [{"CPU": 0.0}, {"CPU": 2.0}]
    ask = Ask(2, {"CPU": 2.0}, "lower distributed.workers (2)")
    check_capacity(cluster, Ask(1, {"CPU": 2.0}, ""), living, None)
    with pytest.raises(UserError, match=r"2 processes with 2 CPU each.*room for 1 \(the largest node has 2 CPU\)"):
        check_capacity(cluster, ask, living, None)
    check_capacity(cluster, ask, living, declared(tmp_path, LAUNCHER))
    with pytest.raises(UserError, match=r"never has room for more than 20 "):  # two of 8 CPUs and one of 4, no more
        check_capacity(cluster, Ask(21, {"CPU": 1.0}, ""), living, declared(tmp_path, LAUNCHER))
    with pytest.raises(UserError, match=r"never has room for more than 2 \(the largest node has 8 CPU and 1 GPU\)"):
        check_capacity(cluster, Ask(3, {"CPU": 1.0, "GPU": 1.0}, ""), living, declared(tmp_path, LAUNCHER))
