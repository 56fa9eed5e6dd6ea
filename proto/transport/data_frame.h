#ifndef PKV_PROTO_TRANSPORT_DATA_FRAME_H_
#define PKV_PROTO_TRANSPORT_DATA_FRAME_H_

// DataFrame as raw slices: a short prefix, then the stored bytes themselves, never copied into a
// protobuf message.
//
// On the wire it is an ordinary protobuf DataFrame whose last field is the payload, so other
// languages read it as one.

#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/slice.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "pkv/v1/cache_service.pb.h"

namespace pkv {

// Payload of one message: at most this, by default about half of it. Receivers accept
// kMaxMessageBytes.
inline constexpr uint64_t kMaxPayloadBytes = uint64_t{1} << 20;
inline constexpr uint64_t kDefaultPayloadBytes = uint64_t{512} << 10;
inline constexpr uint64_t kMinPayloadBytes = uint64_t{4} << 10;
// Of one message whose payload stands in a stage (StagedPayload).
inline constexpr uint64_t kMaxStagedBytes = uint64_t{4} << 20;
// Payload, pieces, and the manifest of 4,096 objects.
inline constexpr int kMaxMessageBytes = 8 << 20;
inline constexpr int kMaxObjectsPerCall = 4096;

// References `payload`; the slices keep what they point at alive.
grpc::ByteBuffer EncodeDataFrame(const v1::FrameControl& control,
                                 std::span<const grpc::Slice> payload);

// Reads payload bytes that lie in several slices, front to back.
// Thread-compatible.
class PayloadReader {
 public:
  PayloadReader() = default;
  explicit PayloadReader(std::vector<grpc::Slice> slices);

  uint64_t remaining() const { return remaining_; }
  // Fills `out` with the next bytes. DataLoss when fewer remain.
  absl::Status Read(std::span<std::byte> out) { return Take(out.size(), out.data()); }
  // Likewise, for nobody.
  absl::Status Skip(uint64_t bytes) { return Take(bytes, nullptr); }

 private:
  absl::Status Take(uint64_t bytes, std::byte* out);

  std::vector<grpc::Slice> slices_;
  size_t slice_index_ = 0;
  size_t offset_ = 0;  // in the current slice
  uint64_t remaining_ = 0;
};

struct DecodedDataFrame {
  v1::FrameControl control;
  PayloadReader payload;  // empty where control.staged() says that it stands elsewhere
};

// InvalidArgument: not a DataFrame, or the pieces' lengths do not add up to the payload's, which
// may be staged or in the message, not both.
absl::StatusOr<DecodedDataFrame> DecodeDataFrame(grpc::ByteBuffer& message);

}  // namespace pkv

#endif  // PKV_PROTO_TRANSPORT_DATA_FRAME_H_
