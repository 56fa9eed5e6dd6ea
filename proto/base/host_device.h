#ifndef PKV_PROTO_BASE_HOST_DEVICE_H_
#define PKV_PROTO_BASE_HOST_DEVICE_H_

// Marks functions of scalars that both compilers build: written once, equal on CPU and GPU.
#ifdef __CUDACC__
#define PKV_HOST_DEVICE __host__ __device__
#else
#define PKV_HOST_DEVICE
#endif

#endif  // PKV_PROTO_BASE_HOST_DEVICE_H_
