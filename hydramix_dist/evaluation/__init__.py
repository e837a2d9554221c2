"""Arms compared fairly: scores of one run, paired statistics over seeds, the answer, and `results.json`."""
