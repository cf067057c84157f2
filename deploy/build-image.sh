#!/usr/bin/env bash
# Builds the image with buildah: deploy/build-image.sh [NAME]
#
# Where no registry is at hand, SPECGEN_BASE=debootstrap makes the base image from Debian's
# packages, under its usual name (as root, with debootstrap installed). The host's pip.conf and
# certificates, where there are such, serve the build and do not reach the image.
set -euo pipefail
cd "$(dirname "$0")/.."

name=${1:-localhost/specgen:latest}
base=docker.io/library/debian:bookworm-slim
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Within a container there is mostly neither overlayfs nor a namespace to be had.
buildah=(buildah --storage-driver "${STORAGE_DRIVER:-vfs}")
export BUILDAH_ISOLATION=${BUILDAH_ISOLATION:-chroot}

make_base() {
    local mirror
    mirror=$(deploy/debian-mirror.sh)
    debootstrap --variant=minbase bookworm "$work/base" "$mirror" >"$work/debootstrap.log" ||
        { tail "$work/debootstrap.log" >&2; return 1; }
    # what makes it "slim": the same is left out of Debian's own
    rm -rf "$work"/base/var/lib/apt/lists/* "$work"/base/var/cache/apt/* \
        "$work"/base/var/log/* "$work"/base/usr/share/{doc,info,man,lintian}/* \
        "$work"/base/usr/share/locale/*
    printf 'path-exclude /usr/share/%s/*\n' doc info man lintian locale \
        >"$work/base/etc/dpkg/dpkg.cfg.d/slim"
    printf 'deb %s %s main\n' "$mirror" bookworm "$mirror" bookworm-updates \
        "${mirror%/debian}/debian-security" bookworm-security \
        >"$work/base/etc/apt/sources.list"
    local container
    container=$("${buildah[@]}" from scratch)
    "${buildah[@]}" copy --quiet "$container" "$work/base" / >/dev/null
    "${buildah[@]}" config --cmd bash "$container"
    "${buildah[@]}" commit --quiet --rm "$container" "$base" >/dev/null
}

if [ "${SPECGEN_BASE:-}" = debootstrap ]; then
    "${buildah[@]}" inspect --type image "$base" >/dev/null 2>&1 || make_base
fi

arguments=()
for secret in pip.conf=/etc/pip.conf ca-certificates=/etc/ssl/certs/ca-certificates.crt; do
    if [ -e "${secret#*=}" ]; then
        arguments+=(--secret "id=${secret%%=*},src=${secret#*=}")
    fi
done
if revision=$(git rev-parse HEAD 2>/dev/null); then
    arguments+=(--build-arg "REVISION=$revision")
fi

# The OCI format has no HEALTHCHECK.
"${buildah[@]}" build --format docker --pull=missing "${arguments[@]}" \
    --build-arg "EXTRAS=${EXTRAS:-server}" --tag "$name" .
