// A client process to be stopped or killed, over shm in the middle of a get or a put.
//
//   shm_holder get|put ADDRESS OBJECT_NUMBER NUM_LAYERS
// get: reads the first layer of an object in place, prints "holding", and holds it until it is told
// by CheckHeld() that it no longer does: then "lost: <status>" and exit code 3.
// put: writes the first layer of an object that nobody has, prints "holding", and waits for ever.

#include <poll.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>

#include "pkv/client/cache_client.h"
#include "tests/support/sealed_object.h"

namespace {

int Fail(const absl::Status& status) {
  std::fprintf(stderr, "%s\n", status.ToString().c_str());
  return 1;
}

void SayHolding() {
  std::printf("holding\n");
  std::fflush(stdout);
}

int HoldGet(pkv::CacheClient& client, const pkv::ObjectHeader& header) {
  const pkv::ObjectKey key = header.key();
  const std::unique_ptr<pkv::GetStream> stream = client.StartGet({&key, 1});
  absl::Status status = stream->WaitForLayer(0);
  if (!status.ok()) return Fail(status);
  SayHolding();
  while (status.ok()) {
    poll(nullptr, 0, /*timeout_ms=*/10);
    status = stream->CheckHeld();
  }
  std::printf("lost: %s\n", status.ToString().c_str());
  return absl::IsAborted(status) ? 3 : 1;
}

int HoldPut(pkv::CacheClient& client, const pkv::ObjectHeader& header) {
  const pkv::SealedObject object = pkv::SealTestObject(header, /*seed=*/1, /*random_bytes=*/4096);
  const pkv::ObjectDescriptor descriptor = {object.key(), header.num_layers,
                                            object.header.frame_bytes};
  const auto stream = client.StartPut({&descriptor, 1});
  if (!stream.ok()) return Fail(stream.status());
  const std::span<const std::byte> frame = object.frame(0);
  const absl::Status written = (*stream)->WriteLayer(0, {&frame, 1});
  if (!written.ok()) return Fail(written);
  SayHolding();
  for (;;) poll(nullptr, 0, /*timeout_ms=*/-1);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 5) return 2;
  pkv::ClientOptions options;
  options.address = argv[2];
  options.transport = pkv::Transport::kShm;
  const auto client = pkv::CacheClient::Create(options);
  if (!client.ok()) return Fail(client.status());
  pkv::ObjectHeader header = pkv::TestHeader(
      pkv::ObjectKind::kWindow, std::strtoull(argv[3], nullptr, 10), std::atoi(argv[4]));
  header.num_tokens = pkv::kMaxWindowTokens;
  return std::string(argv[1]) == "put" ? HoldPut(**client, header) : HoldGet(**client, header);
}
