#include "proto/transport/data_frame.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>
#include <utility>

namespace pkv {
namespace {

using ::testing::HasSubstr;

constexpr uint64_t kSeed = 20240607;

std::string Join(const grpc::ByteBuffer& buffer) {
  std::vector<grpc::Slice> slices;
  EXPECT_TRUE(buffer.Dump(&slices).ok());
  std::string bytes;
  for (const grpc::Slice& slice : slices) {
    bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  return bytes;
}

// `bytes` cut at random places into up to `max_slices` slices, empty ones among them.
std::vector<grpc::Slice> Cut(const std::string& bytes, int max_slices, std::mt19937_64& rng) {
  std::vector<size_t> cuts = {0, bytes.size()};
  const int num_cuts = static_cast<int>(rng() % static_cast<uint64_t>(max_slices));
  for (int i = 0; i < num_cuts; ++i) cuts.push_back(rng() % (bytes.size() + 1));
  std::sort(cuts.begin(), cuts.end());
  std::vector<grpc::Slice> slices;
  for (size_t i = 0; i + 1 < cuts.size(); ++i) {
    slices.emplace_back(bytes.substr(cuts[i], cuts[i + 1] - cuts[i]));
  }
  return slices;
}

absl::StatusOr<DecodedDataFrame> Decode(const std::string& bytes) {
  const grpc::Slice slice(bytes);
  grpc::ByteBuffer message(&slice, 1);
  return DecodeDataFrame(message);
}

std::string ReadAll(PayloadReader& payload) {
  std::string bytes(payload.remaining(), '\0');
  EXPECT_TRUE(payload.Read(std::as_writable_bytes(std::span(bytes))).ok());
  return bytes;
}

std::string RandomBytes(size_t size, std::mt19937_64& rng) {
  std::string bytes(size, '\0');
  for (char& c : bytes) c = static_cast<char>(rng());
  return bytes;
}

// A control of random kind whose pieces cover `payload_bytes`.
v1::FrameControl RandomControl(size_t payload_bytes, std::mt19937_64& rng) {
  v1::FrameControl control;
  switch (rng() % 4) {
    case 0:
      control.mutable_manifest()->add_heads(RandomBytes(rng() % 400, rng));
      control.mutable_manifest()->add_heads("");
      break;
    case 1:
      control.mutable_put_commit()->set_object_index(static_cast<uint32_t>(rng()));
      break;
    case 2:
      control.set_layers_done(static_cast<uint32_t>(rng() % 9));
      break;
    default:
      break;
  }
  while (payload_bytes > 0) {
    const size_t length = 1 + rng() % payload_bytes;
    v1::Piece* piece = control.add_pieces();
    piece->set_object_index(static_cast<uint32_t>(rng() % 4096));
    piece->set_layer(static_cast<uint32_t>(rng() % 1024));
    piece->set_offset(rng());
    piece->set_length(static_cast<uint32_t>(length));
    payload_bytes -= length;
  }
  return control;
}

// A frame of one piece and `payload`, as protobuf writes it.
v1::DataFrame OnePiece(const std::string& payload) {
  v1::DataFrame frame;
  frame.mutable_control()->add_pieces()->set_length(static_cast<uint32_t>(payload.size()));
  frame.set_payload(payload);
  return frame;
}

// Goal: the property the transport rests on. Method: random controls and payloads, payload cut at
// random on the way out and the whole message cut again on the way in.
TEST(DataFrameTest, DecodingAnEncodedFrameGivesItBackAndProtobufAgrees) {
  SCOPED_TRACE("seed " + std::to_string(kSeed));
  std::mt19937_64 rng(kSeed);
  for (int round = 0; round < 300; ++round) {
    const std::string payload = RandomBytes(round % 3 == 0 ? 0 : rng() % 70000, rng);
    const v1::FrameControl control = RandomControl(payload.size(), rng);
    const grpc::ByteBuffer encoded = EncodeDataFrame(control, Cut(payload, 9, rng));
    const std::string bytes = Join(encoded);

    v1::DataFrame parsed;
    ASSERT_TRUE(parsed.ParseFromString(bytes)) << "round " << round;
    EXPECT_EQ(parsed.control().SerializeAsString(), control.SerializeAsString());
    EXPECT_EQ(parsed.payload(), payload);

    const std::vector<grpc::Slice> received = Cut(bytes, 129, rng);
    grpc::ByteBuffer message(received.data(), received.size());
    auto decoded = DecodeDataFrame(message);
    ASSERT_TRUE(decoded.ok()) << "round " << round << ": " << decoded.status();
    EXPECT_EQ(decoded->control.SerializeAsString(), control.SerializeAsString());
    EXPECT_EQ(ReadAll(decoded->payload), payload);
  }
}

TEST(DataFrameTest, StagedPayloadIsNamedByThePiecesAndNotInTheMessage) {
  v1::DataFrame frame;
  frame.mutable_control()->add_pieces()->set_length(300);
  frame.mutable_control()->add_pieces()->set_length(200);
  v1::StagedPayload* staged = frame.mutable_control()->mutable_staged();
  staged->set_offset(~uint64_t{0});
  staged->set_bytes(500);
  const auto decoded = Decode(frame.SerializeAsString());
  ASSERT_TRUE(decoded.ok()) << decoded.status();
  EXPECT_EQ(decoded->payload.remaining(), 0u);
  EXPECT_EQ(decoded->control.staged().bytes(), 500u);

  staged->set_bytes(501);
  EXPECT_EQ(Decode(frame.SerializeAsString()).status().code(), absl::StatusCode::kInvalidArgument);
  staged->set_bytes(500);
  frame.set_payload(std::string(500, 'p'));
  EXPECT_EQ(Decode(frame.SerializeAsString()).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(DataFrameTest, RefusesMoreStagedBytesThanOneMessageMayName) {
  v1::DataFrame frame;
  v1::Piece* piece = frame.mutable_control()->add_pieces();
  for (const uint64_t bytes : {kMaxStagedBytes, kMaxStagedBytes + 1}) {
    piece->set_length(static_cast<uint32_t>(bytes));
    frame.mutable_control()->mutable_staged()->set_bytes(bytes);
    EXPECT_EQ(Decode(frame.SerializeAsString()).ok(), bytes == kMaxStagedBytes);
  }
}

TEST(DataFrameTest, EncodingReferencesThePayload) {
  static const std::string payload(1 << 16, 'p');
  const grpc::Slice slice(payload.data(), payload.size(), grpc::Slice::STATIC_SLICE);
  v1::FrameControl control;
  control.add_pieces()->set_length(1 << 16);
  std::vector<grpc::Slice> slices;
  ASSERT_TRUE(EncodeDataFrame(control, {&slice, 1}).Dump(&slices).ok());
  ASSERT_EQ(slices.size(), 2u);
  EXPECT_EQ(slices[1].begin(), slice.begin());
}

TEST(DataFrameTest, DecodedPayloadOutlivesTheMessage) {
  const std::string payload(5000, 'q');
  absl::StatusOr<DecodedDataFrame> decoded = Decode(OnePiece(payload).SerializeAsString());
  ASSERT_TRUE(decoded.ok()) << decoded.status();
  EXPECT_EQ(ReadAll(decoded->payload), payload);
}

TEST(DataFrameTest, AcceptsAnEmptyMessage) {
  auto decoded = Decode("");
  ASSERT_TRUE(decoded.ok()) << decoded.status();
  EXPECT_EQ(decoded->payload.remaining(), 0u);
}

TEST(DataFrameTest, RefusesABufferThatWasNeverSet) {
  grpc::ByteBuffer message;
  EXPECT_EQ(DecodeDataFrame(message).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(DataFrameTest, AcceptsPayloadBeforeControl) {
  v1::DataFrame control_alone = OnePiece("abc");
  control_alone.clear_payload();
  v1::DataFrame payload_alone;
  payload_alone.set_payload("abc");
  auto decoded = Decode(payload_alone.SerializeAsString() + control_alone.SerializeAsString());
  ASSERT_TRUE(decoded.ok()) << decoded.status();
  EXPECT_EQ(decoded->control.pieces_size(), 1);
  EXPECT_EQ(ReadAll(decoded->payload), "abc");
}

TEST(DataFrameTest, LastOfTwoPayloadsCountsAsInProtobuf) {
  v1::DataFrame second;
  second.set_payload("xyz");
  auto decoded = Decode(OnePiece("abc").SerializeAsString() + second.SerializeAsString());
  ASSERT_TRUE(decoded.ok()) << decoded.status();
  EXPECT_EQ(ReadAll(decoded->payload), "xyz");
}

TEST(DataFrameTest, TwoControlsMergeAsInProtobuf) {
  v1::DataFrame first = OnePiece("ab");
  first.clear_payload();
  auto decoded = Decode(first.SerializeAsString() + OnePiece("cd").SerializeAsString());
  ASSERT_FALSE(decoded.ok());
  EXPECT_THAT(std::string(decoded.status().message()), HasSubstr("2 pieces name 4 bytes"));
}

TEST(DataFrameTest, SkipsUnknownFields) {
  // Field 9, a varint; field 15, four bytes.
  const std::string unknown("\x48\x07\x7d\x01\x02\x03\x04", 7);
  for (const std::string& bytes : {unknown + OnePiece("abc").SerializeAsString(),
                                   OnePiece("abc").SerializeAsString() + unknown}) {
    auto decoded = Decode(bytes);
    ASSERT_TRUE(decoded.ok()) << decoded.status();
    EXPECT_EQ(ReadAll(decoded->payload), "abc");
  }
}

TEST(DataFrameTest, RefusesPiecesThatNameMoreOrFewerBytesThanThePayload) {
  for (const uint32_t length : {0u, 2u, 4u, 0xffffffffu}) {
    v1::DataFrame frame = OnePiece("abc");
    frame.mutable_control()->mutable_pieces(0)->set_length(length);
    const absl::Status status = Decode(frame.SerializeAsString()).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << length;
    EXPECT_THAT(std::string(status.message()), HasSubstr(std::to_string(length)));
  }
}

TEST(DataFrameTest, RefusesPayloadWithoutPieces) {
  v1::DataFrame frame;
  frame.set_payload("abc");
  EXPECT_EQ(Decode(frame.SerializeAsString()).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(DataFrameTest, RefusesEveryTruncation) {
  std::mt19937_64 rng(kSeed);
  const std::string bytes = OnePiece(RandomBytes(300, rng)).SerializeAsString();
  ASSERT_TRUE(Decode(bytes).ok());
  for (size_t length = 1; length < bytes.size(); ++length) {
    EXPECT_EQ(Decode(bytes.substr(0, length)).status().code(), absl::StatusCode::kInvalidArgument)
        << "first " << length << " of " << bytes.size() << " bytes";
  }
}

TEST(DataFrameTest, RefusesLengthsThatDoNotFit) {
  const std::string huge_lengths[] = {
      std::string("\x0a\xff\xff\xff\xff\x0f", 6),                       // 2^32 - 1
      std::string("\x0a\xff\xff\xff\xff\x7f", 6),                       // 2^35 - 1
      std::string("\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", 11),  // 2^64 - 1
      std::string("\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", 11),  // no end
      std::string("\x0a\x00\x12\xff\xff\xff\xff\x07", 8),               // payload of 2^31 - 1
      std::string("\x0a\x00\x12", 3),                                   // length missing
  };
  for (const std::string& bytes : huge_lengths) {
    EXPECT_EQ(Decode(bytes).status().code(), absl::StatusCode::kInvalidArgument)
        << testing::PrintToString(bytes);
  }
}

TEST(DataFrameTest, RefusesAMessageBeyondTheLimit) {
  v1::DataFrame frame = OnePiece(std::string(kMaxMessageBytes, 'x'));
  EXPECT_THAT(std::string(Decode(frame.SerializeAsString()).status().message()),
              HasSubstr(std::to_string(kMaxMessageBytes)));
}

// An empty piece has two bytes on the wire and some fifty in memory.
TEST(DataFrameTest, RefusesMorePiecesThanAnHonestMessageHas) {
  v1::DataFrame frame;
  for (int i = 0; i < kMaxObjectsPerCall; ++i) {
    frame.mutable_control()->mutable_put_begin()->add_objects();
  }
  EXPECT_TRUE(Decode(frame.SerializeAsString()).ok());
  for (int i = 0; i < 100000; ++i) frame.mutable_control()->add_pieces();
  const absl::Status status = Decode(frame.SerializeAsString()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("fields, limit"));
}

TEST(PayloadReaderTest, ReadsAcrossSlices) {
  PayloadReader reader({grpc::Slice("ab"), grpc::Slice(""), grpc::Slice("cde")});
  std::string first(3, '\0');
  std::string second(2, '\0');
  ASSERT_TRUE(reader.Read(std::as_writable_bytes(std::span(first))).ok());
  EXPECT_EQ(reader.remaining(), 2u);
  ASSERT_TRUE(reader.Read(std::as_writable_bytes(std::span(second))).ok());
  EXPECT_EQ(first + second, "abcde");
}

TEST(PayloadReaderTest, SkipsAcrossSlices) {
  PayloadReader reader({grpc::Slice("ab"), grpc::Slice("cde")});
  ASSERT_TRUE(reader.Skip(3).ok());
  EXPECT_EQ(reader.Skip(3).code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(ReadAll(reader), "de");
}

TEST(PayloadReaderTest, RefusesToReadBeyondTheEndAndKeepsItsPlace) {
  PayloadReader reader({grpc::Slice("abc")});
  std::string out(4, '\0');
  EXPECT_EQ(reader.Read(std::as_writable_bytes(std::span(out))).code(),
            absl::StatusCode::kDataLoss);
  EXPECT_EQ(reader.remaining(), 3u);
  EXPECT_EQ(ReadAll(reader), "abc");
  EXPECT_TRUE(reader.Read({}).ok());
}

}  // namespace
}  // namespace pkv
