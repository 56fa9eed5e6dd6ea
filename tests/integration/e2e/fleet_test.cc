// The main job with the real processes: prefill worker -> pkvd -> decode worker, a trained model,
// real text.

#include <algorithm>

#include "tests/integration/e2e/fleet.h"

namespace pkv {
namespace {

class FleetTest : public Fleet {};

// Goal: the service changes nothing. Method: 256 greedy tokens of the fp16 variant against one
// process without a service.
TEST_F(FleetTest, Fp16ThroughTheServiceGivesTheTokensOfOneProcess) {
  StartPkvd();
  StartWorkers();
  const std::string prompt = Document(3000);
  const Result local = GenerateLocally(prompt, 256);
  ASSERT_EQ(local.exit_code, 0) << local.err;
  const Result served = Generate("fp16", prompt, 256, {"--refuse-recompute"});
  ASSERT_EQ(served.exit_code, 0) << served.err;
  EXPECT_EQ(served.json["token_ids"].size(), 256u);
  EXPECT_EQ(served.json["token_ids"], local.json["token_ids"]);
  EXPECT_EQ(served.json["decode"]["recomputed_tokens"], 0);
  EXPECT_EQ(served.json["decode"]["fetched_bytes"], served.json["prefill"]["logical_bytes"]);
}

TEST_F(FleetTest, EveryPresetShipsFewerBytesAndServesTheSharedPrefixToTheNextRequest) {
  StartPkvd();
  StartWorkers();
  const std::string shared = Document(3000);
  for (const char* preset : {"kivi2", "kivi4", "pkv4", "pkv2", "default"}) {
    SCOPED_TRACE(preset);
    const Result first = Generate(preset, shared + " First.", 8, {"--refuse-recompute"});
    ASSERT_EQ(first.exit_code, 0) << first.err;
    EXPECT_EQ(first.json["prefill"]["cached_tokens"], 0);
    EXPECT_LT(first.json["decode"]["fetched_bytes"], first.json["prefill"]["logical_bytes"]);
    const Result second =
        Generate(preset, shared + " A second question.", 8, {"--refuse-recompute"});
    ASSERT_EQ(second.exit_code, 0) << second.err;
    EXPECT_GE(second.json["prefill"]["cached_tokens"], 3 * 128);
    // The same prompt again: nothing is computed, and the answer is the same.
    const Result again = Generate(preset, shared + " First.", 8, {"--refuse-recompute"});
    ASSERT_EQ(again.exit_code, 0) << again.err;
    EXPECT_EQ(again.json["prefill"]["compute_seconds"], 0.0);
    EXPECT_EQ(again.json["token_ids"], first.json["token_ids"]);
  }
}

TEST_F(FleetTest, ObjectsOfEveryPresetComeBackByteForByte) {
  StartPkvd();
  StartWorkers();
  const std::string prompt = Document(1500);
  for (const char* preset : {"fp16", "kivi2", "kivi4-g32", "pkv4", "pkv2", "default"}) {
    SCOPED_TRACE(preset);
    ASSERT_EQ(Generate(preset, prompt, 1).exit_code, 0);
    const Result found = Ctl({"lookup", "--model", model_, "--prompt", prompt, "--preset", preset});
    ASSERT_EQ(found.exit_code, 0) << found.err;
    const std::vector<std::string> key = {"--id", found.json["block_ids"][0], "--variant",
                                          found.json["variant"]};
    const auto with_key = [&key](std::vector<std::string> arguments) {
      arguments.insert(arguments.end(), key.begin(), key.end());
      return arguments;
    };
    const std::string first = scratch_ + "/first", second = scratch_ + "/second";
    ASSERT_EQ(Ctl(with_key({"get", "-o", first})).exit_code, 0);
    EXPECT_EQ(Ctl({"inspect", first}).json["verified"], "ok");
    ASSERT_EQ(Ctl(with_key({"rm"})).exit_code, 0);
    EXPECT_EQ(Ctl(with_key({"stat"})).exit_code, 3);
    const Result put = Ctl({"put", first});
    ASSERT_EQ(put.exit_code, 0) << put.err;
    EXPECT_EQ(put.json[0]["result"], "stored");
    ASSERT_EQ(Ctl(with_key({"get", "-o", second})).exit_code, 0);
    EXPECT_EQ(ChildProcess::Read(first), ChildProcess::Read(second));
    EXPECT_EQ(Ctl({"put", first}).json[0]["result"], "present");
  }
}

TEST_F(FleetTest, AnOperatorAsksSeveralServersOfWhichOneIsAway) {
  StartPkvd();
  StartWorkers();
  const std::string prompt = Document(1500);
  ASSERT_EQ(Generate("pkv2", prompt, 1).exit_code, 0);
  // Wherever the chain belongs, the server that is there has it.
  const std::string there = cache_, away = scratch_ + "/no-pkvd";
  cache_ = std::string("unix:").append(away).append(",").append(there);
  const Result found = Ctl({"lookup", "--model", model_, "--prompt", prompt, "--preset", "pkv2"});
  ASSERT_EQ(found.exit_code, 0) << found.err;
  EXPECT_EQ(found.json["server"], there);
  EXPECT_GE(found.json["stored_blocks"], 2);
  const Result stats = Ctl({"stats"});
  EXPECT_EQ(stats.exit_code, 4) << "one does not answer";
  EXPECT_NE(stats.err.find(away), std::string::npos) << stats.err;
  ASSERT_EQ(stats.json.size(), 1u);
  EXPECT_EQ(stats.json[0]["server"], there);
  EXPECT_GT(stats.json[0]["objects"], 0);
}

TEST_F(FleetTest, BlocksPutBackServeTheNextTurnOfAConversation) {
  StartPkvd();
  StartWorkers();
  const std::string prompt = Document(1200);
  const Result first = Generate("pkv2", prompt, 280, {"--put-back"});
  ASSERT_EQ(first.exit_code, 0) << first.err;
  EXPECT_GE(first.json["decode"]["put_back_blocks"], 2);

  // The next turn, as token ids: the prompt's, then the answer's.
  std::string ids;
  for (const char* part : {"prompt_token_ids", "token_ids"}) {
    for (const int id : first.json[part])
      ids.append(ids.empty() ? "" : ",").append(std::to_string(id));
  }
  const Result next = Ctl({"generate", "--prefill", "127.0.0.1:" + prefill_port_, "--decode",
                           "127.0.0.1:" + decode_port_, "--preset", "pkv2", "--token-ids", ids,
                           "--max-tokens", "4", "--refuse-recompute"});
  ASSERT_EQ(next.exit_code, 0) << next.err;
  EXPECT_GT(next.json["prefill"]["cached_tokens"], first.json["prefill"]["prompt_tokens"]);
}

TEST_F(FleetTest, DecodeComputesThePromptWhenTheCacheIsKilled) {
  StartPkvd();
  StartWorkers();
  const std::string prompt = Document(1500);
  const Result local = GenerateLocally(prompt, 32);
  pkvd_->Signal(SIGKILL);
  ASSERT_EQ(pkvd_->Wait(kPatience), 128 + SIGKILL);
  const Result alone = Generate("fp16", prompt, 32);
  ASSERT_EQ(alone.exit_code, 0) << alone.err;
  EXPECT_EQ(alone.json["prefill"]["stored"], false);
  EXPECT_GT(alone.json["decode"]["recomputed_tokens"], 0);
  EXPECT_EQ(alone.json["token_ids"], local.json["token_ids"]);

  const Result refused = Generate("fp16", prompt, 32, {"--refuse-recompute"});
  EXPECT_EQ(refused.exit_code, 4) << refused.err;

  // The cache comes back empty on the same port; the workers find it without a restart, once gRPC
  // dials again.
  StartPkvd(cache_);
  Result back;
  const auto deadline = std::chrono::steady_clock::now() + kPatience;
  do {
    back = Generate("fp16", prompt, 32, {"--refuse-recompute"});
  } while (back.exit_code != 0 && std::chrono::steady_clock::now() < deadline);
  ASSERT_EQ(back.exit_code, 0) << back.err;
  EXPECT_EQ(back.json["prefill"]["stored"], true);
  EXPECT_EQ(back.json["token_ids"], local.json["token_ids"]);
}

TEST_F(FleetTest, WorkersAndServerStopCleanlyOnSigterm) {
  StartPkvd();
  StartWorkers();
  for (ChildProcess* process : {decode_.get(), prefill_.get(), pkvd_.get()}) {
    process->Signal(SIGTERM);
    EXPECT_EQ(process->Wait(kPatience), 0) << process->err();
  }
}

}  // namespace
}  // namespace pkv
