#include "proto/transport/nccl/span_digest.h"

#include <algorithm>
#include <array>
#include <cstring>

namespace pkv {
namespace {

constexpr DigestTables kTables;

// M x^32 mod P of the item's bytes.
uint32_t ItemPart(const DigestItem& item) {
  const int64_t rows = static_cast<int64_t>((item.bytes + kDigestRowBytes - 1) / kDigestRowBytes);
  const int64_t begin = static_cast<int64_t>(item.bytes) - rows * kDigestRowBytes;  // <= 0
  uint32_t sum = 0;
  for (int thread = 0; thread < 32; ++thread) {
    std::array<uint32_t, 4> state = {};
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t offset = begin + row * static_cast<int64_t>(kDigestRowBytes) + 16 * thread;
      std::array<uint32_t, 4> words = {};
      if (offset >= 0) std::memcpy(words.data(), item.data + offset, sizeof(words));
      for (int c = 0; c < 4; ++c) state[c] = kTables.row.Times(state[c]) ^ words[c];
    }
    uint32_t folded = state[0];
    for (int c = 1; c < 4; ++c) folded = kTables.word.Times(folded) ^ state[c];
    sum ^= Crc32cMultiply(folded, kTables.thread_shift[thread]);
  }
  return sum;
}

}  // namespace

uint32_t DigestSeed(uint64_t bytes) {
  return ~Crc32cMultiply(0xffffffffu, Crc32cPowerOfX(8 * bytes));
}

DigestItemCutter::DigestItemCutter(uint64_t item_bytes)
    : item_bytes_(item_bytes), shifts_({kCrc32cOne}), seed_(DigestSeed(0)) {}

uint32_t DigestItemCutter::SeedOf(uint64_t bytes) {
  if (bytes != seeded_bytes_) {
    seed_ = DigestSeed(bytes);
    seeded_bytes_ = bytes;
  }
  return seed_;
}

uint32_t DigestItemCutter::Append(const DeviceSpan& span, uint32_t digest_index,
                                  std::vector<DigestItem>& items) {
  AppendPart(span, 0, nullptr, digest_index, items);
  return SeedOf(span.bytes);
}

void DigestItemCutter::AppendPart(const DeviceSpan& part, uint64_t bytes_after, std::byte* to,
                                  uint32_t digest_index, std::vector<DigestItem>& items) {
  const uint64_t num_items = (part.bytes + item_bytes_ - 1) / item_bytes_;
  while (shifts_.size() < num_items) {
    shifts_.push_back(Crc32cMultiply(shifts_.back(), Crc32cPowerOfX(8 * item_bytes_)));
  }
  const uint32_t after = bytes_after == 0 ? kCrc32cOne : Crc32cPowerOfX(8 * bytes_after);
  // From the end, where every item is full.
  uint64_t end = part.bytes;
  for (uint64_t i = 0; i < num_items; ++i) {
    const uint64_t bytes = std::min(end, item_bytes_);
    end -= bytes;
    items.push_back({.data = part.data + end,
                     .to = to == nullptr ? nullptr : to + end,
                     .bytes = static_cast<uint32_t>(bytes),
                     .shift = bytes_after == 0 ? shifts_[i] : Crc32cMultiply(shifts_[i], after),
                     .digest_index = digest_index});
  }
}

void DigestOnCpu(std::span<const DigestItem> items, std::span<uint32_t> digests) {
  for (const DigestItem& item : items) {
    if (item.to != nullptr) std::memcpy(item.to, item.data, item.bytes);
    digests[item.digest_index] ^= Crc32cMultiply(ItemPart(item), item.shift);
  }
}

}  // namespace pkv
