// The entries by latent: from rows to columns by counting, rows ascending, so that sums over a latent's entries always have the same order.
//
// Rows are cut into chunks. `counts[chunk][latent]` are first how many entries there are, then where the next one goes. Within a row all latents are different, so
// that a block can place the entries of one row at a time without a conflict.
#include "common.cuh"
#include "family.cuh"

// One block a chunk.
KERNEL count_by_latent(const u32* starts, u32 rows, u32 chunk, const u32* latents, u32 n_latents, u32* counts) {
    usize mine = (usize)blockIdx.x * n_latents;
    for (u32 j = threadIdx.x; j < n_latents; j += blockDim.x) counts[mine + j] = 0;
    __syncthreads();
    u32 first = blockIdx.x * chunk, last = min(first + chunk, rows);
    for (u32 e = starts[first] + threadIdx.x; e < starts[last]; e += blockDim.x) atomicAdd(&counts[mine + latents[e]], 1u);
}

// Sums over chunks: one thread a latent.
KERNEL total_by_latent(const u32* counts, u32 chunks, u32 n_latents, u32* totals) {
    u32 j = blockIdx.x * blockDim.x + threadIdx.x;
    if (j >= n_latents) return;
    u32 total = 0;
    for (u32 b = 0; b < chunks; b++) total += counts[(usize)b * n_latents + j];
    totals[j] = total;
}

// From counts to places: one thread a latent.
KERNEL places_by_latent(const u32* latent_starts, u32 chunks, u32 n_latents, u32* counts) {
    u32 j = blockIdx.x * blockDim.x + threadIdx.x;
    if (j >= n_latents) return;
    u32 at = latent_starts[j];
    for (u32 b = 0; b < chunks; b++) {
        u32 count = counts[(usize)b * n_latents + j];
        counts[(usize)b * n_latents + j] = at;
        at += count;
    }
}

struct ByLatent {
    u32* rows;
    float* codes;
    // The loss's gradient by the pre-activation, and by the extra parameters of the latent (null where there are none).
    float* deltas;
    float* extras[MAX_EXTRAS];
};

// One block a chunk. `second_dots` may be null.
KERNEL place_by_latent(const u32* starts, u32 rows, u32 chunk, const u32* latents, const float* pre, const float* codes, const float* dots, const float* second_dots, Family family, Latents of, u32 n_latents, u32* places, ByLatent out) {
    usize mine = (usize)blockIdx.x * n_latents;
    u32 first = blockIdx.x * chunk, last = min(first + chunk, rows);
    for (u32 row = first; row < last; row++) {
        for (u32 e = starts[row] + threadIdx.x; e < starts[row + 1]; e += blockDim.x) {
            u32 j = latents[e], at = places[mine + j];
            places[mine + j] = at + 1;
            float extras[MAX_EXTRAS];
            out.rows[at] = row;
            out.codes[at] = codes[e];
            out.deltas[at] = family_gradient(family, of, j, pre[e], dots[e], second_dots ? second_dots[e] : 0.0f, extras);
            for (u32 i = 0; i < MAX_EXTRAS; i++)
                if (out.extras[i]) out.extras[i][at] = extras[i];
        }
        // The next row may have the same latents.
        __syncthreads();
    }
}

// The same for the auxiliary loss, where the gradient by the pre-activation is that by the code.
KERNEL place_left_over(const u32* starts, u32 rows, u32 chunk, const u32* latents, const float* codes, const float* dots, u32 n_latents, u32* places, ByLatent out) {
    usize mine = (usize)blockIdx.x * n_latents;
    u32 first = blockIdx.x * chunk, last = min(first + chunk, rows);
    for (u32 row = first; row < last; row++) {
        for (u32 e = starts[row] + threadIdx.x; e < starts[row + 1]; e += blockDim.x) {
            u32 j = latents[e], at = places[mine + j];
            places[mine + j] = at + 1;
            out.rows[at] = row;
            out.codes[at] = codes[e];
            out.deltas[at] = dots[e];
        }
        __syncthreads();
    }
}
