#include "proto/transport/nccl/nccl_pair.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "proto/base/checksum.h"
#include "tests/support/fake_clock.h"
#include "tests/support/fake_pair_calls.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

using absl::StatusCode;
using testing::HasSubstr;

constexpr uint32_t kSeed = 13;
constexpr uint64_t kGroupBytes = 64 << 10;
constexpr size_t kLayers = 5, kSpans = 7;
constexpr uint64_t kSpanBytes = 11'408;  // a layer is 1.2 groups

// Pages of one end, apart from each other.
struct Pages {
  Pages() : memory(kLayers * kSpans * 2 * kSpanBytes), spans(kLayers), checksums(kLayers) {
    for (size_t l = 0; l < kLayers; ++l) {
      for (size_t i = 0; i < kSpans; ++i) {
        spans[l].push_back({memory.data() + (l * kSpans + i) * 2 * kSpanBytes, kSpanBytes});
      }
    }
  }

  void Randomise() {
    std::mt19937 random(kSeed);
    for (std::byte& byte : memory) byte = static_cast<std::byte>(random());
  }
  void TakeChecksums(const Pages& of) {
    for (size_t l = 0; l < kLayers; ++l) {
      checksums[l].clear();
      for (const DeviceSpan& span : of.spans[l]) {
        checksums[l].push_back(Crc32c(std::span(span.data, span.bytes)));
      }
    }
  }
  std::vector<LayerSpans> layers() const {
    std::vector<LayerSpans> layers;
    for (size_t l = 0; l < kLayers; ++l) layers.push_back({spans[l], checksums[l]});
    return layers;
  }
  bool SpansEqual(const Pages& other) const {
    for (size_t l = 0; l < kLayers; ++l) {
      for (size_t i = 0; i < kSpans; ++i) {
        if (std::memcmp(spans[l][i].data, other.spans[l][i].data, kSpanBytes) != 0) return false;
      }
    }
    return true;
  }

  std::vector<std::byte> memory;
  std::vector<std::vector<DeviceSpan>> spans;
  std::vector<std::vector<uint32_t>> checksums;
};

// Two ends in one process, each on a thread when both must work at once.
class NcclPairTest : public testing::Test {
 protected:
  struct End {
    End(std::shared_ptr<FakeLink> link, int rank) : rank(rank) {
      calls = std::make_shared<FakePairCalls>(std::move(link), &clock);
      Reset();
    }
    void Reset() {
      const NcclPairOptions options = {.group_bytes = group_bytes, .abort_timeout = abort_timeout};
      pair = std::make_unique<NcclPair>(calls, options, &clock);
    }
    absl::Status Open() { return pair->Open(NcclUniqueId(), rank); }

    int rank;
    uint64_t group_bytes = kGroupBytes;
    // On the machine's clock, for threads: out of reach of aborts that return.
    absl::Duration abort_timeout = absl::Seconds(20);
    // Moves a millisecond with each "not yet": an hour is out of reach of a peer that works.
    FakeClock clock;
    std::shared_ptr<FakePairCalls> calls;
    std::unique_ptr<NcclPair> pair;
    Pages pages;
  };

  NcclPairTest() {
    sender_.pages.Randomise();
    receiver_.pages.TakeChecksums(sender_.pages);
  }

  // Both at once.
  void OpenBoth() {
    absl::Status sender_status;
    std::thread other([&] { sender_status = sender_.Open(); });
    const absl::Status status = receiver_.Open();
    other.join();
    ASSERT_THAT(sender_status, IsOk());
    ASSERT_THAT(status, IsOk());
  }
  // The receiver against a peer whose greeting is there and who then sends nothing.
  void OpenReceiverAlone() {
    const uint64_t group_bytes = kGroupBytes;
    std::vector<std::byte> greeting(16);
    const uint32_t magic = 0x706b7630, rank = 0;
    std::memcpy(greeting.data(), &magic, 4);
    std::memcpy(greeting.data() + 4, &rank, 4);
    std::memcpy(greeting.data() + 8, &group_bytes, 8);
    link_->Push(0, greeting);
    ASSERT_THAT(receiver_.Open(), IsOk());
  }
  absl::Status Receive(const NcclPair::LayerDone& layer_done = nullptr) {
    return receiver_.pair->Receive(receiver_.pages.layers(), limits_, layer_done);
  }
  void ExpectBroken(End& end, int num_aborts) {
    EXPECT_EQ(end.calls->num_aborts(), num_aborts);
    EXPECT_EQ(end.calls->num_alive(), 0) << "streams, events, memory or a communicator is left";
    EXPECT_THAT(end.pair->Send(end.pages.layers(), limits_),
                StatusIs(StatusCode::kFailedPrecondition, HasSubstr("broken")));
    EXPECT_THAT(end.pair->Close(), StatusIs(StatusCode::kFailedPrecondition));
  }

  std::shared_ptr<FakeLink> link_ = std::make_shared<FakeLink>();
  End sender_{link_, 0}, receiver_{link_, 1};
  TransferLimits limits_;
};

// Nobody waits for a peer in these: what a sender sends lies in the link.
TEST_F(NcclPairTest, LayersArriveInOrderAndWhole) {
  ASSERT_NO_FATAL_FAILURE(OpenBoth());
  ASSERT_THAT(sender_.pair->Send(sender_.pages.layers(), limits_), IsOk());
  std::vector<size_t> done;
  ASSERT_THAT(Receive([&](size_t layer, const absl::Status& status) {
                EXPECT_THAT(status, IsOk());
                // The layer's bytes stand before it is told.
                EXPECT_EQ(std::memcmp(receiver_.pages.spans[layer][kSpans - 1].data,
                                      sender_.pages.spans[layer][kSpans - 1].data, kSpanBytes),
                          0);
                done.push_back(layer);
              }),
              IsOk());
  EXPECT_EQ(done, (std::vector<size_t>{0, 1, 2, 3, 4}));
  EXPECT_TRUE(receiver_.pages.SpansEqual(sender_.pages));
}

TEST_F(NcclPairTest, EitherEndSendsAndSeveralTimes) {
  ASSERT_NO_FATAL_FAILURE(OpenBoth());
  for (int round = 0; round < 2; ++round) {
    ASSERT_THAT(sender_.pair->Send(sender_.pages.layers(), limits_), IsOk());
    ASSERT_THAT(Receive(), IsOk());
    ASSERT_TRUE(receiver_.pages.SpansEqual(sender_.pages));
    ASSERT_THAT(receiver_.pair->Send(receiver_.pages.layers(), limits_), IsOk());
    sender_.pages.TakeChecksums(sender_.pages);
    ASSERT_THAT(sender_.pair->Receive(sender_.pages.layers(), limits_, nullptr), IsOk());
  }
}

TEST_F(NcclPairTest, OneLayerACallArrivesToo) {
  ASSERT_NO_FATAL_FAILURE(OpenBoth());
  const auto sent = sender_.pages.layers(), received = receiver_.pages.layers();
  for (size_t l = 0; l < kLayers; ++l) {
    ASSERT_THAT(sender_.pair->Send(std::span(sent).subspan(l, 1), limits_), IsOk());
    ASSERT_THAT(receiver_.pair->Receive(std::span(received).subspan(l, 1), limits_, nullptr),
                IsOk());
  }
  EXPECT_TRUE(receiver_.pages.SpansEqual(sender_.pages));
}

TEST_F(NcclPairTest, WhatLiesInOnePieceIsSentFromWhereItIs) {
  ASSERT_NO_FATAL_FAILURE(OpenBoth());
  const std::vector<DeviceSpan> whole = {{sender_.pages.memory.data(), 4 * kGroupBytes}};
  const std::vector<DeviceSpan> target = {{receiver_.pages.memory.data(), 4 * kGroupBytes}};
  const std::vector<uint32_t> checksums = {Crc32c(std::span(whole[0].data, whole[0].bytes))};
  ASSERT_THAT(sender_.pair->Send(std::vector{LayerSpans{whole}}, limits_), IsOk());
  ASSERT_THAT(receiver_.pair->Receive(std::vector{LayerSpans{target, checksums}}, limits_, nullptr),
              IsOk());
  EXPECT_EQ(std::memcmp(target[0].data, whole[0].data, whole[0].bytes), 0);
}

TEST_F(NcclPairTest, ReadsASpanOnlyAfterItsEvent) {
  ASSERT_NO_FATAL_FAILURE(OpenBoth());
  void* const producer = *sender_.calls->MakeStream(0);
  void* const ready = *sender_.calls->MakeEvent();
  const std::vector<std::byte> produced(16, std::byte{0x5a});
  const DeviceSpan first = sender_.pages.spans[0][0];
  // The producer gets on only when the sender waits already.
  sender_.calls->HoldStream(producer);
  ASSERT_THAT(sender_.calls->CopyAsync(first.data, produced.data(), 16, producer), IsOk());
  ASSERT_THAT(sender_.calls->RecordEvent(ready, producer), IsOk());
  int not_yet = 0;
  sender_.calls->faults.on_not_yet = [&] {
    if (++not_yet == 20) sender_.calls->LetStreamGo();
  };
  auto layers = sender_.pages.layers();
  layers[0].ready = ready;
  ASSERT_THAT(sender_.pair->Send(layers, limits_), IsOk());
  receiver_.pages.TakeChecksums(sender_.pages);
  ASSERT_THAT(Receive(), IsOk());
  EXPECT_GE(not_yet, 20);
  EXPECT_EQ(receiver_.pages.spans[0][0].data[0], std::byte{0x5a});
}

TEST_F(NcclPairTest, AChangedByteIsDataLossThatNamesTheSpanAndThePairGoesOn) {
  receiver_.calls->faults.corrupt_begin = 2;  // the second group: from byte 65,536
  ASSERT_NO_FATAL_FAILURE(OpenBoth());
  ASSERT_THAT(sender_.pair->Send(sender_.pages.layers(), limits_), IsOk());
  std::vector<StatusCode> codes;
  EXPECT_THAT(Receive([&](size_t, const absl::Status& status) { codes.push_back(status.code()); }),
              StatusIs(StatusCode::kDataLoss, HasSubstr("layer 0 span 5 of 11408 bytes")));
  EXPECT_EQ(codes, (std::vector{StatusCode::kDataLoss, StatusCode::kOk, StatusCode::kOk,
                                StatusCode::kOk, StatusCode::kOk}));
  ASSERT_THAT(sender_.pair->Send(sender_.pages.layers(), limits_), IsOk());
  EXPECT_THAT(Receive(), IsOk());
}

TEST_F(NcclPairTest, ANumberThatBreaksItsRuleIsDataLossAndNamed) {
  ASSERT_NO_FATAL_FAILURE(OpenBoth());
  FrameRules any, ids;
  ids.num_sections = 1;
  ids.sections[0] = {.num_heads = 1, .head_bytes = 16, .rule = NumberRule::kId, .bank_size = 1};
  std::vector<const FrameRules*> rules(kSpans, &any);
  rules[4] = &ids;
  auto layers = receiver_.pages.layers();
  layers[3].rules = rules;
  ASSERT_THAT(sender_.pair->Send(sender_.pages.layers(), limits_), IsOk());
  EXPECT_THAT(receiver_.pair->Receive(layers, limits_, nullptr),
              StatusIs(StatusCode::kDataLoss, HasSubstr("layer 3 span 4")));
  ASSERT_TRUE(receiver_.pair->bad_span().has_value());
  EXPECT_EQ(receiver_.pair->bad_span()->layer_index, 3u);
  EXPECT_EQ(receiver_.pair->bad_span()->span_index, 4u);
  ASSERT_THAT(sender_.pair->Send(sender_.pages.layers(), limits_), IsOk());
  ASSERT_THAT(Receive(), IsOk());
  EXPECT_FALSE(receiver_.pair->bad_span().has_value());
}

// A source whose places are known only when all slots are full.
TEST_F(NcclPairTest, GroupsComeBeforeItIsKnownWhereTheyAreToLie) {
  ASSERT_NO_FATAL_FAILURE(OpenBoth());
  ASSERT_THAT(sender_.pair->Send(sender_.pages.layers(), limits_), IsOk());
  const auto layers = receiver_.pages.layers();
  auto source = LayerSource::Of(layers);
  ASSERT_THAT(source, IsOk());
  const int greeting = receiver_.calls->num_begins();
  int posted = 0;
  int asked = 0;
  source->is_known = [&] { return ++asked > 20; };
  source->layer = [&](size_t layer) -> absl::StatusOr<LayerSpans> {
    EXPECT_GT(asked, 20);
    if (layer == 0) posted = receiver_.calls->num_begins() - greeting;
    return layers[layer];
  };
  ASSERT_THAT(receiver_.pair->Receive(*source, limits_, nullptr), IsOk());
  EXPECT_EQ(posted, 3);
  EXPECT_TRUE(receiver_.pages.SpansEqual(sender_.pages));
}

// What is posted waits on the device for a peer that may have gone: somebody has to end that.
TEST_F(NcclPairTest, PlacesThatAreNeverNamedBreakThePairInTime) {
  ASSERT_NO_FATAL_FAILURE(OpenReceiverAlone());
  const auto layers = receiver_.pages.layers();
  auto source = LayerSource::Of(layers);
  ASSERT_THAT(source, IsOk());
  source->is_known = [] { return false; };
  const absl::Time start = receiver_.clock.MonotonicNow();
  // Nothing else asks the clock on while it waits.
  std::atomic<bool> is_through = false;
  std::thread time([&] {
    while (!is_through) {
      receiver_.clock.Advance(absl::Milliseconds(1));
      std::this_thread::yield();
    }
  });
  EXPECT_THAT(receiver_.pair->Receive(*source, limits_, nullptr),
              StatusIs(StatusCode::kDeadlineExceeded, HasSubstr("where the bytes lie")));
  is_through = true;
  time.join();
  EXPECT_GE(receiver_.clock.MonotonicNow() - start, limits_.stall_timeout);
  ExpectBroken(receiver_, 1);
}

TEST_F(NcclPairTest, ThePeerIsWatchedWhilePlacesAreNotNamed) {
  ASSERT_NO_FATAL_FAILURE(OpenReceiverAlone());
  const auto layers = receiver_.pages.layers();
  auto source = LayerSource::Of(layers);
  ASSERT_THAT(source, IsOk());
  int asked = 0;
  source->is_known = [&] {
    if (++asked == 10) receiver_.pair->PeerGone("it hung up");
    return false;
  };
  EXPECT_THAT(receiver_.pair->Receive(*source, limits_, nullptr),
              StatusIs(StatusCode::kUnavailable, HasSubstr("it hung up")));
  ExpectBroken(receiver_, 1);
}

TEST_F(NcclPairTest, AReceiveOfOtherBytesThanHaveBegunBreaksThePair) {
  ASSERT_NO_FATAL_FAILURE(OpenBoth());
  ASSERT_THAT(receiver_.pair->BeginReceive(kGroupBytes), IsOk());
  EXPECT_THAT(Receive(), StatusIs(StatusCode::kInvalidArgument, HasSubstr("have begun")));
  ExpectBroken(receiver_, 1);
}

// Three groups are issued, none has passed when the loop looks whether it can post, and all have a
// moment later: each counts once, and the one posted next is waited for.
TEST_F(NcclPairTest, GroupsThatAllPassAtOnceCountOnceEach) {
  constexpr size_t kGroupSpans = 4;
  constexpr uint64_t kBytes = kGroupBytes / kGroupSpans;
  for (const size_t num_groups : {4, 7}) {
    for (size_t damaged = 0; damaged < num_groups; ++damaged) {
      End sender(link_, 0), receiver(link_, 1);
      std::vector<std::byte> sent(num_groups * kGroupBytes), got(sent.size());
      std::vector<DeviceSpan> from, to;
      std::vector<uint32_t> checksums;
      for (size_t i = 0; i < num_groups * kGroupSpans; ++i) {
        std::fill_n(sent.begin() + i * kBytes, kBytes, static_cast<std::byte>(i + 1));
        from.push_back({sent.data() + i * kBytes, kBytes});
        to.push_back({got.data() + i * kBytes, kBytes});
        checksums.push_back(Crc32c(std::span(from[i].data, kBytes)));
      }
      absl::Status opened;
      std::thread other([&] { opened = sender.Open(); });
      ASSERT_THAT(receiver.Open(), IsOk());
      other.join();
      ASSERT_THAT(opened, IsOk());
      ASSERT_THAT(sender.pair->Send(std::vector{LayerSpans{from}}, limits_), IsOk());
      // The greeting is Begin 0.
      receiver.calls->faults.corrupt_begin = static_cast<int>(1 + damaged);
      receiver.calls->HoldStreams();
      receiver.calls->faults.on_not_yet = [&] {
        if (receiver.calls->num_begins() == 1 + 3) receiver.calls->LetStreamGo();
      };
      const absl::Status status =
          receiver.pair->Receive(std::vector{LayerSpans{to, checksums}}, limits_, nullptr);
      EXPECT_THAT(status, StatusIs(StatusCode::kDataLoss,
                                   HasSubstr(absl::StrCat("span ", damaged * kGroupSpans, " "))));
      got[damaged * kGroupBytes] ^= std::byte{1};
      EXPECT_TRUE(got == sent) << num_groups << " groups, " << damaged << " damaged";
    }
  }
}

TEST_F(NcclPairTest, AReceiveGoesOnWithTheGroupThatHasBegun) {
  ASSERT_NO_FATAL_FAILURE(OpenBoth());
  constexpr uint64_t kTotalBytes = kLayers * kSpans * kSpanBytes;
  const int greeting = receiver_.calls->num_begins();
  for (int round = 0; round < 2; ++round) {
    ASSERT_THAT(receiver_.pair->BeginReceive(kTotalBytes), IsOk());
    EXPECT_EQ(receiver_.calls->num_begins() - greeting, 1 + round * 7);
    ASSERT_THAT(sender_.pair->Send(sender_.pages.layers(), limits_), IsOk());
    ASSERT_THAT(Receive(), IsOk());
    EXPECT_TRUE(receiver_.pages.SpansEqual(sender_.pages));
    EXPECT_EQ(receiver_.calls->num_begins() - greeting, (1 + round) * 7)
        << (kTotalBytes + kGroupBytes - 1) / kGroupBytes << " groups";
  }
}

TEST_F(NcclPairTest, AReceiveThatCannotBeginBreaksThePair) {
  receiver_.calls->faults.failing_begin = 1;
  ASSERT_NO_FATAL_FAILURE(OpenReceiverAlone());
  EXPECT_THAT(receiver_.pair->BeginReceive(kGroupBytes), StatusIs(StatusCode::kUnavailable));
  ExpectBroken(receiver_, 1);
}

TEST_F(NcclPairTest, WhatNobodyWantsAnyMoreComesAndIsDroppedAndThePairStays) {
  ASSERT_NO_FATAL_FAILURE(OpenBoth());
  for (const size_t last : {size_t{0}, size_t{1}, kLayers - 1}) {
    const Pages before = receiver_.pages;
    ASSERT_THAT(sender_.pair->Send(sender_.pages.layers(), limits_), IsOk());
    const auto layers = receiver_.pages.layers();
    auto source = LayerSource::Of(layers);
    ASSERT_THAT(source, IsOk());
    source->layer = [&](size_t layer) -> absl::StatusOr<LayerSpans> {
      if (layer == last) return absl::CancelledError("nobody has a place");
      return layers[layer];
    };
    size_t told = 0;
    EXPECT_THAT(
        receiver_.pair->Receive(*source, limits_, [&](size_t, const absl::Status&) { ++told; }),
        StatusIs(StatusCode::kCancelled, HasSubstr("nobody has a place")));
    EXPECT_LE(told, last);
    EXPECT_EQ(std::memcmp(receiver_.pages.spans[last][0].data,
                          before.memory.data() +
                              (receiver_.pages.spans[last][0].data - receiver_.pages.memory.data()),
                          kSpanBytes),
              0)
        << "nothing is written there";
    ASSERT_THAT(sender_.pair->Send(sender_.pages.layers(), limits_), IsOk());
    ASSERT_THAT(Receive(), IsOk());
    EXPECT_TRUE(receiver_.pages.SpansEqual(sender_.pages));
    std::fill(receiver_.pages.memory.begin(), receiver_.pages.memory.end(), std::byte{0});
  }
}

TEST_F(NcclPairTest, TakesChecksumsOfItsOwnSpans) {
  ASSERT_NO_FATAL_FAILURE(OpenBoth());
  const auto checksums = sender_.pair->Checksum(sender_.pages.layers()[3], limits_);
  ASSERT_THAT(checksums, IsOk());
  EXPECT_EQ(*checksums, receiver_.pages.checksums[3]);
}

TEST_F(NcclPairTest, ClosingFreesEverything) {
  ASSERT_NO_FATAL_FAILURE(OpenBoth());
  ASSERT_THAT(sender_.pair->Close(), IsOk());
  EXPECT_EQ(sender_.calls->num_destroys(), 1);
  EXPECT_EQ(sender_.calls->num_alive(), 0);
  EXPECT_THAT(sender_.pair->Close(), StatusIs(StatusCode::kFailedPrecondition));
}

TEST_F(NcclPairTest, DestroyingAnOpenPairAbortsIt) {
  ASSERT_NO_FATAL_FAILURE(OpenBoth());
  sender_.pair.reset();
  EXPECT_EQ(sender_.calls->num_aborts(), 1);
  EXPECT_EQ(sender_.calls->num_alive(), 0);
}

TEST_F(NcclPairTest, BadSpansLeaveThePairOpen) {
  ASSERT_NO_FATAL_FAILURE(OpenReceiverAlone());
  EXPECT_THAT(receiver_.pair->Send({}, limits_), StatusIs(StatusCode::kInvalidArgument));
  auto unchecked = receiver_.pages.layers();
  unchecked[2].checksums = {};
  EXPECT_THAT(receiver_.pair->Receive(unchecked, limits_, nullptr),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("without checksums")));
  EXPECT_THAT(receiver_.pair->Send(receiver_.pages.layers(), limits_), IsOk());
}

TEST_F(NcclPairTest, CallsBeforeOpenAreRefused) {
  EXPECT_THAT(Receive(), StatusIs(StatusCode::kFailedPrecondition, HasSubstr("idle")));
  EXPECT_EQ(receiver_.calls->num_alive(), 0);
}

// What follows: one end alone, against what goes wrong.

TEST_F(NcclPairTest, InitThatNeverCompletesEndsAtItsBound) {
  receiver_.calls->faults.init_hangs = true;
  EXPECT_THAT(receiver_.Open(),
              StatusIs(StatusCode::kDeadlineExceeded, HasSubstr("joining the peer took over 20s")));
  EXPECT_EQ(receiver_.clock.MonotonicNow(), absl::UnixEpoch() + absl::Seconds(20));
  ExpectBroken(receiver_, 1);
}

TEST_F(NcclPairTest, APeerThatJoinsAndSaysNothingEndsAtTheBound) {
  EXPECT_THAT(receiver_.Open(), StatusIs(StatusCode::kDeadlineExceeded, HasSubstr("greeting")));
  ExpectBroken(receiver_, 1);
}

TEST_F(NcclPairTest, AnErrorOfInitIsReturnedAndAborted) {
  receiver_.calls->faults.init_error = absl::UnavailableError("connection refused");
  EXPECT_THAT(receiver_.Open(), StatusIs(StatusCode::kUnavailable));
  ExpectBroken(receiver_, 1);
}

TEST_F(NcclPairTest, WhenInitDoesNotBeginThereIsNothingToAbort) {
  receiver_.calls->faults.begin_init = absl::FailedPreconditionError("two ranks on one GPU");
  EXPECT_THAT(receiver_.Open(), StatusIs(StatusCode::kFailedPrecondition));
  ExpectBroken(receiver_, 0);
}

TEST_F(NcclPairTest, PeersWithOtherGroupsAreRefused) {
  receiver_.group_bytes = 2 * kGroupBytes;
  receiver_.Reset();
  absl::Status sender_status;
  std::thread other([&] { sender_status = sender_.Open(); });
  const absl::Status status = receiver_.Open();
  other.join();
  EXPECT_THAT(status, StatusIs(StatusCode::kFailedPrecondition, HasSubstr("131072")));
  EXPECT_THAT(sender_status, StatusIs(StatusCode::kFailedPrecondition, HasSubstr("131072")));
  ExpectBroken(receiver_, 1);
}

TEST_F(NcclPairTest, AStalledPeerEndsTheCallAtItsBound) {
  ASSERT_NO_FATAL_FAILURE(OpenReceiverAlone());
  const absl::Time begin = receiver_.clock.MonotonicNow();
  EXPECT_THAT(Receive(),
              StatusIs(StatusCode::kDeadlineExceeded, HasSubstr("a group took over 1s")));
  EXPECT_LE(receiver_.clock.MonotonicNow() - begin, absl::Milliseconds(1001));
  ExpectBroken(receiver_, 1);
}

TEST_F(NcclPairTest, TheWholeCallIsBoundToo) {
  ASSERT_NO_FATAL_FAILURE(OpenReceiverAlone());
  limits_.timeout = absl::Milliseconds(300);
  EXPECT_THAT(Receive(), StatusIs(StatusCode::kDeadlineExceeded, HasSubstr("300ms")));
  ExpectBroken(receiver_, 1);
}

// A stall bound runs from the last group, so that a slow peer that moves is not cut off.
TEST_F(NcclPairTest, AStallIsCountedFromTheLastGroup) {
  ASSERT_NO_FATAL_FAILURE(OpenReceiverAlone());
  int64_t not_yet = 0;
  receiver_.calls->faults.on_not_yet = [&] {
    // A group every 900 ms.
    if (++not_yet % 900 == 0) link_->Push(0, std::vector<std::byte>(kGroupBytes));
  };
  const absl::Time begin = receiver_.clock.MonotonicNow();
  EXPECT_THAT(Receive(), StatusIs(StatusCode::kDataLoss));  // zeros, but all of them
  EXPECT_GT(receiver_.clock.MonotonicNow() - begin, absl::Seconds(5));
}

TEST_F(NcclPairTest, AnErrorWhenPostingMidwayBreaksThePair) {
  receiver_.calls->faults.failing_begin = 3;
  ASSERT_NO_FATAL_FAILURE(OpenReceiverAlone());
  EXPECT_THAT(receiver_.pair->Send(receiver_.pages.layers(), limits_),
              StatusIs(StatusCode::kUnavailable, HasSubstr("remote process exited")));
  ExpectBroken(receiver_, 1);
}

TEST_F(NcclPairTest, AnAsynchronousErrorMidwayBreaksThePair) {
  receiver_.calls->faults.erring_begin = 2;
  receiver_.calls->faults.hanging_begin = 2;
  receiver_.calls->faults.begin_error = absl::InternalError("unhandled cuda error");
  ASSERT_NO_FATAL_FAILURE(OpenReceiverAlone());
  EXPECT_THAT(receiver_.pair->Send(receiver_.pages.layers(), limits_),
              StatusIs(StatusCode::kInternal, HasSubstr("unhandled cuda error")));
  ExpectBroken(receiver_, 1);
}

TEST_F(NcclPairTest, APostThatNcclNeverHandsOverEndsAtTheBound) {
  receiver_.calls->faults.unready_begin = 2;
  ASSERT_NO_FATAL_FAILURE(OpenReceiverAlone());
  EXPECT_THAT(receiver_.pair->Send(receiver_.pages.layers(), limits_),
              StatusIs(StatusCode::kDeadlineExceeded, HasSubstr("posting a send")));
  ExpectBroken(receiver_, 1);
}

TEST_F(NcclPairTest, PeerGoneEndsTheCallInProgressAtOnce) {
  ASSERT_NO_FATAL_FAILURE(OpenReceiverAlone());
  int not_yet = 0;
  receiver_.calls->faults.on_not_yet = [&] {
    if (++not_yet == 10) receiver_.pair->PeerGone("its connection broke");
  };
  const absl::Time begin = receiver_.clock.MonotonicNow();
  EXPECT_THAT(Receive(), StatusIs(StatusCode::kUnavailable, HasSubstr("its connection broke")));
  EXPECT_LE(receiver_.clock.MonotonicNow() - begin, absl::Milliseconds(20));
  ExpectBroken(receiver_, 1);
}

TEST_F(NcclPairTest, PeerGoneEndsAnOpenInProgressAndTheFirstReasonStays) {
  receiver_.calls->faults.init_hangs = true;
  int not_yet = 0;
  receiver_.calls->faults.on_not_yet = [&] {
    if (++not_yet == 10) receiver_.pair->PeerGone("killed");
    if (not_yet == 11) receiver_.pair->PeerGone("again");
  };
  EXPECT_THAT(receiver_.Open(), StatusIs(StatusCode::kUnavailable, HasSubstr("killed")));
  ExpectBroken(receiver_, 1);
}

TEST_F(NcclPairTest, PeerGoneFromAnotherThreadEndsACall) {
  ASSERT_NO_FATAL_FAILURE(OpenReceiverAlone());
  limits_ = {absl::InfiniteDuration(), absl::InfiniteDuration()};
  std::thread control([&] { receiver_.pair->PeerGone("its connection broke"); });
  EXPECT_THAT(Receive(), StatusIs(StatusCode::kUnavailable));
  control.join();
  ExpectBroken(receiver_, 1);
}

TEST_F(NcclPairTest, PeerGoneBetweenCallsEndsTheNext) {
  ASSERT_NO_FATAL_FAILURE(OpenReceiverAlone());
  receiver_.pair->PeerGone("killed");
  EXPECT_THAT(receiver_.pair->Send(receiver_.pages.layers(), limits_),
              StatusIs(StatusCode::kUnavailable));
  ExpectBroken(receiver_, 1);
}

TEST_F(NcclPairTest, AFinalizeThatNeverEndsBecomesAnAbort) {
  receiver_.calls->faults.finalize_hangs = true;
  ASSERT_NO_FATAL_FAILURE(OpenReceiverAlone());
  EXPECT_THAT(receiver_.pair->Close(),
              StatusIs(StatusCode::kDeadlineExceeded, HasSubstr("closing took over 1s")));
  ExpectBroken(receiver_, 1);
}

// NCCL's abort waits for a stopped peer to let go of its connections; the call does not.
TEST_F(NcclPairTest, AnAbortThatWaitsForThePeerHoldsNobodyUp) {
  receiver_.calls->faults.abort_waits = true;
  receiver_.abort_timeout = absl::Milliseconds(20);
  receiver_.Reset();
  ASSERT_NO_FATAL_FAILURE(OpenReceiverAlone());
  const absl::Time stalled = receiver_.clock.MonotonicNow() + limits_.stall_timeout;
  // The GPU goes on until it is told to end, which a loaded machine does late.
  receiver_.calls->faults.on_not_yet = [&] {
    if (receiver_.clock.MonotonicNow() <= stalled) return;
    while (receiver_.calls->num_aborts() == 0) std::this_thread::yield();
  };
  EXPECT_THAT(Receive(), StatusIs(StatusCode::kDeadlineExceeded));
  EXPECT_TRUE(receiver_.calls->IsSoonDownTo(1)) << "all but the communicator is free";
  receiver_.calls->LetAbortReturn();
  EXPECT_TRUE(receiver_.calls->IsSoonDownTo(0));
}

TEST_F(NcclPairTest, KernelsThatSurviveAnAbortAreInternal) {
  receiver_.calls->faults.kernels_survive_abort = true;
  receiver_.abort_timeout = absl::Milliseconds(20);
  receiver_.Reset();
  ASSERT_NO_FATAL_FAILURE(OpenReceiverAlone());
  EXPECT_THAT(Receive(), StatusIs(StatusCode::kInternal, HasSubstr("the GPU goes on working")));
  EXPECT_GT(receiver_.calls->num_alive(), 1) << "what the GPU may write to is not freed";
}

TEST_F(NcclPairTest, AfterAnAbortAFreshPairWorks) {
  ASSERT_NO_FATAL_FAILURE(OpenReceiverAlone());
  ASSERT_THAT(Receive(), StatusIs(StatusCode::kDeadlineExceeded));
  // What the greeting of the first pair left.
  link_ = std::make_shared<FakeLink>();
  sender_.calls = std::make_shared<FakePairCalls>(link_, &sender_.clock);
  receiver_.calls = std::make_shared<FakePairCalls>(link_, &receiver_.clock);
  sender_.Reset();
  receiver_.Reset();
  ASSERT_NO_FATAL_FAILURE(OpenBoth());
  ASSERT_THAT(sender_.pair->Send(sender_.pages.layers(), limits_), IsOk());
  EXPECT_THAT(Receive(), IsOk());
  EXPECT_TRUE(receiver_.pages.SpansEqual(sender_.pages));
}

}  // namespace
}  // namespace pkv
