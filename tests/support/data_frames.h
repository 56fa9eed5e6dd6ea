#ifndef PKV_TESTS_SUPPORT_DATA_FRAMES_H_
#define PKV_TESTS_SUPPORT_DATA_FRAMES_H_

// What a server sends for a Get, made from sealed objects.

#include <algorithm>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "proto/transport/data_frame.h"
#include "tests/support/sealed_object.h"

namespace pkv {

inline v1::DataFrame ManifestFrame(std::span<const SealedObject> objects) {
  v1::DataFrame frame;
  v1::GetManifest* manifest = frame.mutable_control()->mutable_manifest();
  for (const SealedObject& object : objects) {
    manifest->add_heads(object.head().data(), object.head().size());
  }
  return frame;
}

// Layers [begin, end) of all objects, layer by layer, in messages of `message_bytes` of payload.
inline std::vector<v1::DataFrame> LayerFrames(std::span<const SealedObject> objects, int begin,
                                              int end, size_t message_bytes) {
  std::vector<v1::DataFrame> frames;
  for (int layer = begin; layer < end; ++layer) {
    for (size_t i = 0; i < objects.size(); ++i) {
      if (layer >= objects[i].header.num_layers) continue;
      const std::span<const std::byte> bytes = objects[i].frame(layer);
      for (size_t offset = 0; offset < bytes.size();) {
        if (frames.empty() || frames.back().payload().size() == message_bytes) {
          frames.emplace_back();
        }
        v1::DataFrame& frame = frames.back();
        const size_t taken =
            std::min(bytes.size() - offset, message_bytes - frame.payload().size());
        frame.mutable_payload()->append(reinterpret_cast<const char*>(bytes.data()) + offset,
                                        taken);
        v1::Piece* piece = frame.mutable_control()->add_pieces();
        piece->set_object_index(static_cast<uint32_t>(i));
        piece->set_layer(static_cast<uint32_t>(layer));
        piece->set_offset(offset);
        piece->set_length(static_cast<uint32_t>(taken));
        offset += taken;
      }
    }
  }
  return frames;
}

inline v1::DataFrame TrailerFrame(std::span<const absl::Status> statuses) {
  v1::DataFrame frame;
  for (size_t i = 0; i < statuses.size(); ++i) {
    v1::ObjectStatus* status = frame.mutable_control()->mutable_trailer()->add_statuses();
    status->set_object_index(static_cast<uint32_t>(i));
    status->set_code(static_cast<int>(statuses[i].code()));
    status->set_message(std::string(statuses[i].message()));
  }
  return frame;
}

// All that an undisturbed Get receives.
inline std::vector<v1::DataFrame> GetFrames(std::span<const SealedObject> objects,
                                            size_t message_bytes, int first_layer = 0) {
  int num_layers = 0;
  for (const SealedObject& object : objects) {
    num_layers = std::max<int>(num_layers, object.header.num_layers);
  }
  std::vector<v1::DataFrame> frames = {ManifestFrame(objects)};
  for (v1::DataFrame& frame : LayerFrames(objects, first_layer, num_layers, message_bytes)) {
    frames.push_back(std::move(frame));
  }
  frames.push_back(TrailerFrame(std::vector<absl::Status>(objects.size())));
  return frames;
}

inline grpc::ByteBuffer ToBuffer(const google::protobuf::MessageLite& message) {
  const grpc::Slice slice(message.SerializeAsString());
  return grpc::ByteBuffer(&slice, 1);
}

}  // namespace pkv

#endif  // PKV_TESTS_SUPPORT_DATA_FRAMES_H_
