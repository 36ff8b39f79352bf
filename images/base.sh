#!/bin/sh
# Provides the Debian image that another image starts from: a registry's where one can be reached,
# else one that mmdebstrap makes from Debian's packages.
# usage: base.sh NAME SUITE REGISTRY_IMAGE PACKAGE...
set -eu
name=$1 suite=$2 registry_image=$3
shift 3

if docker image inspect "$name" >/dev/null 2>&1; then
    exit
fi
if timeout 60 docker pull --quiet "$registry_image" >/dev/null 2>&1; then
    docker tag "$registry_image" "$name"
    exit
fi
echo "$registry_image cannot be pulled: building $name with mmdebstrap" >&2
if ! command -v mmdebstrap >/dev/null; then
    echo "mmdebstrap is missing: apt-get install mmdebstrap, or make a registry reachable" >&2
    exit 1
fi
archive=$(mktemp --suffix=.tar)
trap 'rm -f "$archive"' EXIT
packages=$(echo "$*" | tr ' ' ',')
mmdebstrap --quiet --variant=minbase --include="$packages" \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' "$suite" "$archive"
docker import "$archive" "$name" >/dev/null
