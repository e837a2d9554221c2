"""How object storage is reached: one block of settings for every command and process, from the environment."""

import json
import os
import re
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from hydramix_dist.config.base import Settings
from hydramix_dist.config.load import build, parse, read_yaml
from hydramix_dist.errors import UserError

VARIABLE = "HYDRAMIX_STORE"
_AWS = {"endpoint": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"), "region": ("AWS_REGION", "AWS_DEFAULT_REGION")}
_SECRETS = ("key", "secret", "token", "password", "credential")


class StoreSettings(Settings):
    """Object storage: where it answers, how patiently it is asked, and the node's cache. Keys left null follow AWS."""

    endpoint: Annotated[
        str | None,
        Field(description="URL of an S3 server; null: AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, or AWS"),
    ] = None
    region: Annotated[str | None, Field(description="null: AWS_REGION, or the profile's")] = None
    profile: Annotated[
        str | None, Field(description="of ~/.aws/config, which also names credentials; null: AWS_PROFILE, or none")
    ] = None
    addressing: Annotated[
        Literal["auto", "path", "virtual"],
        Field(description="bucket in the path or in the host name; auto: path at an endpoint of one's own"),
    ] = "auto"
    ca_bundle: Annotated[
        str | None, Field(description="PEM file with the certificate authority of the endpoint; null: AWS_CA_BUNDLE")
    ] = None
    patience: Annotated[
        float, Field(gt=0, description="seconds in which one request is tried again before the command gives up")
    ] = 60.0
    requests: Annotated[int, Field(ge=1, le=256, description="requests of one process at a time")] = 16
    cache: Annotated[
        str | None,
        Field(description="folder on the node's disk, shared by all its processes; null: nothing is kept"),
    ] = "~/.cache/hydramix"
    cache_gib: Annotated[float, Field(gt=0, le=1e6, description="size at which the longest unused is removed, GiB")] = (
        10.0
    )

    @model_validator(mode="after")
    def _cache_has_a_place(self) -> "StoreSettings":
        if self.cache is not None and not self.cache.startswith(("/", "~")):
            raise ValueError(f"cache '{self.cache}' is no whole path; give one that begins with / or ~, or null")
        return self

    @model_validator(mode="after")
    def _endpoint_is_a_url(self) -> "StoreSettings":
        if self.endpoint is not None and not re.fullmatch(r"https?://[^/@\s?#]+/?", self.endpoint):
            shown = "it" if "@" in self.endpoint else f"'{self.endpoint}'"
            raise ValueError(
                f"endpoint: {shown} is not http(s)://HOST or http(s)://HOST:PORT without path, without credentials"
            )
        return self


def store_settings() -> StoreSettings:
    """Return the settings that HYDRAMIX_STORE holds: the path of a YAML file, or a mapping such as `{cache: null}`.

    What it leaves open of endpoint and region is taken from AWS's own variables. Raises UserError where they are wrong,
    or hold credentials.
    """
    named = [[(name, os.environ[name]) for name in names if os.environ.get(name)] for names in _AWS.values()]
    return _settings(os.environ.get(VARIABLE, ""), tuple(next(iter(values), None) for values in named))


def portable() -> dict[str, str]:
    """Return the environment that gives another machine's process the same settings, credentials aside."""
    tree = store_settings().model_dump(exclude_unset=True)  # a null that was set is a choice: no cache
    # YAML does not take two halves of a character, as JSON escapes it, for one.
    return {VARIABLE: json.dumps(tree, ensure_ascii=False)} if tree else {}


@lru_cache(maxsize=8)
def _settings(text: str, aws: tuple[tuple[str, str] | None, ...]) -> StoreSettings:
    tree = _tree(text)
    source = VARIABLE if text.lstrip().startswith("{") else f"{VARIABLE} ({text})"
    for key in tree:
        if key not in StoreSettings.model_fields and any(word in str(key).lower() for word in _SECRETS):
            raise UserError(
                f"{VARIABLE}: '{key}' is no place for credentials; give them as AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, as a profile in ~/.aws, or as a role of the machine"
            )
    own = build(StoreSettings, tree, source)
    added = {key: given for key, given in zip(_AWS, aws, strict=True) if given and getattr(own, key) is None}
    if not added:
        return own
    values = {key: value for key, (_, value) in added.items()}
    return build(StoreSettings, tree | values, ", ".join(name for name, _ in added.values()))


def _tree(text: str) -> dict[str, Any]:
    if not text.strip():
        return {}
    if text.lstrip().startswith("{"):
        return parse(text, VARIABLE)
    return read_yaml(Path(text).expanduser())
