#!/usr/bin/env bash
# What only a GPU can show, in at most 8 minutes, on a machine without network access.
#
#   benchmarks/gpu.sh --fetch   here: put what that machine lacks into .gpu/ (for Python 3.12)
#   benchmarks/gpu.sh           there: all parts, the most important first
#   benchmarks/gpu.sh PART...   there: these parts; --list shows all
#
# Results: $OUT/gpu.json and $OUT/gpu.log; OUT is outputs/gpu by default, and PYTHON is python3.
# A part that fails or passes its limit is reported, and the next one starts. The exit code is 0 if
# all parts passed. REHEARSE=1 runs them on a CPU with tiny sizes, LIMIT is another time in seconds.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}

fetch() {
  local wheels=.gpu/wheels tag
  local fashion=/usr/share/datasets/fashion-mnist  # the Debian package dataset-fashion-mnist
  local options=(-q --only-binary=:all: --python-version 3.12 --implementation cp)
  for tag in manylinux_2_28 manylinux_2_17 manylinux2014; do
    options+=(--platform "${tag}_x86_64")
  done
  rm -rf .gpu
  mkdir -p "$wheels" .gpu/fashion-mnist
  cp "$fashion"/*.gz .gpu/fashion-mnist/
  # ANTLR's runtime is published as source only.
  "$python" -m pip wheel -q --no-deps -w "$wheels" antlr4-python3-runtime==4.9.3
  options+=(-d "$wheels" --find-links "$wheels")
  "$python" -m pip download "${options[@]}" hydra-core omegaconf wandb pytest pytest-timeout
  "$python" -m pip download "${options[@]}" --no-deps simplejpeg
  du -sh .gpu
}

if [ "${1:-}" = --fetch ]; then
  fetch
else
  exec "$python" benchmarks/gpu.py "$@"
fi
