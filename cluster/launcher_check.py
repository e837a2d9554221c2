"""What is wrong with a file for Ray's launcher, as sentences: what Ray or Amazon would refuse, and what we promise."""

import contextlib
import io
import logging
import re
from collections.abc import Iterator, Mapping
from typing import Any

from versions import versions

# What Ray's own provider makes of a node's settings before Amazon sees them.
_RAYS_OWN = {"SubnetIds"}
METRICS_PORT = 8080
HEAD_PORT = 6379


def launcher_problems(config: Mapping[str, Any]) -> list[str]:
    """Return what Ray, Amazon or this project object to; what is to be filled in is none of it."""
    refused = _ray_refuses(config)
    if refused:
        return [refused]
    found = [*_starts(config), *_pins(config)]
    if config["provider"]["type"] == "aws":
        found += [*_amazon_refuses(config), *_spot_first(config), *_open_to_all(config)]
    return found


def _ray_refuses(config: Mapping[str, Any]) -> str:
    """Return the sentence by which Ray refuses a file, "" where it takes it; nothing is started or asked."""
    import click
    import jsonschema
    from ray.autoscaler._private.util import prepare_config, validate_config

    logging.getLogger("ray.autoscaler").setLevel(logging.ERROR)  # it tells of defaults
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            validate_config(prepare_config(dict(config)))
    except jsonschema.ValidationError as error:
        return f"Ray refuses {'.'.join(map(str, error.absolute_path)) or 'the file'}: {error.message}"
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        return f"Ray refuses the file: {error!r}"
    except click.ClickException as error:
        return f"Ray refuses the file: {error.message}"
    return ""


def _starts(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with how Ray is started: the head without work, metrics on their port, with a token."""
    head, worker = (config.get(f"{kind}_start_ray_commands", []) for kind in ("head", "worker"))
    wanted = {
        "head": ["--head", f"--port={HEAD_PORT}", "--num-cpus=0", "--num-gpus=0", "--dashboard-host=127.0.0.1"],
        "worker": [f'--address="$RAY_HEAD_IP:{HEAD_PORT}"'],
    }
    for kind, commands in (("head", head), ("worker", worker)):
        starts = [command for command in commands if re.search(r"\bray start\b", command)]
        if len(starts) != 1:
            yield f"{kind}_start_ray_commands has {len(starts)} commands with `ray start` instead of one"
            continue
        words = starts[0].split()
        for option in (*wanted[kind], f"--metrics-export-port={METRICS_PORT}"):
            if option not in words:
                yield f"`ray start` of the {kind} lacks {option}"
        if not any("hydramix exporter" in command for command in commands):
            yield f"no exporter is started on the {kind}"
        for command in commands:
            if not command.startswith(". ~/hydramix/cluster/node/env.sh;"):
                yield f"a command of the {kind} runs without node/env.sh, and so without a token: {command}"
    if not any("--autoscaling-config=~/ray_bootstrap_config.yaml" in command for command in head):
        yield "`ray start` of the head lacks --autoscaling-config, so no worker would come"


def _pins(config: Mapping[str, Any]) -> Iterator[str]:
    known = {"boto3": versions().botocore, "ray": versions().ray}
    commands = [*config.get("setup_commands", []), *config.get("head_setup_commands", [])]
    if not any("cluster/node/setup.sh" in command for command in config.get("setup_commands", [])):
        yield "setup_commands do not run cluster/node/setup.sh, so nothing holds the versions of constraints.txt"
    for command in commands:
        for package, version in re.findall(r"([\w-]+)==(\S+)", command):
            if known.get(package, version) != version:
                yield f"{package} is {version}, but constraints.txt has {known[package]}"
    if config["provider"]["type"] == "aws" and not any(re.search(r"\bboto3==", command) for command in commands):
        yield "the head has no boto3 of a fixed version, without which it cannot start nodes"


def _amazon_refuses(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield what Amazon's own description of RunInstances, which botocore brings, says against a node's settings."""
    import botocore.session
    from botocore.validate import ParamValidator

    model = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    for name, kind in config["available_node_types"].items():
        node = {key: value for key, value in kind["node_config"].items() if key not in _RAYS_OWN}
        report = ParamValidator().validate(node | {"MinCount": 1, "MaxCount": 1}, model)
        if report.has_errors():
            yield f"available_node_types.{name}.node_config: {report.generate_report()}"
        if node["InstanceType"] not in model.members["InstanceType"].enum:
            yield f"available_node_types.{name}: Amazon has no instance type {node['InstanceType']}"
        if "IamInstanceProfile" not in node:
            yield f"available_node_types.{name} has no role (IamInstanceProfile), and so no way to the bucket"


def _spot_first(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield spot types that nothing stands in for: of the same resources, on demand, of a lower priority."""
    kinds = config["available_node_types"]
    spot = {name for name, kind in kinds.items() if "InstanceMarketOptions" in kind["node_config"]}
    for name in sorted(spot):
        kind = kinds[name]
        stands_in = [
            other
            for other in kinds.keys() - spot
            if kinds[other]["resources"] == kind["resources"]
            and kinds[other].get("priority", 0) < kind.get("priority", 0)
        ]
        if not stands_in:
            yield f"no type on demand of the same resources and a lower priority stands in for {name}, which is spot"
    for name, kind in kinds.items():
        is_head = name == config["head_node_type"]
        if is_head and (name in spot or any(kind["resources"].get(what, 1) for what in ("CPU", "GPU"))):
            yield f"the head ({name}) must be on demand and have CPU: 0 and GPU: 0, so that it runs no training"
        if not is_head and "max_workers" not in kind:
            yield f"available_node_types.{name} has no max_workers"


def _open_to_all(config: Mapping[str, Any]) -> Iterator[str]:
    for name, kind in config["available_node_types"].items():
        if not kind["node_config"].get("SecurityGroupIds"):
            yield f"available_node_types.{name} has no SecurityGroupIds; Ray would make a group with ssh open to all"
