#!/usr/bin/env bash
# Runs every test of a bundle (tests/gpu/bundle.sh) and fails when one fails or finds no device.
#
#   tests/gpu/run.sh [BUNDLE_DIR] [GTEST_ARGUMENT...]      default: .bundle
set -uo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
bundle=${1:-$root/.bundle}
shift || true
export LD_LIBRARY_PATH=$bundle/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}

failed=0 count=0
for test in "$bundle"/bin/*; do
  count=$((count + 1))
  output=$("$test" --gtest_brief=1 "$@" 2>&1)
  code=$?
  if [[ $code -ne 0 || $output == *"skipped: no CUDA device"* ]]; then
    failed=$((failed + 1))
    echo "FAILED $(basename "$test") (exit $code)"
    tail -n 40 <<<"$output"
  else
    echo "passed $(basename "$test"): $(tail -n 1 <<<"$output")"
  fi
done
echo "gpu tests: $count run, $failed failed"
[[ $count -gt 0 && $failed -eq 0 ]]
