#include "proto/transport/nccl/nccl_offer.h"

#include <gtest/gtest.h>

#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

using testing::HasSubstr;

NcclCapability Capability(int version, int gpu) {
  NcclCapability capability{.nccl_version = version};
  capability.device_uuid[15] = static_cast<std::byte>(gpu);
  return capability;
}

NcclOffer Offer() {
  NcclOffer offer{.rank = 1, .sender = Capability(22809, 3), .group_bytes = 32 << 20};
  for (size_t i = 0; i < offer.id.bytes.size(); ++i) offer.id.bytes[i] = static_cast<std::byte>(i);
  return offer;
}

TEST(NcclOfferTest, ReadsBackWhatWasWritten) {
  const NcclOffer offer = Offer();
  const auto read = FromProto(ToProto(offer));
  ASSERT_THAT(read, IsOk());
  EXPECT_EQ(read->id.bytes, offer.id.bytes);
  EXPECT_EQ(read->rank, 1);
  EXPECT_EQ(read->sender, offer.sender);
  EXPECT_EQ(read->group_bytes, offer.group_bytes);
}

TEST(NcclOfferTest, RefusesFieldsOutOfBounds) {
  const auto expect_refused = [](const v1::NcclOffer& message, const char* what) {
    EXPECT_THAT(FromProto(message), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(what)));
  };
  v1::NcclOffer message = ToProto(Offer());
  message.set_unique_id("short");
  expect_refused(message, "unique_id has 5 bytes, expected 128");
  message = ToProto(Offer());
  message.set_rank(2);
  expect_refused(message, "rank 2");
  message = ToProto(Offer());
  message.mutable_sender()->clear_device_uuid();
  expect_refused(message, "device_uuid");
  for (const uint64_t bytes :
       {uint64_t{0}, uint64_t{(1 << 20) - 16}, uint64_t{(1 << 20) + 8}, (uint64_t{1} << 30) + 16}) {
    message = ToProto(Offer());
    message.set_group_bytes(bytes);
    expect_refused(message, "group_bytes");
  }
}

TEST(NcclOfferTest, EndsPairWhenTheyHaveOneVersionOfNcclAndTwoGpus) {
  EXPECT_THAT(CheckCapabilities(Capability(22809, 1), Capability(22809, 2)), IsOk());
  const auto refused = absl::StatusCode::kFailedPrecondition;
  EXPECT_THAT(CheckCapabilities(Capability(22809, 1), Capability(22803, 2)), StatusIs(refused));
  EXPECT_THAT(CheckCapabilities(Capability(22809, 1), Capability(0, 2)),
              StatusIs(refused, HasSubstr("the peer has no NCCL")));
  EXPECT_THAT(CheckCapabilities(Capability(0, 1), Capability(22809, 2)),
              StatusIs(refused, HasSubstr("this end has no NCCL")));
  EXPECT_THAT(CheckCapabilities(Capability(22809, 1), Capability(22809, 1)),
              StatusIs(refused, HasSubstr("one GPU")));
}

}  // namespace
}  // namespace pkv
