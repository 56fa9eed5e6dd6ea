#ifndef PKV_TESTS_SUPPORT_SHM_MESSAGES_H_
#define PKV_TESTS_SUPPORT_SHM_MESSAGES_H_

// What clients say on the socket of the shm transport, and a client that says it.

#include <array>
#include <optional>
#include <span>
#include <string>

#include "pkv/v1/handoff.pb.h"
#include "proto/base/log.h"
#include "proto/transport/convert.h"
#include "proto/transport/local_socket.h"
#include "proto/transport/shm_frame.h"

namespace pkv {

inline v1::ShmMessage ShmHelloOf(const std::string& token, uint32_t version = kShmVersion) {
  v1::ShmMessage message;
  message.mutable_hello()->set_version(version);
  message.mutable_hello()->set_token(token);
  return message;
}

inline v1::ShmMessage ShmPutHelloOf(const std::string& token) {
  v1::ShmMessage message = ShmHelloOf(token);
  message.mutable_hello()->set_for_puts(true);
  return message;
}

inline v1::ShmMessage ShmPinOf(uint64_t pin_id, std::span<const ObjectKey> keys) {
  v1::ShmMessage message;
  message.mutable_pin()->set_pin_id(pin_id);
  for (const ObjectKey& key : keys) *message.mutable_pin()->add_objects() = ToProto(key);
  return message;
}

inline v1::ShmMessage ShmUnpinOf(uint64_t pin_id) {
  v1::ShmMessage message;
  message.mutable_unpin()->set_pin_id(pin_id);
  return message;
}

inline v1::ShmMessage ShmRenewMessage() {
  v1::ShmMessage message;
  message.mutable_renew();
  return message;
}

inline v1::ShmMessage ShmDamagedOf(uint64_t pin_id, uint32_t object_index) {
  v1::ShmMessage message;
  message.mutable_damaged()->set_pin_id(pin_id);
  message.mutable_damaged()->set_object_index(object_index);
  return message;
}

// The socket alone, without any of the SDK's care. Waits a minute at most.
// Thread-compatible.
class ShmTestClient {
 public:
  explicit ShmTestClient(const std::string& path) {
    auto socket = ConnectLocal(path, absl::Minutes(1));
    PKV_CHECK(socket.ok(), socket.status().ToString());
    socket_ = *std::move(socket);
  }

  void SendBytes(const std::string& bytes) {
    PKV_CHECK(SendSome(socket_.get(), std::as_bytes(std::span(bytes))).value_or(0) == bytes.size());
  }
  void Send(const v1::ShmMessage& message) { SendBytes(EncodeShmMessage(message)); }
  // The next message; nothing once the server has ended the connection.
  std::optional<v1::ShmMessage> Receive() {
    for (;;) {
      auto message = reader_.Next();
      PKV_CHECK(message.ok(), message.status().ToString());
      if (message->has_value()) return *message;
      std::array<std::byte, 4096> buffer;
      auto received = ReceiveSome(socket_.get(), buffer, /*wait=*/true, /*takes_fd=*/true);
      if (!received.ok() || received->num_bytes == 0) return std::nullopt;
      if (received->passed_fd) memory_ = std::move(received->passed_fd);
      reader_.Add(std::span(buffer).first(received->num_bytes));
    }
  }
  std::optional<v1::ShmMessage> Ask(const v1::ShmMessage& message) {
    Send(message);
    return Receive();
  }
  void Close() { socket_.Close(); }

  int socket() const { return socket_.get(); }
  // The descriptor that came along.
  const FileDescriptor& memory() const { return memory_; }

 private:
  FileDescriptor socket_, memory_;
  ShmFrameReader reader_;
};

}  // namespace pkv

#endif  // PKV_TESTS_SUPPORT_SHM_MESSAGES_H_
