#!/usr/bin/env bash
# Collects the tests labelled gpu from a build, and the shared libraries they need, into a folder
# that runs on a machine without the build's packages.
#
#   tests/gpu/bundle.sh [BUILD_DIR] [BUNDLE_DIR]      default: .build/cuda .bundle
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
build=$(cd "${1:-$root/.build/cuda}" && pwd)
bundle=${2:-$root/.bundle}

mkdir -p "$bundle/bin" "$bundle/lib"
rm -f "$bundle"/bin/* "$bundle"/lib/*

# What every GPU machine has: libc and the compiler's runtime; and what must come from its driver.
system='^(libc|libm|libstdc\+\+|libgcc_s[^.]*|ld-linux[^.]*|libpthread|libdl|librt'
system+='|libcuda|libnccl)\.so'

names=$(cd "$build" && ctest -N -L gpu | sed -n 's/^ *Test *#[0-9]*: //p')
for name in $names; do
  binary=$(find "$build" -type f -name "$name" -perm -u+x -print -quit)
  if [[ -z $binary ]]; then
    echo "bundle: $name is not built in $build" >&2
    exit 1
  fi
  cp "$binary" "$bundle/bin/"
  ldd "$binary" | awk '$2 == "=>" && $3 ~ /^\// {print $3}' | while read -r library; do
    if [[ ! $(basename "$library") =~ $system ]]; then
      cp -Lu "$library" "$bundle/lib/"
    fi
  done
done
echo "bundle: $(wc -w <<<"$names") tests, $(du -sm "$bundle" | cut -f1) MiB in $bundle"
