#!/bin/sh
# Provides the image that another image starts from, with a certain version of Python: a registry's
# where one can be reached, else Debian 12 from Debian's packages with pyenv's interpreter in it.
# usage: base.sh NAME REGISTRY_IMAGE PYTHON PREFIX PACKAGE...
#   PREFIX   where the interpreter goes, as /usr/local
#   PACKAGE  of Debian
set -eu
name=$1 registry_image=$2 python=$3 prefix=$4
shift 4
debian=${name%:*}:bookworm

if docker image inspect "$name" >/dev/null 2>&1; then
    exit
fi
if timeout 60 docker pull --quiet "$registry_image" >/dev/null 2>&1; then
    docker tag "$registry_image" "$name"
    exit
fi
echo "$registry_image cannot be pulled: building $name from Debian's packages" >&2
interpreter=$(ls -d "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$python".*/bin/python"$python" 2>/dev/null | tail -1)
if [ -z "$interpreter" ]; then
    echo "Python $python is missing: pyenv install $python, or make a registry reachable" >&2
    exit 1
fi
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
if ! docker image inspect "$debian" >/dev/null 2>&1; then
    if ! command -v mmdebstrap >/dev/null; then
        echo "mmdebstrap is missing: apt-get install mmdebstrap, or make a registry reachable" >&2
        exit 1
    fi
    packages=$(echo "$*" | tr ' ' ',')
    mmdebstrap --quiet --variant=minbase --include="$packages" \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' bookworm "$scratch/debian.tar"
    docker import "$scratch/debian.tar" "$debian" >/dev/null
    rm "$scratch/debian.tar"
fi
(
    cd "$(dirname "$interpreter")/.."
    tar --create --file "$scratch/python.tar" --exclude='*.a' --exclude=__pycache__ \
        --exclude=site-packages --exclude='lib/*/test' bin/python"$python"* lib include
)
cat >"$scratch/Dockerfile" <<END
FROM $debian
ADD python.tar $prefix
RUN ln -sf python$python $prefix/bin/python3 && mkdir -p $prefix/lib/python$python/site-packages && ldconfig
END
docker build --quiet --tag "$name" "$scratch" >/dev/null
