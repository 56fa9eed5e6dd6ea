// A client process to be stopped or killed: reads the first layer of an object in place, says so,
// and holds it until it is told by CheckHeld() that it no longer does.
//
//   shm_holder ADDRESS OBJECT_NUMBER NUM_LAYERS
// prints "holding", later "lost: <status>" and ends with exit code 3.

#include <poll.h>

#include <cstdio>
#include <cstdlib>
#include <memory>

#include "pkv/client/cache_client.h"
#include "tests/support/sealed_object.h"

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  pkv::ClientOptions options;
  options.address = argv[1];
  options.transport = pkv::Transport::kShm;
  const auto client = pkv::CacheClient::Create(options);
  if (!client.ok()) return 1;
  const pkv::ObjectKey key =
      pkv::TestHeader(pkv::ObjectKind::kWindow, std::strtoull(argv[2], nullptr, 10),
                      std::atoi(argv[3]))
          .key();
  const std::unique_ptr<pkv::GetStream> stream = (*client)->StartGet({&key, 1});
  absl::Status status = stream->WaitForLayer(0);
  if (!status.ok()) {
    std::fprintf(stderr, "%s\n", status.ToString().c_str());
    return 1;
  }
  std::printf("holding\n");
  std::fflush(stdout);
  while (status.ok()) {
    poll(nullptr, 0, /*timeout_ms=*/10);
    status = stream->CheckHeld();
  }
  std::printf("lost: %s\n", status.ToString().c_str());
  return absl::IsAborted(status) ? 3 : 1;
}
