#include "worker/engine/cuda/streamed_product_plan.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace pkv {
namespace {

// Less would not keep enough bytes on their way: 132 rings of 3 stages are 6.9 MB, 1.5 us of
// memory.
constexpr int kMinStages = 3;
// Fewer items a CTA would leave too much to the last of them; more come of more parts, which the
// kernel behind has to read and add up (worker/README.md, "Products of few rows").
constexpr int kWantedItems = 3;
constexpr int kMinPartColumns = 1024;

// Rows of x stand an odd number of half cache lines apart, like those of the ring.
int XRowBytes(int columns) { return columns * 2 % 128 == 0 ? columns * 2 + 64 : columns * 2; }

StreamedProductPlan::Memory Lay(const StreamedProductShape& shape, const StreamedProductPlan& plan,
                                int token_tiles, int shared_bytes_max) {
  StreamedProductPlan::Memory memory;
  memory.x_row_bytes = XRowBytes(plan.part_columns);
  const int fixed = ProductHeaderBytes(token_tiles) + kTileHalf * token_tiles * memory.x_row_bytes;
  memory.num_stages = std::clamp((shared_bytes_max - fixed) / kStageBytes, 0, kMaxStages);
  memory.shared_bytes = fixed + memory.num_stages * kStageBytes;
  const int rounds = (shape.num_tiles() + plan.part_ctas - 1) / plan.part_ctas;
  const int filling = (memory.num_stages + plan.item_stages - 1) / plan.item_stages + 1;
  memory.static_rounds = std::min(rounds, filling);
  memory.has_tickets = shape.num_tiles() > memory.static_rounds * plan.part_ctas;
  return memory;
}

}  // namespace

absl::StatusOr<StreamedProductPlan> PlanStreamedProduct(const StreamedProductShape& shape,
                                                        int num_sms, int shared_bytes_max) {
  if (shape.n < 1 || shape.k < kColumnStep || shape.k % kColumnStep != 0) {
    return absl::UnimplementedError(absl::StrCat("weights of ", shape.n, " rows, ", shape.k,
                                                 " columns: no multiple of ", kColumnStep));
  }
  const int tiles = shape.num_tiles();
  StreamedProductPlan best;
  for (int parts = 1; parts <= std::min(shape.max_parts, num_sms); ++parts) {
    if (shape.k % (parts * kColumnStep) != 0) continue;
    StreamedProductPlan plan;
    plan.num_parts = parts;
    plan.part_columns = shape.k / parts;
    if (best.part_ctas > 0 && plan.part_columns < kMinPartColumns) break;
    plan.part_ctas = std::min(num_sms / parts, tiles);
    plan.item_stages = (plan.part_columns + kStageColumns - 1) / kStageColumns;
    for (int i = 0; i < 2; ++i) plan.memory[i] = Lay(shape, plan, i + 1, shared_bytes_max);
    if (plan.memory[1].num_stages < kMinStages) continue;
    best = plan;
    if (tiles * parts >= kWantedItems * num_sms) break;
  }
  if (best.part_ctas == 0) {
    return absl::UnimplementedError(
        absl::StrCat("weights of ", shape.k, " columns: ", kStreamedRowsMax, " rows of x in up to ",
                     shape.max_parts, " parts do not fit into ", shared_bytes_max, " bytes"));
  }
  return best;
}

}  // namespace pkv
