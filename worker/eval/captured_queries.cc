#include "worker/eval/captured_queries.h"

#include <algorithm>

#include "proto/base/float16.h"
#include "proto/base/log.h"
#include "worker/engine/gemm.h"

namespace pkv {

void CapturedQueries::Append(int layer, int num_tokens, const float* q) {
  std::vector<uint16_t>& values = layers_[layer];
  const size_t begin = values.size(), count = num_tokens * TokenElements();
  values.resize(begin + count);
  for (size_t i = 0; i < count; ++i) {
    values[begin + i] = FloatToFloat16(std::clamp(q[i], -kFloat16Max, kFloat16Max));
  }
}

std::vector<float> CapturedQueries::Token(int layer, int token) const {
  std::vector<float> q(TokenElements());
  const uint16_t* row = layers_[layer].data() + token * q.size();
  for (size_t i = 0; i < q.size(); ++i) q[i] = Float16ToFloat(row[i]);
  return q;
}

std::vector<float> CapturedQueries::SecondMoment(int layer, int kv_head, int num_kv_heads) const {
  PKV_CHECK(num_kv_heads > 0 && num_qo_heads_ % num_kv_heads == 0, num_qo_heads_, " ",
            num_kv_heads);
  const int group = num_qo_heads_ / num_kv_heads;
  const int num_rows = num_tokens(layer) * group;
  std::vector<float> moment(size_t(head_dim_) * head_dim_);
  if (num_rows == 0) return moment;
  // The rows transposed, [head_dim][row]: the product below is then rows times rows.
  std::vector<float> columns(size_t(head_dim_) * num_rows);
  for (int row = 0; row < num_rows; ++row) {
    const int head = kv_head * group + row % group;
    const uint16_t* q =
        layers_[layer].data() + (size_t(row / group) * num_qo_heads_ + head) * head_dim_;
    for (int c = 0; c < head_dim_; ++c) {
      columns[size_t(c) * num_rows + row] = Float16ToFloat(q[c]);
    }
  }
  const absl::Status status = Gemm({.m = head_dim_,
                                    .n = head_dim_,
                                    .k = num_rows,
                                    .a = columns.data(),
                                    .b = columns.data(),
                                    .c = moment.data(),
                                    .a_stride = num_rows,
                                    .b_stride = num_rows,
                                    .c_stride = head_dim_,
                                    .transpose_b = true,
                                    .alpha = 1.0f / static_cast<float>(num_rows)},
                                   nullptr);
  PKV_CHECK(status.ok(), status.ToString());
  return moment;
}

}  // namespace pkv
