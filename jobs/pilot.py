"""Run a pilot: `python jobs/pilot.py --config quick data=URL --out URL`."""

import sys

from hydramix_dist.cli.job import run_job

if __name__ == "__main__":
    sys.exit(run_job("pilot", sys.argv[1:]))
