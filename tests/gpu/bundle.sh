#!/usr/bin/env bash
# Collects the tests labelled gpu (bin/), or pkv-bench (tools/), or both from a build, or what
# run_pair.sh or serve.sh runs (tools/), and the shared libraries they need, into a folder that runs
# on a machine without the build's packages.
#
#   tests/gpu/bundle.sh [BUILD_DIR] [BUNDLE_DIR] [tests|bench|pair|serve|all]
#
# Default: .build/cuda .bundle all
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
build=$(cd "${1:-$root/.build/cuda}" && pwd)
bundle=${2:-$root/.bundle}
what=${3:-all}
if [[ ! $what =~ ^(tests|bench|pair|serve|all)$ ]]; then
  echo "bundle: '$what' is none of tests, bench, pair, serve, all" >&2
  exit 2
fi

mkdir -p "$bundle/bin" "$bundle/tools" "$bundle/lib"
rm -f "$bundle"/bin/* "$bundle"/tools/* "$bundle"/lib/*

# What every GPU machine has: libc, the compiler's runtime, and the CUDA libraries that are larger
# than all the rest; and what must come from its driver.
system='^(libc|libm|libstdc\+\+|libgcc_s[^.]*|ld-linux[^.]*|libpthread|libdl|librt'
system+='|libcuda|libnccl|libcublas|libcublasLt)\.so'

# take BINARY FOLDER: the binary, and the libraries it needs.
take() {
  cp "$1" "$bundle/$2/"
  ldd "$1" | awk '$2 == "=>" && $3 ~ /^\// {print $3}' | while read -r library; do
    if [[ ! $(basename "$library") =~ $system ]]; then
      cp -Lu "$library" "$bundle/lib/"
    fi
  done
}

# find_built NAME: its path in the build, which is brought up to date first: what runs on a GPU is
# then of this tree.
find_built() {
  local binary
  cmake --build "$build" --target "$1" >&2 || exit 1
  binary=$(find "$build" -type f -name "$1" -perm -u+x -print -quit)
  if [[ -z $binary ]]; then
    echo "bundle: $1 is not built in $build" >&2
    exit 1
  fi
  echo "$binary"
}

names=
if [[ $what == tests || $what == all ]]; then
  names=$(cd "$build" && ctest -N -L gpu | sed -n 's/^ *Test *#[0-9]*: //p')
  for name in $names; do
    binary=$(find_built "$name")
    take "$binary" bin
  done
fi
if [[ $what == bench || $what == all ]]; then
  binary=$(find_built pkv-bench)
  take "$binary" tools
fi
if [[ $what == pair ]]; then
  for name in pair_peer parity.span_digest_parity_test; do
    binary=$(find_built "$name")
    take "$binary" tools
  done
fi
if [[ $what == serve ]]; then
  for name in pkvd pkv-prefill pkv-decode pkvctl pkv-bench; do
    binary=$(find_built "$name")
    take "$binary" tools
  done
fi
echo "bundle: $what, $(wc -w <<<"$names") tests, $(du -sm "$bundle" | cut -f1) MiB in $bundle"
