#ifndef PKV_WORKER_EVAL_REPORT_JSON_H_
#define PKV_WORKER_EVAL_REPORT_JSON_H_

#include <nlohmann/json.hpp>
#include <string>

#include "worker/eval/evaluation.h"

namespace pkv {

// What was evaluated, and how: enough to do it again.
struct EvaluationSetting {
  std::string model;    // directory
  std::string profile;  // hexadecimal digest of the model
  PassageSet set;
  PassageOptions passage_options;
  ScoringOptions scoring;
  std::vector<std::string> table_texts;  // that shared tables were mined from; empty: none shared
  int table_passages = 0;
};

const char* ProtocolName(Protocol protocol);  // "prefix", "decode"

// Everything that an evaluation found: setting, then one entry a row with its parameters and
// digest, overall and by text.
nlohmann::ordered_json ToJson(const EvaluationSetting& setting, const EvaluationReport& report);

}  // namespace pkv

#endif  // PKV_WORKER_EVAL_REPORT_JSON_H_
