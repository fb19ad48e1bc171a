#!/usr/bin/env bash
# Snakemake runs a copy of this once in the new environment, from the folder it was called in; where
# the project lies says workflow/rules/common.smk.
set -euo pipefail
project=${TIMEWALK_PROJECT:-$PWD}
if [[ ! -f $project/src/timewalk/__init__.py ]]; then
  echo "$project is not timewalk's project folder: set TIMEWALK_PROJECT to the one with its pyproject.toml, and run the same command again." >&2
  exit 1
fi
pip install --no-deps "$project"
