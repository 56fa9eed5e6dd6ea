#include "kernels/attention/decode_kernel.cuh"

namespace pkv {

DecodeKernelInfo FindDecodeKernel16(const DecodeKernelKey& key) {
  if (key.head_dim == 128) {
    return key.is_wide ? InfoOf<DecodeConfig<16, 128, true, false, false, false>>()
                       : InfoOf<DecodeConfig<16, 128, false, false, false, false>>();
  }
  return key.is_wide ? InfoOf<DecodeConfig<16, 64, true, false, false, false>>()
                     : InfoOf<DecodeConfig<16, 64, false, false, false, false>>();
}

}  // namespace pkv
