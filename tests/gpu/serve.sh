#!/usr/bin/env bash
# The whole path on a GPU machine: pkvd, a prefill and a decode worker on GPUs, a load of
# pkv-bench serve, for each preset. From a bundle that `bundle.sh BUILD BUNDLE serve` made.
#
#   tests/gpu/serve.sh BUNDLE OUT [--model DIR | --shape NAME] [--presets LIST] [--batch N]
#                      [--context TOKENS] [--output TOKENS] [--requests N] [--distinct N]
#                      [--capacity SIZE] [--device cuda|cpu]
#                      [--transport grpc|shm] [--layer-streaming true|false] [--name NAME]
#
# With a second GPU the decode worker has it to itself. OUT gets PRESET.json, or NAME-PRESET.json,
# and the logs. On the CPU, with a model, it tries this script. The time from the end of a prefill
# to the first token is that of `--batch 1` with as many distinct prompts as requests.
set -euo pipefail

bundle=$(cd "$1" && pwd)
mkdir -p "$2"
out=$(cd "$2" && pwd)
shift 2
model=(--shape llama-3.1-8b)
presets=fp16,default
batch=8
context=32768
output=128
requests=16
distinct=
transport=grpc
streaming=true
name=
capacity=80GiB
device=cuda
while (($# > 0)); do
  case $1 in
    --model | --shape) model=("$1" "$2") ;;
    --presets) presets=$2 ;;
    --batch) batch=$2 ;;
    --context) context=$2 ;;
    --output) output=$2 ;;
    --requests) requests=$2 ;;
    --capacity) capacity=$2 ;;
    --distinct) distinct=$2 ;;
    --transport) transport=$2 ;;
    --layer-streaming) streaming=$2 ;;
    --name) name=$2- ;;
    --device) device=$2 ;;
    *)
      echo "serve: unknown option $1" >&2
      exit 2
      ;;
  esac
  shift 2
done

# cuBLAS comes with the machine's CUDA.
cublas=$(ldconfig -p | awk '/libcublas\.so\.13/ && !path {path = $NF} END {print path}')
if [[ -z $cublas ]]; then
  cublas=$(find /usr/local/cuda*/ -name 'libcublas.so.13' -print -quit 2>/dev/null || true)
fi
cublas=$(dirname "${cublas:-/usr/local/cuda/lib64/x}")
# And NCCL, which pkvd and the decode worker are linked with, with PyTorch.
nccl=$(python3 -c 'import nvidia.nccl; print(list(nvidia.nccl.__path__)[0] + "/lib")' \
  2>/dev/null || true)
export LD_LIBRARY_PATH=$bundle/lib:$cublas${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}${nccl:+:$nccl}
tools=$bundle/tools
gpus=0
if [[ $device == cuda ]]; then gpus=$(nvidia-smi --list-gpus | wc -l); fi

pids=()
stop() {
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
  for pid in "${pids[@]}"; do wait "$pid" 2>/dev/null || true; done
  pids=()
}
trap stop EXIT

# start NAME PORT_FILE COMMAND...: a server, until its port file is there.
start() {
  local name=$1 ports=$2
  shift 2
  rm -f "$ports"
  "$@" >"$out/$name.log" 2>&1 &
  local pid=$!
  pids+=("$pid")
  # A large model takes minutes to load.
  for _ in $(seq 6000); do
    if [[ -s $ports ]]; then return; fi
    if ! kill -0 "$pid" 2>/dev/null; then break; fi
    sleep 0.1
  done
  echo "serve: $name did not start" >&2
  tail -n 5 "$out/$name.log" >&2
  exit 1
}

failed=0
for preset in ${presets//,/ }; do
  echo "serve: $name$preset"
  shm=()
  if [[ $transport == shm ]]; then shm=(--shm-socket "$out/pkvd.sock"); fi
  start "$name$preset-pkvd" "$out/pkvd.port" "$tools/pkvd" --listen 127.0.0.1:0 \
    --capacity "$capacity" "${shm[@]}" --port-file "$out/pkvd.port" \
    --metrics-listen 127.0.0.1:0
  read -r cache cache_metrics <"$out/pkvd.port"
  start "$name$preset-prefill" "$out/prefill.port" env CUDA_VISIBLE_DEVICES=0 \
    "$tools/pkv-prefill" serve "${model[@]}" --device "$device" --preset "$preset" \
    --cache "127.0.0.1:$cache" --listen 127.0.0.1:0 --metrics-listen 127.0.0.1:0 \
    --port-file "$out/prefill.port"
  read -r prefill prefill_metrics <"$out/prefill.port"
  start "$name$preset-decode" "$out/decode.port" env CUDA_VISIBLE_DEVICES=$((gpus > 1 ? 1 : 0)) \
    "$tools/pkv-decode" serve "${model[@]}" --device "$device" --preset "$preset" \
    --max-batch "$batch" --cache "127.0.0.1:$cache" --transport "$transport" \
    --layer-streaming="$streaming" --listen 127.0.0.1:0 --metrics-listen 127.0.0.1:0 \
    --port-file "$out/decode.port"
  read -r decode decode_metrics <"$out/decode.port"
  "$tools/pkv-bench" serve --prefill "127.0.0.1:$prefill" --decode "127.0.0.1:$decode" \
    --metrics-prefill "http://127.0.0.1:$prefill_metrics/metrics" \
    --metrics-decode "http://127.0.0.1:$decode_metrics/metrics" \
    --metrics-cache "http://127.0.0.1:$cache_metrics/metrics" \
    --variant "$preset" --prompt-tokens "fixed:$context" --output-tokens "fixed:$output" \
    --concurrency "$batch" --num-requests "$requests" --decode-only --ignore-eos --vocab 8192 \
    --distinct-prompts "${distinct:-$batch}" --output text --out "$out/$name$preset.json" ||
    { failed=1 && tail -n 5 "$out/$name$preset-prefill.log" "$out/$name$preset-decode.log" >&2; }
  stop
done
exit "$failed"
