#include "kernels/codec/float16_rows.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <vector>

#include "tests/support/simd_targets.h"

namespace pkv {
namespace {

std::vector<Float16Bits> AllNumbers() {
  std::vector<Float16Bits> all;
  for (int bits = 0; bits < 0x10000; ++bits) all.push_back(static_cast<Float16Bits>(bits));
  return all;
}

TEST(Float16RowsTest, EveryNumberIsConvertedExactly) {
  const std::vector<Float16Bits> all = AllNumbers();
  ForEachSimdTarget([&] {
    std::vector<float> out(all.size());
    ConvertToFloat(all.data(), static_cast<int>(all.size()), out.data());
    for (size_t i = 0; i < all.size(); ++i) {
      const float want = Float16ToFloat(all[i]);
      ASSERT_EQ(std::isnan(out[i]), std::isnan(want)) << i;
      if (std::isnan(want)) continue;
      ASSERT_EQ(std::bit_cast<uint32_t>(out[i]), std::bit_cast<uint32_t>(want)) << i;
    }
  });
}

TEST(Float16RowsTest, AnyCountIsConvertedAndNoMore) {
  const std::vector<Float16Bits> all = AllNumbers();
  ForEachSimdTarget([&] {
    for (int count = 0; count <= 40; ++count) {
      std::vector<float> out(41, -1.0f), difference = out;
      ConvertToFloat(all.data() + 0x3c01, count, out.data());
      Subtract(all.data() + 0x3c01, all.data() + 0x2123, count, difference.data());
      for (int i = 0; i < count; ++i) {
        ASSERT_EQ(out[i], Float16ToFloat(all[0x3c01 + i]));
        ASSERT_EQ(difference[i], out[i] - Float16ToFloat(all[0x2123 + i]));
      }
      ASSERT_EQ(out[count], -1.0f);
      ASSERT_EQ(difference[count], -1.0f);
    }
  });
}

}  // namespace
}  // namespace pkv
