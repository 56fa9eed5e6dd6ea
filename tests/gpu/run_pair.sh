#!/usr/bin/env bash
# The NCCL hand-off on a machine with two GPUs, from a bundle (tests/gpu/bundle.sh ... pair): parity
# of its kernels, then pair.py check, then pair.py timing. Fails when a part does; says "skipped"
# with fewer GPUs.
#
#   tests/gpu/run_pair.sh [BUNDLE_DIR] [ROUNDS] [TIMING_JSON]      default: .bundle 50 pair.json
#
# NVLink multicast, which a pair has no use for, stays off. NCCL is the system's, or PyTorch's.
set -uo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
bundle=${1:-.bundle}
rounds=${2:-50}
json=${3:-pair.json}
export NCCL_NVLS_ENABLE=0
nccl=$(python3 -c 'import nvidia.nccl; print(list(nvidia.nccl.__path__)[0] + "/lib")' 2>/dev/null)
export LD_LIBRARY_PATH=$bundle/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}${nccl:+:$nccl}

failed=0
"$bundle/tools/parity.span_digest_parity_test" --gtest_brief=1 || failed=1
python3 "$here/pair.py" check --peer "$bundle/tools/pair_peer" --rounds "$rounds" || failed=1
python3 "$here/pair.py" timing --peer "$bundle/tools/pair_peer" --out "$json" || failed=1
[[ $failed -eq 0 ]] && echo "run_pair: passed" || echo "run_pair: FAILED"
exit "$failed"
