#ifndef PKV_PROTO_TRANSPORT_HOST_IDENTITY_H_
#define PKV_PROTO_TRANSPORT_HOST_IDENTITY_H_

#include <string>

namespace pkv {

// Names the running kernel: equal in all processes of one host, containers included, different
// after a reboot and on every other host. Linux's boot id, as text; empty when there is none to
// read, which is equal to nobody's.
std::string HostIdentity();

}  // namespace pkv

#endif  // PKV_PROTO_TRANSPORT_HOST_IDENTITY_H_
