#ifndef PKV_TESTS_SUPPORT_COPYING_EXECUTOR_H_
#define PKV_TESTS_SUPPORT_COPYING_EXECUTOR_H_

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <span>

#include "worker/prefill/prefill_executor.h"

namespace pkv {

// As an executor on a GPU: frames stand in the device's memory, here the host's, as well.
class CopyingExecutor final : public PrefillExecutor {
 public:
  explicit CopyingExecutor(PrefillExecutor* inner) : inner_(*inner) {}
  absl::Status CheckVariant(const CodecParams& params) const override {
    return inner_.CheckVariant(params);
  }
  absl::Status Run(KvSequence& sequence, std::span<const int32_t> tokens,
                   const std::function<bool()>& cancelled,
                   const std::function<void(int)>& on_encoded,
                   const DeviceFrames& device_frames) override {
    const auto copy = [&](int layer) {
      if (device_frames) {
        const KvSequence::LayerFrames to = device_frames(layer);
        const bool is_offered = !to.table.empty() || !to.blocks.empty() || !to.window.empty();
        num_offered += is_offered && layer == 0;
        if (is_offered) Copy(sequence.layer_frames(layer), to);
      }
      on_encoded(layer);
    };
    return inner_.Run(sequence, tokens, cancelled, copy, nullptr);
  }
  int num_offered = 0;  // runs that had a place for frames

 private:
  static void Copy(const KvSequence::LayerFrames& from, const KvSequence::LayerFrames& to) {
    ASSERT_EQ(from.blocks.size(), to.blocks.size());
    for (size_t i = 0; i < from.blocks.size(); ++i) Copy(from.blocks[i], to.blocks[i]);
    Copy(from.table, to.table);
    Copy(from.window, to.window);
  }
  static void Copy(std::span<const std::byte> from, std::span<std::byte> to) {
    ASSERT_EQ(from.size(), to.size());
    std::ranges::copy(from, to.begin());
  }
  PrefillExecutor& inner_;
};

}  // namespace pkv

#endif  // PKV_TESTS_SUPPORT_COPYING_EXECUTOR_H_
