#include "kernels/attention/decode_kernel.cuh"

namespace pkv {

namespace {

template <int kHeadDim, bool kWide>
DecodeKernelInfo Find(const DecodeKernelKey& key) {
  if (key.is_grouped) {
    // No preset has fine tokens in several groups.
    if (key.has_fine) return {};
    return InfoOf<DecodeConfig<2, kHeadDim, kWide, false, true, true>>();
  }
  if (key.has_fine) return InfoOf<DecodeConfig<2, kHeadDim, kWide, true, false, true>>();
  return key.is_rotated ? InfoOf<DecodeConfig<2, kHeadDim, kWide, false, false, true>>()
                        : InfoOf<DecodeConfig<2, kHeadDim, kWide, false, false, false>>();
}

}  // namespace

DecodeKernelInfo FindDecodeKernel2(const DecodeKernelKey& key) {
  if (key.head_dim == 128) return key.is_wide ? Find<128, true>(key) : Find<128, false>(key);
  return key.is_wide ? Find<64, true>(key) : Find<64, false>(key);
}

}  // namespace pkv
