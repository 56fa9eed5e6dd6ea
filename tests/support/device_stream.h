#ifndef PKV_TESTS_SUPPORT_DEVICE_STREAM_H_
#define PKV_TESTS_SUPPORT_DEVICE_STREAM_H_

#include <cuda_runtime_api.h>

#include <memory>
#include <span>
#include <vector>

#include "kernels/device/device_buffer.h"
#include "pkv/client/cache_client.h"
#include "proto/base/log.h"

namespace pkv {

// A download to host memory as one to a GPU's: layers below a given one come to the places named,
// or to memory of its own, the others stay on the host, as when a pair breaks in between.
// Thread-compatible.
class DeviceStream final : public GetStream {
 public:
  DeviceStream(std::unique_ptr<GetStream> stream, int num_device_layers, void* cuda_stream)
      : stream_(std::move(stream)),
        num_device_layers_(num_device_layers),
        cuda_stream_(cuda_stream) {}

  // Frames that came to a place, and those that came elsewhere.
  int num_placed() const { return num_placed_; }
  int num_elsewhere() const { return num_elsewhere_; }

  absl::Status WaitForManifest() override { return stream_->WaitForManifest(); }
  void PlaceFrames(std::span<std::byte* const> places) override {
    PKV_CHECK(places_.empty());
    places_.assign(places.begin(), places.end());
    PKV_CHECK(stream_->WaitForAll().ok());
    const int num_layers = stream_->header(0).num_layers;
    for (int i = 0; i < num_objects(); ++i) {
      for (int layer = 0; layer < num_device_layers_; ++layer) {
        std::byte*& place = places_[static_cast<size_t>(i) * num_layers + layer];
        num_placed_ += place != nullptr;
        num_elsewhere_ += place == nullptr;
        Bring(stream_->frame(i, layer), place);
      }
    }
  }
  absl::Status WaitForLayer(int layer) override { return stream_->WaitForLayer(layer); }
  absl::Status WaitForAll() override { return stream_->WaitForAll(); }
  int num_objects() const override { return stream_->num_objects(); }
  const ObjectHeader& header(int object_index) const override {
    return stream_->header(object_index);
  }
  bool is_on_device(int layer) const override { return layer < num_device_layers_; }
  std::span<const std::byte> frame(int object_index, int layer) const override {
    const std::span<const std::byte> on_host = stream_->frame(object_index, layer);
    if (!is_on_device(layer)) return on_host;
    const int num_layers = stream_->header(0).num_layers;
    return {places_[static_cast<size_t>(object_index) * num_layers + layer], on_host.size()};
  }
  AlignedBuffer TakeObject(int object_index) override { return stream_->TakeObject(object_index); }
  absl::Status CheckHeld() override { return absl::OkStatus(); }
  uint64_t received_bytes() const override { return stream_->received_bytes(); }
  void Cancel() override { stream_->Cancel(); }

 private:
  // To `place`, or, when it is null, to memory that it names then.
  void Bring(std::span<const std::byte> frame, std::byte*& place) {
    auto copy = DeviceBuffer::CopyOf(frame, cuda_stream_);
    PKV_CHECK(copy.ok(), copy.status().ToString());
    if (place != nullptr) {
      PKV_CHECK(cudaMemcpy(place, copy->data(), frame.size(), cudaMemcpyDeviceToDevice) ==
                cudaSuccess);
      return;
    }
    place = copy->data();
    buffers_.push_back(*std::move(copy));
  }

  const std::unique_ptr<GetStream> stream_;
  const int num_device_layers_;
  void* const cuda_stream_;
  std::vector<std::byte*> places_;
  std::vector<DeviceBuffer> buffers_;
  int num_placed_ = 0, num_elsewhere_ = 0;
};

}  // namespace pkv

#endif  // PKV_TESTS_SUPPORT_DEVICE_STREAM_H_
