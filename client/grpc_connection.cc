#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/support/channel_arguments.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <deque>
#include <utility>
#include <vector>

#include "client/connection.h"
#include "pkv/v1/cache_service.grpc.pb.h"
#include "pkv/v1/handoff.grpc.pb.h"
#include "proto/base/sync.h"
#include "proto/transport/convert.h"
#include "proto/transport/data_frame.h"

namespace pkv {
namespace {

constexpr int kKeepaliveTimeMs = 20'000;
constexpr int kKeepaliveTimeoutMs = 5'000;
constexpr int kMaxMetadataBytes = 8 << 10;
constexpr int kStreamWindowBytes = 4 << 20;
// gRPC waits 1 s to 120 s before it dials again; calls fail at once meanwhile. A restarted pkvd is
// found again within our own retries.
constexpr int kInitialReconnectMs = 100;
constexpr int kMaxReconnectMs = 1'000;
// What gRPC calls the minimal back-off is how long one attempt to connect may take.
constexpr int kConnectTimeoutMs = 5'000;
// Of a name. gRPC asks again 30 s later at the earliest: a restarted pod has another address.
constexpr int kResolveIntervalMs = 1'000;

std::shared_ptr<grpc::Channel> MakeChannel(const std::string& address, int index) {
  grpc::ChannelArguments args;
  args.SetMaxReceiveMessageSize(kMaxMessageBytes);
  args.SetMaxSendMessageSize(kMaxMessageBytes);
  // A codec of our own compresses.
  args.SetInt(GRPC_ARG_ENABLE_PER_MESSAGE_COMPRESSION, 0);
  args.SetInt(GRPC_ARG_ENABLE_PER_MESSAGE_DECOMPRESSION, 0);
  args.SetInt(GRPC_ARG_MAX_METADATA_SIZE, kMaxMetadataBytes);
  args.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveTimeMs);
  args.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
  args.SetInt(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  args.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  args.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, kStreamWindowBytes);
  args.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);
  args.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, kInitialReconnectMs);
  args.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, kConnectTimeoutMs);
  args.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, kMaxReconnectMs);
  args.SetInt(GRPC_ARG_DNS_MIN_TIME_BETWEEN_RESOLUTIONS_MS, kResolveIntervalMs);
  // One TCP connection per channel, not one shared by all.
  args.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  // We retry above gRPC, where it is known what is safe to repeat.
  args.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  // CVE-2024-11407: bytes already sent may be overwritten.
  args.SetInt(GRPC_ARG_TCP_TX_ZEROCOPY_ENABLED, 0);
  // No behaviour by environment variable.
  args.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  args.SetInt("pkv.channel_index", index);
  return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), args);
}

std::chrono::system_clock::time_point DeadlineAfter(absl::Duration timeout) {
  return absl::ToChronoTime(absl::Now() + timeout);
}

using RawStub = grpc::TemplatedGenericStub<grpc::ByteBuffer, grpc::ByteBuffer>;

const char* MethodPath(StreamMethod method) {
  switch (method) {
    case StreamMethod::kGet:
      return "/pkv.v1.Block/Get";
    case StreamMethod::kPut:
      return "/pkv.v1.Block/Put";
    case StreamMethod::kPair:
      break;
  }
  return "/pkv.v1.Handoff/Pair";
}

// One read is always outstanding until it fails, at most one write. The hold keeps the call alive
// for writes started outside of reactions.
class GrpcMessageStream final
    : public MessageStream,
      private grpc::ClientBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
 public:
  explicit GrpcMessageStream(StreamReceiver* receiver) : receiver_(receiver) {}
  ~GrpcMessageStream() override {
    context_.TryCancel();
    MutexLock lock(&mu_);
    while (!done_) changed_.Wait(&mu_);
  }

  void Start(RawStub& stub, StreamMethod method, absl::Duration timeout) {
    context_.set_deadline(DeadlineAfter(timeout));
    stub.PrepareBidiStreamingCall(&context_, MethodPath(method), {}, this);
    AddHold();
    StartRead(&incoming_);
    StartCall();
  }

  void Send(grpc::ByteBuffer message) override {
    {
      MutexLock lock(&mu_);
      if (has_hold_ && !half_close_) {
        queue_.push_back(std::move(message));
        WriteNext();
        return;
      }
    }
    receiver_->OnSent();
  }

  void HalfClose() override {
    MutexLock lock(&mu_);
    half_close_ = true;
    WriteNext();
  }

  void Cancel() override { context_.TryCancel(); }

 private:
  void WriteNext() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    if (!has_hold_ || writing_) return;
    if (!queue_.empty()) {
      writing_ = true;
      outgoing_ = std::move(queue_.front());
      queue_.pop_front();
      StartWrite(&outgoing_);
    } else if (half_close_) {
      StartWritesDone();
      ReleaseHold();
    }
  }

  void ReleaseHold() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    if (!has_hold_) return;
    has_hold_ = false;
    RemoveHold();
  }

  // No write will succeed any more. Returns how many queued messages will never leave.
  size_t StopWriting() ABSL_LOCKS_EXCLUDED(mu_) {
    MutexLock lock(&mu_);
    ReleaseHold();
    return std::exchange(queue_, {}).size();
  }

  void OnReadDone(bool ok) override {
    if (!ok) {
      for (size_t dropped = StopWriting(); dropped > 0; --dropped) receiver_->OnSent();
      return;
    }
    if (failure_.ok()) {
      failure_ = receiver_->OnMessage(incoming_);
      if (!failure_.ok()) context_.TryCancel();
    }
    incoming_.Clear();
    StartRead(&incoming_);
  }

  void OnWriteDone(bool ok) override {
    size_t gone = 1;
    if (!ok) gone += StopWriting();
    {
      MutexLock lock(&mu_);
      writing_ = false;
      outgoing_.Clear();
      WriteNext();
    }
    for (; gone > 0; --gone) receiver_->OnSent();
  }

  void OnDone(const grpc::Status& status) override {
    receiver_->OnEnd(failure_.ok() ? FromGrpc(status) : failure_);
    MutexLock lock(&mu_);
    done_ = true;
    changed_.SignalAll();
  }

  // Constant after construction.
  StreamReceiver* const receiver_;

  // Internally synchronised.
  grpc::ClientContext context_;

  // Touched by reads alone, which follow one another, and by OnDone after the last of them.
  grpc::ByteBuffer incoming_;
  absl::Status failure_;

  Mutex mu_;
  CondVar changed_;
  std::deque<grpc::ByteBuffer> queue_ ABSL_GUARDED_BY(mu_);
  grpc::ByteBuffer outgoing_ ABSL_GUARDED_BY(mu_);
  bool writing_ ABSL_GUARDED_BY(mu_) = false;
  bool half_close_ ABSL_GUARDED_BY(mu_) = false;
  bool has_hold_ ABSL_GUARDED_BY(mu_) = true;
  bool done_ ABSL_GUARDED_BY(mu_) = false;
};

class GrpcConnection final : public Connection {
 public:
  explicit GrpcConnection(const ClientOptions& options) {
    for (int i = 0; i < options.num_channels; ++i) {
      auto channel = MakeChannel(options.address, i);
      peers_.push_back({channel, RawStub(channel), v1::Block::NewStub(channel),
                        v1::Admin::NewStub(channel), v1::Handoff::NewStub(channel)});
    }
  }

  absl::Status Lookup(const v1::LookupRequest& request, absl::Duration timeout,
                      v1::LookupResponse& response) override {
    return Unary(timeout, [&](grpc::ClientContext* context, Peer& peer) {
      return peer.block->Lookup(context, request, &response);
    });
  }

  absl::Status Stat(const v1::StatRequest& request, absl::Duration timeout,
                    v1::StatResponse& response) override {
    return Unary(timeout, [&](grpc::ClientContext* context, Peer& peer) {
      return peer.block->Stat(context, request, &response);
    });
  }

  absl::Status Delete(const v1::DeleteRequest& request, absl::Duration timeout,
                      v1::DeleteResponse& response) override {
    return Unary(timeout, [&](grpc::ClientContext* context, Peer& peer) {
      return peer.block->Delete(context, request, &response);
    });
  }

  absl::Status Stats(absl::Duration timeout, v1::StatsResponse& response) override {
    return Unary(timeout, [&](grpc::ClientContext* context, Peer& peer) {
      return peer.admin->Stats(context, v1::StatsRequest(), &response);
    });
  }

  absl::Status Drain(absl::Duration timeout) override {
    return Unary(timeout, [&](grpc::ClientContext* context, Peer& peer) {
      v1::DrainResponse response;
      return peer.admin->Drain(context, v1::DrainRequest(), &response);
    });
  }

  absl::Status OpenHandoff(const v1::HandoffOpenRequest& request, absl::Duration timeout,
                           v1::HandoffOpenResponse& response) override {
    return Unary(timeout, [&](grpc::ClientContext* context, Peer& peer) {
      return peer.handoff->Open(context, request, &response);
    });
  }

  void Reconnect() override {
    for (const Peer& peer : peers_) {
      grpc::experimental::ChannelResetConnectionBackoff(peer.channel.get());
      peer.channel->GetState(/*try_to_connect=*/true);
    }
  }

  std::unique_ptr<MessageStream> OpenStream(StreamMethod method, absl::Duration timeout,
                                            StreamReceiver* receiver) override {
    auto stream = std::make_unique<GrpcMessageStream>(receiver);
    stream->Start(NextPeer().raw, method, timeout);
    return stream;
  }

 private:
  // What one TCP connection offers.
  struct Peer {
    std::shared_ptr<grpc::Channel> channel;  // shared with the stubs
    RawStub raw;
    std::unique_ptr<v1::Block::Stub> block;
    std::unique_ptr<v1::Admin::Stub> admin;
    std::unique_ptr<v1::Handoff::Stub> handoff;
  };

  Peer& NextPeer() {
    return peers_[next_peer_.fetch_add(1, std::memory_order_relaxed) % peers_.size()];
  }

  template <typename CallT>
  absl::Status Unary(absl::Duration timeout, const CallT& call) {
    grpc::ClientContext context;
    context.set_deadline(DeadlineAfter(timeout));
    return FromGrpc(call(&context, NextPeer()));
  }

  std::vector<Peer> peers_;  // constant after construction
  std::atomic<size_t> next_peer_{0};
};

}  // namespace

std::unique_ptr<Connection> MakeGrpcConnection(const ClientOptions& options) {
  return std::make_unique<GrpcConnection>(options);
}

}  // namespace pkv
