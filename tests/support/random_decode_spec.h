#ifndef PKV_TESTS_SUPPORT_RANDOM_DECODE_SPEC_H_
#define PKV_TESTS_SUPPORT_RANDOM_DECODE_SPEC_H_

#include <algorithm>
#include <initializer_list>

#include "tests/support/decode_case.h"

namespace pkv {

// Draws shapes that DecodeAttention takes, the corners often.
class RandomDecodeSpec {
 public:
  explicit RandomDecodeSpec(uint64_t seed) : random_(seed) {
    spec_.seed = spec_.placement_seed = seed;
  }

  DecodeCaseSpec Draw() {
    DecodeAttentionShape& shape = spec_.shape;
    shape.head_dim = Pick({64, 128, 128, 128});
    shape.num_kv_heads = Pick({1, 1, 2, 3, 8, 24});
    shape.num_qo_heads = shape.num_kv_heads * (OneIn(16) ? Pick({9, 12, 16}) : 1 + Below(8));
    shape.query_type = OneIn(2) ? QueryType::kFloat16 : QueryType::kBfloat16;
    DrawEncoding();
    shape.num_sinks = shape.encoding.is_fp16() ? 0 : Pick({0, 4, 16, 64, 1 + Below(64)});
    spec_.window_capacity = Pick({2, 128, 256, 256, 300, 512});
    spec_.bank_capacity = shape.encoding.has_patterns ? Pick({31, 32, 33, 64, 65, 255}) : 0;
    spec_.has_token = !OneIn(3);
    spec_.has_lse = !OneIn(4);
    spec_.q_width = OneIn(4) ? 4 : 1;
    spec_.v_width = std::initializer_list<double>{1, 1, 1, 0.02, 20}.begin()[Below(5)];
    spec_.poison = static_cast<uint8_t>(Pick({0xff, 0x7f, 0x7e}));
    DrawRequests();
    return spec_;
  }

 private:
  int Below(int limit) { return random_.Below(limit); }
  bool OneIn(int n) { return Below(n) == 0; }
  int Pick(std::initializer_list<int> values) {
    return values.begin()[Below(static_cast<int>(values.size()))];
  }

  void DrawEncoding() {
    Encoding& e = spec_.shape.encoding;
    if (OneIn(12)) return;  // fp16
    e.bits_k = Pick({2, 2, 4});
    e.bits_v = OneIn(8) ? 6 - e.bits_k : e.bits_k;
    e.k_group_tokens = Pick({128, 128, 64, 32});
    e.v_group_channels = std::min(Pick({128, 128, 64, 32}), spec_.shape.head_dim);
    e.has_patterns = !OneIn(3);
    e.k_fine_tokens = e.bits_k == 2 && OneIn(2) ? kFineTokens : 0;
    e.rotated = OneIn(2);
  }

  void DrawRequests() {
    const int batch = OneIn(24) ? 17 + Below(112) : OneIn(4) ? 2 + Below(15) : 1 + Below(3);
    // Tokens times query heads decide what the reference costs.
    const int budget = std::max(1, 160 / (batch * spec_.shape.num_qo_heads));
    const int max_blocks = std::min(40, OneIn(10) ? 4 * budget : budget);
    const int room = spec_.window_capacity - (spec_.has_token ? 1 : 0);
    const bool is_uniform = OneIn(3);
    for (int r = 0; r < batch; ++r) {
      DecodeRequest request;
      if (r > 0 && is_uniform) {
        request = spec_.requests[0];
      } else {
        request.num_blocks = Pick({0, 1, 2, max_blocks, Below(max_blocks + 1)});
        request.num_blocks = std::min(request.num_blocks, max_blocks);
        request.num_window_tokens = std::min(
            room,
            batch > 16 ? Below(20) : Pick({0, 0, 1, 15, 16, 17, 127, 128, 129, 255, Below(512)}));
        const int capacity = spec_.bank_capacity;
        request.num_patterns_k = std::min(capacity, Pick({0, 1, 31, 32, 33, 64, 65, 255}));
        request.num_patterns_v = OneIn(2) ? request.num_patterns_k : Below(capacity + 1);
      }
      spec_.requests.push_back(request);
    }
  }

  TestRandom random_;
  DecodeCaseSpec spec_;
};

}  // namespace pkv

#endif  // PKV_TESTS_SUPPORT_RANDOM_DECODE_SPEC_H_
