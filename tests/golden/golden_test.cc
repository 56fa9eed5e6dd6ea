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
#include "tests/support/status_matchers.h"

// Goal: objects written by any release of format 1 are read, and written, as they were. Method: the
// files of tests/golden/v1, made once and never again.

namespace pkv {
namespace {

using testing::ContainerEq;
using testing::SizeIs;

std::filesystem::path Folder() {
  return std::filesystem::path(std::getenv("PKV_SOURCE_DIR")) / "tests/golden/v1";
}

std::vector<std::byte> ReadFile(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  const auto bytes = std::as_bytes(std::span(text));
  return {bytes.begin(), bytes.end()};
}

// File name to SHA-256.
std::map<std::string, std::string> Manifest() {
  std::map<std::string, std::string> manifest;
  std::ifstream file(Folder() / "MANIFEST.sha256");
  std::string digest, name;
  while (file >> digest >> name) manifest[name] = digest;
  return manifest;
}

TEST(GoldenTest, TheFolderHoldsWhatTheManifestSays) {
  std::map<std::string, std::string> found;
  for (const auto& entry : std::filesystem::directory_iterator(Folder())) {
    if (entry.path().extension() != ".bin") continue;
    found[entry.path().filename()] = Sha256({ReadFile(entry.path())}).ToHex();
  }
  EXPECT_THAT(found, ContainerEq(Manifest()));
  EXPECT_THAT(found, SizeIs(GoldenObjects().size()));
}

TEST(GoldenTest, EveryFileParsesAndVerifies) {
  for (const auto& [name, digest] : Manifest()) {
    const std::vector<std::byte> bytes = ReadFile(Folder() / name);
    const auto view = ObjectView::Parse(bytes);
    ASSERT_THAT(view, IsOk()) << name;
    EXPECT_THAT(view->VerifyAll(), IsOk()) << name;
  }
}

TEST(GoldenTest, TheBuilderStillWritesEveryByte) {
  for (const GoldenObject& object : GoldenObjects()) {
    const auto builder = BuildGolden(object);
    ASSERT_THAT(builder, IsOk()) << object.name;
    EXPECT_TRUE(std::ranges::equal(builder->bytes(), ReadFile(Folder() / (object.name + ".bin"))))
        << object.name;
  }
}

// What a reader must cover, so that no part of the format is without a frozen example.
TEST(GoldenTest, TheFilesCoverTheFormat) {
  std::map<std::string, int> covered;
  for (const auto& [name, digest] : Manifest()) {
    const std::vector<std::byte> bytes = ReadFile(Folder() / name);
    const ObjectHeader header = ObjectView::Parse(bytes)->header();
    covered["kind " + std::to_string(static_cast<int>(header.kind))]++;
    covered["bits_k " + std::to_string(header.bits_k)]++;
    covered["bits_v " + std::to_string(header.bits_v)]++;
    covered["head_dim " + std::to_string(header.head_dim)]++;
    for (const int flag : {1, 2, 4}) {
      if ((header.flags & flag) != 0) covered["flag " + std::to_string(flag)]++;
    }
    if (header.num_sinks > 0) covered["sinks"]++;
    if (header.num_layers > 1) covered["layers"]++;
    if (header.num_kv_heads > 1) covered["kv heads"]++;
  }
  for (const char* part : {"kind 1", "kind 2", "kind 3", "bits_k 2", "bits_k 4", "bits_k 16",
                           "bits_v 2", "bits_v 4", "head_dim 64", "head_dim 128", "flag 1",
                           "flag 2", "flag 4", "sinks", "layers", "kv heads"}) {
    EXPECT_GE(covered[part], 1) << part;
  }
}

}  // namespace
}  // namespace pkv
