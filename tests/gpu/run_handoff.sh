#!/usr/bin/env bash
# Blocks from the GPUs of pkvd and of a prefill worker to a decode worker's, on a machine with two
# GPUs, from a bundle (tests/gpu/bundle.sh ... serve): handoff.py timing, then handoff.py kills of
# either. Fails when a part does; says "skipped" with fewer GPUs.
#
#   tests/gpu/run_handoff.sh [BUNDLE_DIR] [OUT] [ROUNDS]      default: .bundle handoff 50
#
# NVLink multicast, which a pair has no use for, stays off. NCCL is the system's, or PyTorch's.
set -uo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
bundle=${1:-.bundle}
out=${2:-handoff}
rounds=${3:-50}
export NCCL_NVLS_ENABLE=0
nccl=$(python3 -c 'import nvidia.nccl; print(list(nvidia.nccl.__path__)[0] + "/lib")' 2>/dev/null)
cublas=$(ldconfig -p | awk '/libcublas\.so\.13/ && !path {path = $NF} END {print path}')
if [[ -z $cublas ]]; then
  cublas=$(find /usr/local/cuda*/ -name 'libcublas.so.13' -print -quit 2>/dev/null)
fi
cublas=$(dirname "${cublas:-/usr/local/cuda/lib64/x}")
export LD_LIBRARY_PATH=$bundle/lib:$cublas${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}${nccl:+:$nccl}

failed=0
python3 "$here/handoff.py" timing --tools "$bundle/tools" --out "$out/timing" || failed=1
python3 "$here/handoff.py" kills --tools "$bundle/tools" --out "$out/kills" \
  --shape llama-3.2-1b --context 16000 --window-ms 15 --rounds "$rounds" || failed=1
# 4.2 GB a request: 17 ms to be killed in.
python3 "$here/handoff.py" kills --tools "$bundle/tools" --out "$out/kills-direct" \
  --holder prefill --context 32000 --direct-memory 10GiB --window-ms 12 --holder-share 0.4 \
  --rounds "$rounds" || failed=1
[[ $failed -eq 0 ]] && echo "run_handoff: passed" || echo "run_handoff: FAILED"
exit "$failed"
