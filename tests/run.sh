#!/usr/bin/env bash
# Builds and checks everything, from a fresh clone on Debian 12 to a verdict.
#
#   tests/run.sh [--only STAGE[,STAGE]...] [-j N] [--list]
#
# The last line is "N passed, N failed, N skipped", summed over the stages; a stage that does not
# configure or build counts as one failure. Exits 0 only when nothing failed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

all_stages=(release asan tsan style)
describe() {
  case "$1" in
    release) echo "g++, Release, CUDA when nvcc is found: every test" ;;
    asan) echo "clang, AddressSanitizer and UBSan: tests and fuzz tests, not of tools" ;;
    tsan) echo "clang, ThreadSanitizer and thread-safety analysis: tests that start threads" ;;
    style) echo "the conventions that a script can check" ;;
  esac
}

die() {
  printf 'run.sh: %s\n' "$*" >&2
  exit 2
}

jobs=$(nproc)
stages=("${all_stages[@]}")
while [ $# -gt 0 ]; do
  case "$1" in
    --only)
      IFS=, read -ra stages <<<"${2:?--only needs a stage}"
      for stage in "${stages[@]}"; do
        [ -n "$(describe "$stage")" ] || die "unknown stage '$stage': ${all_stages[*]}"
      done
      shift 2
      ;;
    -j)
      [[ "${2:-}" =~ ^[1-9][0-9]*$ ]] || die "-j '${2:-}' is not a positive number"
      jobs=$2
      shift 2
      ;;
    --list)
      for stage in "${all_stages[@]}"; do printf '%-8s %s\n' "$stage" "$(describe "$stage")"; done
      exit 0
      ;;
    -h | --help)
      sed -n '2,7s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
      exit 0
      ;;
    *) die "unknown option '$1'; --help lists them" ;;
  esac
done

export CI=true
exec </dev/null
# nvcc is often installed without being on the PATH.
if ! command -v nvcc >/dev/null && [ -x /usr/local/cuda/bin/nvcc ]; then
  PATH=$PATH:/usr/local/cuda/bin
fi

# Clang 14's sanitizers fail at start ("unexpected memory mapping") where the kernel randomizes
# addresses by more than 28 bits; without randomization they work everywhere.
fixed_addresses=()
if setarch -R true 2>/dev/null; then fixed_addresses=(setarch -R); fi

results=.build/results
tsan_options=ignore_noninstrumented_modules=1:halt_on_error=1
passed=0 failed=0 skipped=0
summary=()

clock() { printf '%02d:%02d' $((SECONDS / 60)) $((SECONDS % 60)); }
say() { printf '\n== [%s] %s\n' "$(clock)" "$*"; }

build() {
  local preset=$1
  # A build folder that moved with its tree holds paths of the old place.
  local cache=.build/$preset/CMakeCache.txt
  if [ -f "$cache" ] && ! grep -qx "CMAKE_HOME_DIRECTORY:INTERNAL=$PWD" "$cache"; then
    rm -rf ".build/$preset"
  fi
  say "$preset: configure"
  cmake --preset "$preset" --log-level=NOTICE || return 1
  say "$preset: build"
  cmake --build --preset "$preset" -j "$jobs" || return 1
}

# run_ctest STAGE PRESET [ctest option]...: adds the outcome to the totals.
run_ctest() {
  local stage=$1 preset=$2 junit=$PWD/$results/$1.xml status=0
  shift 2
  say "$stage: test"
  rm -f "$junit"
  local launcher=()
  case "$stage" in asan | tsan) launcher=("${fixed_addresses[@]}") ;; esac
  "${launcher[@]}" ctest --test-dir ".build/$preset" -j "$jobs" --no-tests=error \
    --output-on-failure --output-junit "$junit" "$@" || status=$?
  local counts=(0 0 0)
  if [ -f "$junit" ]; then
    # A test that ctest could not start is "notrun" too, but only a skipped one says SKIP_.
    read -ra counts < <(awk '
      /<testcase / { total++ }
      /<testcase .*status="run"/ { passed++ }
      /<skipped message="SKIP_/ { skipped++ }
      END { print passed + 0, total - passed - skipped, skipped + 0 }' "$junit")
  fi
  passed=$((passed + counts[0]))
  failed=$((failed + counts[1]))
  skipped=$((skipped + counts[2]))
  stage_counts="${counts[0]} passed, ${counts[1]} failed, ${counts[2]} skipped"
  # ctest failed without a failed test: it found none, or broke.
  if [ "$status" -ne 0 ] && [ "${counts[1]}" -eq 0 ]; then return 1; fi
}

run_stage() {
  case "$1" in
    release) build release && run_ctest release release -LE tidy ;;
    asan) build asan && run_ctest asan asan -L '^(unit|integration|fuzz)$' ;;
    tsan)
      build tsan &&
        TSAN_OPTIONS="$tsan_options:suppressions=$PWD/tests/support/tsan.supp" \
          run_ctest tsan tsan -L '^(unit|integration)$'
      ;;
    style)
      # Needs a configured build folder only, of whatever preset.
      { [ -f .build/release/CTestTestfile.cmake ] || cmake --preset release --log-level=NOTICE; } &&
        run_ctest style release -L tidy
      ;;
  esac
}

report() {
  printf '\n== [%s] summary\n' "$(clock)"
  [ ${#summary[@]} -eq 0 ] || printf '%s\n' "${summary[@]}"
  echo "$passed passed, $failed failed, $skipped skipped"
}

if ! deploy/install_deps.sh build test; then
  failed=1
  summary+=("packages: could not be installed")
  report
  exit 1
fi
mkdir -p "$results"
for stage in "${stages[@]}"; do
  started=$SECONDS
  stage_counts=""
  if ! run_stage "$stage"; then
    failed=$((failed + 1))
    stage_counts="failed before or outside its tests"
  fi
  summary+=("$(printf '%-8s %4d s  %s' "$stage" $((SECONDS - started)) "$stage_counts")")
done
report
[ "$failed" -eq 0 ]
