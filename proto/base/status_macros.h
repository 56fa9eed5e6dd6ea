#ifndef PKV_PROTO_BASE_STATUS_MACROS_H_
#define PKV_PROTO_BASE_STATUS_MACROS_H_

// Early return on error, with the semantics of Abseil's later ABSL_ macros, to swap when available.

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#define PKV_STATUS_CONCAT_INNER_(a, b) a##b
#define PKV_STATUS_CONCAT_(a, b) PKV_STATUS_CONCAT_INNER_(a, b)

// Returns from the enclosing function when `expr` (absl::Status) is not OK.
#define PKV_RETURN_IF_ERROR(expr)                                                 \
  do {                                                                            \
    if (absl::Status pkv_status_ = (expr); !pkv_status_.ok()) return pkv_status_; \
  } while (false)

// Evaluates `expr` (absl::StatusOr<T>); returns its status on error, else assigns the value to
// `lhs`.
#define PKV_ASSIGN_OR_RETURN(lhs, expr) \
  PKV_ASSIGN_OR_RETURN_IMPL_(PKV_STATUS_CONCAT_(pkv_statusor_, __LINE__), lhs, expr)
#define PKV_ASSIGN_OR_RETURN_IMPL_(statusor, lhs, expr)    \
  auto statusor = (expr);                                  \
  if (!statusor.ok()) return std::move(statusor).status(); \
  lhs = *std::move(statusor)

#endif  // PKV_PROTO_BASE_STATUS_MACROS_H_
