// Uses the numerics as a stranger does.

#include <cstdio>

#include "pkv/block/kv_shape.h"
#include "pkv/kernels/block_codec.h"
#include "pkv/kernels/codec_params.h"

int main() {
  const pkv::KvShape shape{.num_layers = 2, .num_kv_heads = 1, .head_dim = 128};
  const absl::StatusOr<pkv::CodecParams> params = pkv::PresetByName("pkv2", shape);
  if (!params.ok()) {
    std::fprintf(stderr, "preset: %s\n", params.status().ToString().c_str());
    return 1;
  }
  const auto codec = pkv::MakeBlockCodec(shape, *params, pkv::Device::kCpu);
  std::printf("codec of pkv2: %s\n", codec.status().ToString().c_str());
  return codec.ok() ? 0 : 1;
}
