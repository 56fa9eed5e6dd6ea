#include "worker/sequence/fp16_window.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "proto/base/float16.h"
#include "proto/base/log.h"

namespace pkv {
namespace {

// Rounds one row of head_dim values; false when one of them is no finite fp16.
bool RoundRow(const float* in, int head_dim, uint16_t* out) {
  bool finite = true;
  for (int j = 0; j < head_dim; ++j) {
    out[j] = FloatToFloat16(in[j]);
    finite &= IsFiniteFloat16(out[j]);
  }
  return finite;
}

}  // namespace

Fp16Window::Fp16Window(const KvShape& shape) : shape_(shape), layers_(shape.num_layers) {}

void Fp16Window::Reserve(Layer& layer, int num_tokens) const {
  if (num_tokens <= layer.capacity) return;
  const int capacity = std::max(num_tokens, std::max(2 * kBlockTokens, layer.capacity * 2));
  const auto grow = [&](std::vector<uint16_t>& values) {
    std::vector<uint16_t> grown(size_t(shape_.num_kv_heads) * capacity * shape_.head_dim);
    for (int h = 0; h < shape_.num_kv_heads; ++h) {
      std::copy_n(values.data() + size_t(h) * layer.capacity * shape_.head_dim,
                  size_t(layer.num_tokens) * shape_.head_dim,
                  grown.data() + size_t(h) * capacity * shape_.head_dim);
    }
    values = std::move(grown);
  };
  grow(layer.k);
  grow(layer.v);
  layer.capacity = capacity;
}

absl::Status Fp16Window::Append(int layer_index, int num_tokens, const float* k, const float* v) {
  Layer& layer = layers_[layer_index];
  Reserve(layer, layer.num_tokens + num_tokens);
  const int d = shape_.head_dim;
  for (int t = 0; t < num_tokens; ++t) {
    for (int h = 0; h < shape_.num_kv_heads; ++h) {
      const size_t in = (size_t(t) * shape_.num_kv_heads + h) * d;
      const size_t out = (size_t(h) * layer.capacity + layer.num_tokens + t) * d;
      const bool k_finite = RoundRow(k + in, d, layer.k.data() + out);
      if (k_finite && RoundRow(v + in, d, layer.v.data() + out)) continue;
      const float* row = k_finite ? v + in : k + in;
      const auto bad =
          std::find_if(row, row + d, [](float x) { return !IsFiniteFloat16(FloatToFloat16(x)); });
      return absl::OutOfRangeError(absl::StrCat(k_finite ? "V" : "K", " of layer ", layer_index,
                                                ", token ", layer.num_tokens + t,
                                                " of the window, kv head ", h, ", channel ",
                                                bad - row, " is ", *bad, ": not a finite fp16"));
    }
  }
  layer.num_tokens += num_tokens;
  return absl::OkStatus();
}

void Fp16Window::AppendFrame(int layer_index, int num_tokens, std::span<const std::byte> frame) {
  Layer& layer = layers_[layer_index];
  Reserve(layer, layer.num_tokens + num_tokens);
  const size_t bytes = size_t(num_tokens) * shape_.head_dim * sizeof(uint16_t);
  PKV_CHECK(frame.size() >= 2 * bytes * shape_.num_kv_heads, frame.size());
  for (int h = 0; h < shape_.num_kv_heads; ++h) {
    const size_t out = (size_t(h) * layer.capacity + layer.num_tokens) * shape_.head_dim;
    std::memcpy(layer.k.data() + out, frame.data() + 2 * h * bytes, bytes);
    std::memcpy(layer.v.data() + out, frame.data() + (2 * h + 1) * bytes, bytes);
  }
  layer.num_tokens += num_tokens;
}

void Fp16Window::AppendKv(int layer_index, const KvTensorView& kv) {
  PKV_CHECK(kv.num_kv_heads == shape_.num_kv_heads && kv.head_dim == shape_.head_dim,
            kv.num_kv_heads, " ", kv.head_dim);
  Layer& layer = layers_[layer_index];
  Reserve(layer, layer.num_tokens + kv.num_tokens);
  for (int h = 0; h < shape_.num_kv_heads; ++h) {
    const size_t out = (size_t(h) * layer.capacity + layer.num_tokens) * shape_.head_dim;
    std::copy_n(kv.k_row(h, 0), size_t(kv.num_tokens) * kv.head_dim, layer.k.data() + out);
    std::copy_n(kv.v_row(h, 0), size_t(kv.num_tokens) * kv.head_dim, layer.v.data() + out);
  }
  layer.num_tokens += kv.num_tokens;
}

void Fp16Window::DropFront(int count) {
  for (Layer& layer : layers_) {
    PKV_CHECK(count <= layer.num_tokens, count, " of ", layer.num_tokens);
    const int kept = layer.num_tokens - count;
    for (int h = 0; h < shape_.num_kv_heads; ++h) {
      const size_t head = size_t(h) * layer.capacity * shape_.head_dim;
      const size_t from = head + size_t(count) * shape_.head_dim;
      for (std::vector<uint16_t>* values : {&layer.k, &layer.v}) {
        std::copy_n(values->data() + from, size_t(kept) * shape_.head_dim, values->data() + head);
      }
    }
    layer.num_tokens = kept;
  }
}

KvTensorView Fp16Window::layer(int layer_index) const {
  const Layer& layer = layers_[layer_index];
  return {layer.k.data(),   layer.v.data(),  shape_.num_kv_heads,
          layer.num_tokens, shape_.head_dim, int64_t{layer.capacity} * shape_.head_dim};
}

}  // namespace pkv
