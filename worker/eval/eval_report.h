#ifndef PKV_WORKER_EVAL_EVAL_REPORT_H_
#define PKV_WORKER_EVAL_EVAL_REPORT_H_

#include <string>

#include "worker/eval/report_json.h"

namespace pkv {

// An evaluation as one HTML page that needs nothing else: tables, plots as inline SVG, the setting
// and the parameters of every row. The page is well-formed XML.
std::string HtmlReport(const EvaluationSetting& setting, const EvaluationReport& report);

}  // namespace pkv

#endif  // PKV_WORKER_EVAL_EVAL_REPORT_H_
