#include "worker/eval/report_json.h"

#include "absl/strings/str_cat.h"
#include "pkv/kernels/codec_params_text.h"

namespace pkv {
namespace {

using Json = nlohmann::ordered_json;

Json SettingJson(const EvaluationSetting& setting) {
  Json texts = Json::array(), passages = Json::array();
  for (const PassageText& text : setting.set.texts) {
    texts.push_back({{"path", text.path},
                     {"bytes", text.bytes},
                     {"sha256", text.sha256},
                     {"tokens", text.num_tokens}});
  }
  for (const Passage& passage : setting.set.passages) {
    passages.push_back({{"text", passage.text_index}, {"first_token", passage.first_token}});
  }
  Json json = {{"model", setting.model},
               {"profile", setting.profile},
               {"protocol", ProtocolName(setting.scoring.protocol)},
               {"prefix_tokens", setting.scoring.prefix_tokens},
               {"score_tokens", setting.scoring.score_tokens},
               {"attention_stride", kAttentionStride},
               {"seed", setting.passage_options.seed},
               {"texts", texts},
               {"passages", passages}};
  if (setting.scoring.protocol == Protocol::kDecode) {
    json["step_tokens"] = setting.scoring.step_tokens;
  }
  if (!setting.table_texts.empty()) {
    json["table_texts"] = setting.table_texts;
    json["table_passages"] = setting.table_passages;
  }
  return json;
}

Json PatternJson(const PatternUse& use) {
  Json json = {{"code_bits", use.code_bits()}};
  if (use.num_banks == 0) return json;
  json["used_share"] =
      use.available > 0 ? static_cast<double>(use.used) / static_cast<double>(use.available) : 0;
  json["usage_bits"] = use.usage_bits / static_cast<double>(use.num_banks);
  return json;
}

Json LayerJson(const LayerTotals& layer) {
  Json heads = Json::array();
  SquaredError k, v, k_seen;
  for (const HeadScore& head : layer.heads) {
    heads.push_back({{"k_error", head.k.relative()},
                     {"v_error", head.v.relative()},
                     {"k_seen_error", head.k_seen.relative()}});
    k.Add(head.k);
    v.Add(head.v);
    k_seen.Add(head.k_seen);
  }
  Json json = {{"k_error", k.relative()},
               {"v_error", v.relative()},
               {"k_seen_error", k_seen.relative()},
               {"attention_error", layer.attention.relative()},
               {"k", PatternJson(layer.k_patterns)},
               {"v", PatternJson(layer.v_patterns)},
               {"heads", heads}};
  if (layer.gated > 0) {
    json["gate_accepted"] = static_cast<double>(layer.accepted) / static_cast<double>(layer.gated);
  }
  return json;
}

Json ScoreJson(const RowScore& score) {
  Json quarters = Json::array(), layers = Json::array();
  for (const LogitSummary& quarter : score.quarters) {
    quarters.push_back(
        {{"kl_mean", quarter.kl}, {"nll_difference", quarter.nll - quarter.reference_nll}});
  }
  for (const LayerTotals& layer : score.layers) layers.push_back(LayerJson(layer));
  return {{"bits_per_element", score.bits_per_element},
          {"bits_all_in", score.bits_all_in},
          {"bits_all_in_32k", score.bits_all_in_long},
          {"perplexity", score.perplexity},
          {"perplexity_change", score.perplexity_change},
          {"nll_difference", score.logits.nll - score.logits.reference_nll},
          {"nll_difference_standard_error", score.nll_difference_standard_error},
          {"kl_mean", score.logits.kl},
          {"kl_standard_error", score.kl_standard_error},
          {"kl_p99", score.logits.kl_p99},
          {"top1_agreement", score.logits.top1_agreement},
          {"top5_agreement", score.logits.top5_agreement},
          {"k_error", score.k_error},
          {"v_error", score.v_error},
          {"k_seen_error", score.k_seen_error},
          {"attention_error", score.attention_error},
          {"gate_accepted", score.gate_accepted},
          {"scored_tokens", score.scored_tokens},
          {"passages", score.num_passages},
          {"quarters", quarters},
          {"layers", layers}};
}

}  // namespace

const char* ProtocolName(Protocol protocol) {
  return protocol == Protocol::kDecode ? "decode" : "prefix";
}

Json ToJson(const EvaluationSetting& setting, const EvaluationReport& report) {
  Json json = SettingJson(setting);
  json["baseline_perplexity"] = report.baseline_perplexity;
  for (size_t text = 0; text < report.text_baseline_perplexity.size(); ++text) {
    json["texts"][text]["baseline_perplexity"] = report.text_baseline_perplexity[text];
  }
  Json rows = Json::array();
  for (const RowReport& row : report.rows) {
    Json params = Json::object();
    for (const auto& [key, value] : ListCodecParams(row.row.params)) params[key] = value;
    Json entry = {
        {"preset", row.row.label},
        {"params_digest", absl::StrCat(absl::Hex(row.row.params.Digest(), absl::kZeroPad16))},
        {"params", params}};
    entry.update(ScoreJson(row.overall));
    Json texts = Json::array();
    for (const RowScore& text : row.texts) texts.push_back(ScoreJson(text));
    entry["texts"] = texts;
    rows.push_back(entry);
  }
  json["presets"] = rows;
  return json;
}

}  // namespace pkv
