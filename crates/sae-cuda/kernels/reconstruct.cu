// Codes, reconstructions, residuals, and the loss's gradient by each code: row by row, over what is active only.
#include "common.cuh"
#include "family.cuh"

struct Decoder {
    const float* dec;
    const float* scale;
    // What the reconstruction begins with; null for zero.
    const float* offset;
    u32 ld;
};

struct Lists {
    // Row i has the entries from starts[i] to starts[i + 1].
    const u32* starts;
    const u32* latents;
    const float* pre;
    float* codes;
    // The loss's gradient by each code.
    float* dots;
    // Codes of a second reconstruction and the gradient by them; null where there is none.
    float* second;
    float* second_dots;
};

// What each row adds to the figures of the step.
struct RowSums {
    float* squared_error;
    float* objective;
    float* penalty;
    float* codes;
    u32* active;
};

// The sum over entries of coefficient times decoder row, at one float4 of a row.
__device__ __forceinline__ float4 decode(float4 sum, const Lists& of, const float* codes, u32 first, u32 last, const Decoder& by, u32 c) {
    for (u32 e = first; e < last; e++) {
        u32 j = of.latents[e];
        sum = fma4(sum, codes[e] * by.scale[j], row4(by.dec, j, by.ld)[c]);
    }
    return sum;
}

// The product of each entry's decoder row with residuals, times its scale: a warp an entry.
__device__ __forceinline__ void products(const Lists& of, u32 first, u32 last, const Decoder& by, const float* r, float* dots) {
    u32 warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    for (u32 e = first + warp; e < last; e += blockDim.x >> 5) {
        u32 j = of.latents[e];
        float dot = 0;
        for (u32 c = lane; c < by.ld / 4; c += 32) dot += dot4(reinterpret_cast<const float4*>(r)[c], row4(by.dec, j, by.ld)[c]);
        dot = warp_sum(dot);
        if (lane == 0) dots[e] = dot * by.scale[j];
    }
}

// One block a row. `r` [rows, groups, ld] becomes, for each group of latents between two prefixes, the gradient of all reconstructions that it takes part
// in; `ends` are the prefixes (one, all latents, for most families). `second_r` [rows, ld] is scratch of families with a second reconstruction.
KERNEL reconstruct(const float* target, Lists of, Decoder by, Family family, Latents latents, const u32* ends, u32 groups, float factor, float* r, float* second_r, RowSums sums) {
    __shared__ float scratch[32];
    __shared__ u32 count[32];
    __shared__ u32 cuts[MAX_GROUPS + 1];
    usize row = blockIdx.x;
    u32 first = of.starts[row], last = of.starts[row + 1];
    float penalty = 0, total = 0;
    u32 active = 0;
    for (u32 e = first + threadIdx.x; e < last; e += blockDim.x) {
        float second = 0, code = family_code(family, latents, of.latents[e], of.pre[e], second, penalty);
        of.codes[e] = code;
        if (of.second) of.second[e] = second;
        total += code;
        active += code > 0;
    }
    // Entries are in the order of latents: group g has those from cuts[g] to cuts[g + 1].
    if (threadIdx.x <= groups) {
        u32 low = first, high = last;
        u32 end = threadIdx.x == 0 ? 0 : ends[threadIdx.x - 1];
        while (low < high) {
            u32 middle = low + (high - low) / 2;
            if (of.latents[middle] < end) low = middle + 1; else high = middle;
        }
        cuts[threadIdx.x] = low;
    }
    penalty = block_sum(penalty, scratch);
    total = block_sum(total, scratch);
    active = block_sum(active, count);

    float error = 0, objective = 0;
    float* mine = r + row * groups * by.ld;
    for (u32 c = threadIdx.x; c < by.ld / 4; c += blockDim.x) {
        float4 t = row4(target, row, by.ld)[c];
        float4 sum = by.offset ? reinterpret_cast<const float4*>(by.offset)[c] : make_float4(0, 0, 0, 0);
        sum = make_float4(sum.x - t.x, sum.y - t.y, sum.z - t.z, sum.w - t.w);
        for (u32 g = 0; g < groups; g++) {
            sum = decode(sum, of, of.codes, cuts[g], cuts[g + 1], by, c);
            float squares = dot4(sum, sum);
            objective += squares / groups;
            if (g + 1 == groups) error += squares;
            row4(mine, g, by.ld)[c] = make_float4(sum.x * factor, sum.y * factor, sum.z * factor, sum.w * factor);
        }
        for (u32 g = groups - 1; g > 0; g--) row4(mine, g - 1, by.ld)[c] = add4(row4(mine, g - 1, by.ld)[c], row4(mine, g, by.ld)[c]);
        if (of.second) {
            float4 offset = by.offset ? reinterpret_cast<const float4*>(by.offset)[c] : make_float4(0, 0, 0, 0);
            float4 other = decode(make_float4(offset.x - t.x, offset.y - t.y, offset.z - t.z, offset.w - t.w), of, of.second, first, last, by, c);
            objective += dot4(other, other);
            row4(second_r, row, by.ld)[c] = make_float4(other.x * factor, other.y * factor, other.z * factor, other.w * factor);
        }
    }
    error = block_sum(error, scratch);
    objective = block_sum(objective, scratch);
    if (threadIdx.x == 0) {
        sums.squared_error[row] = error;
        sums.objective[row] = objective;
        sums.penalty[row] = penalty;
        sums.codes[row] = total;
        sums.active[row] = active;
    }
    __syncthreads();
    for (u32 g = 0; g < groups; g++) products(of, cuts[g], cuts[g + 1], by, mine + (usize)g * by.ld, of.dots);
    if (of.second) products(of, first, last, by, second_r + row * by.ld, of.second_dots);
}

// The auxiliary loss: dead latents reconstruct what the others left over, which is the opposite of their residuals `r` (of which the last of `stride` floats are
// those of all latents) over `residual`. `aux_r` becomes the gradient of that reconstruction. One block a row.
KERNEL reconstruct_left_over(const float* r, u32 stride, float residual, Lists of, Decoder by, float factor, float* aux_r, float* errors) {
    __shared__ float scratch[32];
    usize row = blockIdx.x;
    u32 first = of.starts[row], last = of.starts[row + 1];
    for (u32 e = first + threadIdx.x; e < last; e += blockDim.x) of.codes[e] = of.pre[e];
    __syncthreads();
    float error = 0;
    const float* left = r + (row + 1) * stride - by.ld;
    for (u32 c = threadIdx.x; c < by.ld / 4; c += blockDim.x) {
        float4 value = reinterpret_cast<const float4*>(left)[c];
        float4 sum = decode(make_float4(value.x / residual, value.y / residual, value.z / residual, value.w / residual), of, of.codes, first, last, by, c);
        error += dot4(sum, sum);
        row4(aux_r, row, by.ld)[c] = make_float4(sum.x * factor, sum.y * factor, sum.z * factor, sum.w * factor);
    }
    error = block_sum(error, scratch);
    if (threadIdx.x == 0) errors[row] = error;
    __syncthreads();
    products(of, first, last, by, aux_r + row * by.ld, of.dots);
}
