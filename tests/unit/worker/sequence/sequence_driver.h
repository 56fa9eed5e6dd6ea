#ifndef PKV_TESTS_UNIT_WORKER_SEQUENCE_SEQUENCE_DRIVER_H_
#define PKV_TESTS_UNIT_WORKER_SEQUENCE_SEQUENCE_DRIVER_H_

// Drives KvSequences with random K, V and Q in place of a model, the way the workers do.

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "pkv/block/prefix_hash.h"
#include "proto/base/thread_pool.h"
#include "tests/support/block_fixture.h"
#include "tests/support/fake_cache_client.h"
#include "tests/support/status_matchers.h"
#include "tests/support/tensor_gen.h"
#include "worker/sequence/kv_sequence.h"

namespace pkv {

inline constexpr KvShape kSequenceShape{2, 2, 64};
inline constexpr int kSequenceQoHeads = 4;

inline Digest SequenceProfile() {
  Digest profile;
  profile.bytes.fill(0x5a);
  return profile;
}

// One request: token ids, and Q, K, V of each token in each layer.
class Conversation {
 public:
  Conversation(uint64_t seed, int num_tokens) {
    TestRandom random(seed);
    for (int t = 0; t < num_tokens; ++t) tokens_.push_back(random.Below(1000));
    const KvShape& shape = kSequenceShape;
    for (int layer = 0; layer < shape.num_layers; ++layer) {
      const TestTensor tensor =
          RandomTensor(seed * 100 + layer, shape.num_kv_heads, num_tokens, shape.head_dim);
      Layer& out = layers_.emplace_back();
      for (int t = 0; t < num_tokens; ++t) {
        for (int h = 0; h < shape.num_kv_heads; ++h) {
          const KvTensorView view = tensor.view();
          for (int j = 0; j < shape.head_dim; ++j) {
            out.k.push_back(Float16ToFloat(view.k_row(h, t)[j]));
            out.v.push_back(Float16ToFloat(view.v_row(h, t)[j]));
          }
        }
        for (int j = 0; j < kSequenceQoHeads * shape.head_dim; ++j) {
          out.q.push_back(static_cast<float>(random.Normal()));
        }
      }
    }
  }

  std::span<const int32_t> tokens(int count) const { return std::span(tokens_).first(count); }

  LayerQkv Qkv(int layer, int begin, int count) const {
    const size_t kv_row = size_t{kSequenceShape.head_dim} * kSequenceShape.num_kv_heads;
    const size_t q_row = size_t{kSequenceShape.head_dim} * kSequenceQoHeads;
    const Layer& values = layers_[layer];
    return {layer,
            count,
            begin,
            values.q.data() + begin * q_row,
            values.k.data() + begin * kv_row,
            values.v.data() + begin * kv_row};
  }

 private:
  struct Layer {
    std::vector<float> q, k, v;
  };
  std::vector<int32_t> tokens_;
  std::vector<Layer> layers_;
};

inline std::unique_ptr<KvSequence> MakeSequence(const CodecParams& params,
                                                ThreadPool* pool = nullptr) {
  KvSequence::Config config;
  config.shape = kSequenceShape;
  config.num_qo_heads = kSequenceQoHeads;
  config.params = params;
  config.profile = SequenceProfile();
  config.ctx.pool = config.encode_ctx.pool = pool;
  absl::StatusOr<std::unique_ptr<KvSequence>> sequence = KvSequence::Create(config);
  EXPECT_THAT(sequence, IsOk());
  return sequence.ok() ? *std::move(sequence) : nullptr;
}

// Attention of one layer over tokens [begin, begin + count).
inline absl::StatusOr<std::vector<float>> AttendLayer(KvSequence& sequence,
                                                      const Conversation& talk, int layer,
                                                      int begin, int count) {
  std::vector<float> out(size_t(count) * kSequenceQoHeads * kSequenceShape.head_dim);
  PKV_RETURN_IF_ERROR(sequence.Attend(talk.Qkv(layer, begin, count), out.data()));
  return out;
}

// A forward pass; the attention outputs of all layers.
inline std::vector<float> Pass(KvSequence& sequence, const Conversation& talk, int begin,
                               int count) {
  std::vector<float> all;
  for (int layer = 0; layer < kSequenceShape.num_layers; ++layer) {
    const auto out = AttendLayer(sequence, talk, layer, begin, count);
    EXPECT_THAT(out, IsOk());
    if (out.ok()) all.insert(all.end(), out->begin(), out->end());
  }
  return all;
}

inline void EncodeAll(KvSequence& sequence) {
  for (int layer = 0; layer < kSequenceShape.num_layers; ++layer) {
    ASSERT_THAT(sequence.EncodeLayer(layer), IsOk());
  }
  ASSERT_THAT(sequence.FinishBlocks(), IsOk());
}

// A prefill that ends with `num_tokens` tokens cached, continuing what the sequence holds: all
// blocks the preset wants, and the window object.
inline void Prefill(KvSequence& sequence, const Conversation& talk, const CodecParams& params,
                    int num_tokens) {
  const int have = static_cast<int>(sequence.num_tokens());
  const int blocks = BlockTokensAfterPrefill(params, num_tokens) / kBlockTokens;
  ASSERT_THAT(sequence.StartBlocks(blocks - sequence.num_blocks(), Phase::kPrefill,
                                   talk.tokens(num_tokens), /*with_window=*/true),
              IsOk());
  Pass(sequence, talk, have, num_tokens - have);
  EncodeAll(sequence);
}

// One decode step at `position`, with the flush that the preset wants after it. True when a block
// was made.
inline bool Step(KvSequence& sequence, const Conversation& talk, const CodecParams& params,
                 int position, std::vector<float>* out = nullptr) {
  const std::vector<float> attended = Pass(sequence, talk, position, 1);
  if (out != nullptr) *out = attended;
  const int in_blocks = sequence.num_blocks() * kBlockTokens;
  if (BlockTokensAfterDecodeStep(params, position + 1, in_blocks) == in_blocks) return false;
  EXPECT_THAT(sequence.StartBlocks(1, Phase::kDecode, talk.tokens(position + 1), false), IsOk());
  EncodeAll(sequence);
  return true;
}

// Bytes of everything the last StartBlocks made: table, blocks, window.
inline std::vector<std::vector<std::byte>> MadeObjectBytes(const KvSequence& sequence) {
  const KvSequence::MadeObjects objects = sequence.made_objects();
  std::vector<const ObjectBuilder*> builders = {objects.table};
  builders.insert(builders.end(), objects.blocks.begin(), objects.blocks.end());
  builders.push_back(objects.window);
  std::vector<std::vector<std::byte>> all;
  for (const ObjectBuilder* builder : builders) {
    if (builder != nullptr) all.emplace_back(builder->bytes().begin(), builder->bytes().end());
  }
  return all;
}

inline void Store(FakeCacheClient& cache, const KvSequence& sequence) {
  for (const std::vector<std::byte>& bytes : MadeObjectBytes(sequence)) {
    const std::span<const std::byte> object[] = {bytes};
    ASSERT_THAT(cache.Put(object).front().status, IsOk());
  }
}

// Keys of a stored sequence of `num_tokens` tokens with `num_blocks` blocks, as a ticket names it.
struct StoredSequence {
  std::vector<ObjectKey> keys;
  int num_tables = 0;
  int num_window_tokens = 0;
};

inline StoredSequence KeysOf(FakeCacheClient& cache, const Conversation& talk,
                             const CodecParams& params, int num_blocks, int num_tokens) {
  StoredSequence stored;
  stored.keys = cache.Keys(ObjectKind::kTable);
  stored.num_tables = static_cast<int>(stored.keys.size());
  stored.num_window_tokens = num_tokens - num_blocks * kBlockTokens;
  Digest parent;
  for (const Digest& id : PrefixIds(SequenceProfile(), talk.tokens(num_blocks * kBlockTokens))) {
    stored.keys.push_back({ObjectKind::kBlock, id, params.variant()});
    parent = id;
  }
  if (stored.num_window_tokens > 0) {
    const auto tail = talk.tokens(num_tokens).subspan(num_blocks * kBlockTokens);
    stored.keys.push_back(
        {ObjectKind::kWindow, TailId(SequenceProfile(), parent, tail), params.variant()});
  }
  return stored;
}

inline absl::Status Attach(KvSequence& sequence, FakeCacheClient& cache,
                           const StoredSequence& stored) {
  return sequence.AttachPrefix(cache.StartGet(stored.keys), stored.num_tables,
                               stored.num_window_tokens);
}

}  // namespace pkv

#endif  // PKV_TESTS_UNIT_WORKER_SEQUENCE_SEQUENCE_DRIVER_H_
