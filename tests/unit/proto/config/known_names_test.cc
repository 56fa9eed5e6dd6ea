#include "proto/config/known_names.h"

#include <gmock/gmock.h>

namespace pkv {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::Pair;

const std::vector<std::string> kKnown = {"capacity", "cache", "listen", "log-level", "log-format"};

TEST(KnownNamesTest, TheNearestNameIsFewestEditsAway) {
  EXPECT_EQ(NearestName("capasity", kKnown), "capacity") << "replaced";
  EXPECT_EQ(NearestName("capcity", kKnown), "capacity") << "missing";
  EXPECT_EQ(NearestName("capaccity", kKnown), "capacity") << "doubled";
  EXPECT_EQ(NearestName("lsiten", kKnown), "listen") << "swapped";
  EXPECT_EQ(NearestName("log_level", kKnown), "log-level");
  EXPECT_EQ(NearestName("log-formt", kKnown), "log-format");
  EXPECT_EQ(NearestName("cache", kKnown), "cache");
}

TEST(KnownNamesTest, WhatIsFarFromAllHasNoNearestName) {
  EXPECT_EQ(NearestName("drain-timeout", kKnown), "");
  EXPECT_EQ(NearestName("", kKnown), "");
  EXPECT_EQ(NearestName("capacity", {}), "");
  EXPECT_EQ(NearestName(std::string(1 << 20, 'a'), {std::string(1 << 20, 'a')}), "")
      << "too long to be compared";
}

TEST(KnownNamesTest, ASuggestionIsAQuestion) {
  EXPECT_EQ(DidYouMean("capasity", kKnown), ": did you mean 'capacity'?");
  EXPECT_EQ(DidYouMean("drain", kKnown), "");
}

TEST(KnownNamesTest, OnlyOurVariablesAreRead) {
  const char* const variables[] = {"HOME=/root",   "PKV_LISTEN=a=b", "PKV_EMPTY=",
                                   "XPKV_LISTEN=", "PKV_BROKEN",     "PKVD_SERVICE_HOST=10.0.0.1",
                                   nullptr};
  EXPECT_THAT(ReadEnvironment(variables), ElementsAre(Pair("PKV_LISTEN", "a=b")));
}

TEST(KnownNamesTest, AMisspeltVariableIsToldWithASuggestion) {
  const std::vector<std::string> known = {VariableOf("capacity"), VariableOf("drain-timeout")};
  EXPECT_EQ(known[1], "PKV_DRAIN_TIMEOUT");
  EXPECT_THAT(
      UnknownVariables({{"PKV_CAPACITY", "1"}, {"PKV_CAPASITY", "1"}, {"PKV_DEVICE", "cuda"}},
                       known),
      ElementsAre("environment variable PKV_CAPASITY is not known here and has no effect: did you "
                  "mean 'PKV_CAPACITY'?",
                  "environment variable PKV_DEVICE is not known here and has no effect"));
}

TEST(KnownNamesTest, WhatKubernetesAndTestsSetIsNotTold) {
  const Environment environment = {
      {"PKV_PORT", "tcp://10.0.0.1:7440"},   {"PKV_X_SERVICE_HOST", "10.0.0.1"},
      {"PKV_X_SERVICE_PORT", "7440"},        {"PKV_X_SERVICE_PORT_GRPC", "7440"},
      {"PKV_X_PORT", "tcp://10.0.0.1:7440"}, {"PKV_X_PORT_7440_TCP", "tcp://10.0.0.1:7440"},
      {"PKV_X_PORT_7440_TCP_PROTO", "tcp"},  {"PKV_X_PORT_7440_TCP_ADDR", "10.0.0.1"},
      {"PKV_SERVICE_HOST", "10.0.0.1"},      {"PKV_SOURCE_DIR", "/src"},
      {"PKV_BINARY_DIR", "/src/.build"},     {"PKV_TEST_SEED", "1"}};
  EXPECT_THAT(UnknownVariables(environment, {"PKV_LISTEN"}), IsEmpty());
}

TEST(KnownNamesTest, OurOwnVariablesAreNoServiceVariables) {
  for (const char* name : {"PKV_LISTEN", "PKV_PORT_FILE", "PKV_EXPORT", "PKV_TRANSPORT", "PORT"}) {
    EXPECT_FALSE(IsServiceVariable(name)) << name;
  }
}

}  // namespace
}  // namespace pkv
