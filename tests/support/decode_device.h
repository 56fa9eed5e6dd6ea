#ifndef PKV_TESTS_SUPPORT_DECODE_DEVICE_H_
#define PKV_TESTS_SUPPORT_DECODE_DEVICE_H_

// Decode cases on the device, and what their outputs are held to.

#include <cmath>
#include <cstring>
#include <memory>
#include <ostream>
#include <span>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/device/device_buffer.h"
#include "proto/base/log.h"
#include "proto/base/status_macros.h"
#include "tests/support/decode_case.h"
#include "tests/support/decode_reference.h"

namespace pkv {

inline constexpr DecodeKernel kDecodeKernels[] = {DecodeKernel::kCudaCore,
                                                  DecodeKernel::kTensorCore};
// In the same order.
inline const std::vector<DecodeArithmetic>& DecodeArithmetics() {
  static const auto& arithmetics =
      *new std::vector<DecodeArithmetic>{kCudaCoreArithmetic, kTensorCoreArithmetic};
  return arithmetics;
}
inline size_t ArithmeticOf(DecodeKernel kernel) {
  return kernel == DecodeKernel::kCudaCore ? 0 : 1;
}
inline const char* NameOf(DecodeKernel kernel) {
  return kernel == DecodeKernel::kCudaCore ? "CudaCore" : "TensorCore";
}

// Whether Make() may not answer Unimplemented (decode_attention.h).
inline bool TakesShape(DecodeKernel kernel, const DecodeAttentionShape& shape) {
  const Encoding& e = shape.encoding;
  const bool is_grouped = e.k_group_tokens < kBlockTokens || e.v_group_channels < shape.head_dim;
  return kernel == DecodeKernel::kCudaCore ||
         (shape.num_qo_heads / shape.num_kv_heads <= 8 && e.bits_k == e.bits_v &&
          !(e.k_fine_tokens > 0 && is_grouped));
}

inline ComputeContext CudaContext(void* stream) {
  return {.device = Device::kCuda, .stream = stream};
}

// The memory of a case on the device.
class DecodeOnDevice {
 public:
  DecodeOnDevice(const DecodeCase& of, void* stream) : case_(of), stream_(stream) {
    auto buffer = DeviceBuffer::CopyOf(of.memory(), stream);
    PKV_CHECK(buffer.ok(), buffer.status().ToString());
    memory_ = *std::move(buffer);
  }

  std::byte* data() { return memory_.data(); }
  DecodeAttentionArgs args() { return case_.ArgsAt(memory_.data()); }
  absl::Status Run(DecodeAttention& attention, bool is_planned = false) {
    DecodeAttentionArgs args = this->args();
    args.is_planned = is_planned;
    return attention.Run(args, CudaContext(stream_));
  }
  absl::Status Plan(DecodeAttention& attention) {
    return attention.Plan(args(), CudaContext(stream_));
  }
  // Waits for the stream.
  std::vector<std::byte> Read() const {
    std::vector<std::byte> memory(memory_.size());
    const absl::Status status = memory_.CopyToHost(memory);
    PKV_CHECK(status.ok(), status.ToString());
    return memory;
  }

 private:
  const DecodeCase& case_;
  void* stream_;
  DeviceBuffer memory_;
};

// A case's memory after one launch. Internal: not the same after a planned one.
inline absl::StatusOr<std::vector<std::byte>> RunOnce(DecodeAttention& attention,
                                                      const DecodeCase& of, void* stream) {
  DecodeOnDevice device(of, stream);
  PKV_RETURN_IF_ERROR(device.Run(attention));
  std::vector<std::byte> memory = device.Read();
  DecodeOnDevice planned(of, stream);
  PKV_RETURN_IF_ERROR(planned.Plan(attention));
  planned.Read();  // no launch overlaps the plan
  PKV_RETURN_IF_ERROR(planned.Run(attention, true));
  if (planned.Read() != memory) return absl::InternalError("a planned launch differs");
  return memory;
}

inline std::unique_ptr<DecodeAttention> MakeDecode(DecodeAttentionShape shape, DecodeKernel kernel,
                                                   void* stream) {
  shape.kernel = kernel;
  auto attention = DecodeAttention::Make(shape, CudaContext(stream));
  PKV_CHECK(attention.ok(), attention.status().ToString());
  return *std::move(attention);
}

// Output and lse of a case's memory.
struct DecodeOutput {
  DecodeOutput(const DecodeCase& of, const std::vector<std::byte>& memory) {
    std::vector<uint16_t> bits(of.out_array().bytes / 2);
    std::memcpy(bits.data(), memory.data() + of.out_array().begin, of.out_array().bytes);
    const bool is_half = of.spec().shape.query_type == QueryType::kFloat16;
    for (const uint16_t x : bits) {
      out.push_back(is_half ? Float16ToFloat(x)
                            : std::bit_cast<float>(static_cast<uint32_t>(x) << 16));
    }
    lse.resize(of.lse_array().bytes / 4);
    std::memcpy(lse.data(), memory.data() + of.lse_array().begin, of.lse_array().bytes);
  }

  std::vector<float> out, lse;
};

// How far outputs were from the reference.
struct DecodeErrors {
  double error_square = 0, reference_square = 0;  // sums, for the Frobenius norm
  double largest_of_bound = 0;                    // share of an element's bound
  double largest_deviations = 0;                  // a row's error, in standard deviations

  double frobenius() const {
    return reference_square > 0 ? std::sqrt(error_square / reference_square) : 0.0;
  }
  void Add(const DecodeErrors& other) {
    error_square += other.error_square;
    reference_square += other.reference_square;
    largest_of_bound = std::max(largest_of_bound, other.largest_of_bound);
    largest_deviations = std::max(largest_deviations, other.largest_deviations);
  }
};

inline std::ostream& operator<<(std::ostream& os, const DecodeErrors& e) {
  return os << "relative Frobenius error " << e.frobenius() << ", at most " << e.largest_of_bound
            << " of an element's bound and " << e.largest_deviations
            << " standard deviations of a row's error";
}

class DecodeCheck {
 public:
  DecodeCheck(const DecodeCase& of, DecodeReference reference)
      : case_(of), reference_(std::move(reference)) {}
  // Computes the reference for both kernels.
  explicit DecodeCheck(DecodeCase& of, ThreadPool* pool = nullptr)
      : DecodeCheck(of, ComputeDecodeReference(of.spec().shape, of.ArgsAt(of.memory().data()),
                                               DecodeArithmetics(), pool)) {}

  const DecodeReference& reference() const { return reference_; }

  // What is wrong with a case's memory after a launch, or nothing. `is_random`: K, V and q are
  // random, so that errors are independent.
  std::string Problem(const std::vector<std::byte>& after, DecodeKernel kernel, bool is_random,
                      DecodeErrors* errors = nullptr) const {
    std::string problem = ForeignWrite(after);
    if (!problem.empty()) return problem;
    const DecodeOutput got(case_, after);
    const DecodeBounds& bounds = reference_.bounds[ArithmeticOf(kernel)];
    DecodeErrors found;
    const size_t d = case_.spec().shape.head_dim, rows = reference_.lse.size();
    for (size_t row = 0; row < rows && problem.empty(); ++row) {
      problem = RowProblem(got, bounds, row, d, is_random, found);
      if (problem.empty() && case_.spec().has_lse) problem = LseProblem(got, bounds, row);
    }
    if (errors != nullptr) errors->Add(found);
    return problem;
  }

 private:
  bool is_bfloat16() const { return case_.spec().shape.query_type == QueryType::kBfloat16; }

  std::string ForeignWrite(const std::vector<std::byte>& after) const {
    const std::vector<std::byte> want = case_.ExpectedAfter(after);
    if (want == after) return "";
    const size_t at = std::mismatch(want.begin(), want.end(), after.begin()).first - want.begin();
    return absl::StrCat("byte ", at, " of the case's memory is ", std::to_integer<int>(after[at]),
                        ", not ", std::to_integer<int>(want[at]), ": ", case_.ArrayAt(at));
  }

  std::string RowProblem(const DecodeOutput& got, const DecodeBounds& bounds, size_t row, size_t d,
                         bool is_random, DecodeErrors& found) const {
    double error_square = 0, rounding_square = 0, reference_square = 0;
    for (size_t i = row * d; i < (row + 1) * d; ++i) {
      const double want = reference_.out[i], error = std::abs(got.out[i] - want);
      const double bound =
          bounds.out[i] + OutputBound(std::abs(want) + bounds.out[i], is_bfloat16());
      if (!(error <= bound)) {
        return absl::StrCat("row ", row, " channel ", i - row * d, " is ", got.out[i], ", not ",
                            want, " within ", bound);
      }
      found.largest_of_bound = std::max(found.largest_of_bound, error / bound);
      const double rounding = OutputBound(want, is_bfloat16());
      error_square += error * error;
      rounding_square += rounding * rounding;
      reference_square += want * want;
    }
    const double norm = std::sqrt(error_square), rounding = std::sqrt(rounding_square);
    if (!(norm <= bounds.out_norm[row] * (1 + kFloat16Unit) + rounding)) {
      return absl::StrCat("row ", row, " is off by ", norm, ", more than ", bounds.out_norm[row],
                          " and rounding ", rounding);
    }
    // Rounding the output is even over its interval.
    const double deviation = std::hypot(bounds.out_deviation[row], rounding / std::sqrt(3.0));
    const double deviations = deviation > 0 ? norm / deviation : 0.0;
    if (is_random && deviations > kDecodeDeviations) {
      return absl::StrCat("row ", row, " is off by ", norm, ", ", deviations, " times ", deviation);
    }
    found.largest_deviations = std::max(found.largest_deviations, deviations);
    found.error_square += error_square;
    found.reference_square += reference_square;
    return "";
  }

  std::string LseProblem(const DecodeOutput& got, const DecodeBounds& bounds, size_t row) const {
    const double want = reference_.lse[row];
    if (got.lse[row] == want) return "";  // minus infinity without tokens
    if (std::abs(got.lse[row] - want) <= bounds.lse[row]) return "";
    return absl::StrCat("lse of row ", row, " is ", got.lse[row], ", not ", want, " within ",
                        bounds.lse[row]);
  }

  const DecodeCase& case_;
  const DecodeReference reference_;
};

}  // namespace pkv

#endif  // PKV_TESTS_SUPPORT_DECODE_DEVICE_H_
