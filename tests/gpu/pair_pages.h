#ifndef PKV_TESTS_GPU_PAIR_PAGES_H_
#define PKV_TESTS_GPU_PAIR_PAGES_H_

// What a 32k-token prefix of llama-3.1-8b takes in `default`, as pages of a decode pool.

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <random>
#include <span>
#include <vector>

#include "pkv/kernels/codec_params.h"
#include "proto/base/checksum.h"
#include "proto/base/log.h"
#include "proto/block/payload_layout.h"
#include "proto/transport/nccl/transfer_plan.h"

namespace pkv {

inline void CheckCuda(cudaError_t error, const char* what) {
  PKV_CHECK(error == cudaSuccess, what, ": ", cudaGetErrorString(error));
}

template <typename T>
T* AllocateOnDevice(size_t count) {
  void* data = nullptr;
  CheckCuda(cudaMalloc(&data, count * sizeof(T)), "allocate");
  return static_cast<T*>(data);
}

// A sequence's pages, layer by layer, at places of the pool that a seed shuffles. Their bytes are
// the same in every process.
// Thread-compatible.
class PairPages {
 public:
  static constexpr KvShape kShape = {32, 8, 128};
  static constexpr int kBlocks = 256;
  static constexpr int kPages = kShape.num_layers * kBlocks;

  explicit PairPages(uint32_t place_seed) {
    const auto params = PresetByName("default", kShape);
    PKV_CHECK(params.ok(), params.status().ToString());
    page_bytes_ = PayloadLayout::OfBlock(kShape, params->encoding).page_bytes;
    bytes_.resize(page_bytes_ * kPages);
    // SplitMix64.
    uint64_t state = 20;
    for (size_t i = 0; i + 8 <= bytes_.size(); i += 8) {
      uint64_t z = (state += 0x9e3779b97f4a7c15u);
      z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
      z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
      z ^= z >> 31;
      std::memcpy(bytes_.data() + i, &z, 8);
    }
    std::vector<size_t> places(kPages);
    std::iota(places.begin(), places.end(), 0);
    std::shuffle(places.begin(), places.end(), std::mt19937(place_seed));
    pool_ = AllocateOnDevice<std::byte>(bytes_.size());
    for (int page = 0; page < kPages; ++page) {
      spans_.push_back({pool_ + places[page] * page_bytes_, page_bytes_});
      checksums_.push_back(Crc32c(HostPage(page)));
    }
  }

  uint64_t page_bytes() const { return page_bytes_; }
  uint64_t total_bytes() const { return bytes_.size(); }
  // All pages of the pool, in no order.
  std::byte* pool() const { return pool_; }
  const std::vector<DeviceSpan>& spans() const { return spans_; }
  const std::vector<uint32_t>& checksums() const { return checksums_; }

  std::vector<LayerSpans> Layers(bool with_checksums) const {
    std::vector<LayerSpans> layers;
    for (int layer = 0; layer < kShape.num_layers; ++layer) {
      layers.push_back({.spans = std::span(spans_).subspan(layer * kBlocks, kBlocks)});
      if (with_checksums) {
        layers.back().checksums = std::span(checksums_).subspan(layer * kBlocks, kBlocks);
      }
    }
    return layers;
  }

  void Fill() {
    for (int page = 0; page < kPages; ++page) {
      CheckCuda(cudaMemcpyAsync(spans_[page].data, HostPage(page).data(), page_bytes_,
                                cudaMemcpyHostToDevice, nullptr),
                "fill the pool");
    }
    CheckCuda(cudaStreamSynchronize(nullptr), "fill the pool");
  }
  void Clear() {
    CheckCuda(cudaMemset(pool_, 0xee, total_bytes()), "clear the pool");
    CheckCuda(cudaStreamSynchronize(nullptr), "clear the pool");
  }
  // Changes a bit in the middle of a page.
  void Corrupt(int layer, int block) {
    std::byte* const at = spans_[layer * kBlocks + block].data + page_bytes_ / 2;
    std::byte byte;
    CheckCuda(cudaMemcpy(&byte, at, 1, cudaMemcpyDeviceToHost), "read a byte");
    byte ^= std::byte{4};
    CheckCuda(cudaMemcpy(at, &byte, 1, cudaMemcpyHostToDevice), "write a byte");
  }
  // Pages whose bytes are not what they should be, read back to the host.
  int NumWrong() const {
    std::vector<std::byte> got(total_bytes());
    CheckCuda(cudaMemcpy(got.data(), pool_, got.size(), cudaMemcpyDeviceToHost), "read the pool");
    int wrong = 0;
    for (int page = 0; page < kPages; ++page) {
      const std::byte* there = got.data() + (spans_[page].data - pool_);
      wrong += std::memcmp(there, HostPage(page).data(), page_bytes_) != 0 ? 1 : 0;
    }
    return wrong;
  }

 private:
  std::span<const std::byte> HostPage(int page) const {
    return std::span(bytes_).subspan(page * page_bytes_, page_bytes_);
  }

  uint64_t page_bytes_ = 0;
  std::vector<std::byte> bytes_;
  std::byte* pool_ = nullptr;  // lives as long as the process
  std::vector<DeviceSpan> spans_;
  std::vector<uint32_t> checksums_;
};

}  // namespace pkv

#endif  // PKV_TESTS_GPU_PAIR_PAGES_H_
