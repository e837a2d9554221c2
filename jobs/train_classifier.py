"""Train one classifier: `python jobs/train_classifier.py --config quick data=URL --out URL`."""

import sys

from hydramix_dist.cli.job import run_job

if __name__ == "__main__":
    sys.exit(run_job("train_classifier", sys.argv[1:]))
