#include "worker/sequence/window_flush.h"

#include "proto/base/status_macros.h"

namespace pkv {

absl::Status EncodeBlocks(int count, Phase phase, std::span<const int32_t> tokens,
                          KvSequence& sequence) {
  PKV_RETURN_IF_ERROR(sequence.StartBlocks(count, phase, tokens, /*with_window=*/false));
  for (int layer = 0; layer < sequence.config().shape.num_layers; ++layer) {
    PKV_RETURN_IF_ERROR(sequence.EncodeLayer(layer));
  }
  return sequence.FinishBlocks();
}

absl::StatusOr<bool> FlushWindow(std::span<const int32_t> tokens, KvSequence& sequence) {
  const int in_blocks = sequence.num_blocks() * kBlockTokens;
  const int num_tokens = static_cast<int>(sequence.num_tokens());
  if (BlockTokensAfterDecodeStep(sequence.config().params, num_tokens, in_blocks) == in_blocks) {
    return false;
  }
  PKV_RETURN_IF_ERROR(EncodeBlocks(1, Phase::kDecode, tokens, sequence));
  return true;
}

}  // namespace pkv
