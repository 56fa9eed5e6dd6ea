#ifndef PKV_TESTS_SUPPORT_SCRIPTED_PAIR_HOLDER_H_
#define PKV_TESTS_SUPPORT_SCRIPTED_PAIR_HOLDER_H_

#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "proto/transport/nccl/nccl_offer.h"
#include "proto/transport/nccl/nccl_pair.h"
#include "tests/support/fake_pair_calls.h"
#include "tests/support/scripted_connection.h"
#include "tests/support/sealed_object.h"

namespace pkv {

inline NcclPort FakePort(std::shared_ptr<PairCalls> calls, int gpu) {
  NcclPort port{.calls = std::move(calls), .capability = {.nccl_version = 22809}};
  port.capability.device_uuid[0] = static_cast<std::byte>(gpu);
  return port;
}

// A server of Handoff.Pair inside a scripted stream (nccl_handoff.proto), whose GPU is a fake: the
// holder of `objects`. Its pair works on a thread; the stream is answered from the reader's.
class ScriptedPairHolder {
 public:
  // Groups of the smallest size: a frame of 1 MiB is one.
  static constexpr uint64_t kGroupBytes = uint64_t{1} << 20;

  // Of a process that `link` joins to others.
  explicit ScriptedPairHolder(std::shared_ptr<FakeLink> link_to_others)
      : link(std::move(link_to_others)) {
    options_.abort_timeout = absl::Seconds(20);
    options_.group_bytes = kGroupBytes;
    options_.open_timeout = absl::Seconds(3);
  }
  ScriptedPairHolder() : ScriptedPairHolder(std::make_shared<FakeLink>()) {}
  ~ScriptedPairHolder() { Join().IgnoreError(); }

  // Set before it is asked.
  std::vector<SealedObject> objects;
  v1::PairManifest refusal;                       // answered to every fetch when it has a code
  std::function<void(ScriptedStream&)> on_fetch;  // in place of an answer
  absl::Status offers;                            // not OK: ends the call instead
  std::shared_ptr<FakeLink> link;
  std::shared_ptr<FakePairCalls> calls = std::make_shared<FakePairCalls>(link, nullptr);
  // Seen by the reader's thread.
  std::vector<v1::PairRequest> requests;
  ScriptedStream* stream = nullptr;  // the last one

  // Of the connection that leads here.
  void Serve(ScriptedConnection& connection) {
    connection.open_handoff = [this](const v1::HandoffOpenRequest&,
                                     v1::HandoffOpenResponse& response) {
      *response.mutable_nccl() = ToProto(port_.capability);
      return absl::OkStatus();
    };
    Accept(connection);
  }
  // One more call.
  void Accept(ScriptedConnection& connection) {
    connection.scripts.push_back([this](ScriptedStream& from, const std::string* message) {
      stream = &from;
      if (message == nullptr) return;
      v1::PairRequest request;
      PKV_CHECK(request.ParseFromString(*message));
      requests.push_back(request);
      OnRequest(request);
    });
  }
  // Whatever the pair does is over; how its last act ended.
  absl::Status Join() {
    if (thread_.joinable()) thread_.join();
    return status_;
  }

 private:
  void OnRequest(const v1::PairRequest& request) {
    v1::PairReply reply;
    if (request.has_hello()) {
      if (!offers.ok()) {
        stream->End(offers);
        return;
      }
      Join().IgnoreError();
      const NcclOffer offer{.id = link->MakeUniqueId(),
                            .rank = 1,
                            .sender = port_.capability,
                            .group_bytes = kGroupBytes};
      pair_ = std::make_unique<NcclPair>(calls, options_, Clock::Real());
      thread_ = std::thread([this, offer] { status_ = pair_->Open(offer.id, 0); });
      *reply.mutable_offer() = ToProto(offer);
      stream->Deliver(reply);
    } else if (request.has_fetch() && on_fetch) {
      on_fetch(*stream);
    } else if (request.has_fetch()) {
      *reply.mutable_manifest() = refusal;
      bool is_complete = refusal.code() == 0;
      for (int i = 0; i < request.fetch().objects_size() && refusal.code() == 0; ++i) {
        const SealedObject* found = Find(request.fetch().objects(i).id());
        std::string* head = reply.mutable_manifest()->add_heads();
        is_complete = is_complete && found != nullptr;
        if (found == nullptr) continue;
        head->assign(reinterpret_cast<const char*>(found->head().data()), found->head().size());
      }
      asked_ = request.fetch();
      stream->Deliver(reply);
      if (!is_complete) return;
      Join().IgnoreError();
      thread_ = std::thread([this] { status_ = Send(); });
    }
  }

  const SealedObject* Find(const std::string& id) const {
    for (const SealedObject& object : objects) {
      if (Digest::FromBytes(id).value() == object.header.id) return &object;
    }
    return nullptr;
  }

  absl::Status Send() {
    std::vector<std::vector<DeviceSpan>> spans;
    for (const v1::ObjectKey& key : asked_.objects()) {
      const SealedObject& object = *Find(key.id());
      spans.resize(object.header.num_layers);
      for (int layer = 0; layer < object.header.num_layers; ++layer) {
        const std::span<const std::byte> frame = object.frame(layer);
        spans[layer].push_back({const_cast<std::byte*>(frame.data()), frame.size()});
      }
    }
    std::vector<LayerSpans> layers;
    for (const auto& of_layer : spans)
      layers.push_back({.spans = of_layer, .in_host_memory = true});
    return pair_->Send(layers, {});
  }

  NcclPort port_ = FakePort(calls, 1);
  NcclPairOptions options_;
  v1::PairFetch asked_;
  std::unique_ptr<NcclPair> pair_;
  absl::Status status_;
  std::thread thread_;
};

}  // namespace pkv

#endif  // PKV_TESTS_SUPPORT_SCRIPTED_PAIR_HOLDER_H_
