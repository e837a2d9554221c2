"""The image: linted, of one version with everything else, and made of files that are sent to its builder."""

import re
import shlex
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

from versions import ROOT, versions

DOCKERFILE = ROOT / "cluster" / "Dockerfile"
TEXT = DOCKERFILE.read_text(encoding="utf-8")


def instructions() -> list[tuple[str, str]]:
    """Return the instructions, continued lines joined, without comments."""
    lines = "\n".join(line for line in TEXT.splitlines() if not line.startswith("#")).replace("\\\n", " ")
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines.splitlines()) if word]


def test_hadolint_has_nothing_to_say() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, DOCKERFILE], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout == ""
    # and would have, of another one
    done = subprocess.run(
        [hadolint, "-"], input=TEXT.replace("WORKDIR /src", "WORKDIR src"), capture_output=True, text=True
    )
    assert done.returncode != 0


def test_tags_in_words_are_of_this_version() -> None:
    tags = re.findall(r"-t REGISTRY/hydramix:(\S+)", TEXT)
    assert tags == [versions().image_tag("cpu"), versions().image_tag("cuda")]
    page = (ROOT / "docs" / "start-cluster.md").read_text(encoding="utf-8")
    assert set(re.findall(r"REGISTRY/hydramix:([\w.-]+)", page)) == {versions().image_tag("cpu")}


def test_every_installation_is_held_by_the_constraints() -> None:
    installs = [words for word, rest in instructions() if word == "RUN" for words in [rest] if "pip install" in words]
    assert len(installs) == 4 and all("--constraint constraints.txt" in words for words in installs)


def test_both_variants_end_as_a_user_without_rights_after_the_command_has_answered() -> None:
    stages = re.split(r"^FROM ", TEXT, flags=re.MULTILINE)
    for variant in ("cpu", "cuda"):
        (stage,) = [each for each in stages if each.splitlines()[0].endswith(f" AS {variant}")]
        assert "USER 1000:1000" in stage and stage.index("USER") < stage.index("RUN hydramix --help")


def test_no_secret_is_taken_or_kept() -> None:
    assert re.findall(r"(?i)token|secret|password|access_key", re.sub(r"(?m)^#.*$", "", TEXT)) == []


def test_all_that_is_copied_is_sent_and_no_more_of_the_checkout() -> None:
    """`.dockerignore` leaves out everything but what COPY names."""
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [line for line in ignored if line and not line.startswith("#")]
    assert rules[0] == "*"
    sent = {line.removeprefix("!") for line in rules if line.startswith("!")}
    copied = {
        source
        for word, rest in instructions()
        if word == "COPY" and not rest.startswith("--from")
        for source in shlex.split(rest)[:-1]
    }
    assert copied == sent and all((ROOT / name).exists() for name in sent)
    assert not [name for name in sent if any(fnmatch(part, "*token*") or part == ".git" for part in Path(name).parts)]


def test_what_the_package_is_built_from_is_there_when_it_is_built() -> None:
    """The wheel needs its readme, its licence and the ready settings."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for name in ("README.md", "LICENSE", "configs"):
        assert f'"{name}"' in project
        before = TEXT.index("RUN pip install --constraint constraints.txt .")
        assert name in TEXT[:before]
