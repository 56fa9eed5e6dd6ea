#ifndef PKV_TESTS_SUPPORT_BLOCK_FIXTURE_H_
#define PKV_TESTS_SUPPORT_BLOCK_FIXTURE_H_

// Headers, codec parameters and encoded frames for tests of the codec and of attention.

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "pkv/block/aligned_buffer.h"
#include "pkv/block/object_header.h"
#include "pkv/kernels/block_codec.h"
#include "pkv/kernels/codec_params.h"
#include "pkv/kernels/key_feedback.h"
#include "proto/base/log.h"
#include "tests/support/tensor_gen.h"

namespace pkv {

// Header of block `index` of a sequence, sizes filled in. Ids stay zero: no codec reads them.
inline ObjectHeader BlockHeaderFor(const KvShape& shape, const CodecParams& params,
                                   const Codebook& bank_before, uint8_t append_flags = 0,
                                   int index = 0) {
  ObjectHeader header;
  const Encoding& encoding = params.encoding;
  header.kind = ObjectKind::kBlock;
  header.set_encoding(encoding);
  header.flags |= append_flags;
  header.num_layers = static_cast<uint16_t>(shape.num_layers);
  header.num_kv_heads = static_cast<uint16_t>(shape.num_kv_heads);
  header.head_dim = static_cast<uint16_t>(shape.head_dim);
  header.num_tokens = kBlockTokens;
  header.num_sinks = static_cast<uint16_t>(index == 0 ? params.num_sinks : 0);
  header.first_token = static_cast<uint64_t>(index) * kBlockTokens;
  if (encoding.has_patterns) {
    header.num_patterns_k = static_cast<uint16_t>(bank_before.num_k());
    header.num_patterns_v = static_cast<uint16_t>(bank_before.num_v());
  }
  PKV_CHECK(SetVariant(params.variant(), header).ok());
  const auto sizes = ComputeObjectSizes(header);
  PKV_CHECK(sizes.ok(), sizes.status().ToString());
  header.frame_bytes = sizes->frame_bytes;
  header.object_bytes = sizes->object_bytes;
  return header;
}

// Error feedback for queries that look like a model's: a few directions that all share. The second
// of several heads saw no queries, and so has none.
inline KeyFeedback RandomKeyFeedback(uint64_t seed, int num_kv_heads, int head_dim) {
  constexpr int kQueries = 48;
  constexpr double kDamping = 0.01;
  TestRandom random(seed);
  const size_t size = static_cast<size_t>(head_dim) * head_dim;
  std::vector<float> moments(num_kv_heads * size), query(head_dim);
  for (int head = 0; head < num_kv_heads; ++head) {
    if (head == 1) continue;
    for (int i = 0; i < kQueries; ++i) {
      const double shared = random.Normal();
      for (int j = 0; j < head_dim; ++j) {
        const double width = j % 16 == 3 ? 4.0 : 1.0;
        query[j] = static_cast<float>(width * (shared + random.Normal()));
      }
      for (size_t k = 0; k < size; ++k) {
        moments[head * size + k] += query[k / head_dim] * query[k % head_dim] / kQueries;
      }
    }
  }
  return MakeKeyFeedback(moments, head_dim, kDamping);
}

// One encoded block and all that reading it takes.
struct EncodedBlock {
  ObjectHeader header;
  PatternAssignment assignment;
  Codebook codebook;  // after the block appended to it
  AlignedBuffer frame;
};

// Runs a block of 128 tokens through assignment and codec, as a worker does once it has arranged
// and rotated them: `kv` is taken as it is.
inline EncodedBlock EncodeBlock(const KvShape& shape, const CodecParams& params,
                                const KvTensorView& kv, Codebook bank, Phase phase, int index,
                                const ComputeContext& ctx = {},
                                std::shared_ptr<const KeyFeedback> feedback = nullptr) {
  EncodedBlock block;
  const Codebook before = bank;
  const int first_token = index == 0 ? params.num_sinks : 0;
  uint8_t flags = 0;
  if (params.encoding.has_patterns) {
    if (phase == Phase::kDecode) flags = *AppendCentres(kv, first_token, params, bank, ctx);
    block.assignment = *AssignPatterns(kv, first_token, params, bank, phase, ctx);
  }
  block.assignment.feedback = std::move(feedback);
  block.header = BlockHeaderFor(shape, params, before, flags, index);
  block.codebook = std::move(bank);
  block.frame = AlignedBuffer(block.header.frame_bytes);
  const auto codec = MakeBlockCodec(shape, params, Device::kCpu);
  PKV_CHECK(codec.ok(), codec.status().ToString());
  const absl::Status status =
      (*codec)->Encode(block.header, kv, block.assignment, block.codebook, ctx, block.frame.span());
  PKV_CHECK(status.ok(), status.ToString());
  return block;
}

inline CodecParams PresetFor(absl::string_view name, const KvShape& shape) {
  auto params = PresetByName(name, shape);
  PKV_CHECK(params.ok(), params.status().ToString());
  return *std::move(params);
}

// Changes the bits of codes. Fine K codes go with 2 bits alone.
inline void SetBits(int bits_k, int bits_v, CodecParams& params) {
  params.encoding.bits_k = bits_k;
  params.encoding.bits_v = bits_v;
  if (bits_k != 2) params.encoding.k_fine_tokens = 0;
}

}  // namespace pkv

#endif  // PKV_TESTS_SUPPORT_BLOCK_FIXTURE_H_
