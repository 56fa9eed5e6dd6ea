#include "pkv/kernels/codebook.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "pkv/block/aligned_buffer.h"
#include "tests/support/block_fixture.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

using ::testing::ElementsAreArray;
using ::testing::HasSubstr;

constexpr int kHeadDim = 64;

std::vector<uint16_t> Patterns(int num, uint16_t first) {
  std::vector<uint16_t> values(static_cast<size_t>(num) * kHeadDim);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<uint16_t>(first + i);
  return values;
}

Codebook TwoHeads(int num_k, int num_v) {
  Codebook codebook(2, kHeadDim);
  for (int head = 0; head < 2; ++head) {
    codebook.AppendK(head, Patterns(num_k, static_cast<uint16_t>(1000 * head)));
    codebook.AppendV(head, Patterns(num_v, static_cast<uint16_t>(1000 * head + 500)));
  }
  return codebook;
}

ObjectHeader TableHeader(int num_k, int num_v) {
  ObjectHeader header;
  header.kind = ObjectKind::kTable;
  header.num_layers = 1;
  header.num_kv_heads = 2;
  header.head_dim = kHeadDim;
  header.num_patterns_k = static_cast<uint16_t>(num_k);
  header.num_patterns_v = static_cast<uint16_t>(num_v);
  PKV_CHECK(SetVariant({"pkv2", 1}, header).ok());
  const auto sizes = ComputeObjectSizes(header);
  PKV_CHECK(sizes.ok(), sizes.status().ToString());
  header.frame_bytes = sizes->frame_bytes;
  return header;
}

TEST(CodebookTest, EmptyOneHasNoPatterns) {
  EXPECT_EQ(Codebook().num_k(), 0);
  EXPECT_EQ(Codebook(2, kHeadDim).num_v(), 0);
}

TEST(CodebookTest, AppendKeepsTheOrder) {
  Codebook codebook(1, kHeadDim);
  codebook.AppendK(0, Patterns(2, 10));
  codebook.AppendK(0, Patterns(1, 900));
  EXPECT_EQ(codebook.num_k(), 3);
  EXPECT_EQ(codebook.k(0)[0], 10);
  EXPECT_EQ(codebook.k(0)[2 * kHeadDim], 900);
}

TEST(CodebookTest, TableFrameRoundTrips) {
  for (const auto& [num_k, num_v] : {std::pair{32, 32}, {3, 0}, {0, 5}, {255, 1}}) {
    const Codebook codebook = TwoHeads(num_k, num_v);
    const ObjectHeader header = TableHeader(num_k, num_v);
    AlignedBuffer frame(header.frame_bytes);
    ASSERT_THAT(codebook.WriteTableFrame(frame.span()), IsOk());
    const auto read = Codebook::FromTable(header, frame.span());
    ASSERT_THAT(read, IsOk());
    EXPECT_EQ(read->num_k(), num_k);
    EXPECT_EQ(read->num_v(), num_v);
    for (int head = 0; head < 2; ++head) {
      EXPECT_THAT(read->k(head), ElementsAreArray(codebook.k(head)));
      EXPECT_THAT(read->v(head), ElementsAreArray(codebook.v(head)));
    }
  }
}

TEST(CodebookTest, WriteClearsThePadding) {
  const Codebook codebook = TwoHeads(1, 2);  // 3 x 128 bytes a head
  const ObjectHeader header = TableHeader(1, 2);
  AlignedBuffer frame(header.frame_bytes);
  std::fill(frame.span().begin(), frame.span().end(), std::byte{0xff});
  ASSERT_THAT(codebook.WriteTableFrame(frame.span()), IsOk());
  const size_t used = 2 * 3 * kHeadDim * sizeof(uint16_t);
  for (size_t i = used; i < frame.size(); ++i) EXPECT_EQ(frame.data()[i], std::byte{0});
}

TEST(CodebookTest, FrameOfAnotherSizeIsRefused) {
  AlignedBuffer frame(128);
  EXPECT_THAT(TwoHeads(3, 3).WriteTableFrame(frame.span()),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("128 bytes")));
  EXPECT_THAT(Codebook::FromTable(TableHeader(3, 3), frame.span()),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("128 bytes")));
}

TEST(CodebookTest, BlockIsNoTable) {
  ObjectHeader header = TableHeader(1, 1);
  header.kind = ObjectKind::kBlock;
  AlignedBuffer frame(header.frame_bytes);
  EXPECT_THAT(Codebook::FromTable(header, frame.span()),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("not a table")));
}

TEST(CodebookTest, BlockOfAnotherChainIsRefused) {
  const KvShape shape = {1, 2, kHeadDim};
  const CodecParams params = PresetFor("pkv2", shape);
  const TestTensor tensor = RandomTensor(1, 2, kBlockTokens, kHeadDim);
  const Codebook table = *MinePatterns(tensor.view(), params, {});
  const auto block = EncodeBlock(shape, params, tensor.view(), table, Phase::kDecode, 1);
  Codebook same = table, shorter = TwoHeads(31, 32);
  EXPECT_THAT(same.AppendFromBlock(block.header, block.frame.span()), IsOk());
  EXPECT_EQ(same.num_k(), 33);
  EXPECT_THAT(shorter.AppendFromBlock(block.header, block.frame.span()),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("31")));
  // A second time, the bank has grown past it.
  EXPECT_THAT(same.AppendFromBlock(block.header, block.frame.span()),
              StatusIs(absl::StatusCode::kFailedPrecondition));
}

TEST(CodebookTest, PrefillBlockAppendsNothing) {
  const KvShape shape = {1, 2, kHeadDim};
  const CodecParams params = PresetFor("pkv2", shape);
  const TestTensor tensor = RandomTensor(1, 2, kBlockTokens, kHeadDim);
  Codebook table = *MinePatterns(tensor.view(), params, {});
  const auto block = EncodeBlock(shape, params, tensor.view(), table, Phase::kPrefill, 0);
  EXPECT_THAT(table.AppendFromBlock(block.header, block.frame.span()), IsOk());
  EXPECT_EQ(table.num_k(), 32);
}

TEST(CodebookDeathTest, MoreThan255PatternsBreakAnInvariant) {
  Codebook codebook(1, kHeadDim);
  codebook.AppendV(0, Patterns(255, 0));
  EXPECT_DEATH(codebook.AppendV(0, Patterns(1, 0)), "appending");
}

}  // namespace
}  // namespace pkv
