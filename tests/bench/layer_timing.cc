// Times the compression of one layer on a GPU, its decoding, and a device copy of the bytes that
// compression moves.
//
//   pkv-layer-timing [PRESET[:KEY=VALUE,...]...]      default: kivi2 pkv2 pkv4 default default4
//
// 32,768 tokens, 8 kv heads, head_dim 128, clustered random data; rotates over four layers (512
// MiB); median microseconds of CUDA events over 21 calls after 3. "ids": patterns are given and
// nothing is mined; "all": rotation, mining, assignment and encoding; "decode": what was compressed
// last, into two outputs in turn.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "kernels/device/device_buffer.h"
#include "kernels/device/stream.h"
#include "pkv/kernels/codec_params_text.h"
#include "pkv/kernels/key_feedback.h"
#include "pkv/kernels/layer_compressor.h"
#include "pkv/kernels/layer_decoder.h"
#include "proto/base/float16.h"
#include "proto/base/log.h"
#include "proto/block/payload_layout.h"

namespace pkv {
namespace {

constexpr int kTokens = 32768, kHeads = 8, kHeadDim = 128, kLayers = 4, kCapacity = 64;
constexpr KvShape kShape = {1, kHeads, kHeadDim};
constexpr size_t kTensorBytes = size_t{2} * kTokens * kHeads * kHeadDim;

template <typename T>
T Value(absl::StatusOr<T> value) {
  PKV_CHECK(value.ok(), value.status().ToString());
  return *std::move(value);
}

// A preset, with the changes that follow its name.
CodecParams ParamsOf(const std::string& text) {
  const size_t colon = std::min(text.find(':'), text.size());
  CodecParams params = Value(PresetByName(text.substr(0, colon), kShape));
  for (size_t at = colon; at < text.size();) {
    const size_t end = std::min(text.find(',', at + 1), text.size());
    const std::string change = text.substr(at + 1, end - at - 1);
    const size_t equals = change.find('=');
    PKV_CHECK(equals != std::string::npos, change);
    const absl::Status status =
        SetCodecParam(params, change.substr(0, equals), change.substr(equals + 1));
    PKV_CHECK(status.ok(), status.ToString());
    at = end;
  }
  return params;
}

// Xorshift; the sum of four uniform numbers stands for a normal one.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15u + 1) {}
  uint64_t Bits() {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return state_;
  }
  float Normal() {
    const uint64_t bits = Bits();
    float sum = -2.0f;
    for (int i = 0; i < 4; ++i) {
      sum += static_cast<float>(bits >> (16 * i) & 0xffff) * 0x1p-16f;
    }
    return sum * 1.7320508f;
  }

 private:
  uint64_t state_;
};

std::vector<uint16_t> ClusteredTensor(uint64_t seed) {
  constexpr int kClusters = 24;
  std::vector<uint16_t> out(kTensorBytes / 2);
  std::vector<float> centres(kClusters * kHeadDim);
  Random random(seed);
  for (int head = 0; head < kHeads; ++head) {
    for (float& c : centres) c = random.Normal();
    for (int t = 0; t < kTokens; ++t) {
      const float* centre = centres.data() + random.Bits() % kClusters * kHeadDim;
      const float noise = random.Bits() % 3 == 0 ? 1.5f : 0.5f;
      uint16_t* row = out.data() + (size_t{kTokens} * head + t) * kHeadDim;
      for (int j = 0; j < kHeadDim; ++j) {
        row[j] =
            FloatToFloat16((j % 16 == 3 ? 4.0f : 1.0f) * (centre[j] + noise * random.Normal()));
      }
    }
  }
  return out;
}

KeyFeedback FeedbackOfQueries() {
  Random random(7);
  const size_t size = size_t{kHeadDim} * kHeadDim;
  std::vector<float> moments(kHeads * size), q(kHeadDim);
  for (int head = 0; head < kHeads; ++head) {
    for (int i = 0; i < 64; ++i) {
      const float shared = random.Normal();
      for (float& x : q) x = shared + random.Normal();
      for (size_t k = 0; k < size; ++k)
        moments[head * size + k] += q[k / kHeadDim] * q[k % kHeadDim];
    }
  }
  return MakeKeyFeedback(moments, kHeadDim, 0.01);
}

template <typename T>
DeviceBuffer OnDevice(const std::vector<T>& values, void* stream) {
  DeviceBuffer buffer =
      Value(DeviceBuffer::CopyOf(std::as_bytes(std::span<const T>(values)), stream));
  PKV_CHECK(cudaStreamSynchronize(static_cast<cudaStream_t>(stream)) == cudaSuccess);
  return buffer;
}

double MedianUs(void* handle, const std::function<void(int)>& call) {
  constexpr int kWarmUp = 3, kCalls = 21;
  const auto stream = static_cast<cudaStream_t>(handle);
  cudaEvent_t begin, end;
  PKV_CHECK(cudaEventCreate(&begin) == cudaSuccess && cudaEventCreate(&end) == cudaSuccess);
  std::vector<double> times;
  for (int i = 0; i < kWarmUp + kCalls; ++i) {
    PKV_CHECK(cudaEventRecord(begin, stream) == cudaSuccess);
    call(i % kLayers);
    PKV_CHECK(cudaEventRecord(end, stream) == cudaSuccess);
    PKV_CHECK(cudaEventSynchronize(end) == cudaSuccess);
    float ms = 0;
    PKV_CHECK(cudaEventElapsedTime(&ms, begin, end) == cudaSuccess);
    if (i >= kWarmUp) times.push_back(ms * 1e3);
  }
  std::nth_element(times.begin(), times.begin() + kCalls / 2, times.end());
  return times[kCalls / 2];
}

// The layers that the calls rotate over, and everything else a call reads.
struct Layers {
  std::vector<DeviceBuffer> k, v;
  DeviceBuffer bank_rows, k_ids, v_ids, order, weights, scales, pages, sinks;
  DeviceBank bank;

  explicit Layers(void* stream) {
    for (int i = 0; i < kLayers; ++i) {
      k.push_back(OnDevice(ClusteredTensor(2 * i + 1), stream));
      v.push_back(OnDevice(ClusteredTensor(2 * i + 2), stream));
    }
    std::vector<uint16_t> rows(size_t{2} * kHeads * kCapacity * kHeadDim);
    Random random(3);
    for (uint16_t& x : rows) x = FloatToFloat16(random.Normal());
    std::vector<uint8_t> ids(size_t{kHeads} * kTokens);
    for (uint8_t& id : ids) id = random.Bits() % 8 == 0 ? 255 : random.Bits() % 32;
    for (size_t i = 0; i < ids.size(); ++i) {
      if (i % kTokens < 16) ids[i] = 255;
    }
    const KeyFeedback feedback = FeedbackOfQueries();
    bank_rows = OnDevice(rows, stream);
    k_ids = OnDevice(ids, stream);
    v_ids = OnDevice(ids, stream);
    order = OnDevice(feedback.order, stream);
    weights = OnDevice(feedback.weights, stream);
    scales = OnDevice(feedback.scales, stream);
    pages = Value(DeviceBuffer::Make(size_t{kTokens} * kHeads * 160, stream));
    sinks = Value(DeviceBuffer::Make(size_t{1} << 20, stream));
    bank = {bank_rows.As<uint16_t>(), kCapacity, 32, 32};
  }
};

// Microseconds with everything done here, or with ids given.
double TimePreset(const CodecParams& params, bool all, bool feedback, Layers& layers,
                  const Stream& stream) {
  const ComputeContext ctx = {.device = Device::kCuda, .stream = stream.handle()};
  const auto compressor = Value(LayerCompressor::Make(kShape, params, kTokens, ctx));
  LayerCompression layer;
  layer.mine = all;
  layer.bank = &layers.bank;
  if (!all) layer.ids = {layers.k_ids.As<uint8_t>(), layers.v_ids.As<uint8_t>(), kTokens};
  if (feedback)
    layer.feedback = {layers.order.As<uint8_t>(), layers.weights.As<int8_t>(),
                      layers.scales.As<float>()};
  layer.pages = layers.pages.data();
  layer.page_stride = PayloadLayout::OfBlock(kShape, params.encoding).page_bytes;
  layer.sinks = layers.sinks.As<uint16_t>();
  const double us = MedianUs(stream.handle(), [&](int i) {
    layer.kv = {layers.k[i].As<uint16_t>(), layers.v[i].As<uint16_t>(), kHeads, kTokens, kHeadDim,
                int64_t{kTokens} * kHeadDim};
    const absl::Status status = compressor->Compress(layer, ctx);
    PKV_CHECK(status.ok(), status.ToString());
  });
  const absl::Status finite = compressor->CheckFinite(ctx);
  PKV_CHECK(finite.ok(), finite.ToString());
  return us;
}

// Microseconds to decode the pages that stand in `layers`.
double TimeDecode(const CodecParams& params, Layers& layers, DeviceBuffer (&outputs)[2],
                  const Stream& stream) {
  const ComputeContext ctx = {.device = Device::kCuda, .stream = stream.handle()};
  const auto decoder = Value(LayerDecoder::Make(kShape, params, ctx));
  LayerDecode layer;
  layer.pages = layers.pages.data();
  layer.page_stride = PayloadLayout::OfBlock(kShape, params.encoding).page_bytes;
  layer.num_blocks = kTokens / kBlockTokens;
  layer.sinks = layers.sinks.As<uint16_t>();
  layer.bank = &layers.bank;
  return MedianUs(stream.handle(), [&](int i) {
    auto* out = outputs[i % 2].As<uint16_t>();
    layer.out = {out,      out + kTensorBytes / 2,     kHeads, kTokens,
                 kHeadDim, int64_t{kTokens} * kHeadDim};
    const absl::Status status = decoder->Decode(layer, ctx);
    PKV_CHECK(status.ok(), status.ToString());
  });
}

void Run(const std::vector<std::string>& presets) {
  const Stream stream = Value(Stream::Make());
  Layers layers(stream.handle());
  DeviceBuffer outputs[] = {Value(DeviceBuffer::Make(2 * kTensorBytes, stream.handle())),
                            Value(DeviceBuffer::Make(2 * kTensorBytes, stream.handle()))};
  const auto copy = [&](size_t bytes) {
    return MedianUs(stream.handle(), [&](int i) {
      const size_t half = bytes / 2;
      const auto handle = static_cast<cudaStream_t>(stream.handle());
      PKV_CHECK(cudaMemcpyAsync(outputs[0].data(), layers.k[i].data(), half,
                                cudaMemcpyDeviceToDevice, handle) == cudaSuccess);
      PKV_CHECK(cudaMemcpyAsync(outputs[0].data() + half, layers.v[i].data(), half,
                                cudaMemcpyDeviceToDevice, handle) == cudaSuccess);
    });
  };
  const double copy_us = copy(2 * kTensorBytes);
  const double ceiling = 4.0 * kTensorBytes / copy_us * 1e-6;  // TB/s, read and written
  std::printf("copy of K and V, %zu bytes: %.1f us, %.2f TB/s read + written\n", 2 * kTensorBytes,
              copy_us, ceiling);
  std::printf("%-10s %10s %8s %9s %12s %10s %10s %8s\n", "preset", "ids us", "TB/s", "% copy",
              "feedback us", "all us", "decode us", "TB/s");
  for (const std::string& name : presets) {
    const CodecParams params = ParamsOf(name);
    const PayloadLayout layout = PayloadLayout::OfBlock(kShape, params.encoding);
    const double bytes = 2.0 * kTensorBytes + double(layout.page_bytes) * kTokens / kBlockTokens;
    const double ids = TimePreset(params, false, false, layers, stream);
    const double fed = params.feedback_k ? TimePreset(params, false, true, layers, stream) : ids;
    const double all = TimePreset(params, true, params.feedback_k, layers, stream);
    const double decode = TimeDecode(params, layers, outputs, stream);
    std::printf("%-10s %10.1f %8.2f %9.1f %12.1f %10.1f %10.1f %8.2f\n", name.c_str(), ids,
                bytes / ids * 1e-6, 100 * bytes / ids * 1e-6 / ceiling, fed, all, decode,
                bytes / decode * 1e-6);
  }
}

}  // namespace
}  // namespace pkv

int main(int argc, char** argv) {
  std::vector<std::string> presets(argv + 1, argv + argc);
  if (presets.empty()) presets = {"kivi2", "pkv2", "pkv4", "default", "default4"};
  pkv::Run(presets);
  return 0;
}
