#ifndef PKV_WORKER_SEQUENCE_OBJECT_PLACE_H_
#define PKV_WORKER_SEQUENCE_OBJECT_PLACE_H_

#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "pkv/block/object_header.h"
#include "pkv/kernels/codec_params.h"

namespace pkv {

// Where an object stands in a sequence.
struct ObjectPlace {
  ObjectKind kind = ObjectKind::kBlock;
  uint64_t first_token = 0;
  Digest parent;
};

// What objects of one model, geometry and variant have at their places. Immutable.
class PlaceRules {
 public:
  // `params` outlives this.
  PlaceRules(const KvShape& shape, const CodecParams& params, const Digest& profile)
      : shape_(shape), params_(params), profile_(profile), variant_(params.variant()) {}

  // The object is of them, and stands at `place`. The geometry is checked although the variant
  // names it: whoever wrote the object may have lied, and sizes of frames follow from it.
  // FailedPrecondition: it is not; names it.
  absl::Status Check(const ObjectHeader& header, const ObjectPlace& place) const;

 private:
  const KvShape shape_;
  const CodecParams& params_;
  const Digest profile_;
  const Variant variant_;  // takes microseconds to make
};

// The fields of an object's header that follow from model and variant; places and ids are left to
// the caller, the number of tokens too but for blocks. REQUIRES: params are valid for `shape`.
ObjectHeader HeaderOf(ObjectKind kind, const KvShape& shape, const CodecParams& params,
                      const Digest& profile);

// The header of the block of `tokens`, 128 of them, that stands at first_token behind the block
// `parent`. What it refers to of patterns, and appends, is left to the caller. InvalidArgument:
// another number of tokens.
absl::StatusOr<ObjectHeader> BlockHeaderOf(const KvShape& shape, const CodecParams& params,
                                           const Digest& profile, uint64_t first_token,
                                           const Digest& parent, std::span<const int32_t> tokens);

}  // namespace pkv

#endif  // PKV_WORKER_SEQUENCE_OBJECT_PLACE_H_
