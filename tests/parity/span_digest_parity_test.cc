// Copies and CRC-32C digests of spans on the device against the CPU: equal bytes, equal digests.
#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <span>
#include <vector>

#include "kernels/device/device_buffer.h"
#include "proto/base/checksum.h"
#include "proto/transport/nccl/span_kernels.h"
#include "tests/support/cuda_fixture.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

constexpr uint32_t kSeed = 14;

// `begin` and `bytes`, multiples of 16, in a buffer.
struct Range {
  uint64_t begin = 0, bytes = 0;
};

class SpanDigestParityTest : public CudaTest {
 protected:
  std::vector<std::byte> RandomBytes(size_t size) {
    std::mt19937 random(kSeed);
    std::vector<std::byte> bytes(size);
    for (size_t i = 0; i + 4 <= size; i += 4) {
      const uint32_t word = random();
      std::memcpy(bytes.data() + i, &word, 4);
    }
    return bytes;
  }

  template <typename T>
  DeviceBuffer OnDevice(const std::vector<T>& values) {
    auto buffer = DeviceBuffer::CopyOf(std::as_bytes(std::span(values)), stream());
    EXPECT_THAT(buffer, IsOk());
    return *std::move(buffer);
  }
  template <typename T>
  void ToHost(const DeviceBuffer& buffer, std::vector<T>& values) {
    EXPECT_THAT(buffer.CopyToHost(std::as_writable_bytes(std::span(values))), IsOk());
  }

  std::vector<uint32_t> Digests(std::byte* data, const std::vector<Range>& ranges,
                                uint64_t item_bytes, int max_ctas = 0) {
    DigestItemCutter cutter(item_bytes);
    std::vector<DigestItem> items;
    std::vector<uint32_t> digests;
    for (const Range& range : ranges) {
      digests.push_back(cutter.Append({data + range.begin, range.bytes},
                                      static_cast<uint32_t>(digests.size()), items));
    }
    const DeviceBuffer device_items = OnDevice(items);
    DeviceBuffer device_digests = OnDevice(digests);
    EXPECT_EQ(LaunchDigestItems(reinterpret_cast<const DigestItem*>(device_items.data()),
                                static_cast<uint32_t>(items.size()), device_digests.As<uint32_t>(),
                                max_ctas, stream()),
              cudaSuccess);
    ToHost(device_digests, digests);
    return digests;
  }
};

TEST_F(SpanDigestParityTest, DigestsAreTheHostsChecksumsAtEveryLength) {
  SCOPED_TRACE(kSeed);
  const std::vector<std::byte> bytes = RandomBytes(1 << 20);
  DeviceBuffer device = OnDevice(bytes);
  std::vector<Range> ranges;
  // Up to two items and some rows; then pages, frames with sinks, and more.
  for (uint64_t length = 16; length <= 40'000; length += 16) {
    ranges.push_back({(length * 7) % 60'000 / 16 * 16, length});
  }
  for (const uint64_t length : {79'872, 81'920, 262'144, 524'272, 1'048'576}) {
    ranges.push_back({0, length});
  }
  for (const uint64_t item_bytes : {kDigestRowBytes, kDigestItemBytes, 4 * kDigestItemBytes}) {
    const std::vector<uint32_t> digests = Digests(device.data(), ranges, item_bytes);
    for (size_t i = 0; i < ranges.size(); ++i) {
      const auto range = std::span(bytes).subspan(ranges[i].begin, ranges[i].bytes);
      ASSERT_EQ(digests[i], Crc32c(range)) << ranges[i].bytes << " bytes, items " << item_bytes;
    }
  }
}

// What a receiver does with a group: parts of spans go to their places, and their digests add up.
TEST_F(SpanDigestParityTest, CopiesPartsToTheirPlacesAndTakesTheirDigestsOnTheWay) {
  SCOPED_TRACE(kSeed);
  const std::vector<std::byte> bytes = RandomBytes(1 << 20);
  const std::vector<std::byte> blank(bytes.size() + 64, std::byte{0xee});
  DeviceBuffer from = OnDevice(bytes);
  for (const uint64_t item_bytes : {kDigestRowBytes, kDigestItemBytes}) {
    for (const int max_ctas : {0, 5}) {
      DeviceBuffer to = OnDevice(blank);
      std::vector<std::byte> expected = blank;
      DigestItemCutter cutter(item_bytes);
      std::vector<DigestItem> items;
      std::vector<uint32_t> digests, checksums;
      for (uint64_t at = 0, length = 16, round = 0; at + length <= bytes.size();
           at += length, length = length * 5 / 3 % 90'000 / 16 * 16 + 16, ++round) {
        // Every other is only digested; parts are cut off at the front.
        const uint64_t cut = length / 3 / 16 * 16;
        const uint64_t place = at + 16 * (round % 3);
        std::byte* const target = round % 2 == 0 ? to.data() + place : nullptr;
        const auto index = static_cast<uint32_t>(digests.size());
        if (cut > 0) cutter.AppendPart({from.data() + at, cut}, length - cut, target, index, items);
        cutter.AppendPart({from.data() + at + cut, length - cut}, 0,
                          target == nullptr ? nullptr : target + cut, index + 1, items);
        digests.insert(digests.end(), {cutter.SeedOf(length), 0});
        checksums.push_back(Crc32c(std::span(bytes).subspan(at, length)));
        if (target != nullptr) {
          std::memcpy(expected.data() + place, bytes.data() + at, length);
        }
      }
      ASSERT_GT(checksums.size(), 10u);
      const DeviceBuffer device_items = OnDevice(items);
      DeviceBuffer device_digests = OnDevice(digests);
      ASSERT_EQ(LaunchDigestItems(reinterpret_cast<const DigestItem*>(device_items.data()),
                                  static_cast<uint32_t>(items.size()),
                                  device_digests.As<uint32_t>(), max_ctas, stream()),
                cudaSuccess);
      ToHost(device_digests, digests);
      std::vector<std::byte> got(blank.size());
      ToHost(to, got);
      EXPECT_TRUE(got == expected);
      for (size_t i = 0; i < checksums.size(); ++i) {
        ASSERT_EQ(digests[2 * i] ^ digests[2 * i + 1], checksums[i]) << i;
      }
    }
  }
}

TEST_F(SpanDigestParityTest, FewCtasTakeManyItemsInTurns) {
  const std::vector<std::byte> bytes = RandomBytes(1 << 20);
  DeviceBuffer device = OnDevice(bytes);
  EXPECT_EQ(Digests(device.data(), {{0, bytes.size()}}, kDigestRowBytes, 3)[0], Crc32c(bytes));
}

TEST_F(SpanDigestParityTest, ADigestChangesWithAnyBit) {
  std::vector<std::byte> bytes = RandomBytes(80'000);
  const std::vector<Range> whole = {{0, bytes.size()}};
  DeviceBuffer device = OnDevice(bytes);
  const uint32_t before = Digests(device.data(), whole, kDigestItemBytes)[0];
  std::mt19937 random(kSeed);
  for (int i = 0; i < 200; ++i) {
    const size_t bit = random() % (8 * bytes.size());
    bytes[bit / 8] ^= std::byte{1} << (bit % 8);
    DeviceBuffer changed = OnDevice(bytes);
    ASSERT_NE(Digests(changed.data(), whole, kDigestItemBytes)[0], before) << bit;
    bytes[bit / 8] ^= std::byte{1} << (bit % 8);
  }
}

TEST_F(SpanDigestParityTest, CopiesEveryByteAndNoOther) {
  const std::vector<std::byte> bytes = RandomBytes(1 << 20);
  const std::vector<std::byte> blank(bytes.size(), std::byte{0xee});
  DeviceBuffer from = OnDevice(bytes), to = OnDevice(blank);
  std::vector<std::byte> expected = blank;
  std::vector<CopyItem> items;
  uint64_t at = 0;
  for (uint64_t length = 16; at + length <= bytes.size() && length <= kCopyItemBytes;
       at += length + 16, length = length * 5 / 3 / 16 * 16 + 16) {
    const uint64_t target = bytes.size() - at - length;
    items.push_back({from.data() + at, to.data() + target, length});
    std::memcpy(expected.data() + target, bytes.data() + at, length);
  }
  ASSERT_GT(items.size(), 10u);
  const DeviceBuffer device_items = OnDevice(items);
  ASSERT_EQ(LaunchCopyItems(reinterpret_cast<const CopyItem*>(device_items.data()),
                            static_cast<uint32_t>(items.size()), 3, stream()),
            cudaSuccess);
  std::vector<std::byte> got(bytes.size());
  ToHost(to, got);
  EXPECT_EQ(got, expected);
}

TEST_F(SpanDigestParityTest, NoItemsAreNoLaunch) {
  EXPECT_EQ(LoadSpanKernels(), cudaSuccess);
  EXPECT_EQ(LaunchCopyItems(nullptr, 0, 0, stream()), cudaSuccess);
  EXPECT_EQ(LaunchDigestItems(nullptr, 0, nullptr, 0, stream()), cudaSuccess);
}

// Every rule, over random words: flags of frames with a wrong number, and of none other.
TEST_F(SpanDigestParityTest, NumbersAreFoundWrongAsOnTheHost) {
  SCOPED_TRACE(kSeed);
  constexpr uint64_t kFrameBytes = 4096;
  constexpr uint32_t kFrames = 300;
  std::vector<FrameRules> rules(3);
  for (uint32_t i = 0; i < 3; ++i) {
    rules[i].num_sections = 2;
    // So few numbers a frame that some are sound: an fp16 is not finite one time in 32, no scale
    // two times in three, an id beyond a bank of 250 one time in 50.
    const uint32_t bytes = i == 1 ? 16 : 32;
    rules[i].sections[0] = {16, 256, 1, bytes, static_cast<NumberRule>(i), 250};
    rules[i].sections[1] = {1024, 512, i == 1 ? 0u : 1u, bytes, static_cast<NumberRule>(i), 250};
  }
  std::vector<std::byte> bytes = RandomBytes(kFrames * kFrameBytes);
  // Scales that are sound, but for some.
  for (uint32_t f = 1; f < kFrames; f += 3) {
    for (int i = 0; i < 16; ++i) bytes[f * kFrameBytes + 16 + i] &= std::byte{f % 2 ? 0x1f : 0x7f};
    for (int i = 1; i < 16; i += 2) bytes[f * kFrameBytes + 16 + i] |= std::byte{0x10};
  }
  DeviceBuffer device = OnDevice(bytes);
  std::vector<CheckItem> host_items, items;
  for (uint32_t f = 0; f < kFrames; ++f) {
    host_items.push_back({bytes.data() + f * kFrameBytes, f % 3, f});
    items.push_back({device.data() + f * kFrameBytes, f % 3, f});
  }
  std::vector<uint32_t> expected(kFrames), flags(kFrames);
  CheckOnCpu(host_items, rules, expected);
  for (const int max_ctas : {0, 7}) {
    std::fill(flags.begin(), flags.end(), 0);
    const DeviceBuffer device_items = OnDevice(items), device_rules = OnDevice(rules);
    DeviceBuffer device_flags = OnDevice(flags);
    ASSERT_EQ(LaunchCheckItems(reinterpret_cast<const CheckItem*>(device_items.data()), kFrames,
                               reinterpret_cast<const FrameRules*>(device_rules.data()),
                               device_flags.As<uint32_t>(), max_ctas, stream()),
              cudaSuccess);
    ToHost(device_flags, flags);
    EXPECT_EQ(flags, expected);
  }
  for (uint32_t rule = 0; rule < 3; ++rule) {
    int num_bad = 0;
    for (uint32_t f = rule; f < kFrames; f += 3) num_bad += static_cast<int>(expected[f]);
    EXPECT_GT(num_bad, 10) << rule;
    EXPECT_LT(num_bad, 90) << rule;
  }
}

// A frame that many CTAs share: each of its numbers is looked at by one.
TEST_F(SpanDigestParityTest, ChecksEveryNumberOfALargeFrame) {
  FrameRules rules;
  rules.num_sections = 1;
  rules.sections[0] = {32, 70'016, 3, 70'000, NumberRule::kFinite, 0};
  const uint32_t frame_bytes = 32 + 3 * 70'016;
  std::vector<std::byte> bytes(frame_bytes);
  std::vector<CheckItem> items;
  constexpr uint32_t kSeed = 5;
  std::mt19937 random(kSeed);
  for (int round = 0; round < 40; ++round) {
    const uint32_t at = 32 + round % 3 * 70'016 + random() % 35'000 * 2;
    bytes[at + 1] = std::byte{0x7c};  // infinite
    const DeviceBuffer device = OnDevice(bytes);
    items.clear();
    AppendCheckItems(device.data(), rules, 0, 0, items);
    ASSERT_GT(items.size(), 5u);
    const std::vector<FrameRules> all = {rules};
    const DeviceBuffer device_items = OnDevice(items), device_rules = OnDevice(all);
    std::vector<uint32_t> flags(1);
    DeviceBuffer device_flags = OnDevice(flags);
    ASSERT_EQ(LaunchCheckItems(reinterpret_cast<const CheckItem*>(device_items.data()),
                               static_cast<uint32_t>(items.size()),
                               reinterpret_cast<const FrameRules*>(device_rules.data()),
                               device_flags.As<uint32_t>(), 0, stream()),
              cudaSuccess);
    ToHost(device_flags, flags);
    EXPECT_EQ(flags[0], 1u) << "seed " << kSeed << " byte " << at;
    bytes[at + 1] = std::byte{0};
  }
}

}  // namespace
}  // namespace pkv
