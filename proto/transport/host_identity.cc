#include "proto/transport/host_identity.h"

#include <fstream>

namespace pkv {

std::string HostIdentity() {
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::string id;
  file >> id;
  return id;
}

}  // namespace pkv
