// What decode attention must not depend on: memory that it has no business with, launches before,
// chance, and whether a graph or a call launches it. And numbers at the ends of their range.
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <thread>

#include "proto/base/thread_pool.h"
#include "tests/support/cuda_fixture.h"
#include "tests/support/decode_device.h"

namespace pkv {
namespace {

constexpr uint64_t kSeed = 20260000;

// Encodings that take different ways through the kernels.
struct Layout {
  const char* name;
  Encoding encoding;
  int head_dim;
  int heads_per_kv;
  QueryType query_type;
  int num_kv_heads = 2;
  int rounds = 1;  // of all requests; with several, short ones
};

std::vector<Layout> Layouts() {
  constexpr QueryType kHalf = QueryType::kFloat16, kBrain = QueryType::kBfloat16;
  return {{"TwoBits", {2, 2, 128, 128, true, kFineTokens, true}, 128, 4, kHalf},
          {"TwoBitsGrouped", {2, 2, 32, 32, false, 0, false}, 128, 8, kBrain},
          {"FourBits", {4, 4, 128, 128, true, 0, true}, 128, 4, kBrain},
          {"FourBitsNarrow", {4, 4, 64, 64, true, 0, false}, 64, 5, kHalf},
          {"Half", {}, 128, 4, kHalf},
          // More items than a CTA has warps.
          {"TwoBitsManyHeads", {2, 2, 128, 128, true, kFineTokens, true}, 128, 4, kHalf, 8},
          {"FourBitsManyHeads", {4, 4, 64, 64, true, 0, false}, 64, 2, kBrain, 16},
          // So many that every kv head has a line of its own (decode_plan_math.h), also with
          // several teams a CTA.
          {"TwoBitsManyItems", {2, 2, 128, 128, true, 0, false}, 128, 4, kHalf, 8, 10},
          {"FourBitsManyItems", {4, 4, 32, 32, true, 0, true}, 128, 6, kBrain, 4, 10},
          {"MixedBits", {4, 2, 128, 32, true, 0, true}, 128, 9, kHalf}};
}

struct Case {
  DecodeKernel kernel;
  Layout layout;
};
std::ostream& operator<<(std::ostream& os, const Case& c) {
  return os << NameOf(c.kernel) << " " << c.layout.name;
}

DecodeCaseSpec SpecOf(const Case& c) {
  const Layout& layout = c.layout;
  DecodeCaseSpec spec;
  spec.seed = kSeed;
  spec.shape = {.num_qo_heads = layout.num_kv_heads * layout.heads_per_kv,
                .num_kv_heads = layout.num_kv_heads,
                .head_dim = layout.head_dim,
                .encoding = layout.encoding,
                .num_sinks = layout.encoding.is_fp16() ? 0 : 16,
                .query_type = layout.query_type,
                .kernel = c.kernel};
  spec.bank_capacity = layout.encoding.has_patterns ? 40 : 0;
  spec.requests = {{7, 130, 33, 33}, {0, 0, 33, 0},  {1, 0, 33, 1},    {0, 255, 33, 33},
                   {3, 17, 33, 0},   {12, 1, 0, 33}, {2, 128, 16, 33}, {1, 127, 33, 33}};
  if (layout.rounds > 1) {
    for (DecodeRequest& r : spec.requests) {
      r.num_blocks = std::min(r.num_blocks, 1);
      r.num_window_tokens = std::min(r.num_window_tokens, 17);
    }
  }
  const std::vector<DecodeRequest> round = spec.requests;
  for (int i = 1; i < layout.rounds; ++i) {
    spec.requests.insert(spec.requests.end(), round.begin(), round.end());
  }
  if (layout.encoding.has_patterns) return spec;
  for (DecodeRequest& r : spec.requests) r.num_patterns_k = r.num_patterns_v = 0;
  return spec;
}

std::vector<Case> AllCases() {
  std::vector<Case> cases;
  for (const DecodeKernel kernel : kDecodeKernels) {
    for (const Layout& layout : Layouts()) {
      const Case c = {kernel, layout};
      if (TakesShape(kernel, SpecOf(c).shape)) cases.push_back(c);
    }
  }
  return cases;
}

class DecodeAttentionStateTest : public CudaTest, public testing::WithParamInterface<Case> {
 protected:
  using Memory = std::vector<std::byte>;

  std::unique_ptr<DecodeAttention> Make() const {
    return MakeDecode(SpecOf(GetParam()).shape, GetParam().kernel, stream());
  }
  Memory Launch(DecodeAttention& attention, const DecodeCase& of) const {
    auto memory = RunOnce(attention, of, stream());
    PKV_CHECK(memory.ok(), memory.status().ToString());
    return *std::move(memory);
  }
  static Memory Slice(const Memory& memory, const DecodeArray& array) {
    return {memory.begin() + array.begin, memory.begin() + array.begin + array.bytes};
  }
  static void ExpectEqualOutputs(const DecodeCase& of, const Memory& got, const Memory& want,
                                 const std::string& when) {
    EXPECT_EQ(Slice(got, of.out_array()), Slice(want, of.out_array())) << when;
    EXPECT_EQ(Slice(got, of.lse_array()), Slice(want, of.lse_array())) << when;
  }
  void ExpectRight(DecodeCase& of, const Memory& after, bool is_random = true) const {
    ThreadPool pool(static_cast<int>(std::max(1u, std::thread::hardware_concurrency())));
    EXPECT_EQ(DecodeCheck(of, &pool).Problem(after, GetParam().kernel, is_random), "");
  }
};

// Pages outside of the table, the table's tails, window slots and bank rows beyond the lengths,
// ids that are not read, everything between the arrays, and the outputs before.
TEST_P(DecodeAttentionStateTest, PoisonChangesNothing) {
  DecodeCaseSpec spec = SpecOf(GetParam());
  spec.poison = 0;
  const auto attention = Make();
  DecodeCase zeros(spec);
  const Memory want = Launch(*attention, zeros);
  ExpectRight(zeros, want);
  for (const uint8_t poison : {0xff, 0x7f, 0x7c, 0x80}) {
    spec.poison = poison;
    const DecodeCase of(spec);
    const Memory got = Launch(*attention, of);
    ExpectEqualOutputs(of, got, want, testing::PrintToString(poison));
    EXPECT_EQ(of.ExpectedAfter(got), got);
  }
}

TEST_P(DecodeAttentionStateTest, EqualInputsGiveEqualBits) {
  constexpr int kTimes = 100;
  DecodeCaseSpec spec = SpecOf(GetParam());
  spec.requests[0].num_blocks = 60;
  const DecodeCase of(spec);
  const auto attention = Make();
  const Memory want = Launch(*attention, of);
  DecodeOnDevice device(of, stream());
  for (int i = 0; i < kTimes; ++i) {
    ASSERT_TRUE(device.Run(*attention).ok());
    ExpectEqualOutputs(of, device.Read(), want, testing::PrintToString(i));
    if (HasFailure()) return;
  }
}

// Launches of two cases in turn, each beginning while the one before ends.
TEST_P(DecodeAttentionStateTest, OverlappingLaunchesGiveTheSameBits) {
  constexpr int kTimes = 50;
  DecodeCaseSpec spec = SpecOf(GetParam());
  const DecodeCase first(spec);
  spec.seed += 1;
  std::reverse(spec.requests.begin(), spec.requests.end());
  const DecodeCase second(spec);
  const auto serial = Make();
  const Memory want_first = Launch(*serial, first), want_second = Launch(*serial, second);
  spec.shape.overlaps_previous = true;
  const auto overlapping = MakeDecode(spec.shape, GetParam().kernel, stream());
  DecodeOnDevice first_device(first, stream()), second_device(second, stream());
  for (int i = 0; i < kTimes; ++i) {
    ASSERT_TRUE(first_device.Run(*overlapping).ok());
    ASSERT_TRUE(second_device.Run(*overlapping).ok());
  }
  ExpectEqualOutputs(first, first_device.Read(), want_first, "first");
  ExpectEqualOutputs(second, second_device.Read(), want_second, "second");
}

// The object's scratch holds what other batches left there.
TEST_P(DecodeAttentionStateTest, EarlierLaunchesChangeNothing) {
  const DecodeCaseSpec spec = SpecOf(GetParam());
  const DecodeCase of(spec);
  const auto used = Make();
  const Memory want = Launch(*Make(), of);
  DecodeCaseSpec other = spec;
  for (const int batch : {1, 20, 128, 3}) {
    other.seed = kSeed + batch;
    other.requests.assign(batch, {batch < 10 ? 12 : 1, 9, 0, 0});
    DecodeCase before(other);
    ExpectRight(before, Launch(*used, before));
    ExpectEqualOutputs(of, Launch(*used, of), want, testing::PrintToString(batch));
  }
}

TEST_P(DecodeAttentionStateTest, ReplaysOfAGraphFollowLengthsTablesAndPages) {
  DecodeCaseSpec spec = SpecOf(GetParam());
  spec.room_blocks = 12;
  const int batch = static_cast<int>(spec.requests.size());
  const int patterns = spec.requests[0].num_patterns_k;
  const DecodeCase captured(spec);
  const auto attention = Make();
  DecodeOnDevice device(captured, stream());
  // What a first launch allocates cannot be captured.
  ASSERT_TRUE(device.Run(*attention).ok());
  const auto cuda_stream = static_cast<cudaStream_t>(stream());
  cudaGraph_t graph;
  cudaGraphExec_t replay;
  ASSERT_EQ(cudaStreamSynchronize(cuda_stream), cudaSuccess);
  ASSERT_EQ(cudaStreamBeginCapture(cuda_stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
  ASSERT_TRUE(device.Run(*attention).ok());
  ASSERT_EQ(cudaStreamEndCapture(cuda_stream, &graph), cudaSuccess);
  ASSERT_EQ(cudaGraphInstantiate(&replay, graph, 0), cudaSuccess);
  TestRandom random(kSeed);
  for (int i = 0; i < 7; ++i) {
    spec.seed = kSeed + i;
    for (int r = 0; r < batch; ++r) {
      const int rounds = GetParam().layout.rounds;
      const int most = i % 3 == 0 ? 1 : 12 / rounds;
      spec.requests[r] = {random.Below(most + 1), random.Below(250 / rounds), patterns,
                          patterns / 2};
      if (i == 5) spec.requests[r] = {0, 0, patterns, patterns};
    }
    DecodeCase of(spec);
    ASSERT_EQ(of.memory().size(), captured.memory().size());
    const Memory want = Launch(*Make(), of);
    ExpectRight(of, want);
    ASSERT_EQ(cudaMemcpyAsync(device.data(), of.memory().data(), of.memory().size(),
                              cudaMemcpyHostToDevice, cuda_stream),
              cudaSuccess);
    ASSERT_EQ(cudaGraphLaunch(replay, cuda_stream), cudaSuccess);
    const Memory got = device.Read();
    ExpectEqualOutputs(of, got, want, testing::PrintToString(i));
    EXPECT_EQ(of.ExpectedAfter(got), got);
  }
  EXPECT_EQ(cudaGraphExecDestroy(replay), cudaSuccess);
  EXPECT_EQ(cudaGraphDestroy(graph), cudaSuccess);
}

// Numbers at the ends of their range. Errors of sharp distributions are not spread over tokens, so
// worst-case bounds alone apply.
class DecodeAttentionExtremesTest : public DecodeAttentionStateTest {
 protected:
  using ChangeSpec = std::function<void(DecodeCaseSpec&)>;
  using ChangeCase = std::function<void(DecodeCase&)>;

  void Check(const char* what, const ChangeSpec& change_spec, const ChangeCase& change_case) {
    SCOPED_TRACE(what);
    DecodeCaseSpec spec = SpecOf(GetParam());
    if (change_spec != nullptr) change_spec(spec);
    DecodeCase of(spec);
    if (change_case != nullptr) change_case(of);
    ExpectRight(of, Launch(*attention_, of), /*is_random=*/false);
  }
  void SetUp() override {
    DecodeAttentionStateTest::SetUp();
    if (!IsSkipped()) attention_ = Make();
  }

  std::unique_ptr<DecodeAttention> attention_;
};

TEST_P(DecodeAttentionExtremesTest, OfWidthsAreWithinTheirBounds) {
  const auto check = [this](const char* what, double DecodeCaseSpec::*width, double value) {
    Check(
        what, [=](DecodeCaseSpec& spec) { spec.*width = value; }, nullptr);
  };
  check("scores spread over hundreds", &DecodeCaseSpec::q_width, 60);
  check("all scores equal", &DecodeCaseSpec::q_width, 0);
  check("small q", &DecodeCaseSpec::q_width, 1e-4);
  check("large q", &DecodeCaseSpec::q_width, 1e4);
  check("large K", &DecodeCaseSpec::k_width, 3000);
  check("small K", &DecodeCaseSpec::k_width, 2e-3);
  check("V scales up to 1000", &DecodeCaseSpec::v_width, 600);
  check("small V", &DecodeCaseSpec::v_width, 2e-3);
}

TEST_P(DecodeAttentionExtremesTest, OfSingleVectorsAreWithinTheirBounds) {
  Check("one loud channel of q", nullptr, [](DecodeCase& of) {
    const bool is_half = of.spec().shape.query_type == QueryType::kFloat16;
    for (int r = 0; r < of.batch(); ++r) {
      for (int head = 0; head < of.spec().shape.num_qo_heads; ++head) {
        of.q(r, head)[head * 7 % of.spec().shape.head_dim] =
            is_half ? FloatToFloat16(1e4f)
                    : static_cast<uint16_t>(std::bit_cast<uint32_t>(1e4f) >> 16);
      }
    }
  });
  Check(
      "rows as large as fp16 has them", [](auto& s) { s.q_width = 1e-4; },
      [](DecodeCase& of) {
        for (int r = 0; r < of.batch(); ++r) {
          const int last = of.spec().requests[r].num_window_tokens - 1;
          if (last < 0) continue;
          // V stays where its mean does not round to infinity.
          std::ranges::fill(of.window_row(false, r, 0, last), uint16_t{0x7bff});
          std::ranges::fill(of.window_row(true, r, 1, last), FloatToFloat16(-30000.0f));
        }
      });
}

class DecodeAttentionScalesTest : public DecodeAttentionExtremesTest {
 protected:
  // Sets every `step`-th scale of all pages.
  static ChangeCase SetScales(int step, uint16_t value, uint16_t largest) {
    return [=](DecodeCase& of) {
      const PayloadLayout& layout = of.layout();
      const auto set = [&](uint16_t* scales, int64_t bytes) {
        for (int64_t i = 0; i < bytes / 2; i += step) scales[i] = value;
        scales[1] = largest;
      };
      for (int r = 0; r < of.batch(); ++r) {
        for (int b = 0; b < of.spec().requests[r].num_blocks; ++b) {
          for (int head = 0; head < of.spec().shape.num_kv_heads; ++head) {
            PageOfHead page = of.page(r, b, head);
            set(page.Halves(layout.k_scales), layout.k_zeros - layout.k_scales);
            set(page.Halves(layout.v_scales), layout.v_zeros - layout.v_scales);
          }
        }
      }
    };
  }
};

TEST_P(DecodeAttentionScalesTest, AtTheEndsAreWithinTheirBounds) {
  constexpr uint16_t kZero = 0, kSmallest = 0x0400, kThousand = 0x63d0;
  Check("scales of 0", nullptr, SetScales(1, kZero, kZero));
  Check("the smallest scales", nullptr, SetScales(1, kSmallest, kSmallest));
  Check("the smallest scales beside large ones", nullptr, SetScales(2, kSmallest, kThousand));
}

std::string NameOfCase(const testing::TestParamInfo<Case>& info) {
  return std::string(NameOf(info.param.kernel)) + info.param.layout.name;
}
std::vector<Case> CodedCases() {
  std::vector<Case> cases = AllCases();
  std::erase_if(cases, [](const Case& c) { return c.layout.encoding.is_fp16(); });
  return cases;
}

INSTANTIATE_TEST_SUITE_P(All, DecodeAttentionStateTest, testing::ValuesIn(AllCases()), NameOfCase);
INSTANTIATE_TEST_SUITE_P(All, DecodeAttentionExtremesTest, testing::ValuesIn(AllCases()),
                         NameOfCase);
INSTANTIATE_TEST_SUITE_P(All, DecodeAttentionScalesTest, testing::ValuesIn(CodedCases()),
                         NameOfCase);

}  // namespace
}  // namespace pkv
