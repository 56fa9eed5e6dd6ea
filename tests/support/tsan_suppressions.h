#ifndef PKV_TESTS_SUPPORT_TSAN_SUPPRESSIONS_H_
#define PKV_TESTS_SUPPORT_TSAN_SUPPRESSIONS_H_

// For tests with a gRPC server in their own process, under TSan. Include in one file of the test.
//
// The reactions of a call run one after the other in different threads, ordered by Debian's
// libgrpc, which is not instrumented: TSan sees the accesses and not what orders them. What
// reactions of different calls share is checked by the unit tests of the store, which know no gRPC.
extern "C" const char* __tsan_default_suppressions();
extern "C" const char* __tsan_default_suppressions() {
  return "race:grpc::internal::\n"
         // The last slice over a stored frame is freed in a thread of gRPC's.
         "race:pkv::Lease::Release\n";
}

#endif  // PKV_TESTS_SUPPORT_TSAN_SUPPRESSIONS_H_
