"""HYDRAMIX_STORE: a file or a mapping, AWS's own variables for what it leaves open, and no place for credentials."""

import json
import os
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hydramix_dist.config.store import VARIABLE, StoreSettings, portable, store_settings
from hydramix_dist.errors import UserError


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away all that would have a say."""
    for name in [name for name in os.environ if name.startswith("AWS_") or name == VARIABLE]:
        monkeypatch.delenv(name)


def refusal() -> str:
    with pytest.raises(UserError) as caught:
        store_settings()
    return str(caught.value)


# ---- where they come from


@pytest.mark.parametrize("text", [None, "", "  ", "{}"])
def test_nothing_set_is_the_default(text: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if text is not None:
        monkeypatch.setenv(VARIABLE, text)
    assert store_settings() == StoreSettings()
    assert portable() == {}


def test_a_mapping_and_a_file_say_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = {"endpoint": "http://127.0.0.1:8333", "patience": 7.5, "requests": 4, "cache": None, "addressing": "path"}
    monkeypatch.setenv(VARIABLE, json.dumps(tree))
    inline = store_settings()
    assert {key: getattr(inline, key) for key in tree} == tree and inline.cache_gib == StoreSettings().cache_gib
    (tmp_path / "store.yaml").write_text(yaml.safe_dump(tree))
    monkeypatch.setenv(VARIABLE, str(tmp_path / "store.yaml"))
    assert store_settings() == inline
    monkeypatch.setenv(VARIABLE, " {endpoint: 'http://127.0.0.1:8333', cache: null} ")
    assert store_settings() == StoreSettings(endpoint="http://127.0.0.1:8333", cache=None)


def test_aws_variables_fill_what_is_left_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-north-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://general:1")
    assert (store_settings().endpoint, store_settings().region) == ("http://general:1", "eu-north-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://of-s3:2")
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    assert (store_settings().endpoint, store_settings().region) == ("http://of-s3:2", "eu-west-1")
    monkeypatch.setenv(VARIABLE, "{endpoint: 'http://own:3', region: null}")
    assert (store_settings().endpoint, store_settings().region) == ("http://own:3", "eu-west-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "")
    monkeypatch.setenv(VARIABLE, "{cache: null}")
    assert store_settings().endpoint == "http://general:1"


# ---- what is wrong


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{endpont: 'http://h:1'}", "HYDRAMIX_STORE: unknown key 'endpont' (did you mean 'endpoint'?); allowed here: "),
        ("{patience: 0}", "HYDRAMIX_STORE: 'patience': input should be greater than 0 (given: 0)"),
        ("{requests: 0}", "'requests'"),
        ("{requests: 1000}", "'requests'"),
        ("{requests: many}", "'requests'"),
        ("{cache_gib: -1}", "'cache_gib'"),
        ("{cache_gib: 1e300}", "'cache_gib'"),
        ("{cache: ''}", "cache '' is no whole path"),
        ("{cache: here}", "cache 'here' is no whole path; give one that begins with / or ~, or null"),
        ("{addressing: host}", "'addressing': input should be 'auto', 'path' or 'virtual' (given: 'host')"),
        ("{endpoint: [1]}", "'endpoint'"),
        ("{endpoint: 'http://h:1'", "HYDRAMIX_STORE is not valid YAML"),
    ],
)
def test_wrong_keys_and_values_are_named(text: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, text)
    assert words in refusal()


def test_wrong_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "store.yaml"
    monkeypatch.setenv(VARIABLE, str(path))
    assert f"settings file {path}: No such file" in refusal()
    path.write_text("- a list")
    assert f"{path} holds one value of type list" in refusal()
    path.write_text("patience: -1")
    assert f"HYDRAMIX_STORE ({path}): 'patience'" in refusal()


@pytest.mark.parametrize(
    "endpoint", ["127.0.0.1:8333", "ftp://host", "http://host/bucket", "http://", "http://a b", "x"]
)
@pytest.mark.parametrize("where", [VARIABLE, "AWS_ENDPOINT_URL"])
def test_an_endpoint_is_a_url_of_a_server(endpoint: str, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(where, json.dumps({"endpoint": endpoint}) if where == VARIABLE else endpoint)
    assert f"{where}: endpoint: '{endpoint}' is not http(s)://HOST or http(s)://HOST:PORT" in refusal()


@pytest.mark.parametrize("endpoint", ["http://host", "https://host.example:9000/", "http://[::1]:8333"])
def test_servers_urls_are_taken(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    assert store_settings().endpoint == endpoint


# ---- credentials


@pytest.mark.parametrize(
    "key", ["aws_secret_access_key", "aws_access_key_id", "key", "secret", "token", "Password", "credentials"]
)
@pytest.mark.parametrize("form", ["inline", "file"])
def test_credentials_in_the_settings_are_refused_and_not_repeated(
    key: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = json.dumps({key: "wJalrXUtnFEMI", "patience": 3})
    (tmp_path / "store.yaml").write_text(text)
    monkeypatch.setenv(VARIABLE, text if form == "inline" else str(tmp_path / "store.yaml"))
    said = refusal()
    assert f"'{key}' is no place for credentials; give them as AWS_ACCESS_KEY_ID" in said and "wJalr" not in said


@pytest.mark.parametrize("where", [VARIABLE, "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_credentials_in_an_endpoint_are_refused_and_not_repeated(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = "http://AKIAEXAMPLE:wJalrXUtnFEMI@host:1"
    monkeypatch.setenv(where, json.dumps({"endpoint": endpoint}) if where == VARIABLE else endpoint)
    said = refusal()
    assert f"{where}: endpoint: it is not http(s)://HOST" in said and "without credentials" in said
    assert "AKIA" not in said and "wJalr" not in said


# ---- to other processes


def test_what_was_set_goes_to_other_machines_without_credentials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "store.yaml").write_text("{cache: null, patience: 5}")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "store.yaml"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://host:1")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, "hidden")
    sent = portable()
    assert list(sent) == [VARIABLE] and "hidden" not in sent[VARIABLE]
    here = store_settings()
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setenv(VARIABLE, sent[VARIABLE])
    (tmp_path / "store.yaml").unlink()
    assert store_settings() == here == StoreSettings(endpoint="http://host:1", patience=5, cache=None)


WORDS = st.text(st.characters(categories=["L", "N", "P", "S", "Zs"]), min_size=1, max_size=12)
CHOSEN = st.fixed_dictionaries(
    {},
    optional={
        "endpoint": st.sampled_from([None, "http://h:1", "https://store.example"]),
        "region": st.none() | WORDS,
        "profile": st.none() | WORDS,
        "addressing": st.sampled_from(["auto", "path", "virtual"]),
        "ca_bundle": st.none() | WORDS,
        "patience": st.floats(min_value=1e-9, max_value=1e6),
        "requests": st.integers(1, 256),
        "cache": st.none() | WORDS.map("/{}".format),
        "cache_gib": st.floats(min_value=1e-9, max_value=1e6),
    },
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chosen=CHOSEN)
def test_any_settings_arrive_as_they_were(chosen: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, json.dumps(chosen, ensure_ascii=False))
    here = store_settings()
    assert here == StoreSettings.model_validate(chosen)
    monkeypatch.setenv(VARIABLE, portable().get(VARIABLE, ""))
    assert store_settings() == here
