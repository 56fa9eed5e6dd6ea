// Assignment and centres on the device against the CPU: equal ids by min-max distance, ids as near
// as rounding lets one tell by L2, equal bits of centres.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/pattern/assign_kernels.h"
#include "kernels/pattern/nearest_pattern.h"
#include "kernels/pattern/pattern_backends.h"
#include "pkv/kernels/pattern_miner.h"
#include "pkv/kernels/rotation.h"
#include "tests/support/block_fixture.h"
#include "tests/support/cuda_fixture.h"
#include "tests/support/cuda_tensor.h"
#include "tests/support/error_bound.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

using ::testing::Each;

constexpr uint64_t kSeed = 77;
constexpr int kHeads = 2;
constexpr int kCapacity = 255;

std::vector<float> Floats(const uint16_t* bits, size_t count) {
  std::vector<float> values(count);
  std::transform(bits, bits + count, values.begin(), Float16ToFloat);
  return values;
}

struct Case {
  int head_dim, num_patterns, num_tokens;
};

std::ostream& operator<<(std::ostream& os, const Case& c) {
  return os << c.num_patterns << " patterns, " << c.num_tokens << " tokens, head_dim "
            << c.head_dim;
}

std::vector<Case> Cases() {
  std::vector<Case> cases;
  for (const int head_dim : {64, 128}) {
    for (const int num_patterns : {1, 2, 31, 32, 33, 64, 255}) {
      for (const int num_tokens : {1, 31, 127, 128, 3072}) {
        cases.push_back({head_dim, num_patterns, num_tokens});
      }
    }
  }
  cases.push_back({128, 32, 32768});
  return cases;
}

// Ids of K and V, and what they were chosen from.
class AssignOnDevice : public CudaTest {
 protected:
  // `bank` is K [kHeads][kCapacity][head_dim], then V.
  struct Ids {
    std::vector<uint8_t> k, v;
  };
  Ids Assign(const TestTensor& tensor, const std::vector<uint16_t>& bank, int num_k, int num_v,
             bool min_max, int first_token = 0, bool is_bank_rotated = false) const {
    CudaTensor device(tensor, stream());
    DeviceBuffer bank_device = OnDevice(bank, stream());
    // Poisoned, with room behind each head that must stay as it is.
    const size_t stride = static_cast<size_t>(tensor.num_tokens) + 3;
    Ids ids;
    ids.k.assign(kHeads * stride, 0x7f);
    ids.v = ids.k;
    DeviceBuffer k_ids = OnDevice(ids.k, stream()), v_ids = OnDevice(ids.v, stream());
    const KvTensorView kv = device.view();
    const AssignKernelArgs args = {.k = kv.k,
                                   .v = kv.v,
                                   .num_kv_heads = kHeads,
                                   .num_tokens = kv.num_tokens,
                                   .head_dim = kv.head_dim,
                                   .head_stride = kv.head_stride,
                                   .first_token = first_token,
                                   .bank = bank_device.As<uint16_t>(),
                                   .bank_capacity = kCapacity,
                                   .num_patterns_k = num_k,
                                   .num_patterns_v = num_v,
                                   .is_bank_rotated = is_bank_rotated,
                                   .min_max_k = min_max,
                                   .min_max_v = min_max,
                                   .k_ids = k_ids.As<uint8_t>(),
                                   .v_ids = v_ids.As<uint8_t>(),
                                   .ids_stride = static_cast<int64_t>(stride)};
    EXPECT_EQ(LaunchAssignPatterns(args, static_cast<cudaStream_t>(stream())), cudaSuccess);
    EXPECT_THAT(k_ids.CopyToHost(std::as_writable_bytes(std::span(ids.k))), IsOk());
    EXPECT_THAT(v_ids.CopyToHost(std::as_writable_bytes(std::span(ids.v))), IsOk());
    return {WithoutRoom(ids.k, stride), WithoutRoom(ids.v, stride)};
  }

 private:
  static std::vector<uint8_t> WithoutRoom(const std::vector<uint8_t>& ids, size_t stride) {
    std::vector<uint8_t> out;
    for (auto at = ids.begin(); at != ids.end(); at += static_cast<ptrdiff_t>(stride)) {
      out.insert(out.end(), at, at + static_cast<ptrdiff_t>(stride) - 3);
      EXPECT_TRUE(std::all_of(at + static_cast<ptrdiff_t>(stride) - 3,
                              at + static_cast<ptrdiff_t>(stride),
                              [](uint8_t id) { return id == 0x7f; }));
    }
    return out;
  }
};

class AssignParityTest : public AssignOnDevice, public testing::WithParamInterface<Case> {
 protected:
  AssignParityTest() { RecordProperty("seed", static_cast<int>(kSeed)); }

  const Case& c_ = GetParam();
  const TestTensor tensor_ = RandomTensor(kSeed, kHeads, c_.num_tokens, c_.head_dim);
  // Tokens of other data of the kind; the last pattern repeats the first.
  std::vector<uint16_t> Bank() const {
    const TestTensor patterns = RandomTensor(kSeed + 1, kHeads, kCapacity, c_.head_dim);
    std::vector<uint16_t> bank = patterns.k;
    bank.insert(bank.end(), patterns.v.begin(), patterns.v.end());
    const int64_t list = int64_t{kCapacity} * c_.head_dim;
    for (int64_t at = 0; at < static_cast<int64_t>(bank.size()); at += list) {
      std::copy_n(bank.begin() + at, c_.head_dim,
                  bank.begin() + at + (c_.num_patterns - 1) * c_.head_dim);
    }
    return bank;
  }
  const std::vector<uint16_t> bank_ = Bank();

  std::vector<float> Patterns(bool is_k, int head) const {
    const size_t list = static_cast<size_t>(is_k ? 0 : kHeads) + head;
    return Floats(bank_.data() + list * kCapacity * c_.head_dim,
                  static_cast<size_t>(c_.num_patterns) * c_.head_dim);
  }
  std::vector<float> Rows(bool is_k, int head) const {
    const KvTensorView kv = tensor_.view();
    return Floats(is_k ? kv.k_row(head, 0) : kv.v_row(head, 0),
                  static_cast<size_t>(c_.num_tokens) * c_.head_dim);
  }
};

// |c|^2 / 2 - x.c, and the magnitude of its terms.
std::pair<double, double> Score(const float* x, const float* c, int head_dim) {
  double score = 0, magnitude = 0;
  for (int j = 0; j < head_dim; ++j) {
    const double half_square = double{c[j]} * c[j] / 2, product = double{x[j]} * c[j];
    score += half_square - product;
    magnitude += half_square + std::abs(product);
  }
  return {score, magnitude};
}

TEST_P(AssignParityTest, L2NamesAPatternAsNearAsTheNearest) {
  const Ids ids = Assign(tensor_, bank_, c_.num_patterns, c_.num_patterns, false);
  const int d = c_.head_dim;
  for (const bool is_k : {true, false}) {
    for (int head = 0; head < kHeads; ++head) {
      const std::vector<float> rows = Rows(is_k, head), patterns = Patterns(is_k, head);
      for (int t = 0; t < c_.num_tokens; ++t) {
        const int id = (is_k ? ids.k : ids.v)[static_cast<size_t>(head) * c_.num_tokens + t];
        ASSERT_LT(id, std::max(1, c_.num_patterns - 1)) << "the last repeats the first";
        double best = std::numeric_limits<double>::infinity(), magnitude = 0;
        for (int m = 0; m < c_.num_patterns; ++m) {
          const auto score = Score(rows.data() + t * d, patterns.data() + m * d, d);
          best = std::min(best, score.first);
          magnitude = std::max(magnitude, score.second);
        }
        const double own = Score(rows.data() + t * d, patterns.data() + id * d, d).first;
        ASSERT_LE(own - best, NearestL2Gap(d, magnitude)) << "head " << head << " token " << t;
      }
    }
  }
}

TEST_P(AssignParityTest, MinMaxNamesThePatternOfTheCpu) {
  const Ids ids = Assign(tensor_, bank_, c_.num_patterns, c_.num_patterns, true);
  for (const bool is_k : {true, false}) {
    for (int head = 0; head < kHeads; ++head) {
      const std::vector<float> patterns = Patterns(is_k, head), rows = Rows(is_k, head);
      const PatternMatrix matrix(std::span<const float>(patterns), c_.head_dim);
      std::vector<uint8_t> want(c_.num_tokens);
      std::vector<float> ranges(c_.num_tokens);
      NearestMinMax(matrix, rows.data(), c_.num_tokens, want.data(), ranges.data());
      const auto got = (is_k ? ids.k : ids.v).begin() + ptrdiff_t{head} * c_.num_tokens;
      for (int t = 0; t < c_.num_tokens; ++t) ASSERT_EQ(got[t], want[t]) << "token " << t;
    }
  }
}

TEST_P(AssignParityTest, TakesPatternsOfRotatedRowsBack) {
  std::vector<uint16_t> back(bank_.size());
  RotateFloat16Rows(bank_.data(), int64_t{2} * kHeads * kCapacity, c_.head_dim, back.data());
  const Ids got = Assign(tensor_, bank_, c_.num_patterns, c_.num_patterns, false, 0, true);
  const Ids want = Assign(tensor_, back, c_.num_patterns, c_.num_patterns, false);
  EXPECT_EQ(got.k, want.k);
  EXPECT_EQ(got.v, want.v);
}

INSTANTIATE_TEST_SUITE_P(Sizes, AssignParityTest, testing::ValuesIn(Cases()));

class AssignCudaTest : public AssignOnDevice {};

// Eighths of small integers: all sums are exact, ties are many.
TEST_F(AssignCudaTest, L2EqualsTheCpuOnALattice) {
  for (const int head_dim : {64, 128}) {
    TestRandom random(kSeed);
    TestTensor tensor(kHeads, 500, head_dim);
    std::vector<uint16_t> bank(size_t{2} * kHeads * kCapacity * head_dim);
    for (auto* values : {&tensor.k, &tensor.v, &bank}) {
      for (uint16_t& v : *values) {
        v = FloatToFloat16(static_cast<float>(random.Below(3) - 1) / 8.0f);
      }
    }
    const Ids ids = Assign(tensor, bank, 200, 100, false);
    const KvTensorView kv = tensor.view();
    for (int head = 0; head < kHeads; ++head) {
      const auto rows = Floats(kv.k_row(head, 0), size_t{500} * head_dim);
      const auto patterns =
          Floats(bank.data() + size_t{kCapacity} * head_dim * head, size_t{200} * head_dim);
      std::vector<uint8_t> want(500);
      NearestL2(PatternMatrix(std::span<const float>(patterns), head_dim), rows.data(), 500,
                want.data());
      EXPECT_TRUE(std::equal(want.begin(), want.end(), ids.k.begin() + head * 500));
    }
  }
}

TEST_F(AssignCudaTest, TakesTheEndsOfFloat16) {
  const uint16_t ends[] = {0x7bff, 0xfbff, 0x0000, 0x8000};
  TestRandom random(kSeed);
  TestTensor tensor(kHeads, 64, 128);
  for (auto* rows : {&tensor.k, &tensor.v}) {
    for (uint16_t& v : *rows) v = ends[random.Below(4)];
  }
  std::vector<uint16_t> bank(size_t{2} * kHeads * kCapacity * 128);
  const KvTensorView kv = tensor.view();
  for (int head = 0; head < kHeads; ++head) {
    std::copy_n(kv.k_row(head, 0), 64 * 128, bank.begin() + ptrdiff_t{kCapacity} * 128 * head);
  }
  for (const bool min_max : {false, true}) {
    const Ids ids = Assign(tensor, bank, 64, 0, min_max);
    for (int t = 0; t < 64; ++t) EXPECT_EQ(ids.k[t], t) << "each is a pattern";
    EXPECT_THAT(ids.v, Each(kRawPatternId)) << "no patterns";
  }
}

TEST_F(AssignCudaTest, SinksGetNoPattern) {
  const TestTensor tensor = RandomTensor(kSeed, kHeads, 200, 64);
  const std::vector<uint16_t> bank(size_t{2} * kHeads * kCapacity * 64);
  for (const bool min_max : {false, true}) {
    const Ids ids = Assign(tensor, bank, 3, 3, min_max, 16);
    for (int t = 0; t < 200; ++t) EXPECT_EQ(ids.v[200 + t], t < 16 ? kRawPatternId : 0);
  }
}

struct BlockCase {
  const char* preset;
  Phase phase;
  int first_token;
};

class AssignBlockParityTest : public CudaTest, public testing::WithParamInterface<BlockCase> {};

// Decode assigns by min-max distance: equal ids and gates. At prefill the ids before the gate,
// where they are those of the CPU, get the gate of the CPU.
TEST_P(AssignBlockParityTest, GatesAsTheCpu) {
  for (const int head_dim : {64, 128}) {
    const KvShape shape = {1, kHeads, head_dim};
    CodecParams params = PresetFor(GetParam().preset, shape), ungated = params;
    ungated.gate_v = Gate::kNone;
    const TestTensor prompt = RandomTensor(kSeed, kHeads, 4 * kBlockTokens, head_dim);
    const Codebook codebook = *MinePatterns(prompt.view(), params, {});
    CudaTensor device(prompt, stream());
    const KvTensorView on_host = prompt.view().Tokens(kBlockTokens, kBlockTokens);
    const KvTensorView on_device = KvTensorView(device.view()).Tokens(kBlockTokens, kBlockTokens);
    const ComputeContext cuda = {.device = Device::kCuda, .stream = stream()};
    const auto [name, phase, first] = GetParam();
    const auto got = AssignPatterns(on_device, first, params, codebook, phase, cuda);
    const auto got_raw = AssignPatterns(on_device, first, ungated, codebook, phase, cuda);
    ASSERT_THAT(got, IsOk());
    ASSERT_THAT(got_raw, IsOk());
    const auto want = *AssignPatterns(on_host, first, params, codebook, phase, {});
    const auto want_raw = *AssignPatterns(on_host, first, ungated, codebook, phase, {});
    int compared = 0;
    for (size_t i = 0; i < want.v.size(); ++i) {
      if (phase == Phase::kDecode) {
        ASSERT_EQ(got->k[i], want.k[i]);
        ASSERT_EQ(got_raw->v[i], want_raw.v[i]);
      }
      if (got_raw->v[i] != want_raw.v[i]) continue;
      ASSERT_EQ(got->v[i], want.v[i]) << i;
      ++compared;
    }
    EXPECT_GT(compared, static_cast<int>(want.v.size()) / 2);
  }
}

INSTANTIATE_TEST_SUITE_P(Presets, AssignBlockParityTest,
                         testing::Values(BlockCase{"pkv2", Phase::kPrefill, 0},
                                         BlockCase{"pkv2", Phase::kDecode, 4},
                                         BlockCase{"default", Phase::kPrefill, 16},
                                         BlockCase{"default", Phase::kDecode, 0},
                                         BlockCase{"default4", Phase::kDecode, 64}));

using AppendCentresCudaTest = CudaTest;

TEST_F(AppendCentresCudaTest, AppendsTheBitsOfTheCpu) {
  const uint16_t ends[] = {0x7bff, 0xfbff, 0x0000, 0x8000, 0x0001, 0x8001, 0x0400, 0x3c00};
  for (const int head_dim : {64, 128}) {
    TestTensor tensor = RandomTensor(kSeed, kHeads, kBlockTokens, head_dim);
    TestRandom random(kSeed);
    for (int i = 0; i < kBlockTokens * head_dim; ++i) tensor.v[i] = ends[random.Below(8)];
    // Channels of zeros alone, of either sign.
    for (int t = 0; t < kBlockTokens; ++t) {
      for (int j = 0; j < 8; ++j) tensor.v[t * head_dim + j] = random.Below(2) == 0 ? 0x8000 : 0;
    }
    CudaTensor device(tensor, stream());
    for (const int first_token : {0, 16, 127, 128}) {
      const CodecParams params = PresetFor("pkv2", {1, kHeads, head_dim});
      Codebook want(kHeads, head_dim), got(kHeads, head_dim);
      const uint8_t flags = *AppendCentres(tensor.view(), first_token, params, want, {});
      EXPECT_THAT(AppendCentres(device.view(), first_token, params, got,
                                {.device = Device::kCuda, .stream = stream()}),
                  IsOkAndHolds(flags));
      ASSERT_EQ(got.num_k(), want.num_k());
      for (int head = 0; head < kHeads; ++head) {
        EXPECT_TRUE(std::ranges::equal(got.k(head), want.k(head)));
        EXPECT_TRUE(std::ranges::equal(got.v(head), want.v(head))) << "from " << first_token;
      }
    }
  }
}

}  // namespace
}  // namespace pkv
