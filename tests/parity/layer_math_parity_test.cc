// The layer arithmetic of the CUDA executor against that of the CPU's (layer_math.h), whose inputs
// it shares. Results of `type` differ by its rounding (unit 2^-11 or 2^-8) and by the order of fp32
// sums; a few units of it are allowed.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/device/device_buffer.h"
#include "proto/base/float16.h"
#include "tests/support/cuda_fixture.h"
#include "tests/support/cuda_tensor.h"
#include "tests/support/error_bound.h"
#include "worker/engine/cuda/layer_math_kernels.h"
#include "worker/engine/layer_math.h"

namespace pkv {
namespace {

std::vector<float> Normal(uint64_t seed, size_t size) {
  TestRandom random(seed);
  std::vector<float> values(size);
  for (float& value : values) value = static_cast<float>(random.Normal());
  return values;
}

class LayerMathParityTest : public CudaTest, public testing::WithParamInterface<WeightType> {
 protected:
  double unit() const { return GetParam() == WeightType::kFloat16 ? 0x1p-11 : 0x1p-8; }
  float ToFloat(uint16_t bits) const {
    return GetParam() == WeightType::kFloat16 ? Float16ToFloat(bits)
                                              : std::bit_cast<float>(uint32_t{bits} << 16);
  }
  uint16_t Round(float value) const {
    if (GetParam() == WeightType::kFloat16) return FloatToFloat16(value);
    return static_cast<uint16_t>(std::bit_cast<uint32_t>(value) >> 16);
  }
  cudaStream_t cuda_stream() const { return static_cast<cudaStream_t>(stream()); }
  // What a buffer holds as values of the type.
  std::vector<float> Read(DeviceBuffer& buffer) const {
    std::vector<uint16_t> bits(buffer.size() / 2);
    PKV_CHECK(buffer.CopyToHost(std::as_writable_bytes(std::span(bits))).ok());
    std::vector<float> values(bits.size());
    for (size_t i = 0; i < bits.size(); ++i) values[i] = ToFloat(bits[i]);
    return values;
  }
  DeviceBuffer Make(size_t bytes) const {
    auto buffer = DeviceBuffer::Make(bytes, stream());
    PKV_CHECK(buffer.ok());
    return *std::move(buffer);
  }
  void ExpectNear(const std::vector<float>& wanted, const std::vector<float>& got) const {
    ASSERT_EQ(wanted.size(), got.size());
    for (size_t i = 0; i < wanted.size(); ++i) {
      ASSERT_NEAR(wanted[i], got[i], 2 * unit() * std::abs(wanted[i]) + 1e-5) << i;
    }
  }
};

TEST_P(LayerMathParityTest, NormsRows) {
  constexpr int kRows = 5, kDim = 388;
  const std::vector<float> x = Normal(1, kRows * kDim), weight = Normal(2, kDim);
  std::vector<float> wanted(x.size());
  RmsNorm(x.data(), weight.data(), 1e-5, kRows, kDim, wanted.data(), nullptr);
  DeviceBuffer device_x = OnDevice(x, stream()), device_weight = OnDevice(weight, stream());
  DeviceBuffer out = Make(x.size() * 2);
  NormRowsArgs args;
  args.x = device_x.As<float>();
  args.weight = device_weight.As<float>();
  args.eps = 1e-5f;
  args.rows = kRows;
  args.dim = kDim;
  args.out = out.data();
  ASSERT_EQ(LaunchNormRows(GetParam(), args, cuda_stream()), cudaSuccess);
  ExpectNear(wanted, Read(out));
}

// Parts and bias enter the row that is normed, and the row that is kept.
TEST_P(LayerMathParityTest, AddsToRowsBeforeItNormsThem) {
  constexpr int kRows = 3, kDim = kNormDimMax, kStride = kRows * kDim + 4;
  const std::vector<float> x = Normal(21, kRows * kDim), weight = Normal(22, kDim),
                           bias = Normal(23, kDim), parts = Normal(24, kNormPartsMax * kStride);
  for (const int num_parts : {1, kNormPartsMax}) {
    std::vector<float> sum = x;
    for (int i = 0; i < kRows * kDim; ++i) {
      for (int part = 0; part < num_parts; ++part) sum[i] += parts[part * kStride + i];
      sum[i] += bias[i % kDim];
    }
    std::vector<float> wanted(x.size());
    RmsNorm(sum.data(), weight.data(), 1e-5, kRows, kDim, wanted.data(), nullptr);
    DeviceBuffer device_x = OnDevice(x, stream()), device_weight = OnDevice(weight, stream()),
                 device_bias = OnDevice(bias, stream()), device_parts = OnDevice(parts, stream());
    DeviceBuffer out = Make(x.size() * 2);
    NormRowsArgs args;
    args.x = args.sum = device_x.As<float>();
    args.parts = device_parts.As<float>();
    args.num_parts = num_parts;
    args.part_stride = kStride;
    args.bias = device_bias.As<float>();
    args.weight = device_weight.As<float>();
    args.eps = 1e-5f;
    args.rows = kRows;
    args.dim = kDim;
    args.out = out.data();
    ASSERT_EQ(LaunchNormRows(GetParam(), args, cuda_stream()), cudaSuccess);
    ExpectNear(wanted, Read(out));
    std::vector<float> kept(x.size());
    ASSERT_TRUE(device_x.CopyToHost(std::as_writable_bytes(std::span(kept))).ok());
    EXPECT_EQ(kept, sum);
  }
}

TEST_P(LayerMathParityTest, ActivatesWithAndWithoutBias) {
  constexpr int kRows = 3, kDim = 2056;
  const std::vector<float> drawn = Normal(3, kRows * 2 * kDim), bias = Normal(4, 2 * kDim);
  std::vector<uint16_t> bits(drawn.size());
  for (size_t i = 0; i < drawn.size(); ++i) bits[i] = Round(4 * drawn[i]);
  for (const bool has_bias : {false, true}) {
    std::vector<float> gate, up;
    for (int row = 0; row < kRows; ++row) {
      for (int i = 0; i < kDim; ++i) {
        const size_t at = size_t(row) * 2 * kDim + i;
        gate.push_back(ToFloat(bits[at]) + (has_bias ? bias[i] : 0));
        up.push_back(ToFloat(bits[at + kDim]) + (has_bias ? bias[kDim + i] : 0));
      }
    }
    SwiGlu(gate.data(), up.data(), static_cast<int64_t>(gate.size()), nullptr);
    DeviceBuffer gate_up = OnDevice(bits, stream()), device_bias = OnDevice(bias, stream());
    DeviceBuffer out = Make(gate.size() * 2);
    ASSERT_EQ(
        LaunchSwiGluRows(GetParam(), gate_up.data(), has_bias ? device_bias.As<float>() : nullptr,
                         kRows, kDim, out.data(), cuda_stream()),
        cudaSuccess);
    ExpectNear(gate, Read(out));
  }
}

// cos and sin of positions [0, count), as the model keeps them.
std::vector<float2> RotaryTable(const std::vector<double>& frequencies, int count) {
  std::vector<float2> table;
  for (int position = 0; position < count; ++position) {
    for (const double frequency : frequencies) {
      table.push_back({static_cast<float>(std::cos(position * frequency)),
                       static_cast<float>(std::sin(position * frequency))});
    }
  }
  return table;
}

TEST_P(LayerMathParityTest, TurnsQueriesAndKeys) {
  constexpr int kRows = 4, kQoHeads = 6, kKvHeads = 2, kHeadDim = 64, kFirst = 37;
  ModelConfig config;
  config.head_dim = kHeadDim;
  config.rope_theta = 500000;
  Rotary rotary(config);
  rotary.SetPositions(kFirst, kRows, nullptr);
  const std::vector<float2> table = RotaryTable(rotary.frequencies(), kFirst + kRows);
  constexpr int kHeads = kQoHeads + 2 * kKvHeads;
  std::vector<float> qkv = Normal(5, size_t(kRows) * kHeads * kHeadDim);
  const std::vector<float> bias = Normal(6, size_t(kHeads) * kHeadDim);
  const auto part = [&](int first_head, int count) {
    std::vector<float> rows;
    for (int row = 0; row < kRows; ++row) {
      for (int i = first_head * kHeadDim; i < (first_head + count) * kHeadDim; ++i) {
        rows.push_back(qkv[size_t(row) * kHeads * kHeadDim + i] + bias[i]);
      }
    }
    return rows;
  };
  std::vector<float> q = part(0, kQoHeads), k = part(kQoHeads, kKvHeads),
                     v = part(kQoHeads + kKvHeads, kKvHeads);
  rotary.Apply(kQoHeads, q.data(), nullptr);
  rotary.Apply(kKvHeads, k.data(), nullptr);
  // V of the last row leaves fp16.
  qkv.back() = 1e6f;

  DeviceBuffer device_qkv = OnDevice(qkv, stream()), device_bias = OnDevice(bias, stream()),
               device_table = OnDevice(table, stream()),
               positions = OnDevice(std::vector<int32_t>{37, 38, 39, 40}, stream());
  DeviceBuffer out_q = Make(q.size() * 2), out_k = Make(k.size() * 2), out_v = Make(v.size() * 2);
  DeviceBuffer flags = OnDevice(std::vector<int32_t>(kRows), stream());
  RotaryRowsArgs args;
  args.qkv = device_qkv.As<float>();
  args.bias = device_bias.As<float>();
  args.rows = kRows;
  args.num_qo_heads = kQoHeads;
  args.num_kv_heads = kKvHeads;
  args.head_dim = kHeadDim;
  args.positions = positions.As<int32_t>();
  args.cos_sin = device_table.As<float2>();
  args.q = out_q.data();
  args.k = out_k.As<uint16_t>();
  args.v = out_v.As<uint16_t>();
  args.kv_head_stride = kHeadDim;
  args.kv_row_stride = kKvHeads * kHeadDim;
  args.not_finite = flags.As<int32_t>();
  args.not_finite_stride = 1;
  for (const bool by_first : {false, true}) {
    if (by_first) args.positions = nullptr;
    args.first_position = by_first ? kFirst : 0;
    ASSERT_EQ(LaunchRotaryRows(GetParam(), args, cuda_stream()), cudaSuccess);
    ExpectNear(q, Read(out_q));
    std::vector<uint16_t> got(k.size());
    ASSERT_TRUE(out_k.CopyToHost(std::as_writable_bytes(std::span(got))).ok());
    for (size_t i = 0; i < k.size(); ++i) {
      ASSERT_NEAR(Float16ToFloat(got[i]), k[i], 2 * Float16Bound(k[i]) + kFloat16Tiny) << i;
    }
    ASSERT_TRUE(out_v.CopyToHost(std::as_writable_bytes(std::span(got))).ok());
    for (size_t i = 0; i + 1 < v.size(); ++i) {
      ASSERT_EQ(got[i], FloatToFloat16(v[i])) << i;
    }
    std::vector<int32_t> seen(kRows);
    ASSERT_TRUE(flags.CopyToHost(std::as_writable_bytes(std::span(seen))).ok());
    EXPECT_EQ(seen, (std::vector<int32_t>{0, 0, 0, 1}));
  }
}

TEST_P(LayerMathParityTest, EmbedsAndFindsTheLikeliest) {
  constexpr int kVocab = 5000, kDim = 100;
  std::vector<uint16_t> table(size_t(kVocab) * kDim);
  const std::vector<float> drawn = Normal(7, table.size());
  for (size_t i = 0; i < table.size(); ++i) table[i] = Round(drawn[i]);
  const std::vector<int32_t> tokens = {4999, 0, 17};
  DeviceBuffer device_table = OnDevice(table, stream()), device_tokens = OnDevice(tokens, stream());
  DeviceBuffer hidden = Make(tokens.size() * kDim * 4);
  ASSERT_EQ(LaunchEmbedRows(GetParam(), device_table.data(), device_tokens.As<int32_t>(), 3, kDim,
                            hidden.As<float>(), cuda_stream()),
            cudaSuccess);
  std::vector<float> rows(tokens.size() * kDim);
  ASSERT_TRUE(hidden.CopyToHost(std::as_writable_bytes(std::span(rows))).ok());
  for (size_t i = 0; i < rows.size(); ++i) {
    ASSERT_EQ(rows[i], ToFloat(table[size_t(tokens[i / kDim]) * kDim + i % kDim]));
  }

  std::vector<float> logits = Normal(8, size_t(2) * kVocab);
  logits[3000] = logits[1234] = 20;  // a tie: the lowest id
  logits[kVocab + 4999] = 30;
  DeviceBuffer device_logits = OnDevice(logits, stream());
  DeviceBuffer best = Make(2 * sizeof(int32_t)), logprobs = Make(2 * sizeof(float));
  ASSERT_EQ(LaunchGreedyRows(device_logits.As<float>(), 2, kVocab, best.As<int32_t>(),
                             logprobs.As<float>(), cuda_stream()),
            cudaSuccess);
  std::vector<int32_t> likeliest(2);
  std::vector<float> found(2);
  ASSERT_TRUE(best.CopyToHost(std::as_writable_bytes(std::span(likeliest))).ok());
  ASSERT_TRUE(logprobs.CopyToHost(std::as_writable_bytes(std::span(found))).ok());
  EXPECT_EQ(likeliest, (std::vector<int32_t>{1234, 4999}));
  for (int row = 0; row < 2; ++row) {
    double sum = 0;
    const float* at = logits.data() + row * kVocab;
    for (int i = 0; i < kVocab; ++i) sum += std::exp(double{at[i]} - at[likeliest[row]]);
    EXPECT_NEAR(found[row], -std::log(sum), ReductionBound(kVocab));
  }
}

INSTANTIATE_TEST_SUITE_P(Types, LayerMathParityTest,
                         testing::Values(WeightType::kFloat16, WeightType::kBfloat16));

}  // namespace
}  // namespace pkv
