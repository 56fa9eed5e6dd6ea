#include "proto/transport/nccl/span_digest.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <vector>

#include "proto/base/checksum.h"

namespace pkv {
namespace {

constexpr uint32_t kSeed = 12;

struct alignas(16) Vector {
  uint32_t words[4];
};

std::vector<Vector> RandomVectors(size_t count) {
  std::mt19937 random(kSeed);
  std::vector<Vector> vectors(count);
  for (Vector& vector : vectors) {
    for (uint32_t& word : vector.words) word = random();
  }
  return vectors;
}

DeviceSpan SpanOf(std::vector<Vector>& vectors, size_t first, size_t count) {
  return {reinterpret_cast<std::byte*>(vectors.data() + first), count * sizeof(Vector)};
}

std::vector<uint32_t> Digests(const std::vector<DeviceSpan>& spans, uint64_t item_bytes) {
  DigestItemCutter cutter(item_bytes);
  std::vector<DigestItem> items;
  std::vector<uint32_t> digests;
  for (const DeviceSpan& span : spans) {
    digests.push_back(cutter.Append(span, static_cast<uint32_t>(digests.size()), items));
  }
  DigestOnCpu(items, digests);
  return digests;
}

TEST(SpanDigestTest, IsTheChecksumOfTheHostAtEveryLength) {
  SCOPED_TRACE(kSeed);
  std::vector<Vector> vectors = RandomVectors(400);
  for (size_t count = 0; count <= vectors.size(); ++count) {
    const DeviceSpan span = SpanOf(vectors, vectors.size() - count, count);
    const uint32_t expected = Crc32c(std::span(span.data, span.bytes));
    ASSERT_EQ(Digests({span}, kDigestRowBytes), std::vector{expected}) << count;
    ASSERT_EQ(Digests({span}, 4 * kDigestRowBytes), std::vector{expected}) << count;
  }
}

TEST(SpanDigestTest, SpansOfDifferentLengthsKeepApart) {
  std::vector<Vector> vectors = RandomVectors(20000);
  std::vector<DeviceSpan> spans;
  std::vector<uint32_t> expected;
  for (size_t first = 0, count = 1; first + count <= vectors.size(); first += count, count *= 3) {
    spans.push_back(SpanOf(vectors, first, count));
    expected.push_back(Crc32c(std::span(spans.back().data, spans.back().bytes)));
  }
  ASSERT_GT(spans.size(), 8u);
  EXPECT_EQ(Digests(spans, kDigestItemBytes), expected);
}

TEST(SpanDigestTest, ChangesWithEveryBit) {
  std::vector<Vector> vectors = RandomVectors(40);
  const DeviceSpan span = SpanOf(vectors, 0, vectors.size());
  const std::vector<uint32_t> before = Digests({span}, kDigestRowBytes);
  for (uint64_t bit = 0; bit < 8 * span.bytes; ++bit) {
    span.data[bit / 8] ^= std::byte{1} << (bit % 8);
    ASSERT_NE(Digests({span}, kDigestRowBytes), before) << bit;
    span.data[bit / 8] ^= std::byte{1} << (bit % 8);
  }
}

TEST(SpanDigestTest, ItemsCoverASpanOnceAndOnlyTheFirstIsShort) {
  std::vector<Vector> vectors = RandomVectors(3333);
  const DeviceSpan span = SpanOf(vectors, 0, vectors.size());
  DigestItemCutter cutter;
  std::vector<DigestItem> items;
  cutter.Append(span, 7, items);
  std::byte* end = span.data + span.bytes;
  for (const DigestItem& item : items) {  // from the end
    end -= item.bytes;
    EXPECT_EQ(item.data, end);
    EXPECT_EQ(item.digest_index, 7u);
    if (&item != &items.back()) {
      EXPECT_EQ(item.bytes, kDigestItemBytes);
    }
  }
  EXPECT_EQ(end, span.data);
}

TEST(SpanDigestTest, PartsOfASpanAddUpToItsDigestWhereverItIsCut) {
  std::vector<Vector> vectors = RandomVectors(300);
  const DeviceSpan span = SpanOf(vectors, 0, vectors.size());
  const uint32_t expected = Crc32c(std::span(span.data, span.bytes));
  DigestItemCutter cutter(kDigestRowBytes);
  for (size_t first = 1; first < vectors.size(); ++first) {
    for (const size_t second : {size_t{0}, (vectors.size() - first) / 3}) {
      std::vector<DigestItem> items;
      uint32_t index = 0;
      uint64_t begin = 0;
      for (const size_t count : {first, second, vectors.size() - first - second}) {
        const DeviceSpan part = {span.data + begin, count * sizeof(Vector)};
        begin += part.bytes;
        cutter.AppendPart(part, span.bytes - begin, nullptr, index++, items);
      }
      std::vector<uint32_t> digests = {cutter.SeedOf(span.bytes), 0, 0};
      DigestOnCpu(items, digests);
      ASSERT_EQ(digests[0] ^ digests[1] ^ digests[2], expected) << first << " " << second;
    }
  }
}

TEST(SpanDigestTest, CopiesEveryByteOfAPartToItsPlaceAndNoOther) {
  std::vector<Vector> vectors = RandomVectors(3333);
  const DeviceSpan span = SpanOf(vectors, 3, 3300);
  std::vector<Vector> place(3400), before = place;
  std::byte* const to = reinterpret_cast<std::byte*>(place.data() + 50);
  std::vector<DigestItem> items;
  DigestItemCutter cutter;
  cutter.AppendPart(span, 160, to, 0, items);
  std::vector<uint32_t> digests = {0};
  DigestOnCpu(items, digests);
  EXPECT_EQ(std::memcmp(to, span.data, span.bytes), 0);
  std::memset(to, 0, span.bytes);
  EXPECT_EQ(std::memcmp(place.data(), before.data(), place.size() * sizeof(Vector)), 0);
}

}  // namespace
}  // namespace pkv
