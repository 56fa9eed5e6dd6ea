#include "pkv/block/aligned_buffer.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace pkv {
namespace {

TEST(AlignedBufferTest, IsAlignedAndZeroAtEverySize) {
  for (const size_t size : {1, 127, 128, 129, 4096, 100'000}) {
    AlignedBuffer buffer(size);
    ASSERT_EQ(buffer.size(), size);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % kFrameAlignment, 0u);
    EXPECT_EQ(std::count(buffer.span().begin(), buffer.span().end(), std::byte{0}),
              static_cast<std::ptrdiff_t>(size));
    // The whole of it is ours to write; sanitizers see when it is not.
    std::fill(buffer.span().begin(), buffer.span().end(), std::byte{0xff});
  }
}

TEST(AlignedBufferTest, ForOverwriteIsAlignedToo) {
  AlignedBuffer buffer = AlignedBuffer::ForOverwrite(1000);
  ASSERT_EQ(buffer.size(), 1000u);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % kFrameAlignment, 0u);
  std::fill(buffer.span().begin(), buffer.span().end(), std::byte{0xff});
  EXPECT_TRUE(AlignedBuffer::ForOverwrite(0).span().empty());
}

TEST(AlignedBufferTest, OfNoBytesIsEmpty) {
  EXPECT_TRUE(AlignedBuffer().span().empty());
  EXPECT_TRUE(AlignedBuffer(0).span().empty());
}

TEST(AlignedBufferTest, MovesItsBytesAndIsEmptyAfterwards) {
  AlignedBuffer first(256);
  first.data()[3] = std::byte{7};
  const std::byte* const data = first.data();
  AlignedBuffer second(std::move(first));
  EXPECT_EQ(second.data(), data);
  EXPECT_EQ(second.size(), 256u);
  EXPECT_EQ(first.data(), nullptr);  // NOLINT(bugprone-use-after-move): what is tested
  EXPECT_EQ(first.size(), 0u);
  AlignedBuffer third(8);
  third = std::move(second);
  EXPECT_EQ(third.data()[3], std::byte{7});
  EXPECT_TRUE(second.span().empty());  // NOLINT(bugprone-use-after-move)
}

}  // namespace
}  // namespace pkv
