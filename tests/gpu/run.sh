#!/usr/bin/env bash
# Runs every test of a bundle (tests/gpu/bundle.sh) on a GPU machine, then decode attention on many
# random shapes; one line a part. Fails when a part fails or finds no device.
#
#   tests/gpu/run.sh [--cases N] [--sanitize] [BUNDLE_DIR] [GTEST_ARGUMENT...]
#
# Default: --cases 10000 .bundle. --sanitize: also compute-sanitizer's four tools on a few cases.
set -uo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cases=10000
sanitize=
while [[ ${1:-} == --cases || ${1:-} == --sanitize ]]; do
  if [[ $1 == --sanitize ]]; then
    sanitize=1
  elif [[ ${2:-} =~ ^[0-9]+$ ]]; then
    cases=$2
    shift
  else
    echo "run: --cases wants a number, not '${2:-}'" >&2
    exit 2
  fi
  shift
done
bundle=${1:-$root/.bundle}
shift || true
export LD_LIBRARY_PATH=$bundle/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}

# Small, and between them every kernel that shares memory among threads.
sanitized=(
  "parity.decode_attention_random_test --cases=12"
  "parity.decode_attention_state_test --gtest_filter=*PoisonChangesNothing/TensorCore*"
  "parity.decode_attention_exact_test --gtest_filter=*TheMeanOfV/*d128g128*Rotated*"
  "parity.block_codec_parity_test --gtest_filter=Extras/*/10:Presets/*/40"
  "parity.prefill_attention_parity_test --gtest_filter=All/PrefillParityTest.*/3:*/9"
  "parity.query_statistics_parity_test --gtest_filter=All/QueryStatisticsParityTest.*/1:*/2"
)

failed=0 count=0
# part NAME COMMAND...: runs it and says how it went.
part() {
  local name=$1 output code
  shift
  count=$((count + 1))
  output=$("$@" 2>&1)
  code=$?
  if [[ $code -ne 0 || $output == *"skipped: no CUDA device"* ]]; then
    failed=$((failed + 1))
    echo "FAILED $name (exit $code)"
    tail -n 40 <<<"$output"
  else
    echo "passed $name: $(tail -n 1 <<<"$output")"
  fi
}

for test in "$bundle"/bin/*; do
  part "$(basename "$test")" "$test" --gtest_brief=1 "$@"
done
random=parity.decode_attention_random_test
if [[ $cases -gt 0 ]]; then
  part "$random, $cases cases" "$bundle/bin/$random" --gtest_brief=1 "--cases=$cases" --seed=1000000
fi
if [[ $sanitize ]]; then
  # An SM's attention has more barriers than synccheck tracks by itself.
  for tool in memcheck racecheck initcheck "synccheck --num-cuda-barriers 65536"; do
    read -r -a options <<<"$tool"
    for line in "${sanitized[@]}"; do
      read -r -a command <<<"$line"
      part "${options[0]} ${command[0]}" compute-sanitizer --error-exitcode 9 \
        --tool "${options[@]}" "$bundle/bin/${command[0]}" --gtest_brief=1 "${command[@]:1}"
    done
  done
fi
echo "gpu tests: $count run, $failed failed"
[[ $count -gt 0 && $failed -eq 0 ]]
