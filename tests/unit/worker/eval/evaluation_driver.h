#ifndef PKV_TESTS_UNIT_WORKER_EVAL_EVALUATION_DRIVER_H_
#define PKV_TESTS_UNIT_WORKER_EVAL_EVALUATION_DRIVER_H_

// A tiny model of head_dim 128, the size that rates are quoted for, and evaluations of it.

#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "tests/support/tiny_worker.h"
#include "worker/eval/evaluation.h"

namespace pkv {

class EvaluationTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    TinyModel model;
    model.head_dim = 128;
    model.num_qo_heads = 4;
    model.num_kv_heads = 2;
    folder_ = new TinyModelFolder(model);
    host_ = LoadTinyHost(folder_->path()).release();
  }
  static void TearDownTestSuite() {
    delete host_;
    delete folder_;
  }

  static KvShape shape() { return host_->config().kv_shape(); }

  // A text of one token a byte, no two stretches of it alike.
  static std::string WriteText(const std::string& name, int num_bytes, uint64_t seed) {
    TestRandom random(seed);
    std::string text;
    for (int i = 0; i < num_bytes; ++i) text.push_back(static_cast<char>('!' + random.Below(90)));
    return folder_->folder().Write(name, text);
  }

  static EvaluationOptions Options(const std::vector<std::string>& rows,
                                   Protocol protocol = Protocol::kPrefix) {
    EvaluationOptions options;
    options.scoring.protocol = protocol;
    options.scoring.prefix_tokens = 300;
    options.scoring.score_tokens = 16;
    for (const std::string& row : rows) {
      const auto parsed = ParseEvaluationRow(row, shape());
      PKV_CHECK(parsed.ok(), parsed.status().ToString());
      options.rows.push_back(*parsed);
    }
    return options;
  }

  static PassageSet Cut(const EvaluationOptions& options, int num_passages, int num_texts = 1) {
    std::vector<std::string> texts;
    for (int i = 0; i < num_texts; ++i) {
      texts.push_back(WriteText(absl::StrCat("text", i), 2000, i + 1));
    }
    PassageOptions passages{.num_passages = num_passages};
    passages.num_tokens = options.scoring.prefix_tokens + options.scoring.score_tokens;
    const auto set = CutPassages(*host_, texts, passages);
    PKV_CHECK(set.ok(), set.status().ToString());
    return *set;
  }

  static EvaluationReport Evaluated(const EvaluationOptions& options, int num_passages = 2,
                                    int num_texts = 1) {
    const auto report =
        Evaluate(*host_, Cut(options, num_passages, num_texts), options, [](int, int) {});
    PKV_CHECK(report.ok(), report.status().ToString());
    return *report;
  }

  static inline TinyModelFolder* folder_ = nullptr;
  static inline ModelHost* host_ = nullptr;
};

}  // namespace pkv

#endif  // PKV_TESTS_UNIT_WORKER_EVAL_EVALUATION_DRIVER_H_
