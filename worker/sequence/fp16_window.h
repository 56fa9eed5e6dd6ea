#ifndef PKV_WORKER_SEQUENCE_FP16_WINDOW_H_
#define PKV_WORKER_SEQUENCE_FP16_WINDOW_H_

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "pkv/block/kv_shape.h"
#include "pkv/kernels/kv_tensor.h"

namespace pkv {

// K and V of the newest tokens of a request as fp16, all layers: [layer][kv_head][token][head_dim].
//
// Layers are appended one by one during a forward pass; num_tokens() counts tokens that the last
// layer has too.
//
// Thread-compatible; different layers may be read while another is appended to.
class Fp16Window {
 public:
  explicit Fp16Window(const KvShape& shape);

  // Appends tokens to one layer. k, v: [num_tokens, num_kv_heads, head_dim] fp32, rounded to
  // nearest even.
  //   OutOfRange  a value is NaN or beyond fp16's 65504 (names layer, token, kv head, channel,
  //   value)
  absl::Status Append(int layer, int num_tokens, const float* k, const float* v);
  // Appends tokens already in fp16, in a window object's frame order: per head K then V,
  // [token][head_dim] each.
  void AppendFrame(int layer, int num_tokens, std::span<const std::byte> frame);
  // Appends tokens already in fp16.
  void AppendKv(int layer, const KvTensorView& kv);
  // Drops the oldest `count` tokens of every layer. REQUIRES: every layer has them.
  void DropFront(int count);

  int num_tokens() const { return layers_.empty() ? 0 : layers_.back().num_tokens; }
  int num_tokens(int layer) const { return layers_[layer].num_tokens; }
  // Valid until the layer is next changed.
  KvTensorView layer(int layer) const;

 private:
  struct Layer {
    std::vector<uint16_t> k, v;  // [kv_head][capacity][head_dim]
    int num_tokens = 0;
    int capacity = 0;
  };
  void Reserve(Layer& layer, int num_tokens) const;

  KvShape shape_;
  std::vector<Layer> layers_;
};

}  // namespace pkv

#endif  // PKV_WORKER_SEQUENCE_FP16_WINDOW_H_
