#!/usr/bin/env bash
# Runs patternkv's main job end to end on this machine: installs, builds, starts pkvd, a prefill and
# a decode worker, and lets a trained model read a real document through every way of storing its
# cache.
#
#   deploy/demo.sh [--prompt-file FILE] [--prompt-tokens N] [--max-tokens N] [--presets LIST]
#
# Needs Debian 12, and root or sudo when packages are missing. CPU only is enough. Building takes 5
# minutes on two cores the first time, all else under a minute.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

prompt_file=/usr/share/common-licenses/GPL-3
prompt_tokens=2800
max_tokens=128
presets=fp16,kivi2,pkv2,default,pkv4,default4
model=deploy/models/novella-14m

die() {
  printf 'demo: %s\n' "$*" >&2
  exit 1
}

while [ $# -gt 0 ]; do
  case "$1" in
    --prompt-file) prompt_file=${2:?--prompt-file needs a file} ;;
    --prompt-tokens) prompt_tokens=${2:?--prompt-tokens needs a number} ;;
    --max-tokens) max_tokens=${2:?--max-tokens needs a number} ;;
    --presets) presets=${2:?--presets needs a list} ;;
    -h | --help)
      sed -n '2,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
      exit 0
      ;;
    *) die "unknown option '$1'; --help lists them" ;;
  esac
  shift 2
done
[ -r "$prompt_file" ] || die "cannot read prompt file $prompt_file"

step() { printf '\n== [%02d:%02d] %s\n' $((SECONDS / 60)) $((SECONDS % 60)) "$*"; }

step "packages"
deploy/install_deps.sh build

step "build"
# A build folder that moved with its tree holds paths of the old place.
if [ -f .build/demo/CMakeCache.txt ] &&
  ! grep -qx "CMAKE_HOME_DIRECTORY:INTERNAL=$PWD" .build/demo/CMakeCache.txt; then
  rm -rf .build/demo
fi
cmake --preset demo --log-level=NOTICE
cmake --build --preset demo -j "$(nproc)"
bin=$PWD/.build/demo

scratch=$(mktemp -d)
pids=()
cleanup() {
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
  for pid in "${pids[@]}"; do wait "$pid" 2>/dev/null || true; done
  rm -rf "$scratch"
}
trap cleanup EXIT

# start NAME COMMAND...: runs it in the background and waits for its port file.
start() {
  local name=$1
  shift
  "$@" --listen 127.0.0.1:0 --metrics-listen 127.0.0.1:0 --port-file "$scratch/$name.port" \
    >"$scratch/$name.log" 2>&1 &
  pids+=($!)
  for _ in $(seq 300); do
    if [ -s "$scratch/$name.port" ]; then
      read -r port metrics_port <"$scratch/$name.port"
      echo "$name: 127.0.0.1:$port, metrics http://127.0.0.1:$metrics_port/metrics"
      return
    fi
    kill -0 "${pids[-1]}" 2>/dev/null || break
    sleep 0.1
  done
  cat "$scratch/$name.log" >&2
  die "$name did not start: its log is above"
}

step "three processes"
start pkvd "$bin/kvstore/pkvd" --capacity 1GiB
cache=127.0.0.1:$port cache_metrics=$metrics_port
start pkv-prefill "$bin/worker/pkv-prefill" serve --model "$model" --cache "$cache"
prefill=127.0.0.1:$port
start pkv-decode "$bin/worker/pkv-decode" serve --model "$model" --cache "$cache"
decode=127.0.0.1:$port

num_presets=$(tr ',' '\n' <<<"$presets" | grep -c .)
step "one document, $prompt_tokens tokens of $prompt_file, stored in $num_presets ways"
"$bin/worker/pkvctl" compare --model "$model" --prefill "$prefill" --decode "$decode" \
  --prompt-file "$prompt_file" --prompt-tokens "$prompt_tokens" --max-tokens "$max_tokens" \
  --presets "$presets"

step "what pkvd counted"
"$bin/worker/pkvctl" --cache "$cache" stats
curl -fsS "http://127.0.0.1:$cache_metrics/metrics" |
  grep -E '^pkv_(lookup_tokens|lookup_hit_tokens|integrity_failures|payload_bytes)' || true

cat <<EOF

The cache was mined and compressed by one process, stored by a second and read by a third. "bits all
in" counts codes, scales, ids, headers, pattern tables and the fp16 windows, so short prompts cost
more bits.

Try next:
  deploy/demo.sh --prompt-file YOUR.txt --presets fp16,default
  .build/demo/worker/pkvctl eval --model $model --text YOUR.txt --passages 4  what compression costs
  .build/demo/worker/pkvctl generate --help                                   one prompt by hand
  README.md, "Follow one block"                                               how it works
EOF
