// Products that stream their weights, against sums in binary64 over the same operands; how their
// work is dealt out; and that kernels which overlap compute what kernels one by one do.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "kernels/device/device_buffer.h"
#include "proto/base/float16.h"
#include "tests/support/cuda_fixture.h"
#include "tests/support/cuda_tensor.h"
#include "tests/support/error_bound.h"
#include "tests/support/status_matchers.h"
#include "worker/engine/cuda/streamed_product_kernels.h"

namespace pkv {
namespace {

constexpr int kH200Sms = 132, kH200SharedBytes = 232448;

StreamedProductShape Plain(int n, int k, int max_parts = 1) {
  return {.n = n, .k = k, .max_parts = max_parts};
}

// Every item is taken once, whatever order tickets are drawn in; and the largest ticket is the one
// that puts the counter back.
TEST(StreamedProductPlanTest, DealsOutEveryTileOnce) {
  for (const StreamedProductShape& shape :
       {Plain(4096, 4096, 4), Plain(4096, 14336, 4), Plain(128256, 4096), Plain(40, 96, 4),
        Plain(3584, 18944, 4), Plain(17, 32)}) {
    const auto plan = PlanStreamedProduct(shape, kH200Sms, kH200SharedBytes);
    ASSERT_TRUE(plan.ok()) << plan.status();
    EXPECT_LE(plan->num_parts * plan->part_ctas, kH200Sms);
    EXPECT_EQ(plan->num_parts * plan->part_columns, shape.k);
    for (const int rows : {1, 16}) {
      const StreamedProductPlan::Memory& memory = plan->memory_of(rows);
      EXPECT_LE(memory.shared_bytes, kH200SharedBytes);
      std::vector<int> taken(shape.num_tiles());
      for (int cta = 0; cta < plan->part_ctas; ++cta) {
        for (int round = 0; round < memory.static_rounds; ++round) {
          const int tile = cta + round * plan->part_ctas;
          if (tile < shape.num_tiles()) ++taken[tile];
        }
      }
      if (memory.has_tickets) {
        for (int tile = memory.static_rounds * plan->part_ctas; tile < shape.num_tiles(); ++tile) {
          ++taken[tile];
        }
      }
      EXPECT_EQ(taken, std::vector<int>(shape.num_tiles(), 1)) << shape.n << " " << shape.k;
    }
  }
}

TEST(StreamedProductPlanTest, RefusesWidthsThatDoNotFit) {
  const auto message = [](const StreamedProductShape& shape) {
    const auto plan = PlanStreamedProduct(shape, kH200Sms, kH200SharedBytes);
    EXPECT_TRUE(absl::IsUnimplemented(plan.status())) << plan.status();
    return std::string(plan.status().message());
  };
  EXPECT_THAT(message(Plain(64, 100)), testing::HasSubstr("100 columns: no multiple of 32"));
  EXPECT_THAT(message(Plain(0, 64)), testing::HasSubstr("weights of 0 rows"));
  EXPECT_THAT(message(Plain(64, 8192)), testing::HasSubstr("in up to 1 parts do not fit"));
  EXPECT_TRUE(PlanStreamedProduct(Plain(64, 8192, 2), kH200Sms, kH200SharedBytes).ok());
}

struct ProductCase {
  StreamedProductShape shape;
  ProductEnd end = ProductEnd::kParts;
  int rows = 0;
  bool has_bias = false;
};

std::vector<float> Normal(uint64_t seed, size_t size, double scale) {
  TestRandom random(seed);
  std::vector<float> values(size);
  for (float& value : values) value = static_cast<float>(random.Normal() * scale);
  return values;
}

class StreamedProductParityTest : public CudaTest, public testing::WithParamInterface<WeightType> {
 protected:
  void SetUp() override {
    CudaTest::SetUp();
    if (IsSkipped()) return;
    ASSERT_EQ(PrepareStreamedProducts(&device_), cudaSuccess);
    tickets_.emplace(OnDevice(std::vector<uint32_t>(kNormPartsMax), stream()));
  }
  bool is_half() const { return GetParam() == WeightType::kFloat16; }
  cudaStream_t cuda_stream() const { return static_cast<cudaStream_t>(stream()); }
  float ToFloat(uint16_t bits) const {
    return is_half() ? Float16ToFloat(bits) : std::bit_cast<float>(uint32_t{bits} << 16);
  }
  std::vector<uint16_t> Round(const std::vector<float>& values) const {
    std::vector<uint16_t> bits(values.size());
    for (size_t i = 0; i < values.size(); ++i) {
      bits[i] = is_half() ? FloatToFloat16(values[i])
                          : static_cast<uint16_t>(std::bit_cast<uint32_t>(values[i]) >> 16);
    }
    return bits;
  }
  StreamedProductArgs Args(const ProductCase& test) {
    StreamedProductArgs args;
    args.shape = test.shape;
    auto plan = PlanStreamedProduct(test.shape, device_.num_sms, device_.shared_bytes_max);
    PKV_CHECK(plan.ok(), plan.status().ToString());
    args.plan = *plan;
    args.end = test.end;
    args.rows = test.rows;
    args.tickets = tickets_->As<uint32_t>();
    return args;
  }
  void Launch(const StreamedProductArgs& args) {
    ASSERT_EQ(LaunchStreamedProduct(GetParam(), args, cuda_stream()), cudaSuccess);
  }
  // Bytes of a buffer whose first and last kGuard must still be poison.
  static constexpr size_t kGuard = 256;
  DeviceBuffer Poisoned(size_t bytes) {
    return OnDevice(std::vector<std::byte>(bytes + 2 * kGuard, std::byte{0xff}), stream());
  }
  template <typename T>
  std::vector<T> ReadGuarded(const DeviceBuffer& buffer) {
    std::vector<std::byte> bytes(buffer.size());
    PKV_CHECK(buffer.CopyToHost(bytes).ok());
    for (size_t i = 0; i < kGuard; ++i) {
      EXPECT_EQ(bytes[i], std::byte{0xff});
      EXPECT_EQ(bytes[bytes.size() - 1 - i], std::byte{0xff});
    }
    std::vector<T> values((bytes.size() - 2 * kGuard) / sizeof(T));
    std::memcpy(values.data(), bytes.data() + kGuard, values.size() * sizeof(T));
    return values;
  }

  ProductDevice device_;
  std::optional<DeviceBuffer> tickets_;
};

// An element of x w^T, and how far the kernel's may be from it: products are exact in binary32; an
// mma adds 16 of them; then the warps' sums are added, and on the host the parts.
struct Element {
  double value = 0, magnitude = 0;
  double bound(int k) const {
    return DecodeSumBound(kTensorCoreArithmetic, k, kProductWarps) * magnitude;
  }
};

// x and w of a case, on both sides.
struct Operands {
  std::vector<float> x, w, bias;
  DeviceBuffer device_x, device_w, device_bias;
  Element At(int row, int column, int k) const {
    Element element;
    for (int i = 0; i < k; ++i) {
      const double product = double{x[size_t(row) * k + i]} * w[size_t(column) * k + i];
      element.value += product;
      element.magnitude += std::abs(product);
    }
    if (!bias.empty()) {
      element.value += bias[column];
      element.magnitude += std::abs(bias[column]);
    }
    return element;
  }
};

TEST_P(StreamedProductParityTest, WritesPartsThatAddUp) {
  const auto operands = [&](const ProductCase& test, uint64_t seed) {
    const int k = test.shape.k;
    const std::vector<uint16_t> x = Round(Normal(seed, size_t(test.rows) * k, 1));
    const std::vector<uint16_t> w =
        Round(Normal(seed + 1, size_t(test.shape.n) * k, 1 / std::sqrt(k)));
    Operands result;
    for (const uint16_t bits : x) result.x.push_back(ToFloat(bits));
    for (const uint16_t bits : w) result.w.push_back(ToFloat(bits));
    result.device_x = OnDevice(x, stream());
    result.device_w = OnDevice(w, stream());
    return result;
  };
  const std::vector<ProductCase> cases = {
      {.shape = Plain(33, 32), .rows = 1},
      {.shape = Plain(48, 544), .rows = 8},
      {.shape = Plain(130, 4096, 4), .rows = 5},
      {.shape = Plain(40, 14336, 4), .rows = 16},
      {.shape = Plain(24, 4736, 4), .rows = 9},
      // More tiles than are dealt out beforehand, and an odd last one.
      {.shape = Plain(40001, 32), .rows = 3},
      {.shape = Plain(9001, 2080, 2), .rows = 2},
  };
  uint64_t seed = 1;
  for (const ProductCase& test : cases) {
    const Operands in = operands(test, seed += 2);
    const int n = test.shape.n, k = test.shape.k;
    StreamedProductArgs args = Args(test);
    const int parts = args.plan.num_parts;
    DeviceBuffer out = Poisoned(size_t(parts) * test.rows * n * sizeof(float));
    args.weight = in.device_w.data();
    args.x = in.device_x.data();
    args.out = out.data() + kGuard;
    Launch(args);
    const std::vector<float> got = ReadGuarded<float>(out);
    for (int row = 0; row < test.rows; ++row) {
      for (int column = 0; column < n; ++column) {
        double sum = 0;
        for (int part = 0; part < parts; ++part) {
          sum += got[(size_t(part) * test.rows + row) * n + column];
        }
        const Element wanted = in.At(row, column, k);
        ASSERT_NEAR(sum, wanted.value, wanted.bound(k))
            << n << " x " << k << ": row " << row << ", column " << column;
      }
    }
    std::vector<uint32_t> tickets(kNormPartsMax);
    ASSERT_TRUE(tickets_->CopyToHost(std::as_writable_bytes(std::span(tickets))).ok());
    EXPECT_EQ(tickets, std::vector<uint32_t>(kNormPartsMax)) << n << " x " << k;
  }
}

// silu(gate) * up: silu grows by at most 1.1 times its argument.
TEST_P(StreamedProductParityTest, Activates) {
  constexpr int kFfn = 264, kColumns = 544;
  for (const bool has_bias : {false, true}) {
    for (const int rows : {3, 16}) {
      const ProductCase test = {{.n = 2 * kFfn,
                                 .k = kColumns,
                                 .distance = kFfn,
                                 .group_tiles = kFfn / 8,
                                 .group_rows = kFfn},
                                ProductEnd::kSwiGlu,
                                rows,
                                has_bias};
      const std::vector<uint16_t> x = Round(Normal(31, size_t(rows) * kColumns, 1));
      const std::vector<uint16_t> w =
          Round(Normal(32, size_t(2) * kFfn * kColumns, 2 / std::sqrt(kColumns)));
      Operands in;
      for (const uint16_t bits : x) in.x.push_back(ToFloat(bits));
      for (const uint16_t bits : w) in.w.push_back(ToFloat(bits));
      if (has_bias) in.bias = Normal(33, 2 * kFfn, 1);
      const DeviceBuffer device_x = OnDevice(x, stream()), device_w = OnDevice(w, stream());
      DeviceBuffer bias = OnDevice(in.bias, stream());
      DeviceBuffer out = Poisoned(size_t(rows) * kFfn * 2);
      StreamedProductArgs args = Args(test);
      args.weight = device_w.data();
      args.x = device_x.data();
      args.out = out.data() + kGuard;
      if (has_bias) args.bias = bias.As<float>();
      Launch(args);
      const std::vector<uint16_t> got = ReadGuarded<uint16_t>(out);
      for (int row = 0; row < rows; ++row) {
        for (int i = 0; i < kFfn; ++i) {
          const Element gate = in.At(row, i, kColumns), up = in.At(row, kFfn + i, kColumns);
          const double silu = gate.value / (1 + std::exp(-gate.value));
          const double wanted = silu * up.value;
          const double bound =
              ActivationBound(gate.value, gate.bound(kColumns), up.value, up.bound(kColumns));
          ASSERT_NEAR(ToFloat(got[size_t(row) * kFfn + i]), wanted,
                      bound + OutputBound(std::abs(wanted) + bound, !is_half()))
              << row << " " << i;
        }
      }
    }
  }
}

std::vector<float2> Turns(int count) {
  std::vector<float2> turns;
  for (int i = 0; i < count; ++i) {
    const float angle = 0.1f * static_cast<float>(i);
    turns.push_back({std::cos(angle), std::sin(angle)});
  }
  return turns;
}

// What rotation writes.
struct Outputs {
  std::vector<uint16_t> q, k, v;
  std::vector<int32_t> not_finite;
  bool operator==(const Outputs&) const = default;
};

// What the separate kernel makes of the same product, which has a test of its own.
TEST_P(StreamedProductParityTest, TurnsAsTheRotaryKernelDoes) {
  constexpr int kColumns = 256, kQoHeads = 6, kKvHeads = 2, kHeadDim = 64, kRows = 11;
  constexpr int kHeads = kQoHeads + 2 * kKvHeads, kSize = kHeads * kHeadDim;
  const std::vector<uint16_t> x = Round(Normal(41, kRows * kColumns, 1));
  std::vector<float> drawn = Normal(42, size_t(kSize) * kColumns, 1 / std::sqrt(kColumns));
  // V of the last head leaves fp16 where x is large enough.
  for (int i = 0; i < kColumns; ++i) drawn[size_t(kSize - 1) * kColumns + i] *= 60000;
  const std::vector<uint16_t> w = Round(drawn);
  const std::vector<float> bias_values = Normal(43, kSize, 1);
  const std::vector<float2> table = Turns(64 * kHeadDim / 2);
  std::vector<int32_t> position_values;
  for (int i = 0; i < kRows; ++i) position_values.push_back(7 * i % 64);
  const DeviceBuffer device_x = OnDevice(x, stream()), device_w = OnDevice(w, stream());
  DeviceBuffer bias = OnDevice(bias_values, stream()), turns = OnDevice(table, stream()),
               positions = OnDevice(position_values, stream());

  DeviceBuffer product = Poisoned(size_t(kRows) * kSize * sizeof(float));
  StreamedProductArgs plain = Args({.shape = Plain(kSize, kColumns), .rows = kRows});
  plain.weight = device_w.data();
  plain.x = device_x.data();
  plain.out = product.data() + kGuard;
  Launch(plain);

  const auto run = [&](bool is_fused) {
    DeviceBuffer q = Poisoned(kRows * kQoHeads * kHeadDim * 2),
                 k = Poisoned(kRows * kKvHeads * kHeadDim * 2),
                 v = Poisoned(kRows * kKvHeads * kHeadDim * 2);
    DeviceBuffer flags = OnDevice(std::vector<int32_t>(kRows), stream());
    RotaryRowsArgs rotary;
    rotary.bias = bias.As<float>();
    rotary.num_qo_heads = kQoHeads;
    rotary.num_kv_heads = kKvHeads;
    rotary.head_dim = kHeadDim;
    rotary.positions = positions.As<int32_t>();
    rotary.cos_sin = turns.As<float2>();
    rotary.q = q.data() + kGuard;
    rotary.k = k.As<uint16_t>() + kGuard / 2;
    rotary.v = v.As<uint16_t>() + kGuard / 2;
    rotary.kv_head_stride = kHeadDim;
    rotary.kv_row_stride = kKvHeads * kHeadDim;
    rotary.not_finite = flags.As<int32_t>();
    rotary.not_finite_stride = 1;
    if (is_fused) {
      StreamedProductArgs args = Args(
          {{kSize, kColumns, kHeadDim / 2, kHeadDim / 16, kHeadDim}, ProductEnd::kRotary, kRows});
      args.weight = device_w.data();
      args.x = device_x.data();
      args.rotary = rotary;
      Launch(args);
    } else {
      rotary.qkv = reinterpret_cast<const float*>(product.data() + kGuard);
      rotary.rows = kRows;
      EXPECT_EQ(LaunchRotaryRows(GetParam(), rotary, cuda_stream()), cudaSuccess);
    }
    Outputs outputs = {ReadGuarded<uint16_t>(q), ReadGuarded<uint16_t>(k), ReadGuarded<uint16_t>(v),
                       std::vector<int32_t>(kRows)};
    PKV_CHECK(flags.CopyToHost(std::as_writable_bytes(std::span(outputs.not_finite))).ok());
    return outputs;
  };
  const Outputs wanted = run(false), got = run(true);
  EXPECT_NE(std::count(wanted.not_finite.begin(), wanted.not_finite.end(), 1), 0);
  EXPECT_NE(std::count(wanted.not_finite.begin(), wanted.not_finite.end(), 0), 0);
  // One compiler made both of the same expressions, from the same sums.
  EXPECT_TRUE(got == wanted);
}

TEST_P(StreamedProductParityTest, GivesARowTheSameBitsInAnyCompany) {
  constexpr int kColumns = 1536, kOut = 2500;
  const std::vector<uint16_t> w = Round(Normal(51, size_t(kOut) * kColumns, 0.02));
  const std::vector<uint16_t> row = Round(Normal(52, kColumns, 1));
  const DeviceBuffer device_w = OnDevice(w, stream());
  std::vector<float> first;
  for (const auto& [rows, place] : {std::pair{1, 0}, {8, 7}, {9, 8}, {16, 2}, {16, 15}}) {
    std::vector<uint16_t> x = Round(Normal(53 + rows, size_t(rows) * kColumns, 3));
    std::copy(row.begin(), row.end(), x.begin() + ptrdiff_t{place} * kColumns);
    const DeviceBuffer device_x = OnDevice(x, stream());
    StreamedProductArgs args = Args({.shape = Plain(kOut, kColumns, 2), .rows = rows});
    const int parts = args.plan.num_parts;
    DeviceBuffer out = Poisoned(size_t(parts) * rows * kOut * sizeof(float));
    args.weight = device_w.data();
    args.x = device_x.data();
    args.out = out.data() + kGuard;
    Launch(args);
    const std::vector<float> all = ReadGuarded<float>(out);
    std::vector<float> got;
    for (int part = 0; part < parts; ++part) {
      const auto from = all.begin() + (ptrdiff_t{part} * rows + place) * kOut;
      got.insert(got.end(), from, from + kOut);
    }
    if (first.empty()) first = got;
    EXPECT_EQ(std::memcmp(got.data(), first.data(), got.size() * sizeof(float)), 0) << rows;
  }
}

// Products and norms in turn, each reading what the one before wrote into buffers that all share:
// with a synchronisation after each kernel nothing overlaps, and the bits must be the same.
TEST_P(StreamedProductParityTest, OverlapsWithoutRaces) {
  constexpr int kDim = 512, kWide = 1024, kRows = 8, kTurns = 300;
  const DeviceBuffer up =
      OnDevice(Round(Normal(61, size_t(2) * kWide * kDim, 1 / std::sqrt(kDim))), stream());
  const DeviceBuffer down =
      OnDevice(Round(Normal(62, size_t(kDim) * kWide, 1 / std::sqrt(kWide))), stream());
  const DeviceBuffer weight = OnDevice(std::vector<float>(kDim, 1.0f), stream());
  const std::vector<float> start = Normal(63, size_t(kRows) * kDim, 1);
  const auto run = [&](bool waits) {
    DeviceBuffer hidden = OnDevice(start, stream());
    DeviceBuffer normed = Poisoned(size_t(kRows) * kDim * 2),
                 wide = Poisoned(size_t(kRows) * kWide * 2),
                 parts = Poisoned(size_t(kNormPartsMax) * kRows * kDim * sizeof(float));
    const auto wait = [&] {
      if (waits) {
        EXPECT_EQ(cudaStreamSynchronize(cuda_stream()), cudaSuccess);
      }
    };
    StreamedProductArgs first =
        Args({{2 * kWide, kDim, kWide, kWide / 8, kWide}, ProductEnd::kSwiGlu, kRows});
    first.weight = up.data();
    first.x = normed.data();
    first.out = wide.data();
    StreamedProductArgs second = Args({.shape = Plain(kDim, kWide, 4), .rows = kRows});
    second.weight = down.data();
    second.x = wide.data();
    second.out = parts.data();
    NormRowsArgs norm;
    norm.x = norm.sum = hidden.As<float>();
    norm.parts = parts.As<float>();
    norm.part_stride = kRows * kDim;
    norm.weight = reinterpret_cast<const float*>(weight.data());
    norm.eps = 1e-5f;
    norm.rows = kRows;
    norm.dim = kDim;
    norm.out = normed.data();
    for (int turn = 0; turn < kTurns; ++turn) {
      norm.num_parts = turn == 0 ? 0 : second.plan.num_parts;
      EXPECT_EQ(LaunchNormRows(GetParam(), norm, cuda_stream()), cudaSuccess);
      wait();
      Launch(first);
      wait();
      Launch(second);
      wait();
    }
    std::vector<float> result(start.size());
    PKV_CHECK(hidden.CopyToHost(std::as_writable_bytes(std::span(result))).ok());
    return result;
  };
  const std::vector<float> wanted = run(true);
  EXPECT_TRUE(std::all_of(wanted.begin(), wanted.end(), [](float x) { return std::isfinite(x); }));
  for (int attempt = 0; attempt < 3; ++attempt) {
    const std::vector<float> got = run(false);
    EXPECT_EQ(std::memcmp(got.data(), wanted.data(), got.size() * sizeof(float)), 0);
  }
}

INSTANTIATE_TEST_SUITE_P(Types, StreamedProductParityTest,
                         testing::Values(WeightType::kFloat16, WeightType::kBfloat16));

}  // namespace
}  // namespace pkv
