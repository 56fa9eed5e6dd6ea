#include "tests/gpu/bare_pair.h"

#include <nccl.h>

#include <chrono>
#include <thread>

namespace pkv {
namespace {

void CheckNccl(ncclResult_t result, const char* what) {
  PKV_CHECK(result == ncclSuccess, what, ": ", ncclGetErrorString(result));
}

void Move(std::byte* data, uint64_t bytes, int rank, ncclComm_t comm, cudaStream_t stream) {
  if (rank == 0) {
    CheckNccl(ncclSend(data, bytes, ncclUint8, 1, comm, stream), "send");
  } else {
    CheckNccl(ncclRecv(data, bytes, ncclUint8, 0, comm, stream), "receive");
  }
}

void MoveAll(BareMode mode, const PairPages& pages, int rank, ncclComm_t comm,
             cudaStream_t stream) {
  const int num_layers = PairPages::kShape.num_layers;
  const uint64_t layer_bytes = pages.total_bytes() / num_layers;
  switch (mode) {
    case BareMode::kWhole:
      Move(pages.pool(), pages.total_bytes(), rank, comm, stream);
      return;
    case BareMode::kLayers:
      for (int layer = 0; layer < num_layers; ++layer) {
        Move(pages.pool() + layer * layer_bytes, layer_bytes, rank, comm, stream);
      }
      return;
    case BareMode::kPages:
      for (int layer = 0; layer < num_layers; ++layer) {
        CheckNccl(ncclGroupStart(), "start a group");
        for (int block = 0; block < PairPages::kBlocks; ++block) {
          const DeviceSpan& span = pages.spans()[layer * PairPages::kBlocks + block];
          Move(span.data, span.bytes, rank, comm, stream);
        }
        CheckNccl(ncclGroupEnd(), "end a group");
      }
      return;
  }
}

}  // namespace

void Rest(std::chrono::milliseconds rest) {
  if (rest == std::chrono::milliseconds::zero()) return;
  using Clock = std::chrono::steady_clock;
  const Clock::duration period = rest;
  const Clock::time_point end{(Clock::now().time_since_epoch() / period + 1) * period};
  // A thread that sleeps is late by as much as what is measured.
  std::this_thread::sleep_until(end - std::chrono::milliseconds(2));
  while (Clock::now() < end) {
  }
}

std::vector<double> TimeBarePair(const NcclUniqueId& id, int rank, BareMode mode, int repetitions,
                                 std::chrono::milliseconds rest, const PairPages& pages) {
  ncclUniqueId unique_id;
  std::memcpy(unique_id.internal, id.bytes.data(), sizeof(unique_id.internal));
  ncclComm_t comm = nullptr;
  CheckNccl(ncclCommInitRank(&comm, 2, unique_id, rank), "init");
  cudaStream_t stream = nullptr;
  CheckCuda(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "make a stream");
  std::vector<double> seconds;
  for (int i = 0; i < repetitions; ++i) {
    Rest(rest);
    const auto begin = std::chrono::steady_clock::now();
    MoveAll(mode, pages, rank, comm, stream);
    CheckCuda(cudaStreamSynchronize(stream), "move bytes");
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
    seconds.push_back(took.count());
  }
  CheckCuda(cudaStreamDestroy(stream), "destroy the stream");
  CheckNccl(ncclCommDestroy(comm), "destroy the communicator");
  return seconds;
}

}  // namespace pkv
