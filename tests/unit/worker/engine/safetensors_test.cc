#include "worker/engine/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "pkv/block/digest.h"
#include "proto/base/float16.h"
#include "proto/base/thread_pool.h"
#include "tests/support/status_matchers.h"
#include "tests/support/tiny_model.h"

namespace pkv {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

template <typename T>
std::string BytesOf(const std::vector<T>& values) {
  return std::string(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
}

StoredTensor Floats(const std::string& name, const std::vector<float>& values) {
  return {name, "F32", {static_cast<int64_t>(values.size())}, BytesOf(values)};
}

// Opens a file of these bytes.
absl::StatusOr<std::unique_ptr<SafetensorsFile>> OpenBytes(const std::string& bytes) {
  const ScratchFolder folder;
  return SafetensorsFile::Open(folder.Write("x.safetensors", bytes));
}

// A file of one tensor "t" with this entry and eight bytes of data.
absl::StatusOr<std::unique_ptr<SafetensorsFile>> OpenEntry(const std::string& entry) {
  return OpenBytes(SafetensorsBytes("{\"t\":" + entry + "}", "12345678"));
}

TEST(SafetensorsFileTest, FindsTensorsAndSkipsMetadata) {
  const auto file = OpenBytes(
      SafetensorsBytes({Floats("a", {1, 2}), {"b", "BF16", {1, 3}, std::string("\1\2\3\4\5\6")}}));
  ASSERT_THAT(file, IsOk());
  ASSERT_EQ((*file)->tensors().size(), 2u);
  const TensorView& b = (*file)->tensors().at("b");
  EXPECT_EQ(b.dtype, "BF16");
  EXPECT_THAT(b.shape, ElementsAre(1, 3));
  ASSERT_EQ(b.bytes.size(), 6u);
  EXPECT_EQ(static_cast<char>(b.bytes[5]), 6);
}

TEST(SafetensorsFileTest, AcceptsScalarsAndEmptyTensors) {
  EXPECT_THAT(OpenEntry(R"({"dtype":"F64","shape":[],"data_offsets":[0,8]})"), IsOk());
  EXPECT_THAT(OpenEntry(R"({"dtype":"F32","shape":[4,0],"data_offsets":[8,8]})"), IsOk());
}

TEST(SafetensorsFileTest, RefusesEveryTruncation) {
  const std::string bytes = SafetensorsBytes({Floats("a", {1, 2}), Floats("b", {3})});
  EXPECT_THAT(OpenBytes(bytes), IsOk());
  for (size_t size = 0; size < bytes.size(); ++size) {
    EXPECT_THAT(OpenBytes(bytes.substr(0, size)), StatusIs(absl::StatusCode::kDataLoss)) << size;
  }
}

TEST(SafetensorsFileTest, RefusesAHeaderLengthBeyondTheLimitOrTheFile) {
  for (const uint64_t length : {uint64_t{5}, uint64_t{100'000'001}, ~uint64_t{0}, ~uint64_t{7}}) {
    std::string bytes(reinterpret_cast<const char*>(&length), sizeof(length));
    EXPECT_THAT(OpenBytes(bytes + "{  }"), StatusIs(absl::StatusCode::kDataLoss,
                                                    HasSubstr(absl::StrCat("header of ", length))));
  }
  const uint64_t exact = 4;
  EXPECT_THAT(OpenBytes(std::string(reinterpret_cast<const char*>(&exact), 8) + "{  }"), IsOk());
}

TEST(SafetensorsFileTest, RefusesHeadersThatAreNoObject) {
  for (const char* header : {"", "[]", "null", "{", "{\"t\":", "\xff\xff"}) {
    EXPECT_THAT(OpenBytes(SafetensorsBytes(header, "")), StatusIs(absl::StatusCode::kDataLoss))
        << header;
  }
}

TEST(SafetensorsFileTest, RefusesHostileEntriesAndNamesTheTensor) {
  for (const char* entry : {
           R"(7)",
           R"({})",
           R"({"dtype":"F32","shape":[2]})",
           R"({"dtype":3,"shape":[2],"data_offsets":[0,8]})",
           R"({"dtype":"F32","shape":2,"data_offsets":[0,8]})",
           R"({"dtype":"F32","shape":[-2],"data_offsets":[0,8]})",
           R"({"dtype":"F32","shape":[2.0],"data_offsets":[0,8]})",
           R"({"dtype":"F32","shape":["2"],"data_offsets":[0,8]})",
           R"({"dtype":"F32","shape":[2],"data_offsets":[0]})",
           R"({"dtype":"F32","shape":[2],"data_offsets":[0,8,8]})",
           R"({"dtype":"F32","shape":[2],"data_offsets":[8,0]})",
           R"({"dtype":"F32","shape":[2],"data_offsets":[1,9]})",
           R"({"dtype":"F32","shape":[2],"data_offsets":[0,18446744073709551615]})",
           R"({"dtype":"F32","shape":[3],"data_offsets":[0,8]})",
           R"({"dtype":"F32","shape":[1],"data_offsets":[0,8]})",
           R"({"dtype":"X32","shape":[2],"data_offsets":[0,8]})",
           R"({"dtype":"F32","shape":[1,1,1,1,1,1,1,1,2],"data_offsets":[0,8]})",
           // 2^62 * 4 and 2^32 * 2^32 wrap to 0 in 64 bits.
           R"({"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,0]})",
           R"({"dtype":"U8","shape":[4294967296,4294967296],"data_offsets":[0,0]})",
       }) {
    EXPECT_THAT(OpenEntry(entry), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("tensor t")))
        << entry;
  }
}

TEST(SafetensorsFileTest, ReportsAMissingFileAndAFolder) {
  const ScratchFolder folder;
  EXPECT_THAT(SafetensorsFile::Open(folder.path() + "/none"),
              StatusIs(absl::StatusCode::kNotFound));
  EXPECT_THAT(SafetensorsFile::Open(folder.path()), StatusIs(absl::StatusCode::kNotFound));
}

// Every fp16 and bf16 number, at an odd address, against its definition sign * 2^e * 1.m.
TEST(WeightFilesTest, ConvertsEveryHalfPrecisionNumberExactly) {
  std::vector<uint16_t> bits(1 << 16);
  for (int i = 0; i < 1 << 16; ++i) bits[i] = static_cast<uint16_t>(i);
  const ScratchFolder folder;
  folder.Write("model.safetensors", SafetensorsBytes({{"a", "U8", {1}, "x"},
                                                      {"b", "F16", {1 << 16}, BytesOf(bits)},
                                                      {"c", "BF16", {1 << 16}, BytesOf(bits)}}));
  const auto weights = WeightFiles::Open(folder.path());
  ASSERT_THAT(weights, IsOk());
  ThreadPool pool(2);
  const auto fp16 = weights->Read("b", std::array<int64_t, 1>{1 << 16}, &pool);
  const auto bf16 = weights->Read("c", std::array<int64_t, 1>{1 << 16}, nullptr);
  ASSERT_THAT(fp16, IsOk());
  ASSERT_THAT(bf16, IsOk());
  for (int i = 0; i < 1 << 16; ++i) {
    const int exponent = i >> 10 & 31, mantissa = i & 1023;
    const double magnitude = exponent == 0    ? std::ldexp(mantissa, -24)
                             : exponent == 31 ? std::numeric_limits<double>::infinity()
                                              : std::ldexp(1024 + mantissa, exponent - 25);
    if (exponent == 31 && mantissa != 0) {
      EXPECT_TRUE(std::isnan((*fp16)[i])) << i;
    } else {
      EXPECT_EQ((*fp16)[i], i >> 15 ? -magnitude : magnitude) << i;
    }
    EXPECT_EQ(std::bit_cast<uint32_t>((*bf16)[i]), static_cast<uint32_t>(i) << 16);
  }
}

TEST(WeightFilesTest, ReadsShards) {
  const ScratchFolder folder;
  folder.Write("one.safetensors", SafetensorsBytes({Floats("a", {1, 2})}));
  folder.Write("two.safetensors", SafetensorsBytes({Floats("b", {3})}));
  folder.Write("model.safetensors.index.json",
               R"({"weight_map":{"a":"one.safetensors","b":"two.safetensors"}})");
  const auto weights = WeightFiles::Open(folder.path());
  ASSERT_THAT(weights, IsOk());
  EXPECT_TRUE(weights->Contains("a"));
  EXPECT_FALSE(weights->Contains("c"));
  EXPECT_THAT(weights->Read("a", std::array<int64_t, 1>{2}, nullptr),
              IsOkAndHolds(ElementsAre(1, 2)));
  EXPECT_THAT(weights->Read("b", std::array<int64_t, 1>{1}, nullptr), IsOkAndHolds(ElementsAre(3)));
}

TEST(WeightFilesTest, RefusesAnIndexThatLeavesTheDirectoryOrIsMalformed) {
  const ScratchFolder folder;
  for (const char* index :
       {"", "[]", "{}", R"({"weight_map":[]})", R"({"weight_map":{"a":3}})",
        R"({"weight_map":{"a":"../x.safetensors"}})", R"({"weight_map":{"a":"/x.safetensors"}})"}) {
    folder.Write("model.safetensors.index.json", index);
    EXPECT_THAT(WeightFiles::Open(folder.path()), StatusIs(absl::StatusCode::kDataLoss)) << index;
  }
  folder.Write("model.safetensors.index.json", R"({"weight_map":{"a":"absent.safetensors"}})");
  EXPECT_THAT(WeightFiles::Open(folder.path()),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("absent.safetensors")));
}

TEST(WeightFilesTest, RefusesATensorInTwoShards) {
  const ScratchFolder folder;
  folder.Write("one.safetensors", SafetensorsBytes({Floats("a", {1})}));
  folder.Write("two.safetensors", SafetensorsBytes({Floats("a", {1})}));
  folder.Write("model.safetensors.index.json",
               R"({"weight_map":{"a":"one.safetensors","b":"two.safetensors"}})");
  EXPECT_THAT(WeightFiles::Open(folder.path()),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("tensor a is in another file")));
}

TEST(WeightFilesTest, NamesTheTensorThatIsNotWhatWasAskedFor) {
  const ScratchFolder folder;
  folder.Write("model.safetensors",
               SafetensorsBytes({Floats("a", {1, 2}), {"i", "I32", {1}, "1234"}}));
  const auto weights = WeightFiles::Open(folder.path());
  ASSERT_THAT(weights, IsOk());
  EXPECT_THAT(weights->Read("b", std::array<int64_t, 1>{2}, nullptr),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("tensor b is missing")));
  EXPECT_THAT(weights->Read("a", std::array<int64_t, 2>{1, 2}, nullptr),
              StatusIs(absl::StatusCode::kDataLoss,
                       AllOf(HasSubstr("tensor a has shape [2]"), HasSubstr("[1, 2]"))));
  EXPECT_THAT(weights->Read("i", std::array<int64_t, 1>{1}, nullptr),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("dtype I32")));
}

TEST(WeightFilesTest, DigestsTheFilesInNameOrderThenTheSuffix) {
  const std::string one = SafetensorsBytes({Floats("a", {1})});
  const std::string two = SafetensorsBytes({Floats("b", {2})});
  const ScratchFolder folder;
  folder.Write("1.safetensors", one);
  folder.Write("2.safetensors", two);
  folder.Write("model.safetensors.index.json",
               R"({"weight_map":{"a":"2.safetensors","b":"1.safetensors"}})");
  const auto weights = WeightFiles::Open(folder.path());
  ASSERT_THAT(weights, IsOk());
  const std::string all = one + two + "suffix";
  EXPECT_EQ(weights->ComputeDigest("suffix"), Sha256({std::as_bytes(std::span(all))}));
  EXPECT_NE(weights->ComputeDigest("suffix"), weights->ComputeDigest(""));
}

}  // namespace
}  // namespace pkv
