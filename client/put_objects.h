#ifndef PKV_CLIENT_PUT_OBJECTS_H_
#define PKV_CLIENT_PUT_OBJECTS_H_

#include <cstddef>
#include <memory>
#include <span>
#include <vector>

#include "client/client_core.h"

namespace pkv {

// Payload of one stream of a Put. The server reserves memory for a whole stream before the first
// byte, and what is reserved cannot be evicted.
inline constexpr uint64_t kPutStreamBytes = uint64_t{32} << 20;

// CacheClient::Put. What fails for a reason that may pass is tried again, up to max_attempts times
// and within put_deadline.
std::vector<PutOutcome> PutObjects(const std::shared_ptr<ClientCore>& core,
                                   std::span<const std::span<const std::byte>> objects);

}  // namespace pkv

#endif  // PKV_CLIENT_PUT_OBJECTS_H_
