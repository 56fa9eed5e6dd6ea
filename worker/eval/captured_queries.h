#ifndef PKV_WORKER_EVAL_CAPTURED_QUERIES_H_
#define PKV_WORKER_EVAL_CAPTURED_QUERIES_H_

#include <cstdint>
#include <span>
#include <vector>

namespace pkv {

// The queries, after RoPE, of consecutive tokens in every layer, as fp16: what a cache is read
// with. [layer][token][qo_head][head_dim]; a magnitude beyond fp16 is stored as 65504.
//
// Thread-compatible.
class CapturedQueries {
 public:
  CapturedQueries() = default;
  CapturedQueries(int num_layers, int num_qo_heads, int head_dim)
      : num_qo_heads_(num_qo_heads), head_dim_(head_dim), layers_(num_layers) {}

  // q: [num_tokens, num_qo_heads, head_dim] fp32, as LayerQkv has it.
  void Append(int layer, int num_tokens, const float* q);

  int num_layers() const { return static_cast<int>(layers_.size()); }
  int num_qo_heads() const { return num_qo_heads_; }
  int head_dim() const { return head_dim_; }
  int num_tokens(int layer) const {
    return static_cast<int>(layers_[layer].size() / TokenElements());
  }
  // [num_tokens][num_qo_heads][head_dim] fp16 bits. Valid until the next Append.
  std::span<const uint16_t> layer(int layer) const { return layers_[layer]; }
  // One token, [num_qo_heads][head_dim], as fp32.
  std::vector<float> Token(int layer, int token) const;

  // H = mean of q q^T over the tokens and over the query heads that read `kv_head`: fp32
  // [head_dim][head_dim]; zeros without tokens. REQUIRES: num_qo_heads is a multiple of
  // num_kv_heads.
  std::vector<float> SecondMoment(int layer, int kv_head, int num_kv_heads) const;

 private:
  size_t TokenElements() const { return size_t(num_qo_heads_) * head_dim_; }

  int num_qo_heads_ = 0, head_dim_ = 0;
  std::vector<std::vector<uint16_t>> layers_;
};

}  // namespace pkv

#endif  // PKV_WORKER_EVAL_CAPTURED_QUERIES_H_
