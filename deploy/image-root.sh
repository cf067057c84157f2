#!/bin/sh
# Gathers what the image is made of in a directory: deploy/image-root.sh ROOT
# Run in the image's build stage, where Debian's Python and /opt/specgen are installed.
set -eu
root=$1
cd /
python=/usr/bin/python3.11
library=/usr/lib/python3.11

# the shared libraries of the interpreter, of its modules and of ours
libraries=$(find "$python" "$library" /opt/specgen -type f \( -path "$python" -o -name '*.so*' \) \
    -exec ldd {} + | sed -n 's/^[^/]*\(\/[^ ]*\) (0x.*/\1/p' | sort -u)

mkdir -p "$root/tmp" "$root/etc" "$root/var/lib/dpkg/status.d"
chmod 1777 "$root/tmp"
cp -a --parents /usr/bin/python3 "$python" "$library" /opt/specgen "$root"
# shellcheck disable=SC2086
cp -L --parents $libraries "$root"
echo 'specgen:x:65532:65532::/:/' >"$root/etc/passwd"
echo 'specgen:x:65532:' >"$root/etc/group"
cp /etc/os-release "$root/etc"

# which of Debian's packages these are from, where scanners look for it
for file in "$python" $libraries; do dpkg -S "*/${file##*/}"; done |
    sed 's/[:,].*//' | sort -u | while read -r package; do
    dpkg-query --status "$package" >"$root/var/lib/dpkg/status.d/$package"
done
for package in libpython3.11-minimal libpython3.11-stdlib; do
    dpkg-query --status "$package" >"$root/var/lib/dpkg/status.d/$package"
done
