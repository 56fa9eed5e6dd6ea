#ifndef PKV_KERNELS_PATTERN_ASSIGN_KERNELS_H_
#define PKV_KERNELS_PATTERN_ASSIGN_KERNELS_H_

#include <cstdint>

#include <cuda_runtime_api.h>

namespace pkv {

// Any number of tokens of one layer, and its bank. All pointers are on the device.
struct AssignKernelArgs {
  // Finite, [kv_head][token][head_dim] fp16; heads are head_stride elements apart. Rows are
  // aligned to 16 bytes.
  const uint16_t* k = nullptr;
  const uint16_t* v = nullptr;
  int num_kv_heads = 0;
  int num_tokens = 0;
  int head_dim = 0;  // 64 or 128
  int64_t head_stride = 0;
  int first_token = 0;  // tokens below it (sinks) get id 255

  // K [num_kv_heads][bank_capacity][head_dim] fp16, then V.
  const uint16_t* bank = nullptr;
  int bank_capacity = 0;
  int num_patterns_k = 0;  // 0..255, of the bank, to choose from; with none every id is 255
  int num_patterns_v = 0;
  // The bank is of rotated rows (rotation.h), K and V are not: kL2 takes patterns rotated back, as
  // RotateFloat16Rows() does it. Distances are the same, but for the rounding of rows and patterns.
  bool is_bank_rotated = false;
  // AssignMetric::kMinMax in place of kL2; needs rows as the bank's.
  bool min_max_k = false;
  bool min_max_v = false;

  // Out: [kv_head][token], heads ids_stride bytes apart. Either may be null: then that tensor is
  // left out.
  uint8_t* k_ids = nullptr;
  uint8_t* v_ids = nullptr;
  int64_t ids_stride = 0;
};

// Enqueues the choice of the nearest pattern for every token and returns; no gate is applied. Ties
// go to the lowest id.
//
// Min-max gives the ids of NearestMinMax(). L2 sums on tensor cores: products are exact, but their
// sum rounds in another order than in NearestL2(), so ids differ where two patterns are nearer to
// each other than NearestL2Gap() (tests/support/error_bound.h).
// REQUIRES: head_dim is 64 or 128, counts are within their ranges.
cudaError_t LaunchAssignPatterns(const AssignKernelArgs& args, cudaStream_t stream);

// A block that decode flushes, and the bank that it extends. All pointers are on the device.
struct CentreKernelArgs {
  // [kv_head][token][head_dim] fp16, finite; heads are head_stride elements apart.
  const uint16_t* k = nullptr;
  const uint16_t* v = nullptr;
  int num_kv_heads = 0;
  int num_tokens = 0;
  int head_dim = 0;
  int64_t head_stride = 0;
  int first_token = 0;  // tokens below it (sinks) do not count

  // K [num_kv_heads][bank_capacity][head_dim] fp16, then V.
  uint16_t* bank = nullptr;
  int bank_capacity = 0;
  // Where the centre goes: the number of patterns that stand in the bank, which the caller then
  // counts up. Negative: this tensor appends none.
  int k_id = -1;
  int v_id = -1;
};

// Enqueues the appending of the Chebyshev centre (max + min) / 2 of each channel over tokens
// [first_token, num_tokens) and returns: the bits of AppendCentres() on the CPU.
// REQUIRES: first_token < num_tokens; ids are below bank_capacity.
cudaError_t LaunchAppendCentres(const CentreKernelArgs& args, cudaStream_t stream);

}  // namespace pkv

#endif  // PKV_KERNELS_PATTERN_ASSIGN_KERNELS_H_
