// Stores one block, finds it by its tokens, fetches it and compares every byte.
//
//   put_get ADDRESS        for example: put_get 127.0.0.1:7440

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <iostream>
#include <numeric>
#include <string>
#include <vector>

#include "pkv/block/object_builder.h"
#include "pkv/block/prefix_hash.h"
#include "pkv/client/cache_client.h"

namespace {

// A small model: 4 layers of 2 kv heads of 64 channels.
pkv::ModelProfile ExampleProfile() {
  pkv::ModelProfile profile;
  profile.shape = {.num_layers = 4, .num_kv_heads = 2, .head_dim = 64};
  profile.rope_theta = 10000;
  return profile;
}

// The uncompressed block of 128 tokens whose prefix id is `id`. A worker fills the frames with what
// the model computed; here every value is an fp16 between 1 and 2.
absl::StatusOr<pkv::ObjectBuilder> MakeBlock(const pkv::ModelProfile& profile,
                                             const pkv::Digest& id, const pkv::Variant& variant) {
  pkv::ObjectHeader header;
  header.kind = pkv::ObjectKind::kBlock;
  header.num_layers = static_cast<uint16_t>(profile.shape.num_layers);
  header.num_kv_heads = static_cast<uint16_t>(profile.shape.num_kv_heads);
  header.head_dim = static_cast<uint16_t>(profile.shape.head_dim);
  header.num_tokens = pkv::kBlockTokens;
  header.profile = profile.ComputeDigest();
  header.id = id;
  if (absl::Status status = pkv::SetVariant(variant, header); !status.ok()) return status;
  absl::StatusOr<pkv::ObjectBuilder> builder = pkv::ObjectBuilder::Make(header);
  if (!builder.ok()) return builder.status();
  for (int layer = 0; layer < profile.shape.num_layers; ++layer) {
    const std::span<std::byte> frame = builder->frame(layer);
    for (size_t i = 0; i + 1 < frame.size(); i += sizeof(uint16_t)) {
      const auto value = static_cast<uint16_t>(0x3c00 | ((i * 31 + layer) & 0x3ff));
      std::memcpy(frame.data() + i, &value, sizeof(value));
    }
  }
  if (absl::Status status = builder->Seal(); !status.ok()) return status;
  return builder;
}

absl::Status PutThenGet(const std::string& address) {
  pkv::ClientOptions options;
  options.address = address;
  absl::StatusOr<std::unique_ptr<pkv::CacheClient>> created = pkv::CacheClient::Create(options);
  if (!created.ok()) return created.status();
  pkv::CacheClient& client = **created;

  const pkv::ModelProfile profile = ExampleProfile();
  std::vector<int32_t> tokens(pkv::kBlockTokens);
  std::iota(tokens.begin(), tokens.end(), 1000);
  const std::vector<pkv::Digest> ids = pkv::PrefixIds(profile.ComputeDigest(), tokens);
  const pkv::Variant variant = {.name = "fp16", .params_digest = 0};
  const absl::StatusOr<pkv::ObjectBuilder> block = MakeBlock(profile, ids[0], variant);
  if (!block.ok()) return block.status();

  const std::span<const std::byte> bytes = block->bytes();
  const pkv::PutOutcome outcome = client.Put({&bytes, 1})[0];
  if (!outcome.status.ok()) return outcome.status;
  std::cout << "put: " << bytes.size() << " bytes, "
            << (outcome.stored ? "stored" : "were there already") << "\n";

  const absl::StatusOr<pkv::LookupResult> found = client.Lookup(ids, {&variant, 1});
  if (!found.ok()) return found.status();
  std::cout << "lookup: " << found->num_blocks << " block, " << found->bytes << " bytes\n";

  const pkv::ObjectKey key = {pkv::ObjectKind::kBlock, ids[0], variant};
  const absl::StatusOr<std::vector<pkv::AlignedBuffer>> fetched = client.Get({&key, 1});
  if (!fetched.ok()) return fetched.status();
  const std::span<const std::byte> got = fetched->front().span();
  if (!std::equal(bytes.begin(), bytes.end(), got.begin(), got.end())) {
    return absl::DataLossError("fetched bytes differ from those put");
  }
  std::cout << "get: " << got.size() << " equal bytes\n";
  return absl::OkStatus();
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: put_get ADDRESS\n";
    return 2;
  }
  const absl::Status status = PutThenGet(argv[1]);
  if (status.ok()) return 0;
  std::cerr << status << "\n";
  return 1;
}
