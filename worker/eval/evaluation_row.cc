#include "worker/eval/evaluation_row.h"

#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "pkv/kernels/codec_params_text.h"
#include "proto/base/status_macros.h"

namespace pkv {

absl::StatusOr<EvaluationRow> ParseEvaluationRow(absl::string_view text, const KvShape& shape) {
  const std::pair<std::string, std::string> parts = absl::StrSplit(text, absl::MaxSplits(':', 1));
  EvaluationRow row;
  PKV_ASSIGN_OR_RETURN(row.params, PresetByName(parts.first, shape));
  row.label = parts.first;
  const std::vector<absl::string_view> settings =
      absl::StrSplit(parts.second, absl::ByAnyChar(",;"), absl::SkipEmpty());
  for (const absl::string_view setting : settings) {
    const std::vector<absl::string_view> key_value =
        absl::StrSplit(setting, absl::MaxSplits('=', 1));
    if (key_value.size() != 2) {
      return absl::InvalidArgumentError(
          absl::StrCat("\"", setting, "\" of preset \"", text, "\" is not key=value"));
    }
    PKV_RETURN_IF_ERROR(SetCodecParam(row.params, key_value[0], key_value[1]));
    absl::StrAppend(&row.label, " ", setting);
  }
  const absl::Status valid = row.params.Validate(shape);
  if (valid.ok()) return row;
  return absl::Status(valid.code(), absl::StrCat("preset \"", text, "\": ", valid.message()));
}

}  // namespace pkv
