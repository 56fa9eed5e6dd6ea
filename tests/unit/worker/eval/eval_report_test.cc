#include "worker/eval/eval_report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/unit/worker/eval/evaluation_driver.h"
#include "tests/unit/worker/eval/well_formed.h"

namespace pkv {
namespace {

using testing::HasSubstr;
using testing::Not;

class EvalReportTest : public EvaluationTest {
 protected:
  static std::string Report(Protocol protocol) {
    const EvaluationOptions options = Options({"fp16", "kivi2", "default:num_sinks=4"}, protocol);
    EvaluationSetting setting;
    setting.model = "a <model> & more";
    setting.set = Cut(options, 3, 2);
    setting.scoring = options.scoring;
    const auto report = Evaluate(*host_, setting.set, options, [](int, int) {});
    PKV_CHECK(report.ok(), report.status().ToString());
    return HtmlReport(setting, *report);
  }
};

TEST_F(EvalReportTest, IsWellFormedForBothProtocols) {
  EXPECT_EQ(WellFormed::Check(Report(Protocol::kPrefix)), "");
  EXPECT_EQ(WellFormed::Check(Report(Protocol::kDecode)), "");
}

TEST_F(EvalReportTest, NeedsNothingButItself) {
  const std::string html = Report(Protocol::kPrefix);
  for (const char* foreign : {"<script", "<link", "src=", "url(", "@import", "nan"}) {
    EXPECT_THAT(html, Not(HasSubstr(foreign)));
  }
}

TEST_F(EvalReportTest, SaysWhatWasEvaluatedAndHow) {
  const std::string html = Report(Protocol::kDecode);
  for (const char* text :
       {"a &lt;model&gt; &amp; more", "protocol decode", "3 passages", "in steps of 16",
        "default num_sinks=4", "num_sinks", "KL against bits of the blocks", "KL by position",
        "K error as the queries see it", "V gate", "text1</h2>"}) {
    EXPECT_THAT(html, HasSubstr(text));
  }
}

}  // namespace
}  // namespace pkv
