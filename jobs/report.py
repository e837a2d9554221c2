"""Write the page of pilots: `python jobs/report.py RUN... [--out URL]`."""

import sys

from hydramix_dist.cli.job import run_job

if __name__ == "__main__":
    sys.exit(run_job("report", sys.argv[1:]))
