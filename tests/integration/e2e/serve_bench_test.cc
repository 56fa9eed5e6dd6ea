// pkv-bench serve on the three real processes and a trained model: what it counts is what was asked
// for and what the processes counted, and a worker that is away is reported.

#include <gmock/gmock.h>

#include "tests/integration/e2e/fleet.h"

namespace pkv {
namespace {

class ServeBenchTest : public Fleet {
 protected:
  // With --output json, on small prompts.
  Result Bench(std::vector<std::string> more) {
    std::vector<std::string> arguments = {bin_ + "/tests/bench/pkv-bench",
                                          "serve",
                                          "--prefill",
                                          "127.0.0.1:" + prefill_port_,
                                          "--decode",
                                          "127.0.0.1:" + decode_port_,
                                          "--output",
                                          "json",
                                          "--prompt-tokens",
                                          "uniform:280:300",
                                          "--output-tokens",
                                          "fixed:4",
                                          "--ignore-eos"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    ChildProcess process(arguments, scratch_ + "/bench");
    Result result;
    result.exit_code = process.Wait(kPatience);
    result.err = process.err();
    result.json = nlohmann::json::parse(process.out(), nullptr, /*allow_exceptions=*/false);
    return result;
  }

  std::vector<std::string> MetricsFlags() const {
    const auto url = [](const std::string& port) {
      return "http://127.0.0.1:" + port + "/metrics";
    };
    return {"--metrics-prefill",       url(prefill_metrics_port_), "--metrics-decode",
            url(decode_metrics_port_), "--metrics-cache",          url(cache_metrics_port_)};
  }

  // What the pages of a role counted by this series; null when it is not there.
  static nlohmann::json Counted(const nlohmann::json& report, const std::string& role,
                                const std::string& series) {
    for (const auto& page : report["metrics"]["pages"]) {
      if (page["role"] == role) return page["counters"].value(series, nlohmann::json());
    }
    return {};
  }
};

TEST_F(ServeBenchTest, AClosedLoopsCountsAreThoseOfTheProcesses) {
  StartPkvd();
  StartWorkers();
  std::vector<std::string> flags = MetricsFlags();
  for (const char* flag :
       {"--concurrency", "2", "--num-requests", "6", "--warmup", "2", "--shared-prefix", "0.5",
        "--variant", "pkv2", "--slo-ttft", "100s", "--refuse-recompute", "--metric",
        "pkv_payload_bytes_total,pkv_unknown"}) {
    flags.emplace_back(flag);
  }
  const std::string out = scratch_ + "/report.json";
  flags.insert(flags.end(), {"--out", out});
  const Result run = Bench(flags);
  ASSERT_EQ(run.exit_code, 0) << run.err;
  const nlohmann::json& report = run.json;
  EXPECT_EQ(report["requests"]["sent"], 6);
  EXPECT_EQ(report["requests"]["ok"], 6);
  EXPECT_EQ(report["requests"]["failed"], 0);
  EXPECT_EQ(report["tokens"]["output"], 24);
  EXPECT_EQ(report["latency_seconds"]["ttft"]["count"], 6);
  EXPECT_EQ(report["latency_seconds"]["inter_token"]["count"], 18);
  EXPECT_EQ(report["rates"]["goodput"]["requests"], 6);
  // The warm-up stored the common prefix, of which one block is whole.
  EXPECT_EQ(report["tokens"]["cached"], 6 * 128);
  EXPECT_EQ(report["tokens"]["recomputed"], 0);
  // The processes counted the same, and not the warm-up.
  EXPECT_EQ(Counted(report, "prefill", "pkv_worker_prompt_tokens_total{role=\"prefill\"}"),
            report["tokens"]["prompt"]);
  EXPECT_EQ(Counted(report, "prefill", "pkv_client_saved_prefill_tokens_total{role=\"prefill\"}"),
            report["tokens"]["cached"]);
  EXPECT_EQ(Counted(report, "decode", "pkv_worker_generated_tokens_total{role=\"decode\"}"), 24);
  EXPECT_EQ(Counted(report, "decode", "pkv_worker_requests_total{code=\"OK\",role=\"decode\"}"), 6);
  const double fetched =
      double(report["bytes"]["fetched_by_prefill"]) + double(report["bytes"]["fetched_by_decode"]);
  EXPECT_EQ(
      Counted(report, "cache", "pkv_payload_bytes_total{direction=\"out\",transport=\"grpc\"}"),
      fetched);
  const auto fetched_by = [&report](const std::string& role) {
    return Counted(report, role,
                   "pkv_client_payload_bytes_total{direction=\"in\",role=\"" + role +
                       "\",transport=\"grpc\"}");
  };
  EXPECT_EQ(fetched_by("prefill"), report["bytes"]["fetched_by_prefill"]);
  EXPECT_EQ(fetched_by("decode"), report["bytes"]["fetched_by_decode"]);
  // Of pkvd in and out, over gRPC, shm and NCCL; of each worker in by the same and directly, out by
  // gRPC and shm.
  EXPECT_EQ(report["bytes"]["shipped_by_transport"].size(), 6 + 2 * 6);
  EXPECT_EQ(report["metrics"]["absent"], nlohmann::json({"pkv_unknown"}));
  EXPECT_EQ(nlohmann::json::parse(ChildProcess::Read(out), nullptr, false), report);
}

TEST_F(ServeBenchTest, DecodeOnlyPrefillsEachPromptOnce) {
  StartPkvd();
  StartWorkers();
  std::vector<std::string> flags = MetricsFlags();
  for (const char* flag : {"--decode-only", "--concurrency", "3", "--distinct-prompts", "2",
                           "--num-requests", "7", "--refuse-recompute"}) {
    flags.emplace_back(flag);
  }
  const Result run = Bench(flags);
  ASSERT_EQ(run.exit_code, 0) << run.err;
  EXPECT_EQ(run.json["requests"]["ok"], 7);
  EXPECT_EQ(run.json["tickets"]["count"], 2);
  EXPECT_EQ(run.json["tickets"]["not_stored"], 0);
  EXPECT_EQ(run.json["tokens"]["prompt"], 0);
  EXPECT_EQ(run.json["tokens"]["output"], 28);
  EXPECT_TRUE(run.json["latency_seconds"]["ttft_prefill"].is_null());
  // No prefill ran while the load did.
  EXPECT_TRUE(
      Counted(run.json, "prefill", "pkv_worker_prompt_tokens_total{role=\"prefill\"}").is_null());
}

TEST_F(ServeBenchTest, AnOpenLoopOnATextSendsWhatASeedPlans) {
  StartPkvd();
  StartWorkers();
  const Result run = Bench({"--rate", "50", "--num-requests", "5", "--text",
                            "/usr/share/common-licenses/GPL-3", "--text-bytes", "3000"});
  ASSERT_EQ(run.exit_code, 0) << run.err;
  EXPECT_EQ(run.json["load"]["loop"], "open");
  EXPECT_EQ(run.json["load"]["tokens"], "text");
  EXPECT_EQ(run.json["requests"]["ok"], 5);
  // The same seed, the same prompts: all of them are stored, all but what no whole block holds.
  const Result again = Bench({"--rate", "50", "--num-requests", "5", "--text",
                              "/usr/share/common-licenses/GPL-3", "--text-bytes", "3000"});
  ASSERT_EQ(again.exit_code, 0) << again.err;
  EXPECT_EQ(again.json["tokens"]["prompt"], run.json["tokens"]["prompt"]);
  EXPECT_GE(int(again.json["tokens"]["cached"]), 5 * 128);
}

TEST_F(ServeBenchTest, AWorkerThatIsAwayIsReportedAndFailsTheRun) {
  StartPkvd();
  StartWorkers();
  decode_->Signal(SIGKILL);
  ASSERT_EQ(decode_->Wait(kPatience), 128 + SIGKILL);
  const Result run = Bench({"--concurrency", "2", "--num-requests", "4"});
  EXPECT_EQ(run.exit_code, 1);
  EXPECT_EQ(run.json["requests"]["sent"], 4);
  EXPECT_EQ(run.json["requests"]["failed"], 4);
  ASSERT_EQ(run.json["requests"]["errors"].size(), 1);
  EXPECT_EQ(run.json["requests"]["errors"][0]["stage"], "decode");
  EXPECT_EQ(run.json["requests"]["errors"][0]["code"], "UNAVAILABLE");
  EXPECT_EQ(run.json["requests"]["errors"][0]["count"], 4);
  EXPECT_THAT(std::string(run.json["requests"]["errors"][0]["message"]), testing::Not(""));
}

}  // namespace
}  // namespace pkv
