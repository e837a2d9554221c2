"""Leave the cluster when Amazon announces that it takes this spot instance away, which it does two minutes before.

Started beside Ray on spot nodes of cluster/aws.yaml; asks the instance's own metadata every five seconds. Not run on
Amazon's machines so far: tests/unit/test_cluster_node.py plays the metadata service.
"""

import argparse
import http.client
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

TURN_SECONDS = 5.0
SAVE_SECONDS = 90  # of the 120


def main() -> int:
    """Wait for the announcement, then leave; return the exit code of leaving."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--metadata", default="http://169.254.169.254", help="URL of the metadata service")
    options.add_argument("--every", type=float, default=TURN_SECONDS, help="seconds between two questions")
    chosen = options.parse_args()
    while not announced(chosen.metadata):
        time.sleep(chosen.every)
    print("this spot instance is taken away in two minutes: leaving the cluster", flush=True)
    leave = Path(__file__).with_name("leave.py")
    return subprocess.run([sys.executable, str(leave), f"--seconds={SAVE_SECONDS}"], check=False).returncode


def announced(metadata: str) -> bool:
    """Return whether the end is announced; a metadata service that does not answer has announced nothing."""
    lasting = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
    try:
        token = ask("PUT", f"{metadata}/latest/api/token", lasting)
        ask("GET", f"{metadata}/latest/meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": token})
    except (OSError, http.client.HTTPException):  # 404 while there is nothing to announce
        return False
    return True


def ask(method: str, url: str, headers: dict[str, str]) -> str:
    """Return the body of an answer. Raises OSError where there is none, or another status than 200."""
    request = urllib.request.Request(url, headers=headers, method=method)
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=2) as answer:
        return str(answer.read().decode())


if __name__ == "__main__":
    sys.exit(main())
