#include "proto/transport/shm_frame.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

using ::testing::HasSubstr;

std::span<const std::byte> AsBytes(const std::string& text) {
  return std::as_bytes(std::span(text));
}

v1::ShmMessage PinOf(uint64_t pin_id, int num_objects) {
  v1::ShmMessage message;
  message.mutable_pin()->set_pin_id(pin_id);
  for (int i = 0; i < num_objects; ++i) {
    v1::ObjectKey* key = message.mutable_pin()->add_objects();
    key->set_kind(v1::OBJECT_KIND_BLOCK);
    key->set_id(std::string(32, static_cast<char>(i)));
    key->mutable_variant()->set_name("fifteen_letters");
    key->mutable_variant()->set_params_digest(~uint64_t{0});
  }
  return message;
}

TEST(ShmFrameTest, LengthIsLittleEndian) {
  v1::ShmMessage message;
  message.mutable_hello()->set_token(std::string(300, 't'));
  const std::string bytes = EncodeShmMessage(message);
  const size_t length = message.ByteSizeLong();
  ASSERT_EQ(bytes.size(), 4 + length);
  EXPECT_EQ(static_cast<unsigned char>(bytes[0]), length & 0xff);
  EXPECT_EQ(static_cast<unsigned char>(bytes[1]), length >> 8);
  EXPECT_EQ(bytes.substr(2, 2), std::string(2, '\0'));
}

TEST(ShmFrameTest, MessagesComeBackHoweverTheyWereCut) {
  std::string stream;
  for (int i = 0; i < 4; ++i) stream += EncodeShmMessage(PinOf(i, i));
  for (size_t piece : {size_t{1}, size_t{3}, size_t{64}, stream.size()}) {
    ShmFrameReader reader;
    uint64_t next_id = 0;
    for (size_t at = 0; at < stream.size(); at += piece) {
      const std::string part = stream.substr(at, piece);
      reader.Add(AsBytes(part));
      for (;;) {
        const auto message = reader.Next();
        ASSERT_THAT(message, IsOk());
        if (!message->has_value()) break;
        EXPECT_EQ((*message)->SerializeAsString(),
                  PinOf(next_id, static_cast<int>(next_id)).SerializeAsString());
        ++next_id;
      }
    }
    EXPECT_EQ(next_id, 4u) << "in pieces of " << piece;
  }
}

TEST(ShmFrameTest, TheLargestPinFits) {
  EXPECT_LT(EncodeShmMessage(PinOf(~uint64_t{0}, 4096)).size(), kMaxShmMessageBytes);
}

TEST(ShmFrameTest, RefusesALengthAboveTheLimitBeforeItsBytesArrive) {
  ShmFrameReader reader;
  std::string length = {'\x00', '\x00', '\x08', '\x00'};  // kMaxShmMessageBytes
  reader.Add(AsBytes(length));
  EXPECT_THAT(reader.Next(), IsOk());
  ShmFrameReader other;
  length[0] = 1;
  other.Add(AsBytes(length));
  EXPECT_THAT(other.Next(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("524289")));
}

TEST(ShmFrameTest, RefusesWhatIsNoMessageOrOfNoKnownKind) {
  for (const std::string& body : {std::string("\xff\xff"), std::string()}) {
    ShmFrameReader reader;
    const std::string bytes =
        std::string(1, static_cast<char>(body.size())) + std::string(3, '\0') + body;
    reader.Add(AsBytes(bytes));
    EXPECT_THAT(reader.Next(), StatusIs(absl::StatusCode::kInvalidArgument));
  }
}

}  // namespace
}  // namespace pkv
