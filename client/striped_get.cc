#include "client/striped_get.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/base/log.h"
#include "proto/base/status_macros.h"
#include "proto/transport/data_frame.h"

namespace pkv {
namespace {

// A stream costs a call on either side: worth it for 10 MB, four blocks of a large model.
constexpr int kMinObjectsPerStream = 4;

}  // namespace

StripedGet::StripedGet(const std::shared_ptr<ClientCore>& core, std::vector<ObjectKey> keys,
                       int num_streams, absl::Time deadline, CallRecord record, int first_layer,
                       std::vector<std::string> heads)
    : num_objects_(static_cast<int>(keys.size())),
      first_layer_(first_layer),
      record_(std::move(record)) {
  PKV_CHECK(num_streams >= 1 && num_streams <= num_objects_, num_streams, " ", num_objects_);
  for (int first = 0; first < num_streams; ++first) {
    std::vector<ObjectKey> part;
    std::vector<std::string> part_heads;
    for (int i = first; i < num_objects_; i += num_streams) {
      part.push_back(std::move(keys[i]));
      if (!heads.empty()) part_heads.push_back(std::move(heads[i]));
    }
    streams_.push_back(std::make_unique<GetCall>(core, std::move(part), deadline, CallRecord(),
                                                 ObjectNumbering{first, num_streams}, first_layer,
                                                 std::move(part_heads)));
  }
}

absl::Status StripedGet::Note(const absl::Status& status) {
  if (!status.ok() && failure_.ok()) {
    failure_ = status;
    record_.End(status.code());
    Cancel();
  }
  return failure_;
}

absl::Status StripedGet::WaitForManifest() {
  PKV_RETURN_IF_ERROR(failure_);
  for (const auto& stream : streams_) PKV_RETURN_IF_ERROR(Note(stream->WaitForManifest()));
  if (!num_layers_.empty()) return absl::OkStatus();
  for (const auto& stream : streams_) {
    int& most = num_layers_.emplace_back(0);
    for (int i = 0; i < stream->num_objects(); ++i) {
      most = std::max<int>(most, stream->header(i).num_layers);
    }
  }
  verified_layers_.resize(*std::max_element(num_layers_.begin(), num_layers_.end()));
  // Nobody asked for those, of which an object that was replaced may have fewer.
  std::fill_n(verified_layers_.begin(), std::min<size_t>(first_layer_, verified_layers_.size()),
              true);
  return absl::OkStatus();
}

absl::Status StripedGet::WaitForLayer(int layer) {
  PKV_RETURN_IF_ERROR(WaitForManifest());
  const int most = static_cast<int>(verified_layers_.size());
  if (layer < 0 || layer >= most) {
    return absl::InvalidArgumentError(absl::StrCat("layer ", layer, " not in [0, ", most, ")"));
  }
  for (size_t i = 0; i < streams_.size(); ++i) {
    if (layer < num_layers_[i]) PKV_RETURN_IF_ERROR(Note(streams_[i]->WaitForLayer(layer)));
  }
  verified_layers_[layer] = true;
  if (std::find(verified_layers_.begin(), verified_layers_.end(), false) ==
      verified_layers_.end()) {
    record_.End(absl::StatusCode::kOk);
  }
  return absl::OkStatus();
}

absl::Status StripedGet::WaitForAll() {
  PKV_RETURN_IF_ERROR(WaitForManifest());
  const int most = static_cast<int>(verified_layers_.size());
  for (int layer = 0; layer < most; ++layer) PKV_RETURN_IF_ERROR(WaitForLayer(layer));
  for (const auto& stream : streams_) PKV_RETURN_IF_ERROR(Note(stream->WaitForAll()));
  return absl::OkStatus();
}

uint64_t StripedGet::received_bytes() const {
  uint64_t bytes = 0;
  for (const auto& stream : streams_) bytes += stream->received_bytes();
  return bytes;
}

void StripedGet::Cancel() {
  for (const auto& stream : streams_) stream->Cancel();
}

std::unique_ptr<GetStream> StartGrpcGet(const std::shared_ptr<ClientCore>& core,
                                        std::vector<ObjectKey> keys, absl::Time deadline,
                                        CallRecord record, int first_layer,
                                        std::vector<std::string> heads) {
  const int worth =
      static_cast<int>(std::min<size_t>(keys.size(), kMaxObjectsPerCall) / kMinObjectsPerStream);
  const int num_streams = std::min(core->options.num_get_streams, worth);
  // One stream also says what is wrong with the number of keys.
  if (num_streams <= 1 || keys.size() > kMaxObjectsPerCall) {
    return std::make_unique<GetCall>(core, std::move(keys), deadline, std::move(record),
                                     ObjectNumbering(), first_layer, std::move(heads));
  }
  return std::make_unique<StripedGet>(core, std::move(keys), num_streams, deadline,
                                      std::move(record), first_layer, std::move(heads));
}

}  // namespace pkv
