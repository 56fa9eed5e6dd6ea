#include "worker/eval/eval_report.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "pkv/kernels/codec_params_text.h"
#include "worker/eval/svg_plot.h"

namespace pkv {
namespace {

constexpr char kHead[] = R"(<!DOCTYPE html>
<html xmlns="http://www.w3.org/1999/xhtml" lang="en">
<head>
<meta charset="utf-8"/>
<title>patternkv evaluation</title>
<style>
body {
  font: 14px/1.45 sans-serif; color: #222;
  max-width: 1340px; margin: 24px auto; padding: 0 16px;
}
table { border-collapse: collapse; margin: 8px 0 20px; font-variant-numeric: tabular-nums; }
th, td { padding: 3px 9px; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
th { border-bottom: 2px solid #888; font-weight: 600; }
svg { border: 1px solid #eee; margin: 4px; background: #fff; }
p, dl { max-width: 900px; }
dt { font-weight: 600; }
code { font-size: 12px; }
</style>
</head>
<body>
)";

constexpr char kDefinitions[] = R"(<h2>What the numbers mean</h2>
<dl>
<dt>bits</dt><dd>Codes, scales, zero points and pattern ids of the blocks, bits an element, K
and V averaged.</dd>
<dt>all-in, at 32k</dt><dd>Blocks with headers, the pattern table and the fp16 window over the
tokens cached; the same extrapolated to a prefill of 32,768 tokens, the table counted once.</dd>
<dt>KL</dt><dd>Mean divergence of the next-token distribution from the uncompressed one, nats;
&#177; one standard error over passages. p99: the 99th percentile over tokens.</dd>
<dt>dPPL</dt><dd>Change of perplexity on the text itself; &#177; one standard error over
passages.</dd>
<dt>top-1, top-5</dt><dd>Share of tokens with the same most likely successor; mean share of the
five most likely that both have.</dd>
<dt>K, V error</dt><dd>Squared error of decoded blocks over squared norm.</dd>
<dt>K as seen</dt><dd>Sum of e&#7488;He over sum of k&#7488;Hk, with H the mean of qq&#7488;
over the scored tokens' queries that read the kv head, after RoPE.</dd>
<dt>attention error</dt><dd>Squared error over squared norm of attention outputs for the same
queries (every 16th scored token), this cache against the exact one. The decode protocol's
blocks hold the run's own K and V: its drift is included.</dd>
<dt>gate</dt><dd>Share of V vectors in blocks whose pattern was subtracted.</dd>
</dl>
)";

std::string Row(const char* cell, const std::vector<std::string>& values) {
  std::string row = "<tr>";
  for (const std::string& value : values) {
    absl::StrAppend(&row, "<", cell, ">", EscapeXml(value), "</", cell, ">");
  }
  return absl::StrCat(row, "</tr>\n");
}

std::string Signed(double value, double error) {
  const std::string text = absl::StrFormat("%+.3f", value);
  return error > 0 ? absl::StrCat(text, absl::StrFormat(" \u00b1 %.3f", error)) : text;
}

std::string SummaryTable(const std::vector<const RowScore*>& scores,
                         const std::vector<RowReport>& rows) {
  std::string table = "<table>\n";
  absl::StrAppend(
      &table, Row("th", {"preset", "bits", "all-in", "at 32k", "dPPL %", "KL", "KL p99", "top-1 %",
                         "top-5 %", "K error", "K as seen", "V error", "attention error", "gate"}));
  for (size_t i = 0; i < rows.size(); ++i) {
    const RowScore& s = *scores[i];
    const std::string kl =
        s.kl_standard_error > 0
            ? absl::StrFormat("%.5f \u00b1 %.5f", s.logits.kl, s.kl_standard_error)
            : absl::StrFormat("%.5f", s.logits.kl);
    const double ratio = 1 + s.perplexity_change;  // of perplexities: e to the NLL difference
    absl::StrAppend(
        &table,
        Row("td",
            {rows[i].row.label, absl::StrFormat("%.4g", s.bits_per_element),
             absl::StrFormat("%.3f", s.bits_all_in), absl::StrFormat("%.3f", s.bits_all_in_long),
             Signed(100 * s.perplexity_change, 100 * ratio * s.nll_difference_standard_error), kl,
             absl::StrFormat("%.4f", s.logits.kl_p99),
             absl::StrFormat("%.2f", 100 * s.logits.top1_agreement),
             absl::StrFormat("%.2f", 100 * s.logits.top5_agreement),
             absl::StrFormat("%.4f", s.k_error), absl::StrFormat("%.5f", s.k_seen_error),
             absl::StrFormat("%.4f", s.v_error), absl::StrFormat("%.5f", s.attention_error),
             absl::StrFormat("%.3f", s.gate_accepted)}));
  }
  return absl::StrCat(table, "</table>\n");
}

// One line a row over the layers, where `value` is not negative.
template <typename Value>
Plot LayerPlot(const EvaluationReport& report, const char* title, const char* unit,
               const Value& value) {
  Plot plot{.title = title, .x = {.title = "layer"}, .y = {.title = unit, .from_zero = true}};
  for (const RowReport& row : report.rows) {
    PlotSeries series{.name = row.row.label};
    for (size_t layer = 0; layer < row.overall.layers.size(); ++layer) {
      if (plot.x.ticks.size() == layer) plot.x.ticks.push_back(absl::StrCat(layer));
      const double y = value(row.overall.layers[layer]);
      if (y >= 0) series.points.push_back({static_cast<double>(layer), y});
    }
    plot.series.push_back(std::move(series));
  }
  return plot;
}

template <typename Member>
double OverHeads(const LayerTotals& layer, const Member& member) {
  SquaredError sum;
  for (const HeadScore& head : layer.heads) sum.Add(member(head));
  return sum.relative();
}

double Share(double part, double whole) { return whole > 0 ? part / whole : -1; }

// Negative without codes.
double CodeBits(const PatternUse& use) {
  const double bits = use.code_bits();
  return bits > 0 ? bits : -1;
}

Plot KlAgainstBits(const EvaluationReport& report, const char* title, const char* unit,
                   double RowScore::*bits) {
  Plot plot{.title = title,
            .x = {.title = unit},
            .y = {.title = "KL, nats", .is_log = true},
            .joins_points = false};
  for (const RowReport& row : report.rows) {
    plot.series.push_back({row.row.label,
                           {{row.overall.*bits, row.overall.logits.kl}},
                           {row.overall.kl_standard_error}});
  }
  return plot;
}

Plot ByQuarter(const EvaluationReport& report, const EvaluationSetting& setting, bool is_kl) {
  Plot plot{.title = is_kl ? "KL by position" : "NLL difference by position",
            .x = {.title = "scored tokens, quarter of the range"},
            .y = {.title = is_kl ? "KL, nats" : "NLL difference, nats", .from_zero = true}};
  for (int quarter = 0; quarter < kNumQuarters; ++quarter) {
    const int64_t scored = setting.scoring.score_tokens;
    plot.x.ticks.push_back(absl::StrCat(scored * quarter / kNumQuarters, " - ",
                                        scored * (quarter + 1) / kNumQuarters));
  }
  for (const RowReport& row : report.rows) {
    PlotSeries series{.name = row.row.label};
    for (int quarter = 0; quarter < kNumQuarters; ++quarter) {
      const LogitSummary& q = row.overall.quarters[quarter];
      series.points.push_back({quarter, is_kl ? q.kl : q.nll - q.reference_nll});
    }
    plot.series.push_back(std::move(series));
  }
  return plot;
}

std::string Plots(const EvaluationSetting& setting, const EvaluationReport& report) {
  const auto usage = [](const PatternUse& use) {
    return Share(use.usage_bits, static_cast<double>(use.num_banks));
  };
  const Plot plots[] = {
      KlAgainstBits(report, "KL against bits of the blocks", "bits an element",
                    &RowScore::bits_per_element),
      KlAgainstBits(report, "KL against all bits at 32k tokens", "bits an element, all-in",
                    &RowScore::bits_all_in_long),
      ByQuarter(report, setting, /*is_kl=*/true),
      ByQuarter(report, setting, /*is_kl=*/false),
      LayerPlot(report, "K error as the queries see it", "relative squared error",
                [](const LayerTotals& layer) {
                  return OverHeads(layer, [](const HeadScore& head) { return head.k_seen; });
                }),
      LayerPlot(report, "K error", "relative squared error",
                [](const LayerTotals& layer) {
                  return OverHeads(layer, [](const HeadScore& head) { return head.k; });
                }),
      LayerPlot(report, "V error", "relative squared error",
                [](const LayerTotals& layer) {
                  return OverHeads(layer, [](const HeadScore& head) { return head.v; });
                }),
      LayerPlot(report, "Attention output error", "relative squared error",
                [](const LayerTotals& layer) { return layer.attention.relative(); }),
      LayerPlot(report, "V gate", "share of V vectors accepted",
                [](const LayerTotals& layer) {
                  return Share(static_cast<double>(layer.accepted),
                               static_cast<double>(layer.gated));
                }),
      LayerPlot(report, "K pattern usage", "entropy of the ids, bits",
                [&](const LayerTotals& layer) { return usage(layer.k_patterns); }),
      LayerPlot(report, "V pattern usage", "entropy of the ids, bits",
                [&](const LayerTotals& layer) { return usage(layer.v_patterns); }),
      LayerPlot(report, "K codes", "entropy, bits a code",
                [](const LayerTotals& layer) { return CodeBits(layer.k_patterns); }),
      LayerPlot(report, "V codes", "entropy, bits a code",
                [](const LayerTotals& layer) { return CodeBits(layer.v_patterns); }),
  };
  std::string html;
  for (const Plot& plot : plots) {
    const bool is_empty = std::all_of(plot.series.begin(), plot.series.end(),
                                      [](const PlotSeries& s) { return s.points.empty(); });
    if (!is_empty) absl::StrAppend(&html, DrawSvg(plot));
  }
  return html;
}

std::string SettingText(const EvaluationSetting& setting, const EvaluationReport& report) {
  const ScoringOptions& scoring = setting.scoring;
  std::string how = absl::StrFormat(
      "model %s (profile %s), protocol %s, %d passages, prefix %d tokens, then %d scored",
      setting.model, setting.profile.substr(0, 12), ProtocolName(scoring.protocol),
      setting.set.passages.size(), scoring.prefix_tokens, scoring.score_tokens);
  if (scoring.protocol == Protocol::kDecode) {
    absl::StrAppend(&how, " in steps of ", scoring.step_tokens);
  }
  absl::StrAppendFormat(&how, ", seed %d. Perplexity of the uncompressed model: %.3f.",
                        setting.passage_options.seed, report.baseline_perplexity);
  std::string html = absl::StrCat("<p>", EscapeXml(how), "</p>\n<table>\n");
  absl::StrAppend(&html, Row("th", {"text", "bytes", "tokens", "perplexity", "SHA-256"}));
  for (size_t i = 0; i < setting.set.texts.size(); ++i) {
    const PassageText& text = setting.set.texts[i];
    absl::StrAppend(
        &html,
        Row("td", {text.path, absl::StrCat(text.bytes), absl::StrCat(text.num_tokens),
                   absl::StrFormat("%.3f", report.text_baseline_perplexity[i]), text.sha256}));
  }
  return absl::StrCat(html, "</table>\n");
}

std::string ParameterTable(const EvaluationReport& report) {
  std::string html = "<h2>Parameters</h2>\n<table>\n";
  std::vector<std::string> heads = {"field"}, digests = {"digest"};
  std::vector<std::vector<std::string>> fields;
  for (const RowReport& row : report.rows) {
    heads.push_back(row.row.label);
    digests.push_back(absl::StrCat(absl::Hex(row.row.params.Digest(), absl::kZeroPad16)));
    const std::vector<CodecParamText> texts = ListCodecParams(row.row.params);
    fields.resize(texts.size());
    for (size_t i = 0; i < texts.size(); ++i) {
      if (fields[i].empty()) fields[i].push_back(texts[i].key);
      fields[i].push_back(texts[i].value);
    }
  }
  absl::StrAppend(&html, Row("th", heads), Row("td", digests));
  for (const std::vector<std::string>& field : fields) absl::StrAppend(&html, Row("td", field));
  return absl::StrCat(html, "</table>\n");
}

}  // namespace

std::string HtmlReport(const EvaluationSetting& setting, const EvaluationReport& report) {
  std::string html = kHead;
  absl::StrAppend(&html, "<h1>What compression costs</h1>\n", SettingText(setting, report));
  std::vector<const RowScore*> scores;
  for (const RowReport& row : report.rows) scores.push_back(&row.overall);
  absl::StrAppend(&html, "<h2>All texts</h2>\n", SummaryTable(scores, report.rows),
                  "<h2>Plots</h2>\n<div>\n", Plots(setting, report), "</div>\n", kDefinitions);
  for (size_t text = 0; text < setting.set.texts.size(); ++text) {
    scores.clear();
    for (const RowReport& row : report.rows) scores.push_back(&row.texts[text]);
    absl::StrAppend(&html, "<h2>", EscapeXml(setting.set.texts[text].path), "</h2>\n",
                    SummaryTable(scores, report.rows));
  }
  absl::StrAppend(&html, ParameterTable(report), "</body>\n</html>\n");
  return html;
}

}  // namespace pkv
