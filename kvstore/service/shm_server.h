#ifndef PKV_KVSTORE_SERVICE_SHM_SERVER_H_
#define PKV_KVSTORE_SERVICE_SHM_SERVER_H_

#include <list>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "kvstore/service/shm_session.h"
#include "kvstore/service/shm_stage.h"
#include "proto/base/sync.h"
#include "proto/serving/listener.h"
#include "proto/transport/local_socket.h"
#include "proto/transport/shm_frame.h"

namespace pkv {

struct ShmServerOptions {
  std::string path;       // of the unix socket
  bool any_user = false;  // off: its file is ours alone, and only our user and root are let in
  int max_connections = 64;
  ShmLimits limits = {};
  PageInSource disk = {};
};

// Lends the store's memory to processes of this host, read-only: a unix socket on which they pin
// objects and get the arena's descriptor (handoff.proto); and to those that put, a stage each. One
// thread serves all connections; what it does for one message is bounded.
//
// A connection that ends, however it ends, gives back what was pinned over it. It is shut down
// first, so that a client that finds its connection standing knows that its pins stood until then.
//
// Thread-safe.
class ShmServer {
 public:
  // Serves when it returns. What the pointers name outlives this.
  //   InvalidArgument  the path does not begin at the root or is no socket's, or a limit is zero
  //   Unavailable      the kernel refuses the socket, or no descriptor is left
  static absl::StatusOr<std::unique_ptr<ShmServer>> Start(const ShmServerOptions& options,
                                                          BlockStore* store,
                                                          ServiceMetrics* metrics, Clock* clock);
  ~ShmServer();
  ShmServer(const ShmServer&) = delete;
  ShmServer& operator=(const ShmServer&) = delete;

  // What is offered to who asks over gRPC: this socket, to clients of this host.
  v1::HandoffOpenResponse Answer(const v1::HandoffOpenRequest& request) const;
  // For puts that come over gRPC. A part of this, and outlives what was found there.
  ShmStages* stages() { return &stages_; }

  // Takes no more connections. Idempotent, not to be called from two threads at once.
  void StopListening();
  // As that; and shuts all connections down and ends their pins, at once: readers keep the arena's
  // file, and when this process ends nobody is left to change it. Idempotent.
  void Stop();

 private:
  struct Peer {
    FileDescriptor socket;
    ShmFrameReader reader;
    std::string unsent;  // of answers; while there is some, nothing is read
    std::unique_ptr<ShmSession> session;
  };

  ShmServer(const ShmServerOptions& options, const ShmShared& shared);
  absl::Status Open(BlockStore* store);

  // The thread.
  void Run();
  // Until something happens or is due.
  void WaitForWork();
  void Adopt(FileDescriptor socket);
  // False: the peer is to be ended for `reason`.
  bool Serve(Peer& peer, ShmEnd& reason);
  bool Receive(Peer& peer, ShmEnd& reason);
  bool HandleMessages(Peer& peer, ShmEnd& reason);
  bool Flush(Peer& peer);
  void EndExpired();
  void End(std::list<Peer>::iterator peer, ShmEnd reason);
  bool IsStopping();

  // Constant after Start().
  const ShmServerOptions options_;
  const std::string host_id_;
  FileDescriptor arena_;                        // opened for reading only
  std::shared_ptr<const FileDescriptor> wake_;  // an eventfd; shared with reads of the disk
  std::unique_ptr<Listener> listener_;
  std::thread thread_;

  // Internally synchronised.
  ShmStages stages_;

  // The thread's own.
  ShmShared shared_;  // its token is constant
  std::list<Peer> peers_;

  Mutex mu_;
  std::vector<FileDescriptor> accepted_ ABSL_GUARDED_BY(mu_);
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace pkv

#endif  // PKV_KVSTORE_SERVICE_SHM_SERVER_H_
