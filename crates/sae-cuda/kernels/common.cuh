// What all kernels share: types, the block of control, sums over a warp or a block in a fixed order.
//
// Conventions. Rows of activations and weights are `ld` floats apart, a multiple of 32, and what lies beyond their width is zero, so that every loop over a
// row is one over whole float4. Nothing adds floats atomically: integers only, whose sums do not depend on the order. So a step gives the same bits every time.
#pragma once

#ifdef MONOSEM_EMULATED
#include "../emulator/emulator.h"
#else
#define DYNAMIC_SHARED(type, name) extern __shared__ type name[]
#endif

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef size_t usize;

#define KERNEL extern "C" __global__ void
// Registers for so many blocks of so many threads on a multiprocessor.
#define KERNEL_BOUNDED(threads, blocks) extern "C" __global__ __launch_bounds__(threads, blocks) void
#define ENDLESS __uint_as_float(0x7f800000u)
#define ALL 0xffffffffu
#define NONE 0xffffffffu

// What a step finds out, read by the host once at its end. `control.rs` has the same fields in the same order.
struct Control {
    // Sums over the batch.
    double squared_error;
    double objective;
    double penalty;
    double codes;
    double squares;
    double column_squares;
    double aux_error;
    double gradient_squares;
    // Active codes, entries, candidates that the encoder found (perhaps more than there is room for), those that were asked for.
    u64 active;
    u64 entries;
    u32 found;
    u32 wanted;
    u32 aux_found;
    // Rows with fewer candidates than have to be chosen.
    u32 short_rows;
    // The first row that holds a value that is not finite, else NONE.
    u32 bad_row;
    // 1 if a parameter is not finite.
    u32 not_finite;
    u32 dead;
    // The choice among all candidates of the batch: bits of its limit, and equals that are still wanted.
    u32 limit;
    u32 ties;
    // The smallest chosen code of the batch, or the smallest limit of a row relative to its size.
    float chosen;
    // What gradients are multiplied by.
    float clip;
    // Anything but 0: parameters stay as they are (one of the reasons below).
    u32 halted;
};
#define HALT_BAD_ROW 1u
#define HALT_NO_ROOM 2u
#define HALT_SHORT 4u
#define HALT_DIVERGED 8u

__device__ __forceinline__ float warp_sum(float value) {
    for (int d = 16; d > 0; d >>= 1) value += __shfl_xor_sync(ALL, value, d);
    return value;
}

__device__ __forceinline__ u32 warp_sum(u32 value) {
    for (int d = 16; d > 0; d >>= 1) value += __shfl_xor_sync(ALL, value, d);
    return value;
}

// The sum of the values of the lanes before this one; `total` becomes that of all.
__device__ __forceinline__ u32 warp_scan(u32 value, u32& total) {
    u32 lane = threadIdx.x & 31, sum = value;
    for (u32 d = 1; d < 32; d <<= 1) {
        u32 before = __shfl_up_sync(ALL, sum, d);
        if (lane >= d) sum += before;
    }
    total = __shfl_sync(ALL, sum, 31);
    return sum - value;
}

// Sums over a block of whole warps, known to all of its threads. `scratch` has a value for each of up to 32 warps.
template <class T>
__device__ __forceinline__ T block_sum(T value, T* scratch) {
    for (int d = 16; d > 0; d >>= 1) value += __shfl_xor_sync(ALL, value, d);
    __syncthreads();
    if ((threadIdx.x & 31) == 0) scratch[threadIdx.x >> 5] = value;
    __syncthreads();
    T total = 0;
    for (u32 w = 0; w < blockDim.x >> 5; w++) total += scratch[w];
    return total;
}

__device__ __forceinline__ float4 add4(float4 a, float4 b) {
    return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}

// a + s * b
__device__ __forceinline__ float4 fma4(float4 a, float s, float4 b) {
    return make_float4(a.x + s * b.x, a.y + s * b.y, a.z + s * b.z, a.w + s * b.w);
}

__device__ __forceinline__ float dot4(float4 a, float4 b) {
    return (a.x * b.x + a.y * b.y) + (a.z * b.z + a.w * b.w);
}

__device__ __forceinline__ const float4* row4(const float* values, usize row, u32 ld) {
    return reinterpret_cast<const float4*>(values + row * ld);
}

__device__ __forceinline__ float4* row4(float* values, usize row, u32 ld) {
    return reinterpret_cast<float4*>(values + row * ld);
}

// To the nearest bf16, ties to even.
__device__ __forceinline__ u16 to_bf16(float value) {
    u32 bits = __float_as_uint(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (u16)((bits >> 16) | 0x40);
    return (u16)((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
}
