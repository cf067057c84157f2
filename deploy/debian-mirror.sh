#!/bin/sh
# Prints where debootstrap gets Debian's packages from: DEBIAN_MIRROR, or this machine's apt sources.
set -eu
mirror=${DEBIAN_MIRROR:-$(apt-get indextargets --format '$(SITE)' \
    'Created-By: Packages' 'Component: main' 2>/dev/null | grep '/debian/*$' | head -n 1)}
if [ -z "$mirror" ]; then
    echo 'apt has no source of Debian here: set DEBIAN_MIRROR to the URL of a mirror' >&2
    exit 1
fi
echo "$mirror"
