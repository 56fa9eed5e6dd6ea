#include "kernels/device/sm_partition.h"

#include <cuda.h>
#include <cuda_runtime_api.h>

#include "absl/strings/str_cat.h"
#include "kernels/device/cuda_status.h"
#include "proto/base/status_macros.h"

namespace pkv {
namespace {

// A function of the driver, which is not linked: a build machine need not have one.
template <typename Function>
absl::Status Find(const char* name, Function& function) {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result;
  const cudaError_t error =
      cudaGetDriverEntryPointByVersion(name, &found, CUDART_VERSION, cudaEnableDefault, &result);
  if (error != cudaSuccess || result != cudaDriverEntryPointSuccess) {
    return absl::UnimplementedError(absl::StrCat("the driver has no ", name));
  }
  function = reinterpret_cast<Function>(found);
  return absl::OkStatus();
}

struct Driver {
  decltype(&cuDeviceGet) get_device = nullptr;
  decltype(&cuDeviceGetDevResource) get_resource = nullptr;
  decltype(&cuDevSmResourceSplitByCount) split = nullptr;
  decltype(&cuDevResourceGenerateDesc) describe = nullptr;
  decltype(&cuGreenCtxCreate) create = nullptr;
  decltype(&cuGreenCtxDestroy) destroy = nullptr;
  decltype(&cuGreenCtxStreamCreate) create_stream = nullptr;

  static absl::StatusOr<Driver> Load() {
    Driver driver;
    PKV_RETURN_IF_ERROR(Find("cuDeviceGet", driver.get_device));
    PKV_RETURN_IF_ERROR(Find("cuDeviceGetDevResource", driver.get_resource));
    PKV_RETURN_IF_ERROR(Find("cuDevSmResourceSplitByCount", driver.split));
    PKV_RETURN_IF_ERROR(Find("cuDevResourceGenerateDesc", driver.describe));
    PKV_RETURN_IF_ERROR(Find("cuGreenCtxCreate", driver.create));
    PKV_RETURN_IF_ERROR(Find("cuGreenCtxDestroy", driver.destroy));
    PKV_RETURN_IF_ERROR(Find("cuGreenCtxStreamCreate", driver.create_stream));
    return driver;
  }
};

}  // namespace

absl::StatusOr<SmPartition> SmPartition::Make(int num_sms) {
  int ordinal = 0, all_sms = 0;
  PKV_RETURN_IF_ERROR(CudaStatus(cudaGetDevice(&ordinal), "the current device"));
  PKV_RETURN_IF_ERROR(
      CudaStatus(cudaDeviceGetAttribute(&all_sms, cudaDevAttrMultiProcessorCount, ordinal),
                 "its multiprocessors"));
  if (num_sms < 2 || num_sms % 2 != 0 || num_sms >= all_sms) {
    return absl::InvalidArgumentError(
        absl::StrCat(num_sms, " multiprocessors: not an even number from 2 to below ", all_sms));
  }
  // The context that green ones belong to.
  PKV_RETURN_IF_ERROR(CudaStatus(cudaFree(nullptr), "initialize the device"));
  PKV_ASSIGN_OR_RETURN(const Driver driver, Driver::Load());
  CUdevice device = 0;
  CUdevResource all = {}, part = {};
  CUdevResourceDesc description = nullptr;
  CUgreenCtx context = nullptr;
  unsigned num_parts = 1;
  // Finer than what clusters need, which is eight.
  CUresult result = driver.get_device(&device, ordinal);
  if (result == CUDA_SUCCESS) {
    result = driver.get_resource(device, &all, CU_DEV_RESOURCE_TYPE_SM);
  }
  if (result == CUDA_SUCCESS) {
    result = driver.split(&part, &num_parts, &all, nullptr,
                          CU_DEV_SM_RESOURCE_SPLIT_IGNORE_SM_COSCHEDULING, num_sms);
  }
  if (result == CUDA_SUCCESS && part.sm.smCount != static_cast<unsigned>(num_sms)) {
    return absl::UnimplementedError(absl::StrCat("the device gives ", part.sm.smCount,
                                                 " multiprocessors where ", num_sms,
                                                 " are asked for"));
  }
  if (result == CUDA_SUCCESS) result = driver.describe(&description, &part, 1);
  if (result == CUDA_SUCCESS) {
    result = driver.create(&context, description, device, CU_GREEN_CTX_DEFAULT_STREAM);
  }
  if (result == CUDA_ERROR_OUT_OF_MEMORY) {
    return absl::ResourceExhaustedError("a green context: out of device memory");
  }
  if (result != CUDA_SUCCESS) {
    return absl::UnimplementedError(
        absl::StrCat("the driver divides no device: CUresult ", static_cast<int>(result)));
  }
  return SmPartition(context, num_sms);
}

SmPartition::~SmPartition() {
  if (context_ == nullptr) return;
  const auto driver = Driver::Load();
  if (driver.ok()) driver->destroy(static_cast<CUgreenCtx>(context_));
}

absl::StatusOr<Stream> SmPartition::MakeStream() const {
  PKV_ASSIGN_OR_RETURN(const Driver driver, Driver::Load());
  CUstream stream = nullptr;
  const CUresult result =
      driver.create_stream(&stream, static_cast<CUgreenCtx>(context_), CU_STREAM_NON_BLOCKING, 0);
  if (result != CUDA_SUCCESS) {
    return absl::InternalError(
        absl::StrCat("create stream of a green context: CUresult ", static_cast<int>(result)));
  }
  return Stream::Own(stream);
}

}  // namespace pkv
