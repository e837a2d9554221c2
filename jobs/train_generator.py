"""Train one generator: `python jobs/train_generator.py --config quick data=URL --out URL`."""

import sys

from hydramix_dist.cli.job import run_job

if __name__ == "__main__":
    sys.exit(run_job("train_generator", sys.argv[1:]))
