#include <algorithm>
#include <limits>
#include <span>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/device/cuda_status.h"
#include "kernels/device/device_buffer.h"
#include "kernels/pattern/assign_kernels.h"
#include "kernels/pattern/finite_check.h"
#include "kernels/pattern/finite_check_kernels.h"
#include "kernels/pattern/kmeans_kernels.h"
#include "kernels/pattern/pattern_backends.h"
#include "proto/base/status_macros.h"

namespace pkv {
namespace {

cudaStream_t StreamOf(const ComputeContext& ctx) { return static_cast<cudaStream_t>(ctx.stream); }

absl::Status CheckTensor(const KvTensorView& kv) {
  if (kv.head_dim != 64 && kv.head_dim != 128) {
    return absl::InvalidArgumentError(absl::StrCat("head_dim ", kv.head_dim, " not in {64, 128}"));
  }
  constexpr int kAlignment = 16;
  for (const uint16_t* rows : {kv.k, kv.v}) {
    const auto misaligned = reinterpret_cast<uintptr_t>(rows) % kAlignment;
    if (misaligned != 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("rows are ", misaligned, " bytes past a multiple of ", kAlignment));
    }
  }
  if (kv.head_stride * sizeof(uint16_t) % kAlignment != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("head_stride ", kv.head_stride, " is not a multiple of 8"));
  }
  return absl::OkStatus();
}

absl::Status CheckFiniteCuda(const KvTensorView& kv, cudaStream_t stream) {
  unsigned long long place = std::numeric_limits<unsigned long long>::max();
  const std::span<std::byte> bytes = std::as_writable_bytes(std::span(&place, 1));
  PKV_ASSIGN_OR_RETURN(DeviceBuffer place_device, DeviceBuffer::CopyOf(bytes, stream));
  PKV_RETURN_IF_ERROR(
      CudaStatus(LaunchFindNonFinite(kv, place_device.As<unsigned long long>(), stream),
                 "launch finite check"));
  PKV_RETURN_IF_ERROR(place_device.CopyToHost(bytes));
  if (place == std::numeric_limits<unsigned long long>::max()) return absl::OkStatus();
  const int channel = static_cast<int>(place % kv.head_dim);
  const int token = static_cast<int>(place / kv.head_dim % kv.num_tokens);
  const int list = static_cast<int>(place / kv.head_dim / kv.num_tokens);
  const int head = list % kv.num_kv_heads;
  const bool is_k = list < kv.num_kv_heads;
  const uint16_t* row = is_k ? kv.k_row(head, token) : kv.v_row(head, token);
  uint16_t value = 0;
  PKV_RETURN_IF_ERROR(CudaStatus(
      cudaMemcpy(&value, row + channel, sizeof(value), cudaMemcpyDeviceToHost), "copy value"));
  return NotFinite({is_k, head, token, channel}, value);
}

// A bank as the kernels read and write it, with patterns of K and V from id 0 on.
struct HostBank {
  int num_kv_heads, capacity, head_dim;
  std::vector<uint16_t> values;

  HostBank(int kv_heads, int patterns, int dim)
      : num_kv_heads(kv_heads),
        capacity(patterns),
        head_dim(dim),
        values(2 * static_cast<size_t>(kv_heads) * patterns * dim) {}
  std::span<uint16_t> Patterns(bool is_k, int head, int num) {
    const size_t list = static_cast<size_t>(is_k ? 0 : num_kv_heads) + head;
    return std::span(values).subspan(list * capacity * head_dim,
                                     static_cast<size_t>(num) * head_dim);
  }
  std::span<std::byte> bytes() { return std::as_writable_bytes(std::span(values)); }
};

}  // namespace

absl::StatusOr<Codebook> MinePatternsCuda(const KvTensorView& kv, const CodecParams& params,
                                          const ComputeContext& ctx) {
  PKV_RETURN_IF_ERROR(CheckTensor(kv));
  Codebook codebook(kv.num_kv_heads, kv.head_dim);
  if (kv.num_tokens == 0) return codebook;
  PKV_RETURN_IF_ERROR(CheckFiniteCuda(kv, StreamOf(ctx)));
  const int num_k = std::min(params.num_patterns_k, kv.num_tokens);
  const int num_v = std::min(params.num_patterns_v, kv.num_tokens);
  HostBank bank(kv.num_kv_heads, std::max(num_k, num_v), kv.head_dim);
  KMeansKernelArgs args = {.k = kv.k,
                           .v = kv.v,
                           .num_kv_heads = kv.num_kv_heads,
                           .num_tokens = kv.num_tokens,
                           .head_dim = kv.head_dim,
                           .head_stride = kv.head_stride,
                           .num_patterns_k = num_k,
                           .num_patterns_v = num_v,
                           .iterations = params.kmeans_iterations,
                           .tolerance = params.kmeans_tolerance,
                           .bank_capacity = bank.capacity};
  PKV_ASSIGN_OR_RETURN(DeviceBuffer bank_device,
                       DeviceBuffer::Make(bank.bytes().size(), ctx.stream));
  PKV_ASSIGN_OR_RETURN(DeviceBuffer workspace,
                       DeviceBuffer::Make(KMeansWorkspaceBytes(args), ctx.stream));
  args.bank = bank_device.As<uint16_t>();
  args.workspace = workspace.data();
  PKV_RETURN_IF_ERROR(CudaStatus(LaunchMinePatterns(args, StreamOf(ctx)), "launch mining"));
  PKV_RETURN_IF_ERROR(bank_device.CopyToHost(bank.bytes()));
  for (int head = 0; head < kv.num_kv_heads; ++head) {
    codebook.AppendK(head, bank.Patterns(true, head, num_k));
    codebook.AppendV(head, bank.Patterns(false, head, num_v));
  }
  return codebook;
}

absl::StatusOr<PatternAssignment> AssignPatternsCuda(const KvTensorView& kv, int first_token,
                                                     const CodecParams& params,
                                                     const Codebook& codebook, Phase phase,
                                                     const ComputeContext& ctx) {
  PKV_RETURN_IF_ERROR(CheckTensor(kv));
  PatternAssignment assignment = RawAssignment(kv.num_kv_heads);
  const int num_k = codebook.num_k(), num_v = codebook.num_v();
  if (codebook.num_kv_heads() != kv.num_kv_heads || num_k + num_v == 0) return assignment;
  HostBank bank(kv.num_kv_heads, std::max(num_k, num_v), kv.head_dim);
  for (int head = 0; head < kv.num_kv_heads; ++head) {
    std::ranges::copy(codebook.k(head), bank.Patterns(true, head, num_k).begin());
    std::ranges::copy(codebook.v(head), bank.Patterns(false, head, num_v).begin());
  }
  PKV_ASSIGN_OR_RETURN(DeviceBuffer bank_device, DeviceBuffer::CopyOf(bank.bytes(), ctx.stream));
  PKV_ASSIGN_OR_RETURN(DeviceBuffer k_ids, DeviceBuffer::Make(assignment.k.size(), ctx.stream));
  PKV_ASSIGN_OR_RETURN(DeviceBuffer v_ids, DeviceBuffer::Make(assignment.v.size(), ctx.stream));
  const AssignKernelArgs args = {
      .k = kv.k,
      .v = kv.v,
      .num_kv_heads = kv.num_kv_heads,
      .num_tokens = kBlockTokens,
      .head_dim = kv.head_dim,
      .head_stride = kv.head_stride,
      .first_token = first_token,
      .bank = bank_device.As<uint16_t>(),
      .bank_capacity = bank.capacity,
      .num_patterns_k = num_k,
      .num_patterns_v = num_v,
      .min_max_k = AssignMetricFor(true, params, phase) == AssignMetric::kMinMax,
      .min_max_v = AssignMetricFor(false, params, phase) == AssignMetric::kMinMax,
      .k_ids = k_ids.As<uint8_t>(),
      .v_ids = v_ids.As<uint8_t>(),
      .ids_stride = kBlockTokens};
  PKV_RETURN_IF_ERROR(CudaStatus(LaunchAssignPatterns(args, StreamOf(ctx)), "launch assignment"));
  PKV_RETURN_IF_ERROR(k_ids.CopyToHost(std::as_writable_bytes(std::span(assignment.k))));
  PKV_RETURN_IF_ERROR(v_ids.CopyToHost(std::as_writable_bytes(std::span(assignment.v))));
  if (num_v == 0 || params.gate_v == Gate::kNone || first_token >= kBlockTokens) return assignment;
  const size_t num_gated = static_cast<size_t>(kBlockTokens - first_token);
  std::vector<uint16_t> rows(num_gated * kv.head_dim);
  for (int head = 0; head < kv.num_kv_heads; ++head) {
    PKV_RETURN_IF_ERROR(
        CudaStatus(cudaMemcpy(rows.data(), kv.v_row(head, first_token),
                              rows.size() * sizeof(uint16_t), cudaMemcpyDeviceToHost),
                   "copy V"));
    const size_t at = static_cast<size_t>(head) * kBlockTokens + first_token;
    GateHead(rows.data(), codebook.v(head), kv.head_dim, params,
             std::span(assignment.v).subspan(at, num_gated));
  }
  return assignment;
}

absl::Status AppendCentresCuda(const KvTensorView& kv, int first_token, bool append_k,
                               bool append_v, Codebook& codebook, const ComputeContext& ctx) {
  PKV_RETURN_IF_ERROR(CheckTensor(kv));
  HostBank bank(kv.num_kv_heads, 1, kv.head_dim);
  PKV_ASSIGN_OR_RETURN(DeviceBuffer bank_device,
                       DeviceBuffer::Make(bank.bytes().size(), ctx.stream));
  const CentreKernelArgs args = {.k = kv.k,
                                 .v = kv.v,
                                 .num_kv_heads = kv.num_kv_heads,
                                 .num_tokens = kBlockTokens,
                                 .head_dim = kv.head_dim,
                                 .head_stride = kv.head_stride,
                                 .first_token = first_token,
                                 .bank = bank_device.As<uint16_t>(),
                                 .bank_capacity = bank.capacity,
                                 .k_id = append_k ? 0 : -1,
                                 .v_id = append_v ? 0 : -1};
  PKV_RETURN_IF_ERROR(CudaStatus(LaunchAppendCentres(args, StreamOf(ctx)), "launch centres"));
  PKV_RETURN_IF_ERROR(bank_device.CopyToHost(bank.bytes()));
  for (int head = 0; head < kv.num_kv_heads; ++head) {
    if (append_k) codebook.AppendK(head, bank.Patterns(true, head, 1));
    if (append_v) codebook.AppendV(head, bank.Patterns(false, head, 1));
  }
  return absl::OkStatus();
}

}  // namespace pkv
