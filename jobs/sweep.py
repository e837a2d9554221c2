"""Run a sweep: `python jobs/sweep.py --config configs/sweep/nshot.yaml data=URL --out URL`."""

import sys

from hydramix_dist.cli.job import run_job

if __name__ == "__main__":
    sys.exit(run_job("sweep", sys.argv[1:]))
