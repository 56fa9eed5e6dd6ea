#include "worker/eval/report_json.h"

#include <gtest/gtest.h>

#include "tests/unit/worker/eval/evaluation_driver.h"

namespace pkv {
namespace {

class ReportJsonTest : public EvaluationTest {};

TEST_F(ReportJsonTest, HoldsSettingParametersAndEveryScore) {
  const EvaluationOptions options = Options({"kivi2", "default:num_sinks=4"}, Protocol::kDecode);
  EvaluationSetting setting;
  setting.model = "tiny";
  setting.scoring = options.scoring;
  setting.passage_options.seed = 7;
  setting.set = Cut(options, 3, 2);
  const auto report = Evaluate(*host_, setting.set, options, [](int, int) {});
  ASSERT_THAT(report, IsOk());
  const nlohmann::ordered_json json = ToJson(setting, *report);
  EXPECT_EQ(json["protocol"], "decode");
  EXPECT_EQ(json["step_tokens"], 16);
  EXPECT_EQ(json["seed"], 7);
  EXPECT_EQ(json["texts"].size(), 2u);
  EXPECT_EQ(json["texts"][1]["sha256"], setting.set.texts[1].sha256);
  EXPECT_EQ(json["passages"].size(), 3u);
  ASSERT_EQ(json["presets"].size(), 2u);
  const auto& row = json["presets"][1];
  EXPECT_EQ(row["preset"], "default num_sinks=4");
  EXPECT_EQ(row["params"]["num_sinks"], "4");
  EXPECT_EQ(row["params_digest"].get<std::string>().size(), 16u);
  EXPECT_EQ(row["kl_mean"], report->rows[1].overall.logits.kl);
  EXPECT_EQ(row["quarters"].size(), 4u);
  EXPECT_EQ(row["texts"].size(), 2u);
  EXPECT_EQ(row["texts"][0]["kl_mean"], report->rows[1].texts[0].logits.kl);
  ASSERT_EQ(row["layers"].size(), 2u);
  EXPECT_EQ(row["layers"][0]["heads"].size(), 2u);
  EXPECT_TRUE(row["layers"][0].contains("gate_accepted"));
  EXPECT_TRUE(row["layers"][0]["k"].contains("usage_bits"));
  EXPECT_FALSE(json["presets"][0]["layers"][0].contains("gate_accepted")) << "kivi2 has no gate";
}

}  // namespace
}  // namespace pkv
