#include "worker/engine/safetensors_writer.h"

#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <iterator>

#include "tests/support/status_matchers.h"
#include "tests/support/tiny_model.h"
#include "worker/engine/safetensors.h"

namespace pkv {
namespace {

using testing::HasSubstr;

TEST(SafetensorsWriterTest, WritesWhatTheReaderReads) {
  const ScratchFolder folder;
  const std::string path = folder.path() + "/some.safetensors";
  const std::vector<uint16_t> halves = {1, 2, 3, 4, 5, 6};
  const std::vector<float> floats = {0.5f, -1.5f};
  const TensorToWrite tensors[] = {{"layers.0.k", "F16", {2, 3}, std::as_bytes(std::span(halves))},
                                   {"empty", "F32", {0, 4}, {}},
                                   {"b", "F32", {2}, std::as_bytes(std::span(floats))}};
  ASSERT_THAT(WriteSafetensors(path, tensors, {{"text", "a \"quoted\" name \xff"}}), IsOk());

  const auto file = SafetensorsFile::Open(path);
  ASSERT_THAT(file, IsOk());
  ASSERT_EQ((*file)->tensors().size(), 3u);
  for (const TensorToWrite& written : tensors) {
    const TensorView& read = (*file)->tensors().at(written.name);
    EXPECT_EQ(read.dtype, written.dtype);
    EXPECT_EQ(read.shape, written.shape);
    ASSERT_EQ(read.bytes.size(), written.bytes.size());
    EXPECT_TRUE(std::equal(read.bytes.begin(), read.bytes.end(), written.bytes.begin()));
  }
}

TEST(SafetensorsWriterTest, StoresMetadataAndAlignsTheData) {
  const ScratchFolder folder;
  const std::string path = folder.path() + "/some.safetensors";
  ASSERT_THAT(WriteSafetensors(path, {}, {{"model", "tiny"}}), IsOk());
  std::ifstream file(path, std::ios::binary);
  const std::string bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  uint64_t header_bytes;
  std::memcpy(&header_bytes, bytes.data(), sizeof(header_bytes));
  EXPECT_EQ(header_bytes % 8, 0u);
  ASSERT_EQ(bytes.size(), 8 + header_bytes);
  const auto header = nlohmann::json::parse(bytes.substr(8));
  EXPECT_EQ(header["__metadata__"]["model"], "tiny");
}

TEST(SafetensorsWriterTest, RefusesTwoTensorsOfOneName) {
  const ScratchFolder folder;
  const std::string path = folder.path() + "/some.safetensors";
  const TensorToWrite twice[] = {{"a", "F32", {0}, {}}, {"a", "F32", {0}, {}}};
  EXPECT_THAT(WriteSafetensors(path, twice, {}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("name a")));
  const TensorToWrite metadata[] = {{"__metadata__", "F32", {0}, {}}};
  EXPECT_THAT(WriteSafetensors(path, metadata, {}), StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST(SafetensorsWriterTest, NamesAFileThatCannotBeWritten) {
  const ScratchFolder folder;
  EXPECT_THAT(WriteSafetensors(folder.path() + "/none/some", {}, {}),
              StatusIs(absl::StatusCode::kInternal, HasSubstr("/none/some")));
}

}  // namespace
}  // namespace pkv
