#ifndef PKV_KERNELS_DEVICE_CPU_CLONES_H_
#define PKV_KERNELS_DEVICE_CPU_CLONES_H_

// PKV_CPU_CLONES builds a function once per vector width and picks one when the program is loaded.
//
// Every clone returns equal bits: the files that use it write each element's operations in one
// fixed order and are compiled with -ffp-contract=off (kernels/CMakeLists.txt). Sanitizers cannot
// run the resolver, which is called before they are initialised; there only the baseline is built.

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || \
    __has_feature(memory_sanitizer)
#define PKV_SANITIZED_BUILD
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define PKV_SANITIZED_BUILD
#endif

#if defined(__x86_64__) && defined(__ELF__) && !defined(PKV_SANITIZED_BUILD)
#define PKV_CPU_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define PKV_CPU_CLONES
#endif

namespace pkv {

// Sixteen floats worked on together: one AVX-512 register, two AVX2, four SSE. Arithmetic on it is
// element by element, so its width changes no result.
inline constexpr int kLanes = 16;
typedef float FloatLanes __attribute__((vector_size(kLanes * sizeof(float))));
// The same at any address of a float.
typedef float UnalignedFloatLanes
    __attribute__((vector_size(kLanes * sizeof(float)), aligned(alignof(float)), may_alias));

}  // namespace pkv

#endif  // PKV_KERNELS_DEVICE_CPU_CLONES_H_
