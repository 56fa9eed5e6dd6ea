#ifndef PKV_PROTO_METRICS_BUILD_INFO_H_
#define PKV_PROTO_METRICS_BUILD_INFO_H_

#include <map>
#include <string>

#include "proto/metrics/metric_registry.h"

namespace pkv {

// Of the project, as in CMakeLists.txt: "0.1.0".
const char* BuildVersion();

// Adds pkv_build_info{version,revision,compiler} = 1, with `more` labels (for example
// grpc_version).
void RegisterBuildInfo(MetricRegistry& registry, std::map<std::string, std::string> more);

}  // namespace pkv

#endif  // PKV_PROTO_METRICS_BUILD_INFO_H_
