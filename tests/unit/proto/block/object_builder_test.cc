#include "pkv/block/object_builder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "pkv/block/object_view.h"
#include "tests/support/sample_object.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

using testing::HasSubstr;

ObjectHeader Header() {
  return SampleBlockHeader({.shape = {3, 2, 64}, .encoding = {2, 2, 128, 64, false}});
}

TEST(ObjectBuilderTest, FramesAreZeroAlignedAndApart) {
  auto builder = ObjectBuilder::Make(Header());
  ASSERT_THAT(builder, IsOk());
  for (int layer = 0; layer < 3; ++layer) {
    const std::span<std::byte> frame = builder->frame(layer);
    EXPECT_EQ(frame.size(), builder->header().frame_bytes);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(frame.data()) % kFrameAlignment, 0u);
    EXPECT_EQ(std::count(frame.begin(), frame.end(), std::byte{0}),
              static_cast<std::ptrdiff_t>(frame.size()));
    if (layer > 0) {
      const std::span<std::byte> before = builder->frame(layer - 1);
      EXPECT_EQ(before.data() + before.size(), frame.data());
    }
  }
}

TEST(ObjectBuilderTest, FramesMayBeFilledInAnyOrder) {
  const ObjectHeader header = Header();
  const auto forward = BuildSample(header, 1);
  auto backward = ObjectBuilder::Make(header);
  ASSERT_THAT(forward, IsOk());
  ASSERT_THAT(backward, IsOk());
  for (int layer = 2; layer >= 0; --layer) {
    FillSampleFrame(header, layer, 1, backward->frame(layer));
  }
  ASSERT_THAT(backward->Seal(), IsOk());
  EXPECT_TRUE(std::ranges::equal(forward->bytes(), backward->bytes()));
}

TEST(ObjectBuilderTest, ASealedObjectParsesAndHoldsWhatWasFilledIn) {
  const auto builder = BuildSample(Header(), 5);
  ASSERT_THAT(builder, IsOk());
  const auto view = ObjectView::Parse(builder->bytes());
  ASSERT_THAT(view, IsOk());
  EXPECT_THAT(view->VerifyAll(), IsOk());
  EXPECT_EQ(view->header(), builder->header());
  std::vector<std::byte> expected(view->header().frame_bytes);
  for (int layer = 0; layer < 3; ++layer) {
    FillSampleFrame(Header(), layer, 5, expected);
    EXPECT_TRUE(std::ranges::equal(view->frame(layer), expected)) << layer;
  }
}

TEST(ObjectBuilderTest, HeadIsWhatStandsBeforeTheFrames) {
  auto builder = BuildSample(Header(), 5);
  ASSERT_THAT(builder, IsOk());
  EXPECT_EQ(builder->head().data(), builder->bytes().data());
  EXPECT_EQ(builder->head().data() + builder->head().size(), builder->frame(0).data());
}

TEST(ObjectBuilderTest, IdsMayBeSetAfterMake) {
  ObjectHeader header = Header();
  header.profile = header.id = Digest();
  auto builder = ObjectBuilder::Make(header);
  ASSERT_THAT(builder, IsOk());
  EXPECT_THAT(builder->Seal(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("profile")));
  builder->header().profile = SampleDigest("late profile");
  builder->header().id = SampleDigest("late id");
  ASSERT_THAT(builder->Seal(), IsOk());
  EXPECT_EQ(ObjectView::Parse(builder->bytes())->header().id, SampleDigest("late id"));
}

TEST(ObjectBuilderTest, SealingAgainAfterAChangeGivesAValidObject) {
  auto builder = BuildSample(Header(), 5);
  ASSERT_THAT(builder, IsOk());
  FillSampleFrame(Header(), 0, 6, builder->frame(0));
  ASSERT_THAT(builder->Seal(), IsOk());
  EXPECT_THAT(ObjectView::Parse(builder->bytes())->VerifyAll(), IsOk());
}

TEST(ObjectBuilderTest, ATableGetsTheIdOfItsContent) {
  ObjectHeader header = SampleTableHeader({2, 2, 64}, 3, 1);
  header.id = Digest();
  const auto builder = BuildSample(header, 1);
  ASSERT_THAT(builder, IsOk());
  EXPECT_EQ(builder->header().id, TableId(header.profile, header.shape(), 3, 1,
                                          builder->bytes().subspan(FramesOffset(2))));
  EXPECT_NE(builder->header().id, BuildSample(header, 2)->header().id);
}

TEST(ObjectBuilderTest, RefusesAnImpossibleHeader) {
  ObjectHeader header = Header();
  header.head_dim = 80;
  EXPECT_THAT(ObjectBuilder::Make(header),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("head_dim 80")));
}

TEST(ObjectBuilderTest, RefusesToSealAChangedGeometry) {
  for (const auto& change : std::vector<void (*)(ObjectHeader&)>{
           [](ObjectHeader& h) { h.num_layers = 2; }, [](ObjectHeader& h) { h.num_kv_heads = 1; },
           [](ObjectHeader& h) { h.bits_k = 4; }, [](ObjectHeader& h) { h.k_group_tokens = 32; },
           [](ObjectHeader& h) { h.num_sinks = 4; },
           [](ObjectHeader& h) { h.k_fine_tokens = kFineTokens; }}) {
    auto builder = ObjectBuilder::Make(Header());
    ASSERT_THAT(builder, IsOk());
    change(builder->header());
    EXPECT_THAT(builder->Seal(), StatusIs(absl::StatusCode::kInvalidArgument,
                                          HasSubstr("geometry was changed after Make()")));
  }
}

TEST(ObjectBuilderTest, RefusesToSealNumbersThatCannotBeServed) {
  auto builder = BuildSample(Header(), 5);
  ASSERT_THAT(builder, IsOk());
  const PayloadLayout layout = PayloadLayout::Of(Header());
  const Float16Bits infinity = 0x7c00;
  std::memcpy(builder->frame(2).data() + layout.k_zeros, &infinity, sizeof(infinity));
  EXPECT_THAT(builder->Seal(), StatusIs(absl::StatusCode::kDataLoss,
                                        HasSubstr("layer 2 kv head 0 K zero point[0] is inf")));
}

TEST(ObjectBuilderTest, GivesItsBufferAwayAndIsEmptyThen) {
  auto builder = BuildSample(Header(), 5);
  ASSERT_THAT(builder, IsOk());
  const size_t object_bytes = builder->bytes().size();
  const AlignedBuffer buffer = builder->TakeBuffer();
  EXPECT_EQ(buffer.size(), object_bytes);
  EXPECT_TRUE(builder->bytes().empty());
  EXPECT_THAT(ObjectView::Parse(buffer.span()), IsOk());
}

TEST(ObjectBuilderDeathTest, FrameOutsideTheObjectIsABrokenInvariant) {
  auto builder = ObjectBuilder::Make(Header());
  ASSERT_THAT(builder, IsOk());
  EXPECT_DEATH(builder->frame(3), "check failed");
  EXPECT_DEATH(builder->frame(-1), "check failed");
}

}  // namespace
}  // namespace pkv
