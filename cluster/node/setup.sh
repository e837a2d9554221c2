#!/usr/bin/env bash
# Makes a node's environment, $HOME/hydramix-venv, from the checkout that this file lies in: constraints.txt decides the
# versions, so all nodes have the same. Arguments are further packages; TORCH_INDEX names an index with CPU builds of torch.
set -euo pipefail
cd "$(dirname "$0")/../.."

PYTHON=python3.11 # Ray wants the same on all nodes, and where jobs are submitted from
VENV=$HOME/hydramix-venv

if ! command -v "$PYTHON" >/dev/null || ! "$PYTHON" -m ensurepip --version >/dev/null 2>&1; then
  root=() && ((EUID)) && root=(sudo)
  "${root[@]}" apt-get update -qq
  "${root[@]}" apt-get install -y -qq --no-install-recommends "$PYTHON" "$PYTHON-venv"
fi
[[ -x $VENV/bin/python ]] || "$PYTHON" -m venv "$VENV"
"$VENV/bin/python" -m pip install --quiet --disable-pip-version-check \
  ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} -c constraints.txt . "$@"
"$VENV/bin/hydramix" --help >/dev/null
