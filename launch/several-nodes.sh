#!/usr/bin/env bash
# Several machines: run this on each of them, with the same MAIN and its own NODE_RANK.
#
#   NNODES=2 NODE_RANK=0 GPUS=8 MAIN=10.0.0.1 launch/several-nodes.sh train CONFIG [key=value …] [--resume latest]
#
# The checkpoint folder must lie on a file system that all of them see.
set -euo pipefail
: "${NNODES:?machines in all}" "${NODE_RANK:?number of this machine, from 0}" "${MAIN:?address of machine 0}"
exec torchrun --nnodes "$NNODES" --node-rank "$NODE_RANK" --nproc-per-node "${GPUS:-8}" \
    --master-addr "$MAIN" --master-port "${PORT:-29500}" -m dynamo_mtl.cli "$@"
