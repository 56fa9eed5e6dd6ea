// Writes an object layer by layer while a second thread is still computing the later layers, then
// reads it layer by layer: layer 0 is used while the others are on their way.
//
//   layer_stream ADDRESS        for example: layer_stream 127.0.0.1:7440

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <future>
#include <iostream>
#include <string>
#include <thread>
#include <vector>

#include "pkv/block/object_builder.h"
#include "pkv/block/prefix_hash.h"
#include "pkv/client/cache_client.h"

namespace {

constexpr int kNumLayers = 24;
constexpr int kNumTokens = 100;

// The head of a window object: the fp16 tail of a prompt.
absl::StatusOr<pkv::ObjectBuilder> StartWindow() {
  pkv::ModelProfile profile;
  profile.shape = {.num_layers = kNumLayers, .num_kv_heads = 4, .head_dim = 64};
  const std::vector<int32_t> tokens(kNumTokens, 7);
  pkv::ObjectHeader header;
  header.kind = pkv::ObjectKind::kWindow;
  header.num_layers = kNumLayers;
  header.num_kv_heads = 4;
  header.head_dim = 64;
  header.num_tokens = kNumTokens;
  header.profile = profile.ComputeDigest();
  header.id = pkv::TailId(header.profile, pkv::Digest(), tokens);
  const absl::Status status = pkv::SetVariant({.name = "fp16", .params_digest = 0}, header);
  if (!status.ok()) return status;
  return pkv::ObjectBuilder::Make(header);
}

// Stands for the model: fills one layer with fp16 values between 1 and 2.
void ComputeLayer(int layer, std::span<std::byte> frame) {
  for (size_t i = 0; i + 1 < frame.size(); i += sizeof(uint16_t)) {
    const auto value = static_cast<uint16_t>(0x3c00 | ((i * 7 + layer) & 0x3ff));
    std::memcpy(frame.data() + i, &value, sizeof(value));
  }
}

// Layers are written as they are computed. Header and checksums exist at the end only, so they
// travel with the commit; nothing is visible before it.
absl::Status Write(pkv::CacheClient& client, pkv::ObjectBuilder& window) {
  const pkv::ObjectHeader& header = window.header();
  const pkv::ObjectDescriptor descriptor = {header.key(), header.num_layers,
                                            window.frame(0).size()};
  absl::StatusOr<std::unique_ptr<pkv::PutStream>> stream = client.StartPut({&descriptor, 1});
  if (!stream.ok()) return stream.status();

  std::vector<std::promise<void>> computed(kNumLayers);
  std::thread model([&] {
    for (int layer = 0; layer < kNumLayers; ++layer) {
      ComputeLayer(layer, window.frame(layer));
      computed[layer].set_value();
    }
  });
  absl::Status status;
  for (int layer = 0; layer < kNumLayers; ++layer) {
    computed[layer].get_future().wait();
    const std::span<const std::byte> frame = window.frame(layer);
    if (status.ok()) status = (*stream)->WriteLayer(layer, {&frame, 1});
  }
  model.join();
  if (status.ok()) status = window.Seal();
  if (status.ok()) status = (*stream)->Commit(0, window.head());
  const pkv::PutOutcome outcome = (*stream)->Finish()[0];
  if (!outcome.status.ok()) return outcome.status;
  std::cout << "written: " << kNumLayers << " layers, "
            << (outcome.stored ? "stored" : "were there already") << "\n";
  return status;
}

absl::Status Read(pkv::CacheClient& client, pkv::ObjectBuilder& window) {
  const pkv::ObjectKey key = window.header().key();
  const std::unique_ptr<pkv::GetStream> stream = client.StartGet({&key, 1});
  for (int layer = 0; layer < kNumLayers; ++layer) {
    if (absl::Status status = stream->WaitForLayer(layer); !status.ok()) return status;
    const std::span<const std::byte> got = stream->frame(0, layer);
    const std::span<const std::byte> sent = window.frame(layer);
    if (!std::equal(sent.begin(), sent.end(), got.begin(), got.end())) {
      return absl::DataLossError("fetched bytes differ from those written");
    }
  }
  std::cout << "read: " << kNumLayers << " equal layers, " << stream->received_bytes()
            << " bytes\n";
  return absl::OkStatus();
}

absl::Status WriteThenRead(const std::string& address) {
  pkv::ClientOptions options;
  options.address = address;
  absl::StatusOr<std::unique_ptr<pkv::CacheClient>> client = pkv::CacheClient::Create(options);
  if (!client.ok()) return client.status();
  absl::StatusOr<pkv::ObjectBuilder> window = StartWindow();
  if (!window.ok()) return window.status();
  if (absl::Status status = Write(**client, *window); !status.ok()) return status;
  return Read(**client, *window);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: layer_stream ADDRESS\n";
    return 2;
  }
  const absl::Status status = WriteThenRead(argv[1]);
  if (status.ok()) return 0;
  std::cerr << status << "\n";
  return 1;
}
