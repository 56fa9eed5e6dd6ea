// Goal: no bytes make the reader of objects fail other than by a documented Status, and what it
// accepts is what the builder writes.
// Method: each input is read as it is, then with its checksums made right, then also with the sizes
// that its geometry gives, so that the checks behind the checksums are reached.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "pkv/block/object_builder.h"
#include "pkv/block/object_view.h"
#include "pkv/block/prefix_hash.h"
#include "proto/base/log.h"
#include "proto/block/payload_layout.h"
#include "tests/support/object_checksums.h"

namespace pkv {
namespace {

// Larger objects are not made up: they would only be slow.
constexpr uint64_t kMaxObjectBytes = 1 << 20;

void CheckRefusal(const absl::Status& status) {
  PKV_CHECK(status.code() == absl::StatusCode::kDataLoss ||
                status.code() == absl::StatusCode::kFailedPrecondition ||
                status.code() == absl::StatusCode::kInvalidArgument,
            status.ToString());
  PKV_CHECK(!status.message().empty());
}

void CheckLayout(const ObjectHeader& header) {
  const PayloadLayout layout = PayloadLayout::Of(header);
  const int64_t sections[] = {0,
                              layout.k_codes,
                              layout.k_fine_codes,
                              layout.v_codes,
                              layout.k_scales,
                              layout.k_zeros,
                              layout.v_scales,
                              layout.v_zeros,
                              layout.k_ids,
                              layout.v_ids,
                              layout.head_bytes,
                              layout.page_bytes,
                              layout.sinks,
                              layout.appended,
                              layout.frame_bytes};
  for (size_t i = 1; i < std::size(sections); ++i) {
    PKV_CHECK(sections[i - 1] <= sections[i], i, " ", sections[i - 1], " ", sections[i]);
    PKV_CHECK(sections[i] % 128 == 0, i, " ", sections[i]);
  }
  PKV_CHECK(static_cast<uint64_t>(layout.frame_bytes) == header.frame_bytes, layout.frame_bytes);
}

// An accepted header is written again as the same bytes, and an accepted object too.
void CheckRewrite(const ObjectView& view, std::span<const std::byte> bytes, bool is_servable) {
  ObjectHeader header = view.header();
  std::array<std::byte, 256> sealed;
  PKV_CHECK(SealHeader(header, sealed).ok());
  PKV_CHECK(std::memcmp(sealed.data(), bytes.data(), sealed.size()) == 0);

  absl::StatusOr<ObjectBuilder> builder = ObjectBuilder::Make(view.header());
  PKV_CHECK(builder.ok(), builder.status().ToString());
  for (int layer = 0; layer < header.num_layers; ++layer) {
    std::memcpy(builder->frame(layer).data(), view.frame(layer).data(), view.frame(layer).size());
  }
  const absl::Status status = builder->Seal();
  if (!is_servable) return;
  PKV_CHECK(status.ok(), status.ToString());
  PKV_CHECK(builder->bytes().size() == bytes.size());
  PKV_CHECK(std::memcmp(builder->bytes().data(), bytes.data(), bytes.size()) == 0);
}

void Read(std::span<const std::byte> bytes) {
  const absl::StatusOr<ObjectView> view = ObjectView::Parse(bytes);
  if (!view.ok()) {
    CheckRefusal(view.status());
    return;
  }
  CheckLayout(view->header());
  const absl::Status status = view->VerifyAll();
  PKV_CHECK(status.ok() || status.code() == absl::StatusCode::kDataLoss, status.ToString());
  CheckRewrite(*view, bytes, status.ok());
}

// Gives an object the sizes that its geometry demands, when it is possible and not too large.
void FitToGeometry(std::vector<std::byte>& object) {
  ObjectHeader header;
  std::memcpy(&header, object.data(), sizeof(header));
  header.magic = kObjectMagic;
  header.version_major = kFormatMajor;
  const absl::StatusOr<ObjectSizes> sizes = ComputeObjectSizes(header);
  if (!sizes.ok()) {
    CheckRefusal(sizes.status());
    return;
  }
  if (sizes->object_bytes > kMaxObjectBytes) return;
  header.frame_bytes = sizes->frame_bytes;
  header.object_bytes = sizes->object_bytes;
  object.resize(sizes->object_bytes);
  object.shrink_to_fit();
  const auto frames = std::span<const std::byte>(object).subspan(FramesOffset(header.num_layers));
  if (header.kind == ObjectKind::kTable) {
    header.id = TableId(header.profile, header.shape(), header.num_patterns_k,
                        header.num_patterns_v, frames);
  }
  std::memcpy(object.data(), &header, sizeof(header));
  // The padding of the frame table must be zero.
  const size_t table_end = sizeof(header) + sizeof(uint32_t) * (header.num_layers + 1u);
  std::memset(object.data() + table_end, 0, FramesOffset(header.num_layers) - table_end);
}

}  // namespace
}  // namespace pkv

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto bytes = std::as_bytes(std::span(data, size));
  pkv::Read(bytes);
  const int num_layers = size == 0 ? 0 : 1 + data[0];
  if (const auto table = pkv::ParseFrameTable(bytes, num_layers); !table.ok()) {
    pkv::CheckRefusal(table.status());
  }
  if (size < sizeof(pkv::ObjectHeader)) return 0;

  std::vector<std::byte> object(bytes.begin(), bytes.end());
  pkv::FixFrameChecksums(object);
  pkv::FixHeaderChecksum(object);
  pkv::Read(object);

  object.assign(bytes.begin(), bytes.end());
  pkv::FitToGeometry(object);
  pkv::FixFrameChecksums(object);
  pkv::FixHeaderChecksum(object);
  pkv::Read(object);
  return 0;
}
