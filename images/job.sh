#!/bin/bash
# Runs distributed-pynq as a user of a deployed cluster, in the image that was built beside its scheduler's.
# usage: job.sh INVENTORY COMMAND ARGUMENT...
# The container sees this repository, the current folder, $DISTRIBUTED_PYNQ_DATA and the paths among
# the arguments, each where it is, or what there is of it.
set -eu
deployment=$(basename "$1" .ini)
shift
root=$(cd "$(dirname "$0")/.." && pwd)
settings=$root/.deploy/$deployment/client
if ! [ -e "$settings/tls.yaml" ]; then
    echo "$deployment is not deployed yet: make deploy" >&2
    exit 4
fi
if ! image=$(docker inspect --format '{{index .Config.Labels "distributed-pynq.job"}}' distributed-pynq-scheduler 2>/dev/null); then
    echo "no scheduler runs in a container of this machine: make deploy" >&2
    exit 4
fi
data=${DISTRIBUTED_PYNQ_DATA:-${XDG_CACHE_HOME:-$HOME/.cache}/distributed-pynq}
mkdir -p "$data"
options=(
    --rm --init --no-healthcheck --network host --user "$(id -u):$(id -g)" --workdir "$PWD"
    --volume "$root:$root" --volume "$PWD:$PWD" --volume "$data:$data"
    --env "DASK_CONFIG=$settings" --env "DISTRIBUTED_PYNQ_DATA=$data"
)
[ -t 0 ] && [ -t 1 ] && options+=(--interactive --tty)
for argument; do
    path=${argument#--*=}
    # All else lies in the current folder, or is no path.
    [[ $path = /* || $path = ..* ]] || continue
    path=$(realpath --canonicalize-missing --no-symlinks "$path")
    # What the job is yet to make shall outlive its container.
    until [ -e "$path" ]; do path=$(dirname "$path"); done
    if [ "$path" = / ]; then
        echo "$argument: not there, nor is the folder that it would be in" >&2
        exit 2
    fi
    options+=(--volume "$path:$path")
done
scheduler=$(sed -n 's/^scheduler-address: //p' "$settings/tls.yaml")
exec docker run "${options[@]}" "$image" distributed-pynq "$@" --scheduler "$scheduler"
