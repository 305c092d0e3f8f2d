// CUDA's kernels as ordinary C++ on one core: a fiber for every thread of a block, barriers, shuffles, ballots and atomics. What `#include`s this is the kernels'
// own source. It is slow and runs one thread at a time, so it knows nothing of races on real hardware; but threads and blocks may run in another order
// (`MONOSEM_EMULATOR_ORDER`), memory is not zero when it is allocated and ends at its last byte, and a barrier that not all threads reach aborts.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <tuple>
#include <utility>

#define __global__
#define __device__
#define __shared__ static
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define DYNAMIC_SHARED(type, name) type* name = reinterpret_cast<type*>(emulator::dynamic_shared)

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

extern dim3 threadIdx, blockIdx, blockDim, gridDim;

using std::fabs;
using std::isfinite;
using std::max;
using std::min;

namespace emulator {
enum Scope { BLOCK, WARP };
extern unsigned char dynamic_shared[];
// A value of each thread of the running block, and in which of its exchanges within the warp it was given. Two sets take turns: who writes to one again knows
// that all have read what was there.
struct Exchange {
    uint64_t value;
    unsigned generation;
};
extern Exchange exchange[2][32][32];
// Exchanges of each thread.
extern unsigned generations[];
// The running thread of the block.
extern unsigned current;
void barrier(Scope scope);
inline unsigned lane() { return current % 32; }
inline unsigned warp() { return current / 32; }
void launch(dim3 grid, dim3 block, size_t shared, const std::function<void()>& body);

// A kernel by its name: from the addresses of its arguments to a call of it with copies of them.
using Bind = std::function<std::function<void()>(void**)>;
std::map<std::string, Bind>& registry();

template <class... A, size_t... I>
std::function<void()> copy_arguments(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
    std::tuple<std::remove_cv_t<A>...> copies(*static_cast<std::remove_cv_t<A>*>(arguments[I])...);
    return [=] { std::apply(kernel, copies); };
}

struct Registration {
    template <class... A>
    Registration(const char* name, void (*kernel)(A...)) {
        registry()[name] = [=](void** arguments) { return copy_arguments(kernel, arguments, std::index_sequence_for<A...>{}); };
    }
};

// Gives a value to the others of the warp; theirs. The value of a lane that has returned is of an older generation.
inline const Exchange* give(uint64_t value, unsigned& generation) {
    generation = ++generations[current];
    Exchange* all = exchange[generation & 1][warp()];
    all[lane()] = {value, generation};
    barrier(WARP);
    return all;
}

template <class T>
T swap(T value, unsigned from) {
    static_assert(sizeof(T) <= 8);
    uint64_t bits = 0;
    unsigned generation;
    memcpy(&bits, &value, sizeof value);
    bits = give(bits, generation)[from & 31].value;
    memcpy(&value, &bits, sizeof value);
    return value;
}
}  // namespace emulator

#define REGISTER(kernel) static emulator::Registration registration_##kernel(#kernel, kernel);

inline void __syncthreads() { emulator::barrier(emulator::BLOCK); }
inline void __syncwarp(unsigned = ~0u) { emulator::barrier(emulator::WARP); }
template <class T>
T __shfl_sync(unsigned, T value, unsigned from) { return emulator::swap(value, from); }
template <class T>
T __shfl_xor_sync(unsigned, T value, unsigned mask) { return emulator::swap(value, emulator::lane() ^ mask); }
template <class T>
T __shfl_up_sync(unsigned, T value, unsigned by) { return emulator::swap(value, emulator::lane() >= by ? emulator::lane() - by : emulator::lane()); }
inline unsigned __ballot_sync(unsigned, bool value) {
    unsigned generation, all = 0;
    const emulator::Exchange* votes = emulator::give(value, generation);
    for (unsigned i = 0; i < 32; i++) all |= unsigned(votes[i].generation == generation && votes[i].value) << i;
    return all;
}
inline int __popc(unsigned value) { return __builtin_popcount(value); }
inline int __ffs(unsigned value) { return __builtin_ffs((int)value); }
template <class T>
T atomicAdd(T* at, T value) { return std::exchange(*at, *at + value); }
template <class T>
T atomicOr(T* at, T value) { return std::exchange(*at, *at | value); }
template <class T>
T atomicMin(T* at, T value) { return std::exchange(*at, std::min(*at, value)); }
inline unsigned __float_as_uint(float value) {
    unsigned bits;
    memcpy(&bits, &value, 4);
    return bits;
}
inline float __uint_as_float(unsigned bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

// mma.m16n8k16: which values of the operands each lane holds is in the PTX ISA, "Matrix fragments for mma.m16n8k16 with floating point type".
inline void emulated_mma_bf16(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    static unsigned all_a[32][32][4], all_b[32][32][2];
    unsigned warp = emulator::warp(), lane = emulator::lane(), g = lane / 4, t = lane % 4;
    memcpy(all_a[warp][lane], a, sizeof a);
    memcpy(all_b[warp][lane], b, sizeof b);
    emulator::barrier(emulator::WARP);
    auto half = [](unsigned word, unsigned k) { return __uint_as_float((k & 1 ? word >> 16 : word & 0xffff) << 16); };
    for (unsigned i = 0; i < 4; i++) {
        unsigned row = g + (i / 2) * 8, column = 2 * t + i % 2;
        for (unsigned k = 0; k < 16; k++) {
            unsigned of_a = all_a[warp][(row % 8) * 4 + (k % 8) / 2][row / 8 + (k / 8) * 2];
            unsigned of_b = all_b[warp][column * 4 + (k % 8) / 2][k / 8];
            c[i] += half(of_a, k) * half(of_b, k);
        }
    }
    emulator::barrier(emulator::WARP);
}
