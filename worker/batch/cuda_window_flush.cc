#include "worker/batch/cuda_window_flush.h"

#include <algorithm>
#include <utility>

#include <cuda_runtime_api.h>

#include "kernels/device/cuda_status.h"
#include "proto/base/log.h"
#include "proto/base/status_macros.h"
#include "worker/sequence/object_place.h"

namespace pkv {
namespace {

constexpr uint8_t kFlagsAppend = kFlagAppendsK | kFlagAppendsV;

}  // namespace

absl::StatusOr<std::unique_ptr<CudaWindowFlush>> CudaWindowFlush::Make(CudaPools* pools,
                                                                       const CodecParams& params,
                                                                       const Digest& profile,
                                                                       int max_slots,
                                                                       void* stream) {
  auto flush =
      std::unique_ptr<CudaWindowFlush>(new CudaWindowFlush(pools, params, profile, stream));
  const KvShape& shape = pools->shape();
  const ComputeContext ctx = {Device::kCuda, nullptr, stream};
  PKV_ASSIGN_OR_RETURN(flush->compressor_, LayerCompressor::Make(shape, params, kBlockTokens, ctx));
  if (params.append_k || params.append_v) {
    CodecParams full = params;
    full.append_k = full.append_v = false;
    PKV_ASSIGN_OR_RETURN(flush->full_bank_compressor_,
                         LayerCompressor::Make(shape, full, kBlockTokens, ctx));
  }
  flush->appended_stride_ = 2 * int64_t{shape.num_kv_heads} * shape.head_dim;
  const size_t shift_bytes = size_t{2} * max_slots * sizeof(int32_t);
  PKV_ASSIGN_OR_RETURN(flush->host_shift_, PinnedBuffer::Make(shift_bytes));
  PKV_ASSIGN_OR_RETURN(flush->shift_, DeviceBuffer::Make(shift_bytes, stream));
  PKV_ASSIGN_OR_RETURN(
      flush->appended_,
      DeviceBuffer::Make(shape.num_layers * flush->appended_stride_ * sizeof(uint16_t), stream));
  return flush;
}

absl::StatusOr<ObjectHeader> CudaWindowFlush::HeaderFor(const FlushInput& flush,
                                                        const CudaSlot& slot) const {
  const int first_token = slot.num_blocks() * kBlockTokens;
  PKV_CHECK(flush.tokens.size() >= size_t(first_token) + kBlockTokens, flush.tokens.size());
  const Digest parent = slot.headers.empty() ? Digest{} : slot.headers.back().id;
  PKV_ASSIGN_OR_RETURN(ObjectHeader header,
                       BlockHeaderOf(pools_.shape(), params_, profile_, first_token, parent,
                                     flush.tokens.subspan(first_token, kBlockTokens)));
  if (!params_.encoding.has_patterns) return header;
  header.table = slot.table;
  header.num_patterns_k = static_cast<uint16_t>(slot.num_patterns_k);
  header.num_patterns_v = static_cast<uint16_t>(slot.num_patterns_v);
  const int most = std::max(slot.num_patterns_k + (params_.append_k ? 1 : 0),
                            slot.num_patterns_v + (params_.append_v ? 1 : 0));
  // The first block mines; later ones append while the bank has room.
  if (slot.num_blocks() == 0 || most > pools_.bank_capacity()) return header;
  if (params_.append_k) header.flags |= kFlagAppendsK;
  if (params_.append_v) header.flags |= kFlagAppendsV;
  return header;
}

absl::Status CudaWindowFlush::Compress(const FlushInput& flush, const CudaSlot& slot,
                                       const ObjectHeader& header, DeviceBank& bank, int layer) {
  const ComputeContext ctx = {Device::kCuda, nullptr, stream_};
  const KvTensorView kv = pools_.window(layer, flush.slot, 0, kBlockTokens);
  bank.patterns = pools_.bank(layer, flush.slot);
  bank.capacity = pools_.bank_capacity();
  bank.num_k = slot.num_patterns_k;
  bank.num_v = slot.num_patterns_v;
  if (slot.num_blocks() == 0) {
    LayerCompression first;
    first.kv = kv;
    first.mine = params_.encoding.has_patterns;
    first.bank = &bank;
    first.pages = pools_.page(layer, flush.page);
    first.page_stride = pools_.page_stride();
    first.sinks = pools_.sinks(layer, flush.slot);
    return compressor_->Compress(first, ctx);
  }
  WindowFlush later;
  later.kv = kv;
  later.bank = &bank;
  later.page = pools_.page(layer, flush.page);
  later.appended = flush.sealed != nullptr ? appended(layer) : nullptr;
  const bool appends = (header.flags & kFlagsAppend) != 0;
  LayerCompressor& compressor =
      appends || full_bank_compressor_ == nullptr ? *compressor_ : *full_bank_compressor_;
  PKV_RETURN_IF_ERROR(compressor.Flush(std::span(&later, 1), ctx));
  PKV_CHECK(later.append_flags == (header.flags & kFlagsAppend), int{later.append_flags});
  return absl::OkStatus();
}

absl::Status CudaWindowFlush::Seal(const FlushInput& flush, ObjectHeader& header, CudaSlot& slot) {
  if (params_.encoding.has_patterns && slot.num_blocks() == 0) {
    PKV_ASSIGN_OR_RETURN(std::unique_ptr<ObjectBuilder> table, seal_.Table(flush.slot, slot));
    header.table = slot.table = table->header().id;
    header.num_patterns_k = table->header().num_patterns_k;
    header.num_patterns_v = table->header().num_patterns_v;
    if (flush.sealed != nullptr) flush.sealed->push_back(std::move(table));
  }
  if (flush.sealed == nullptr) return absl::OkStatus();
  const bool appends = (header.flags & kFlagsAppend) != 0;
  PKV_ASSIGN_OR_RETURN(flush.sealed->emplace_back(),
                       seal_.Block(header, flush.slot, flush.page, appends ? appended(0) : nullptr,
                                   appended_stride_));
  return absl::OkStatus();
}

absl::Status CudaWindowFlush::DropFront(std::span<const FlushInput> flushes,
                                        std::vector<CudaSlot>& slots) {
  const int count = static_cast<int>(flushes.size());
  auto* host = reinterpret_cast<int32_t*>(host_shift_.data());
  for (int i = 0; i < count; ++i) {
    host[i] = flushes[i].slot;
    host[count + i] = slots[flushes[i].slot].num_window_tokens;
    slots[flushes[i].slot].num_window_tokens -= kBlockTokens;
  }
  PKV_RETURN_IF_ERROR(
      CudaStatus(cudaMemcpyAsync(shift_.data(), host, size_t{2} * count * sizeof(int32_t),
                                 cudaMemcpyHostToDevice, static_cast<cudaStream_t>(stream_)),
                 "upload slots"));
  const int32_t* device = shift_.As<int32_t>();
  return pools_.DropFront(device, device + count, count, stream_);
}

absl::Status CudaWindowFlush::Run(std::span<const FlushInput> flushes,
                                  std::vector<CudaSlot>& slots) {
  if (flushes.empty()) return absl::OkStatus();
  PKV_CHECK(2 * flushes.size() * sizeof(int32_t) <= host_shift_.size(), flushes.size());
  absl::Status status;
  for (const FlushInput& flush : flushes) {
    status.Update(FlushOne(flush, slots[flush.slot]));
    if (!status.ok()) break;
  }
  if (status.ok()) status = DropFront(flushes, slots);
  // Whatever happened, nothing writes to the pages any more when this returns.
  status.Update(
      CudaStatus(cudaStreamSynchronize(static_cast<cudaStream_t>(stream_)), "flush windows"));
  return status;
}

absl::Status CudaWindowFlush::FlushOne(const FlushInput& flush, CudaSlot& slot) {
  PKV_CHECK(slot.num_window_tokens >= kBlockTokens, slot.num_window_tokens);
  PKV_ASSIGN_OR_RETURN(ObjectHeader header, HeaderFor(flush, slot));
  DeviceBank bank;
  for (int layer = 0; layer < pools_.shape().num_layers; ++layer) {
    PKV_RETURN_IF_ERROR(Compress(flush, slot, header, bank, layer));
  }
  slot.num_patterns_k = bank.num_k;
  slot.num_patterns_v = bank.num_v;
  PKV_RETURN_IF_ERROR(Seal(flush, header, slot));
  slot.headers.push_back(header);
  slot.prefix.pages.push_back(flush.page);
  return absl::OkStatus();
}

}  // namespace pkv
