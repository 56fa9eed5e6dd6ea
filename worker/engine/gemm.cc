#include "worker/engine/gemm.h"

#include <algorithm>
#include <atomic>

#include "absl/strings/str_cat.h"
#include "oneapi/dnnl/dnnl.h"
#include "proto/base/thread_pool.h"

// The two calls of the OpenMP runtime that oneDNN is built on, declared here because <omp.h> would
// bind to the compiler's own runtime, which need not be oneDNN's.
extern "C" {
int omp_get_max_threads(void);
void omp_set_num_threads(int num_threads);
}

namespace pkv {
namespace {

// Rows of `a` in one task: oneDNN reaches its best rate well below this many.
constexpr int kRowsPerTask = 256;
// Products in one task, some 30 us or more: handing it to another thread costs about a tenth.
constexpr int64_t kProductsPerTask = 1 << 20;
constexpr int kColumnAlignment = 64;

// The team size of OpenMP is a setting of the calling thread: it is set for one call and put back.
class ScopedSingleThread {
 public:
  ScopedSingleThread() : previous_(omp_get_max_threads()) {
    if (previous_ != 1) omp_set_num_threads(1);
  }
  ~ScopedSingleThread() {
    if (previous_ != 1) omp_set_num_threads(previous_);
  }
  ScopedSingleThread(const ScopedSingleThread&) = delete;
  ScopedSingleThread& operator=(const ScopedSingleThread&) = delete;

 private:
  const int previous_;
};

dnnl_status_t GemmPart(const GemmArgs& args, int row, int num_rows, int column, int num_columns) {
  const ScopedSingleThread single_thread;
  const int64_t b_offset = args.transpose_b ? column * args.b_stride : column;
  return dnnl_sgemm('N', args.transpose_b ? 'T' : 'N', num_rows, num_columns, args.k, args.alpha,
                    args.a + row * args.a_stride, args.a_stride, args.b + b_offset, args.b_stride,
                    args.beta, args.c + row * args.c_stride + column, args.c_stride);
}

int NumTasks(int size, int per_task) { return (size + per_task - 1) / per_task; }

}  // namespace

absl::Status Gemm(const GemmArgs& args, ThreadPool* pool) {
  if (args.m == 0 || args.n == 0) return absl::OkStatus();
  // Many rows are split by rows, so that a task reads all of `b` but only its part of `a`; few rows
  // by columns.
  int columns = args.n;
  if (args.m <= kRowsPerTask) {
    const int64_t wanted = kProductsPerTask / std::max<int64_t>(int64_t{args.m} * args.k, 1) + 1;
    columns = static_cast<int>(
        std::min<int64_t>(args.n, NumTasks(wanted, kColumnAlignment) * int64_t{kColumnAlignment}));
  }
  const int row_tasks = NumTasks(args.m, kRowsPerTask);
  const int column_tasks = NumTasks(args.n, columns);
  const int num_tasks = row_tasks * column_tasks;
  std::atomic<dnnl_status_t> failure = dnnl_success;
  ParallelFor(num_tasks > 1 ? pool : nullptr, num_tasks, [&](int task) {
    const int row = task / column_tasks * kRowsPerTask;
    const int column = task % column_tasks * columns;
    const dnnl_status_t status = GemmPart(args, row, std::min(kRowsPerTask, args.m - row), column,
                                          std::min(columns, args.n - column));
    if (status != dnnl_success) failure = status;
  });
  if (failure == dnnl_success) return absl::OkStatus();
  return absl::InternalError(absl::StrCat("dnnl_sgemm ", args.m, "x", args.n, "x", args.k,
                                          " failed with status ",
                                          static_cast<int>(failure.load())));
}

}  // namespace pkv
