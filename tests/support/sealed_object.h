#ifndef PKV_TESTS_SUPPORT_SEALED_OBJECT_H_
#define PKV_TESTS_SUPPORT_SEALED_OBJECT_H_

// Sealed objects with seeded content, for tests of what stores and carries them.

#include <cstddef>
#include <cstdint>
#include <random>
#include <span>
#include <utility>

#include "pkv/block/aligned_buffer.h"
#include "pkv/block/object_builder.h"
#include "pkv/block/object_header.h"
#include "proto/base/log.h"

namespace pkv {

// A digest that tells tests apart which object it names; never zero.
inline Digest TestDigest(uint64_t number) { return Sha256({std::as_bytes(std::span(&number, 1))}); }

struct SealedObject {
  ObjectHeader header;
  AlignedBuffer buffer;

  ObjectKey key() const { return header.key(); }
  std::span<const std::byte> bytes() const { return buffer.span(); }
  std::span<const std::byte> head() const { return bytes().first(FramesOffset(header.num_layers)); }
  std::span<const std::byte> frame(int layer) const {
    return bytes().subspan(FramesOffset(header.num_layers) + layer * header.frame_bytes,
                           header.frame_bytes);
  }
};

inline ObjectHeader TestHeader(ObjectKind kind, uint64_t id, int num_layers) {
  ObjectHeader header;
  header.kind = kind;
  header.num_layers = static_cast<uint16_t>(num_layers);
  header.num_kv_heads = 1;
  header.head_dim = 64;
  header.profile = TestDigest(1);
  header.id = TestDigest(id);
  PKV_CHECK(SetVariant({"test", 7}, header).ok());
  return header;
}

// Fills the first `random_bytes` of every frame with finite fp16 values, which are codes as well.
inline SealedObject SealTestObject(const ObjectHeader& header, uint32_t seed,
                                   uint64_t random_bytes) {
  absl::StatusOr<ObjectBuilder> builder = ObjectBuilder::Make(header);
  PKV_CHECK(builder.ok(), builder.status().ToString());
  std::mt19937 random(seed);
  for (int layer = 0; layer < header.num_layers; ++layer) {
    const std::span<std::byte> frame = builder->frame(layer);
    for (uint64_t i = 0; i < random_bytes && i < frame.size(); ++i) {
      frame[i] = static_cast<std::byte>(random() & 0x3f);
    }
  }
  const absl::Status sealed = builder->Seal();
  PKV_CHECK(sealed.ok(), sealed.ToString());
  const ObjectHeader made = builder->header();
  return {made, builder->TakeBuffer()};
}

// A window of fp16 rows: frames of 256 bytes a token. The smallest objects there are.
inline SealedObject MakeTestWindow(uint64_t id, uint32_t seed, int num_tokens = 1,
                                   int num_layers = 2) {
  ObjectHeader header = TestHeader(ObjectKind::kWindow, id, num_layers);
  header.num_tokens = static_cast<uint16_t>(num_tokens);
  return SealTestObject(header, seed, uint64_t{256} * num_tokens);
}

inline SealedObject MakeTestTable(uint32_t seed, int num_layers = 2) {
  ObjectHeader header = TestHeader(ObjectKind::kTable, 1, num_layers);
  header.num_patterns_k = header.num_patterns_v = 2;
  return SealTestObject(header, seed, 512);
}

// The first block of a sequence, 2-bit codes; with patterns when `table` is not zero.
inline SealedObject MakeTestBlock(uint64_t id, uint32_t seed, const Digest& table = {},
                                  int num_layers = 2) {
  ObjectHeader header = TestHeader(ObjectKind::kBlock, id, num_layers);
  header.bits_k = header.bits_v = 2;
  header.k_group_tokens = 128;
  header.v_group_channels = 64;
  header.num_tokens = kBlockTokens;
  if (!table.IsZero()) {
    header.flags = kFlagHasPatterns;
    header.num_patterns_k = header.num_patterns_v = 2;
    header.table = table;
  }
  // K and V codes: 128 tokens * 64 channels * 2 bits, twice.
  return SealTestObject(header, seed, 4096);
}

}  // namespace pkv

#endif  // PKV_TESTS_SUPPORT_SEALED_OBJECT_H_
