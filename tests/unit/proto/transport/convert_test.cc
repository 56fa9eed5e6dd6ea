#include "proto/transport/convert.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace pkv {
namespace {

using ::testing::HasSubstr;

ObjectKey SomeKey() {
  ObjectKey key;
  key.kind = ObjectKind::kWindow;
  for (size_t i = 0; i < key.id.bytes.size(); ++i) key.id.bytes[i] = static_cast<uint8_t>(200 + i);
  key.variant = {.name = "pkv4", .params_digest = 0x8877665544332211u};
  return key;
}

TEST(ConvertTest, KeySurvivesTheWire) {
  for (const ObjectKind kind : {ObjectKind::kBlock, ObjectKind::kWindow, ObjectKind::kTable}) {
    ObjectKey key = SomeKey();
    key.kind = kind;
    v1::ObjectKey wire;
    ASSERT_TRUE(wire.ParseFromString(ToProto(key).SerializeAsString()));
    const auto back = FromProto(wire);
    ASSERT_TRUE(back.ok()) << back.status();
    EXPECT_EQ(*back, key);
  }
}

TEST(ConvertTest, NamesAKindThatDoesNotExist) {
  for (const int kind : {0, 4, -1}) {
    v1::ObjectKey wire = ToProto(SomeKey());
    wire.set_kind(static_cast<v1::ObjectKind>(kind));
    const absl::Status status = FromProto(wire).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr("kind " + std::to_string(kind)));
  }
}

TEST(ConvertTest, RefusesAnIdOneByteOff) {
  for (const size_t length : {size_t{0}, size_t{31}, size_t{33}}) {
    v1::ObjectKey wire = ToProto(SomeKey());
    wire.set_id(std::string(length, 'x'));
    const absl::Status status = FromProto(wire).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr(std::to_string(length) + " bytes"));
  }
}

TEST(ConvertTest, AcceptsVariantNamesOfOneToFifteenBytes) {
  for (const std::string name : {"a", "abcdefghijklmno", "az-09_"}) {
    EXPECT_TRUE(FromProto(ToProto(Variant{.name = name})).ok()) << name;
  }
  for (const std::string name : {"", "abcdefghijklmnop", "A", "a b", "a\n", "\xff", "a."}) {
    EXPECT_EQ(FromProto(ToProto(Variant{.name = name})).status().code(),
              absl::StatusCode::kInvalidArgument)
        << name;
  }
}

TEST(ConvertTest, RefusesAKeyWithoutVariant) {
  v1::ObjectKey wire = ToProto(SomeKey());
  wire.clear_variant();
  EXPECT_EQ(FromProto(wire).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(ConvertTest, StatusKeepsCodeAndMessageBothWays) {
  for (int code = 1; code <= 16; ++code) {
    const absl::Status status(static_cast<absl::StatusCode>(code), "head_dim 96 not in {64, 128}");
    const grpc::Status wire = ToGrpc(status);
    EXPECT_EQ(static_cast<int>(wire.error_code()), code);
    EXPECT_EQ(wire.error_message(), "head_dim 96 not in {64, 128}");
    EXPECT_EQ(FromGrpc(wire), status);
  }
  EXPECT_TRUE(ToGrpc(absl::OkStatus()).ok());
  EXPECT_TRUE(FromGrpc(grpc::Status::OK).ok());
}

TEST(ConvertTest, StatusCodeFromOutsideTheListBecomesUnknown) {
  for (const int code : {17, -1}) {
    const grpc::Status wire(static_cast<grpc::StatusCode>(code), "odd");
    EXPECT_EQ(FromGrpc(wire).code(), absl::StatusCode::kUnknown);
  }
}

}  // namespace
}  // namespace pkv
