#ifndef PKV_PROTO_TRANSPORT_SHM_FRAME_H_
#define PKV_PROTO_TRANSPORT_SHM_FRAME_H_

// ShmMessages over a byte stream: each behind its length, 4 bytes, little-endian.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "absl/status/statusor.h"
#include "pkv/v1/handoff.pb.h"

namespace pkv {

inline constexpr uint32_t kShmVersion = 1;
inline constexpr size_t kShmTokenBytes = 16;
// A message without its length. The largest is a pin of 4,096 keys of some 80 bytes.
inline constexpr size_t kMaxShmMessageBytes = size_t{512} << 10;

std::string EncodeShmMessage(const v1::ShmMessage& message);

// Cuts a byte stream into messages. Never holds more than was added and not yet taken, which the
// caller keeps below kMaxShmMessageBytes + what one read brings by taking all messages after each.
//
// Thread-compatible.
class ShmFrameReader {
 public:
  void Add(std::span<const std::byte> bytes);
  // The next message, or nothing before it is complete. An error is final.
  //   InvalidArgument  longer than kMaxShmMessageBytes, not a ShmMessage, or of no known kind
  absl::StatusOr<std::optional<v1::ShmMessage>> Next();

 private:
  std::string bytes_;
  size_t taken_ = 0;  // from the front of bytes_
};

}  // namespace pkv

#endif  // PKV_PROTO_TRANSPORT_SHM_FRAME_H_
