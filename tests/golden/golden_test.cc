#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <vector>

#include "pkv/block/object_view.h"
#include "tests/golden/golden_objects.h"
#include "tests/support/object_checksums.h"
#include "tests/support/status_matchers.h"

// Goal: objects written by any release of format 2 are read, and written, as they were, and those
// of format 1 are refused by their version. Method: the files of tests/golden/v2 and v1, made once
// and never again.

namespace pkv {
namespace {

using testing::ContainerEq;
using testing::HasSubstr;
using testing::SizeIs;

// Of the format major that this build reads and writes, and of an earlier one.
constexpr const char* kCurrent = "v2";
constexpr const char* kFormat1 = "v1";

std::filesystem::path Folder(const char* version) {
  return std::filesystem::path(std::getenv("PKV_SOURCE_DIR")) / "tests/golden" / version;
}

std::vector<std::byte> ReadFile(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  const auto bytes = std::as_bytes(std::span(text));
  return {bytes.begin(), bytes.end()};
}

// File name to SHA-256.
std::map<std::string, std::string> Manifest(const char* version) {
  std::map<std::string, std::string> manifest;
  std::ifstream file(Folder(version) / "MANIFEST.sha256");
  std::string digest, name;
  while (file >> digest >> name) manifest[name] = digest;
  return manifest;
}

TEST(GoldenTest, EveryFolderHoldsWhatItsManifestSays) {
  for (const auto& [version, num_objects] :
       {std::pair(kFormat1, kNumObjectsOfFormat1), {kCurrent, GoldenObjects().size()}}) {
    std::map<std::string, std::string> found;
    for (const auto& entry : std::filesystem::directory_iterator(Folder(version))) {
      if (entry.path().extension() != ".bin") continue;
      found[entry.path().filename()] = Sha256({ReadFile(entry.path())}).ToHex();
    }
    EXPECT_THAT(found, ContainerEq(Manifest(version)));
    EXPECT_THAT(found, SizeIs(num_objects)) << version;
  }
}

TEST(GoldenTest, EveryFileParsesAndVerifies) {
  for (const auto& [name, digest] : Manifest(kCurrent)) {
    const std::vector<std::byte> bytes = ReadFile(Folder(kCurrent) / name);
    const auto view = ObjectView::Parse(bytes);
    ASSERT_THAT(view, IsOk()) << name;
    EXPECT_THAT(view->VerifyAll(), IsOk()) << name;
  }
}

TEST(GoldenTest, TheBuilderStillWritesEveryByte) {
  for (const GoldenObject& object : GoldenObjects()) {
    const auto builder = BuildGolden(object);
    ASSERT_THAT(builder, IsOk()) << object.name;
    EXPECT_TRUE(
        std::ranges::equal(builder->bytes(), ReadFile(Folder(kCurrent) / (object.name + ".bin"))))
        << object.name;
  }
}

TEST(GoldenTest, EveryFileOfFormat1IsRefusedByItsVersion) {
  for (const auto& [name, digest] : Manifest(kFormat1)) {
    const std::vector<std::byte> bytes = ReadFile(Folder(kFormat1) / name);
    const auto refused = StatusIs(absl::StatusCode::kFailedPrecondition,
                                  HasSubstr("format version 1.0, this build reads 2.x"));
    EXPECT_THAT(ParseHeader(bytes), refused) << name;
    EXPECT_THAT(ObjectView::Parse(bytes), refused) << name;
  }
}

// What format 1 could hold stands in format 2 as it did, ids included: only the version differs.
TEST(GoldenTest, ObjectsOfFormat1DifferInTheVersionOnly) {
  for (const auto& [name, digest] : Manifest(kFormat1)) {
    std::vector<std::byte> bytes = ReadFile(Folder(kFormat1) / name);
    ASSERT_GE(bytes.size(), sizeof(ObjectHeader)) << name;
    bytes[offsetof(ObjectHeader, version_major)] = std::byte{kFormatMajor};
    FixHeaderChecksum(bytes);
    EXPECT_TRUE(std::ranges::equal(bytes, ReadFile(Folder(kCurrent) / name))) << name;
  }
}

// What a reader must cover, so that no part of the format is without a frozen example.
TEST(GoldenTest, TheFilesCoverTheFormat) {
  std::map<std::string, int> covered;
  for (const auto& [name, digest] : Manifest(kCurrent)) {
    const std::vector<std::byte> bytes = ReadFile(Folder(kCurrent) / name);
    const ObjectHeader header = ObjectView::Parse(bytes)->header();
    covered["kind " + std::to_string(static_cast<int>(header.kind))]++;
    covered["bits_k " + std::to_string(header.bits_k)]++;
    covered["bits_v " + std::to_string(header.bits_v)]++;
    covered["head_dim " + std::to_string(header.head_dim)]++;
    for (const int flag : {1, 2, 4, 8}) {
      if ((header.flags & flag) != 0) covered["flag " + std::to_string(flag)]++;
    }
    if (header.num_sinks > 0) covered["sinks"]++;
    if (header.k_fine_tokens > 0) covered["fine d" + std::to_string(header.head_dim)]++;
    if (header.num_layers > 1) covered["layers"]++;
    if (header.num_kv_heads > 1) covered["kv heads"]++;
  }
  for (const char* part :
       {"kind 1", "kind 2", "kind 3", "bits_k 2", "bits_k 4", "bits_k 16", "bits_v 2", "bits_v 4",
        "head_dim 64", "head_dim 128", "flag 1", "flag 2", "flag 4", "flag 8", "sinks", "fine d64",
        "fine d128", "layers", "kv heads"}) {
    EXPECT_GE(covered[part], 1) << part;
  }
}

}  // namespace
}  // namespace pkv
