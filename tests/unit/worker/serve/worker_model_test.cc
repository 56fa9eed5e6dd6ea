#include "worker/serve/worker_model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/tiny_worker.h"
#ifdef PKV_WITH_CUDA
#include "kernels/device/stream.h"
#endif

namespace pkv {
namespace {

using ::testing::HasSubstr;

TEST(WorkerModelTest, OnTheCpuServesADirectoryAndAnyPreset) {
  const TinyModelFolder folder;
  ModelFlags flags;
  flags.model = folder.path();
  flags.threads = 1;
  const auto model = WorkerModel::Load(flags);
  ASSERT_THAT(model, IsOk());
  EXPECT_EQ((*model)->host().config().vocab_size, kTinyVocabulary);
  const auto executor = (*model)->MakeExecutor();
  ASSERT_THAT(executor, IsOk());
  const auto engine = (*model)->MakeEngine(3, 0);
  ASSERT_THAT(engine, IsOk());
  EXPECT_EQ((*engine)->limits().num_slots, 3);
  EXPECT_GT((*engine)->limits().num_pages, 0);
  EXPECT_EQ((*(*model)->MakeEngine(1, 17))->limits().num_pages, 17);
  for (const std::string& name : PresetNames()) {
    const CodecParams params = *PresetByName(name, (*model)->host().config().kv_shape());
    EXPECT_THAT((*executor)->CheckVariant(params), IsOk()) << name;
    EXPECT_THAT((*engine)->CheckVariant(params), IsOk()) << name;
  }
}

TEST(WorkerModelTest, SaysWhichFlagsContradictEachOther) {
  ModelFlags flags;
  EXPECT_THAT(WorkerModel::Load(flags),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("give one of them")));
  flags.model = "somewhere";
  flags.shape = "llama-3.1-8b";
  EXPECT_THAT(WorkerModel::Load(flags),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("llama-3.1-8b")));
  flags.model.clear();
  EXPECT_THAT(WorkerModel::Load(flags),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("--device cuda")));
  flags.device = "tpu";
  EXPECT_THAT(WorkerModel::Load(flags),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("'tpu'")));
  flags.device = "cpu";
  flags.shape.clear();
  flags.model = "/no/such/model";
  EXPECT_THAT(WorkerModel::Load(flags), StatusIs(absl::StatusCode::kNotFound));
}

TEST(WorkerModelTest, WithoutAGpuSaysSo) {
  const TinyModelFolder folder;
  ModelFlags flags;
  flags.model = folder.path();
  flags.device = "cuda";
  const auto model = WorkerModel::Load(flags);
#ifdef PKV_WITH_CUDA
  EXPECT_EQ(model.status().code(), Stream::Make().status().code()) << model.status();
  flags.model.clear();
  flags.shape = "llama-9";
  EXPECT_THAT(WorkerModel::Load(flags),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("llama-3.2-1b")));
#else
  EXPECT_THAT(model, StatusIs(absl::StatusCode::kUnimplemented));
#endif
}

}  // namespace
}  // namespace pkv
