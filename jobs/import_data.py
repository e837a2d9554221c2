"""Import images into a bucket: `python jobs/import_data.py SRC DST [KEY=VALUE]...`."""

import sys

from hydramix_dist.cli.job import run_job

if __name__ == "__main__":
    sys.exit(run_job("import_data", sys.argv[1:]))
