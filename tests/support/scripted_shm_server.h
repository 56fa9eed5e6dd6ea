#ifndef PKV_TESTS_SUPPORT_SCRIPTED_SHM_SERVER_H_
#define PKV_TESTS_SUPPORT_SCRIPTED_SHM_SERVER_H_

// A server of the shm transport, in this process, that lends test objects, and stages to who puts,
// and misbehaves as told.

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <map>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "proto/base/clock.h"
#include "proto/base/log.h"
#include "proto/base/sync.h"
#include "proto/transport/host_identity.h"
#include "proto/transport/local_socket.h"
#include "proto/transport/shm_frame.h"
#include "tests/support/sealed_object.h"

namespace pkv {

// One connection at a time, one after the other. Set the public members before a client comes.
// Thread-safe.
class ScriptedShmServer {
 public:
  static constexpr uint64_t kArenaBytes = uint64_t{1} << 20;
  static constexpr uint64_t kStageBytes = uint64_t{8} << 20;

  // How it is not what it should be.
  int seals = F_SEAL_SHRINK;
  uint64_t said_arena_bytes = kArenaBytes;
  uint64_t said_stage_bytes = kStageBytes;
  bool knows_puts = true;
  bool has_stages = true;  // to lend
  bool passes_descriptor = true;
  bool welcomes = true;
  bool answers_pins = true;
  int32_t pin_code = 0;       // of all answers
  uint64_t extent_shift = 0;  // added to every offset
  uint32_t silence_ms = 30'000;

  explicit ScriptedShmServer(const std::string& name)
      : path_(absl::StrCat("/tmp/pkv_shm_", name, ".", getpid())) {
    bytes_ = MakeFile(kArenaBytes, arena_);
    stage_bytes_ = MakeFile(kStageBytes, stage_);
    listener_ = FileDescriptor(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    PKV_CHECK(path_.size() < sizeof(address.sun_path));
    path_.copy(address.sun_path, path_.size());
    unlink(path_.c_str());
    PKV_CHECK(bind(listener_.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0 &&
              listen(listener_.get(), 8) == 0);
    thread_ = std::thread([this] { Run(); });
  }
  ~ScriptedShmServer() {
    shutdown(listener_.get(), SHUT_RDWR);
    Disconnect();
    thread_.join();
    munmap(bytes_.data(), kArenaBytes);
    munmap(stage_bytes_.data(), kStageBytes);
    unlink(path_.c_str());
  }

  // Places an object in the arena.
  void Add(const SealedObject& object) {
    MutexLock lock(&mu_);
    std::memcpy(bytes_.data() + used_, object.bytes().data(), object.bytes().size());
    v1::ShmExtent extent;
    extent.set_offset(used_);
    extent.set_bytes(object.bytes().size());
    extents_[std::string(object.header.id.AsBytes())] = extent;
    used_ += (object.bytes().size() + 4095) / 4096 * 4096;
  }
  // Flips a bit of a placed object.
  void Damage(const SealedObject& object, uint64_t offset) {
    MutexLock lock(&mu_);
    bytes_[extents_.at(std::string(object.header.id.AsBytes())).offset() + offset] ^= std::byte{1};
  }

  // What clients write there.
  std::span<const std::byte> stage() const { return stage_bytes_; }
  static std::string StageToken() { return std::string(kShmTokenBytes, 's'); }

  v1::ShmOffer Offer() const {
    v1::ShmOffer offer;
    offer.set_version(kShmVersion);
    offer.set_host_id(HostIdentity());
    offer.set_socket_path(path_);
    offer.set_token(std::string(kShmTokenBytes, 't'));
    return offer;
  }

  // Shuts the connection down, as a server does before it takes its memory back.
  void Disconnect() {
    MutexLock lock(&mu_);
    if (connection_ >= 0) shutdown(connection_, SHUT_RDWR);
  }

  // What it was told so far.
  std::vector<v1::ShmMessage> received() {
    MutexLock lock(&mu_);
    return received_;
  }
  int Count(v1::ShmMessage::KindCase kind) {
    int count = 0;
    for (const v1::ShmMessage& message : received()) count += message.kind_case() == kind ? 1 : 0;
    return count;
  }
  // Waits, a minute at most, for so many messages of a kind.
  bool WaitFor(v1::ShmMessage::KindCase kind, int count) {
    const absl::Time deadline = Clock::Real()->MonotonicNow() + absl::Minutes(1);
    while (Count(kind) < count) {
      if (Clock::Real()->MonotonicNow() > deadline) return false;
      std::this_thread::yield();
    }
    return true;
  }
  void SendAnyway(const v1::ShmMessage& message) {
    MutexLock lock(&mu_);
    Write(message, -1);
  }

 private:
  static std::span<std::byte> MakeFile(uint64_t bytes, FileDescriptor& file) {
    file = FileDescriptor(memfd_create("test-memory", MFD_CLOEXEC | MFD_ALLOW_SEALING));
    PKV_CHECK(ftruncate(file.get(), static_cast<off_t>(bytes)) == 0);
    void* mapped = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file.get(), 0);
    PKV_CHECK(mapped != MAP_FAILED);
    return {static_cast<std::byte*>(mapped), bytes};
  }

  void Run() {
    for (;;) {
      FileDescriptor socket(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
      if (!socket) return;
      {
        MutexLock lock(&mu_);
        connection_ = socket.get();
      }
      Serve(socket.get());
      MutexLock lock(&mu_);
      connection_ = -1;
    }
  }

  void Serve(int socket) {
    ShmFrameReader reader;
    std::array<std::byte, 4096> buffer;
    for (;;) {
      const auto got = ReceiveSome(socket, buffer, /*wait=*/true, /*takes_fd=*/false);
      if (!got.ok() || got->num_bytes == 0) return;
      reader.Add(std::span(buffer).first(got->num_bytes));
      for (auto message = reader.Next(); message.ok() && message->has_value();
           message = reader.Next()) {
        MutexLock lock(&mu_);
        received_.push_back(**message);
        Answer(**message);
      }
    }
  }

  void Answer(const v1::ShmMessage& message) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    v1::ShmMessage answer;
    if (message.has_hello()) {
      if (message.hello().token() != Offer().token()) {
        shutdown(connection_, SHUT_RDWR);
        return;
      }
      if (!welcomes) return;
      const bool is_for_puts = message.hello().for_puts() && knows_puts;
      if (is_for_puts && !has_stages) {
        answer.mutable_welcome();
        Write(answer, -1);
        shutdown(connection_, SHUT_RDWR);
        return;
      }
      const int file = is_for_puts ? stage_.get() : arena_.get();
      fcntl(file, F_ADD_SEALS, seals);
      answer.mutable_welcome()->set_silence_ms(silence_ms);
      if (is_for_puts) {
        answer.mutable_welcome()->set_stage_bytes(said_stage_bytes);
        answer.mutable_welcome()->set_stage_token(StageToken());
      } else {
        answer.mutable_welcome()->set_arena_bytes(said_arena_bytes);
      }
      Write(answer, passes_descriptor ? file : -1);
    } else if (message.has_renew()) {
      answer.mutable_renewed();
      Write(answer, -1);
    } else if (message.has_pin() && answers_pins) {
      answer.mutable_pinned()->set_pin_id(message.pin().pin_id());
      answer.mutable_pinned()->set_code(pin_code);
      for (const v1::ObjectKey& key : message.pin().objects()) {
        v1::ShmExtent* extent = answer.mutable_pinned()->add_extents();
        const auto found = extents_.find(key.id());
        if (found == extents_.end()) {
          extent->set_code(static_cast<int>(absl::StatusCode::kNotFound));
        } else {
          *extent = found->second;
          extent->set_offset(extent->offset() + extent_shift);
        }
      }
      Write(answer, -1);
    }
  }

  void Write(const v1::ShmMessage& message, int fd) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    const std::string bytes = EncodeShmMessage(message);
    SendSome(connection_, std::as_bytes(std::span(bytes)), fd).IgnoreError();
  }

  std::string path_;
  FileDescriptor arena_, stage_, listener_;
  std::span<std::byte> stage_bytes_;
  std::thread thread_;

  Mutex mu_;
  std::span<std::byte> bytes_;
  uint64_t used_ ABSL_GUARDED_BY(mu_) = 0;
  std::map<std::string, v1::ShmExtent> extents_ ABSL_GUARDED_BY(mu_);
  int connection_ ABSL_GUARDED_BY(mu_) = -1;
  std::vector<v1::ShmMessage> received_ ABSL_GUARDED_BY(mu_);
};

}  // namespace pkv

#endif  // PKV_TESTS_SUPPORT_SCRIPTED_SHM_SERVER_H_
