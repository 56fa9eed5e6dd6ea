#include "client/get_assembly.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "tests/support/data_frames.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

using ::testing::HasSubstr;

constexpr size_t kMessageBytes = 1000;

// A table of two layers, a block of two and a window of three.
std::vector<SealedObject> SomeObjects() {
  std::vector<SealedObject> objects;
  objects.push_back(MakeTestTable(1));
  objects.push_back(MakeTestBlock(2, 2));
  objects.push_back(MakeTestWindow(3, 3, /*num_tokens=*/5, /*num_layers=*/3));
  return objects;
}

std::vector<ObjectKey> KeysOf(const std::vector<SealedObject>& objects) {
  std::vector<ObjectKey> keys;
  for (const SealedObject& object : objects) keys.push_back(object.key());
  return keys;
}

absl::Status Feed(GetAssembly& assembly, const v1::DataFrame& frame) {
  grpc::ByteBuffer message = ToBuffer(frame);
  auto decoded = DecodeDataFrame(message);
  return decoded.ok() ? assembly.OnFrame(*decoded) : decoded.status();
}

void ExpectEqualBytes(GetAssembly& assembly, const std::vector<SealedObject>& objects) {
  ASSERT_TRUE(assembly.complete());
  for (size_t i = 0; i < objects.size(); ++i) {
    const AlignedBuffer buffer = assembly.TakeObject(static_cast<int>(i));
    ASSERT_EQ(buffer.size(), objects[i].bytes().size());
    EXPECT_EQ(std::memcmp(buffer.data(), objects[i].bytes().data(), buffer.size()), 0);
  }
}

TEST(GetAssemblyTest, PutsEveryByteWhereItBelongs) {
  const std::vector<SealedObject> objects = SomeObjects();
  GetAssembly assembly(KeysOf(objects));
  EXPECT_EQ(assembly.BeginAttempt(), 0);
  uint64_t payload_bytes = 0;
  for (const v1::DataFrame& frame : GetFrames(objects, kMessageBytes)) {
    EXPECT_FALSE(frame.control().has_trailer() && !assembly.complete());
    ASSERT_THAT(Feed(assembly, frame), IsOk());
    payload_bytes += frame.payload().size();
  }
  EXPECT_EQ(assembly.num_layers(), 3);
  EXPECT_EQ(assembly.received_bytes(), payload_bytes);
  ExpectEqualBytes(assembly, objects);
}

TEST(GetAssemblyTest, CompletesALayerWithItsLastByte) {
  const std::vector<SealedObject> objects = SomeObjects();
  GetAssembly assembly(KeysOf(objects));
  assembly.BeginAttempt();
  ASSERT_THAT(Feed(assembly, ManifestFrame(objects)), IsOk());
  for (int layer = 0; layer < 3; ++layer) {
    for (const v1::DataFrame& frame : LayerFrames(objects, layer, layer + 1, kMessageBytes)) {
      EXPECT_EQ(assembly.num_complete_layers(), layer);
      ASSERT_THAT(Feed(assembly, frame), IsOk());
    }
    EXPECT_EQ(assembly.num_complete_layers(), layer + 1);
    const std::span<const std::byte> frame = assembly.frame(2, layer);
    EXPECT_EQ(std::memcmp(frame.data(), objects[2].frame(layer).data(), frame.size()), 0);
  }
}

TEST(GetAssemblyTest, AsksForNoLayerBelowTheFirstWanted) {
  const std::vector<SealedObject> objects = SomeObjects();
  GetAssembly assembly(KeysOf(objects), ObjectNumbering(), /*first_layer=*/1);
  for (int attempt = 1; attempt <= 2; ++attempt) {
    EXPECT_EQ(assembly.BeginAttempt(), 1);
    ASSERT_THAT(Feed(assembly, ManifestFrame(objects)), IsOk());
  }
  for (const v1::DataFrame& frame : LayerFrames(objects, 1, 3, kMessageBytes)) {
    EXPECT_FALSE(assembly.complete());
    ASSERT_THAT(Feed(assembly, frame), IsOk());
  }
  ASSERT_TRUE(assembly.complete());
  for (int layer = 1; layer < 3; ++layer) {
    const std::span<const std::byte> frame = assembly.frame(2, layer);
    EXPECT_EQ(std::memcmp(frame.data(), objects[2].frame(layer).data(), frame.size()), 0);
  }
}

TEST(GetAssemblyTest, ResumesAtTheFirstMissingLayer) {
  const std::vector<SealedObject> objects = SomeObjects();
  GetAssembly assembly(KeysOf(objects));
  assembly.BeginAttempt();
  ASSERT_THAT(Feed(assembly, ManifestFrame(objects)), IsOk());
  // Layer 0, and layer 1 but for its last message.
  std::vector<v1::DataFrame> frames = LayerFrames(objects, 0, 2, kMessageBytes);
  frames.pop_back();
  for (const v1::DataFrame& frame : frames) ASSERT_THAT(Feed(assembly, frame), IsOk());

  EXPECT_EQ(assembly.BeginAttempt(), 1);
  ASSERT_THAT(Feed(assembly, ManifestFrame(objects)), IsOk());
  for (const v1::DataFrame& frame : LayerFrames(objects, 1, 3, kMessageBytes)) {
    ASSERT_THAT(Feed(assembly, frame), IsOk());
  }
  ExpectEqualBytes(assembly, objects);
}

TEST(GetAssemblyTest, AbortsWhenAnObjectChangedBetweenAttempts) {
  std::vector<SealedObject> objects = SomeObjects();
  GetAssembly assembly(KeysOf(objects));
  assembly.BeginAttempt();
  ASSERT_THAT(Feed(assembly, ManifestFrame(objects)), IsOk());
  objects[1] = MakeTestBlock(2, /*seed=*/99);
  assembly.BeginAttempt();
  EXPECT_THAT(Feed(assembly, ManifestFrame(objects)), StatusIs(absl::StatusCode::kAborted));
}

TEST(GetAssemblyTest, RefusesPayloadThatIsSaidToStandElsewhere) {
  const std::vector<SealedObject> objects = SomeObjects();
  GetAssembly assembly(KeysOf(objects));
  assembly.BeginAttempt();
  ASSERT_THAT(Feed(assembly, ManifestFrame(objects)), IsOk());
  v1::DataFrame frame = LayerFrames(objects, 0, 1, kMessageBytes)[0];
  frame.mutable_control()->mutable_staged()->set_bytes(frame.payload().size());
  frame.clear_payload();
  EXPECT_THAT(Feed(assembly, frame), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("staged")));
}

TEST(GetAssemblyTest, NamesTheFirstObjectThatIsNotStored) {
  const std::vector<SealedObject> objects = SomeObjects();
  v1::DataFrame manifest = ManifestFrame(objects);
  manifest.mutable_control()->mutable_manifest()->set_heads(1, "");
  manifest.mutable_control()->mutable_manifest()->set_heads(2, "");
  GetAssembly assembly(KeysOf(objects));
  assembly.BeginAttempt();
  EXPECT_THAT(Feed(assembly, manifest),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("object 1 ")));
  EXPECT_FALSE(assembly.has_manifest());
}

TEST(GetAssemblyTest, RefusesEveryDamagedByteOfAHead) {
  const std::vector<SealedObject> objects = SomeObjects();
  const v1::DataFrame manifest = ManifestFrame(objects);
  for (size_t i = 0; i < objects[1].head().size(); ++i) {
    v1::DataFrame damaged = manifest;
    (*damaged.mutable_control()->mutable_manifest()->mutable_heads(1))[i] ^= 0x20;
    GetAssembly assembly(KeysOf(objects));
    assembly.BeginAttempt();
    // The major version is read before the checksum.
    EXPECT_FALSE(Feed(assembly, damaged).ok()) << "byte " << i;
  }
}

TEST(GetAssemblyTest, RefusesTheHeadOfAnotherObject) {
  const std::vector<SealedObject> objects = SomeObjects();
  v1::DataFrame manifest = ManifestFrame(objects);
  const SealedObject other = MakeTestBlock(77, 2);
  manifest.mutable_control()->mutable_manifest()->set_heads(1, other.head().data(),
                                                            other.head().size());
  GetAssembly assembly(KeysOf(objects));
  assembly.BeginAttempt();
  EXPECT_THAT(Feed(assembly, manifest),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("object 1 ")));
}

TEST(GetAssemblyTest, RefusesAHeadOneByteTooLong) {
  const std::vector<SealedObject> objects = SomeObjects();
  v1::DataFrame manifest = ManifestFrame(objects);
  manifest.mutable_control()->mutable_manifest()->mutable_heads(0)->push_back('\0');
  GetAssembly assembly(KeysOf(objects));
  assembly.BeginAttempt();
  EXPECT_THAT(Feed(assembly, manifest), StatusIs(absl::StatusCode::kDataLoss));
}

TEST(GetAssemblyTest, RefusesAManifestOfAnotherNumberOfObjects) {
  const std::vector<SealedObject> objects = SomeObjects();
  v1::DataFrame manifest = ManifestFrame(objects);
  manifest.mutable_control()->mutable_manifest()->add_heads("x");
  GetAssembly assembly(KeysOf(objects));
  assembly.BeginAttempt();
  EXPECT_THAT(Feed(assembly, manifest),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("4 objects, 3 were asked for")));
}

TEST(GetAssemblyTest, RefusesASecondManifestAndPiecesBeforeTheFirst) {
  const std::vector<SealedObject> objects = SomeObjects();
  GetAssembly assembly(KeysOf(objects));
  assembly.BeginAttempt();
  EXPECT_THAT(Feed(assembly, LayerFrames(objects, 0, 1, kMessageBytes)[0]),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("before the manifest")));
  ASSERT_THAT(Feed(assembly, ManifestFrame(objects)), IsOk());
  EXPECT_THAT(Feed(assembly, ManifestFrame(objects)),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("second manifest")));
}

// One piece of valid place, then the same with one number wrong.
TEST(GetAssemblyTest, RefusesPiecesOutOfPlace) {
  const std::vector<SealedObject> objects = SomeObjects();
  const auto first_piece = [&](auto change) {
    v1::DataFrame frame = LayerFrames(objects, 0, 1, 256)[0];
    v1::Piece* piece = frame.mutable_control()->mutable_pieces(0);
    change(*piece);
    frame.mutable_payload()->resize(piece->length());
    GetAssembly assembly(KeysOf(objects));
    assembly.BeginAttempt();
    EXPECT_THAT(Feed(assembly, ManifestFrame(objects)), IsOk());
    return Feed(assembly, frame);
  };
  EXPECT_THAT(first_piece([](v1::Piece&) {}), IsOk());
  EXPECT_THAT(first_piece([](v1::Piece& piece) { piece.set_object_index(3); }),
              StatusIs(absl::StatusCode::kDataLoss));
  EXPECT_THAT(first_piece([](v1::Piece& piece) { piece.set_layer(1); }),
              StatusIs(absl::StatusCode::kDataLoss));
  EXPECT_THAT(first_piece([](v1::Piece& piece) { piece.set_offset(1); }),
              StatusIs(absl::StatusCode::kDataLoss));
  EXPECT_THAT(first_piece([](v1::Piece& piece) { piece.set_offset(~uint64_t{0}); }),
              StatusIs(absl::StatusCode::kDataLoss));
  EXPECT_THAT(first_piece([](v1::Piece& piece) { piece.set_length(0); }),
              StatusIs(absl::StatusCode::kDataLoss));
  EXPECT_THAT(first_piece([&](v1::Piece& piece) {
                piece.set_length(static_cast<uint32_t>(objects[0].header.frame_bytes) + 1);
              }),
              StatusIs(absl::StatusCode::kDataLoss));
}

TEST(GetAssemblyTest, RefusesMoreLayersThanTheObjectHas) {
  const std::vector<SealedObject> objects = SomeObjects();
  GetAssembly assembly(KeysOf(objects));
  assembly.BeginAttempt();
  for (const v1::DataFrame& frame : GetFrames(objects, kMessageBytes)) {
    ASSERT_THAT(Feed(assembly, frame), IsOk());
  }
  v1::DataFrame extra = LayerFrames(objects, 0, 1, 256)[0];
  extra.mutable_control()->mutable_pieces(0)->set_layer(2);
  EXPECT_THAT(Feed(assembly, extra), StatusIs(absl::StatusCode::kDataLoss));
}

TEST(GetAssemblyTest, PassesOnWhatTheTrailerSaysOfAnObject) {
  const std::vector<SealedObject> objects = SomeObjects();
  GetAssembly assembly(KeysOf(objects));
  assembly.BeginAttempt();
  ASSERT_THAT(Feed(assembly, ManifestFrame(objects)), IsOk());
  EXPECT_THAT(Feed(assembly,
                   TrailerFrame(std::vector<absl::Status>{absl::OkStatus(), absl::OkStatus(),
                                                          absl::DataLossError("frame 1 is bad")})),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("frame 1 is bad")));
}

TEST(GetAssemblyTest, RefusesATrailerThatComesTooEarly) {
  const std::vector<SealedObject> objects = SomeObjects();
  GetAssembly assembly(KeysOf(objects));
  assembly.BeginAttempt();
  ASSERT_THAT(Feed(assembly, ManifestFrame(objects)), IsOk());
  EXPECT_THAT(Feed(assembly, TrailerFrame(std::vector<absl::Status>(3))),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("trailer after 0 of 3 layers")));
}

}  // namespace
}  // namespace pkv
