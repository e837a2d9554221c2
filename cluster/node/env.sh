# shellcheck shell=bash
# What every command on a node of a launcher's cluster runs under; sourced by cluster/local.yaml and cluster/aws.yaml.
# No secret stands here: the token lies in a file that the launcher copies, credentials of the bucket are the node's own.
export PATH="$HOME/hydramix-venv/bin:$PATH"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$HOME/hydramix-token"
export RAY_USAGE_STATS_ENABLED=0
# A job that is stopped has a minute to save; Ray would give it three seconds.
export RAY_JOB_STOP_WAIT_TIME_S=60
export HYDRAMIX_METRICS='{port: 9464, host: 0.0.0.0}'
