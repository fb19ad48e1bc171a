#!/usr/bin/env bash
# Snakemake runs this once in the new environment, from the working directory.
set -euo pipefail
pip install --no-deps .
