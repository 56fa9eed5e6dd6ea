#ifndef PKV_TESTS_GPU_TIMED_PAIR_CALLS_H_
#define PKV_TESTS_GPU_TIMED_PAIR_CALLS_H_

#include <chrono>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "proto/transport/nccl/pair_calls.h"

namespace pkv {

// Real calls, and how long NCCL took to hand each operation to the GPU: what a pair must hide
// behind bytes that travel. Used by one pair at a time. Thread-compatible.
class TimedPairCalls final : public PairCalls {
 public:
  explicit TimedPairCalls(std::shared_ptr<PairCalls> calls) : calls_(std::move(calls)) {}

  // Seconds of each Begin until the first IsReady that was true; forgets them.
  std::vector<double> TakePostSeconds() { return std::exchange(post_seconds_, {}); }

  absl::StatusOr<NcclUniqueId> MakeUniqueId() override { return calls_->MakeUniqueId(); }
  absl::StatusOr<void*> BeginInit(const NcclUniqueId& id, int rank) override {
    return calls_->BeginInit(id, rank);
  }
  absl::StatusOr<bool> IsReady(void* comm) override {
    absl::StatusOr<bool> ready = calls_->IsReady(comm);
    if (posts_ && ready.ok() && *ready) {
      const std::chrono::duration<double> took = std::chrono::steady_clock::now() - began_;
      post_seconds_.push_back(took.count());
      posts_ = false;
    }
    return ready;
  }
  absl::Status Begin(void* comm, std::span<const PairOp> ops, void* stream) override {
    began_ = std::chrono::steady_clock::now();
    posts_ = true;
    return calls_->Begin(comm, ops, stream);
  }
  absl::Status BeginFinalize(void* comm) override { return calls_->BeginFinalize(comm); }
  void Destroy(void* comm) override { calls_->Destroy(comm); }
  void Abort(void* comm) override { calls_->Abort(comm); }
  absl::StatusOr<void*> MakeStream(int rank) override { return calls_->MakeStream(rank); }
  void DestroyStream(void* stream) override { calls_->DestroyStream(stream); }
  absl::StatusOr<bool> StreamIsIdle(void* stream) override { return calls_->StreamIsIdle(stream); }
  absl::StatusOr<void*> MakeEvent() override { return calls_->MakeEvent(); }
  void DestroyEvent(void* event) override { calls_->DestroyEvent(event); }
  absl::Status RecordEvent(void* event, void* stream) override {
    return calls_->RecordEvent(event, stream);
  }
  absl::Status StreamWaitEvent(void* stream, void* event) override {
    return calls_->StreamWaitEvent(stream, event);
  }
  absl::StatusOr<bool> EventHasPassed(void* event) override {
    return calls_->EventHasPassed(event);
  }
  absl::StatusOr<std::byte*> AllocateDevice(uint64_t bytes) override {
    return calls_->AllocateDevice(bytes);
  }
  void FreeDevice(std::byte* data) override { calls_->FreeDevice(data); }
  absl::Status RegisterHost(std::byte* data, uint64_t bytes) override {
    return calls_->RegisterHost(data, bytes);
  }
  void UnregisterHost(std::byte* data) override { calls_->UnregisterHost(data); }
  absl::StatusOr<std::byte*> AllocateHost(uint64_t bytes) override {
    return calls_->AllocateHost(bytes);
  }
  void FreeHost(std::byte* data) override { calls_->FreeHost(data); }
  absl::Status CopyAsync(std::byte* to, const std::byte* from, uint64_t bytes,
                         void* stream) override {
    return calls_->CopyAsync(to, from, bytes, stream);
  }
  absl::Status CopyItems(const CopyItem* items, uint32_t num_items, void* stream) override {
    return calls_->CopyItems(items, num_items, stream);
  }
  absl::Status DigestItems(const DigestItem* items, uint32_t num_items, uint32_t* digests,
                           void* stream) override {
    return calls_->DigestItems(items, num_items, digests, stream);
  }
  absl::Status CheckItems(const CheckItem* items, uint32_t num_items, const FrameRules* rules,
                          uint32_t* flags, void* stream) override {
    return calls_->CheckItems(items, num_items, rules, flags, stream);
  }

 private:
  const std::shared_ptr<PairCalls> calls_;
  std::chrono::steady_clock::time_point began_;
  bool posts_ = false;
  std::vector<double> post_seconds_;
};

}  // namespace pkv

#endif  // PKV_TESTS_GPU_TIMED_PAIR_CALLS_H_
