#!/bin/bash
# A command of synpro on several nodes without a scheduler. On each node, the first of which is named in HEAD:
#
#     NODES=4 HEAD=node-0 examples/launch/torchrun.sh run my.yaml parallel.tp=2 --dir /shared/runs/mine
#
# --dir lies on a file system that all nodes see. SIGTERM to this script (on any node) saves and ends it with 75 on all of
# them. A job that lost a rank is begun again on all nodes, up to MAX_LOST times; so is one whose first launcher is gone,
# when that one is there again. In the pause before that, SIGTERM ends the script that it is sent to alone.
set -u
nodes=${NODES:?how many nodes} head=${HEAD:?the name of the first node}
ranks=${RANKS_PER_NODE:-8} port=${RDZV_PORT:-29500} lost=0 asked=0

pass_on() {
    asked=1
    kill -TERM "$launcher" 2>/dev/null
}
trap pass_on TERM USR1 INT

while :; do
    synpro launch --nnodes "$nodes" --nproc-per-node "$ranks" \
        --rdzv-backend c10d --rdzv-endpoint "$head:$port" --rdzv-id "${JOB_ID:-synpro}-$port" "$@" &
    launcher=$!
    # A signal ends the wait, not the launcher, which still has to save.
    while wait "$launcher"; code=$?; kill -0 "$launcher" 2>/dev/null; do :; done
    # 0: done. 75: asked to stop. 2: a fault that the user mends.
    case $code in 0 | 2 | 75) exit "$code" ;; esac
    lost=$((lost + 1))
    if [ "$asked" -eq 1 ] || [ "$lost" -gt "${MAX_LOST:-3}" ]; then exit "$code"; fi
    echo "begun again ($lost of ${MAX_LOST:-3}) after code $code" >&2
    sleep "${PAUSE_S:-10}"
    # A signal in the pause found no launcher to be passed on to.
    if [ "$asked" -eq 1 ]; then exit 75; fi
done
