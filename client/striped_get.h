#ifndef PKV_CLIENT_STRIPED_GET_H_
#define PKV_CLIENT_STRIPED_GET_H_

#include <memory>
#include <string>
#include <vector>

#include "client/get_call.h"

namespace pkv {

// A get over several gRPC streams at once: one stream of one connection is the work of one thread
// on either side, about 1 GB/s. Object i travels in stream i % n, so that layers arrive evenly.
// When one stream fails, the others end too. All are one call in the statistics.
class StripedGet final : public GetStream {
 public:
  // keys: at least `num_streams` and at most kMaxObjectsPerCall. The others as of GetCall.
  StripedGet(const std::shared_ptr<ClientCore>& core, std::vector<ObjectKey> keys, int num_streams,
             absl::Time deadline, CallRecord record, int first_layer = 0,
             std::vector<std::string> heads = {});

  absl::Status WaitForManifest() override;
  absl::Status WaitForLayer(int layer) override;
  absl::Status WaitForAll() override;
  int num_objects() const override { return num_objects_; }
  const ObjectHeader& header(int object_index) const override {
    return of(object_index).header(index_there(object_index));
  }
  std::span<const std::byte> frame(int object_index, int layer) const override {
    return of(object_index).frame(index_there(object_index), layer);
  }
  AlignedBuffer TakeObject(int object_index) override {
    return of(object_index).TakeObject(index_there(object_index));
  }
  absl::Status CheckHeld() override { return absl::OkStatus(); }
  uint64_t received_bytes() const override;
  void Cancel() override;

 private:
  GetCall& of(int object_index) const { return *streams_[object_index % streams_.size()]; }
  int index_there(int object_index) const {
    return static_cast<int>(object_index / streams_.size());
  }
  // Passes `status` on; an error ends all streams.
  absl::Status Note(const absl::Status& status);

  const int num_objects_, first_layer_;
  std::vector<std::unique_ptr<GetCall>> streams_;  // constant after construction

  // Touched by the waiting thread alone.
  std::vector<int> num_layers_;  // by stream, of its object with most; empty before the manifest
  std::vector<bool> verified_layers_;
  absl::Status failure_;  // the first
  CallRecord record_;
};

// A get over gRPC, in as many streams as the options allow and its objects are worth; counted in
// `record`. `first_layer`, `heads`: as of GetCall.
std::unique_ptr<GetStream> StartGrpcGet(const std::shared_ptr<ClientCore>& core,
                                        std::vector<ObjectKey> keys, absl::Time deadline,
                                        CallRecord record, int first_layer = 0,
                                        std::vector<std::string> heads = {});

}  // namespace pkv

#endif  // PKV_CLIENT_STRIPED_GET_H_
