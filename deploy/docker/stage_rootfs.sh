#!/usr/bin/env bash
# Fills OUT with what a container needs to run the given binaries: themselves, the libraries they
# load, a user, and the demo model.
#
#   deploy/docker/stage_rootfs.sh OUT [--library FILE]... BINARY...
#
# --library names what a binary opens by itself, which ldd does not see. For Debian 12. The packages
# that libraries come from leave their copyright and, for vulnerability scanners, their status.
set -euo pipefail

die() {
  printf 'stage_rootfs: %s\n' "$*" >&2
  exit 1
}

[ $# -ge 2 ] || die "usage: stage_rootfs.sh OUT [--library FILE]... BINARY..."
out=$1
shift
source=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
libraries=usr/lib/x86_64-linux-gnu
[ ! -e "$out" ] || die "$out is there already"
install -d "$out"/{etc,tmp,usr/bin,usr/lib64,"$libraries",usr/share/pkv/models} \
  "$out/var/lib/dpkg/status.d"
chmod 1777 "$out/tmp"
# As Debian has it: the loader's name is /lib64/ld-linux-x86-64.so.2.
ln -s usr/lib "$out/lib"
ln -s usr/lib64 "$out/lib64"

declare -A packages=()
# add_library PATH: under its soname, where the loader looks without a cache.
add_library() {
  local path=$1 name=${1##*/} package
  case "$path" in
    */ld-linux-x86-64.so.2) install -m 755 "$path" "$out/usr/lib64/$name" ;;
    *) install -m 644 "$path" "$out/$libraries/$name" ;;
  esac
  # dpkg knows a library by the path before or after the merge of /lib into /usr/lib.
  package=$(dpkg-query -S "$path" "$(realpath "$path")" "${path#/usr}" 2>/dev/null |
    head -n 1 | cut -d: -f1) || true
  [ -z "$package" ] || packages[$package]=1
}

# add_needed FILE: the libraries that the loader gives to a binary or a library.
add_needed() {
  local found path
  found=$(ldd "$1") || die "$1: ldd failed"
  ! grep -q 'not found' <<<"$found" || die "$1: $(grep 'not found' <<<"$found")"
  while read -r path; do
    [ -e "$out/$libraries/${path##*/}" ] || add_library "$path"
  done < <(grep -o '/[^ ]*' <<<"$found")
}

while [ $# -gt 0 ]; do
  if [ "$1" = --library ]; then
    [ -f "${2:-}" ] || die "--library: '${2:-}' is no file"
    add_library "$2"
    add_needed "$2"
    shift 2
  else
    [ -x "$1" ] || die "$1 is no binary"
    install -m 755 --strip "$1" "$out/usr/bin/"
    add_needed "$1"
    shift
  fi
done

for package in "${!packages[@]}"; do
  install -d "$out/usr/share/doc/$package"
  install -m 644 "/usr/share/doc/$package/copyright" "$out/usr/share/doc/$package/"
  dpkg-query -s "$package" >"$out/var/lib/dpkg/status.d/$package"
done
install -D -m 644 "$source/LICENSE" "$out/usr/share/doc/pkv/LICENSE"

echo 'nonroot:x:65532:65532:nonroot:/:/sbin/nologin' >"$out/etc/passwd"
echo 'nonroot:x:65532:' >"$out/etc/group"
echo 'hosts: files dns' >"$out/etc/nsswitch.conf"
# NVIDIA's container runtime tells from debian_version where libraries go.
install -m 644 /etc/debian_version /etc/os-release "$out/etc/"
cp -r "$source/deploy/models/." "$out/usr/share/pkv/models/"
chmod -R a+rX,go-w "$out/usr" "$out/etc"
