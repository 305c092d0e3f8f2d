// The encoder: the one dense product of a step. Each block computes a tile of 128 rows x 128 latents and writes down only what may count; there is no array
// of rows x n_latents.
//
// Where candidates are put depends on which block comes first, but `segments` says where each row's candidates among the latents of each block are, so that
// `collect` brings them into one order.
#include "common.cuh"

#define TILE 128
#define STAGE_ROWS 32

struct Encoder {
    const float* scale;
    const float* bias;
    // What a pre-activation of each latent has to exceed, and each latent's length.
    const float* floor;
    const float* length;
    // What it has to exceed in each row besides, and by how much the product may be off there for a latent of length 1.
    const float* row_floor;
    const float* row_margin;
    u32 rows;
    u32 n_latents;
};

struct Candidates {
    u32* latents;
    float* pre;
    // [blocks of latents][rows]: where a row's candidates begin, and how many there are.
    u32* starts;
    u32* counts;
    u32* found;
    u32 capacity;
};

// Lists what is above of 32 rows x 128 latents in `stage`, by 8 warps.
__device__ void list_stage(const float* stage, u32 first_row, u32 first_latent, const Encoder& by, const Candidates& out, u32* counts, u32* base) {
    u32 warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    __syncthreads();
    u32 masks[4][4];
    for (u32 i = 0; i < 4; i++) {
        u32 local = warp * 4 + i, row = first_row + local;
        bool is_row = row < by.rows;
        float row_floor = is_row ? by.row_floor[row] : 0.0f, margin = is_row ? by.row_margin[row] : 0.0f;
        u32 total = 0;
        for (u32 s = 0; s < 4; s++) {
            u32 j = first_latent + s * 32 + lane;
            bool above = false;
            if (is_row && j < by.n_latents) {
                float pre = stage[local * TILE + s * 32 + lane] * by.scale[j] + by.bias[j];
                above = pre - by.floor[j] > row_floor - margin * by.length[j];
            }
            masks[i][s] = __ballot_sync(ALL, above);
            total += __popc(masks[i][s]);
        }
        if (lane == 0) counts[local] = total;
    }
    __syncthreads();
    if (warp == 0) {
        u32 all, before = warp_scan(counts[lane], all);
        u32 start = 0;
        if (lane == 0 && all > 0) start = atomicAdd(out.found, all);
        start = __shfl_sync(ALL, start, 0);
        base[lane] = start + before;
        u32 row = first_row + lane;
        if (row < by.rows) {
            usize segment = (usize)(first_latent / TILE) * by.rows + row;
            out.starts[segment] = start + before;
            out.counts[segment] = counts[lane];
        }
    }
    __syncthreads();
    for (u32 i = 0; i < 4; i++) {
        u32 local = warp * 4 + i, at = base[local];
        for (u32 s = 0; s < 4; s++) {
            u32 mask = masks[i][s], place = at + __popc(mask & ((1u << lane) - 1));
            if ((mask >> lane & 1) && place < out.capacity) {
                u32 j = first_latent + s * 32 + lane;
                out.latents[place] = j;
                out.pre[place] = stage[local * TILE + s * 32 + lane] * by.scale[j] + by.bias[j];
            }
            at += __popc(mask);
        }
    }
}

// In f32. Grid: latents / 128, rows / 128; 256 threads with 8 x 8 values each. Both operands lie in shared memory by column, so that a thread reads its
// eight values of each as two float4; the next columns are fetched while these are multiplied.
#define DEPTH 16
KERNEL_BOUNDED(256, 2) encode_f32(const float* x, const float* w, u32 ld, Encoder by, Candidates out) {
    __shared__ __align__(16) float xs[2][DEPTH][TILE + 4];
    __shared__ __align__(16) float ws[2][DEPTH][TILE + 4];
    __shared__ u32 counts[STAGE_ROWS], base[STAGE_ROWS];
    u32 first_latent = blockIdx.x * TILE, first_row = blockIdx.y * TILE;
    u32 tx = threadIdx.x & 15, ty = threadIdx.x >> 4;
    // Two float4 of each operand a thread: rows `line` and `line + 64` of the tile, columns 4 * `quad`.
    u32 line = threadIdx.x >> 2, quad = threadIdx.x & 3;
    float acc[8][8];
    for (int i = 0; i < 8; i++)
        for (int j = 0; j < 8; j++) acc[i][j] = 0;
    float4 next_x[2], next_w[2];
    auto fetch = [&](u32 k) {
        for (u32 h = 0; h < 2; h++) {
            // Beyond the last, the last again: nobody looks at it.
            usize row = min(first_row + line + 64 * h, by.rows - 1), latent = min(first_latent + line + 64 * h, by.n_latents - 1);
            next_x[h] = row4(x, row, ld)[k / 4 + quad];
            next_w[h] = row4(w, latent, ld)[k / 4 + quad];
        }
    };
    auto put = [&](u32 buffer) {
        for (u32 h = 0; h < 2; h++) {
            const float vx[4] = {next_x[h].x, next_x[h].y, next_x[h].z, next_x[h].w};
            const float vw[4] = {next_w[h].x, next_w[h].y, next_w[h].z, next_w[h].w};
            for (u32 i = 0; i < 4; i++) {
                xs[buffer][quad * 4 + i][line + 64 * h] = vx[i];
                ws[buffer][quad * 4 + i][line + 64 * h] = vw[i];
            }
        }
    };
    fetch(0);
    put(0);
    __syncthreads();
    for (u32 k = 0, buffer = 0; k < ld; k += DEPTH, buffer ^= 1) {
        bool more = k + DEPTH < ld;
        if (more) fetch(k + DEPTH);
#pragma unroll
        for (u32 c = 0; c < DEPTH; c++) {
            float4 a0 = *reinterpret_cast<float4*>(&xs[buffer][c][ty * 4]), a1 = *reinterpret_cast<float4*>(&xs[buffer][c][64 + ty * 4]);
            float4 b0 = *reinterpret_cast<float4*>(&ws[buffer][c][tx * 4]), b1 = *reinterpret_cast<float4*>(&ws[buffer][c][64 + tx * 4]);
            const float a[8] = {a0.x, a0.y, a0.z, a0.w, a1.x, a1.y, a1.z, a1.w};
            const float b[8] = {b0.x, b0.y, b0.z, b0.w, b1.x, b1.y, b1.z, b1.w};
#pragma unroll
            for (int i = 0; i < 8; i++)
#pragma unroll
                for (int j = 0; j < 8; j++) acc[i][j] = fmaf(a[i], b[j], acc[i][j]);
        }
        if (more) put(buffer ^ 1);
        __syncthreads();
    }
    // 32 rows at a time through shared memory, which the operands no longer need.
    float* stage = &xs[0][0][0];
#pragma unroll
    for (u32 chunk = 0; chunk < TILE / STAGE_ROWS; chunk++) {
        __syncthreads();
        u32 half = chunk >> 1;
        if ((ty >> 3) == (chunk & 1)) {
#pragma unroll
            for (u32 i = 0; i < 4; i++)
#pragma unroll
                for (u32 j = 0; j < 8; j++) stage[((ty & 7) * 4 + i) * TILE + (j >> 2) * 64 + tx * 4 + (j & 3)] = acc[half * 4 + i][j];
        }
        list_stage(stage, first_row + chunk * STAGE_ROWS, first_latent, by, out, counts, base);
    }
}

// Copies 16 bytes to shared memory while the block goes on.
__device__ __forceinline__ void copy_async(void* to, const void* from) {
#ifdef MONOSEM_EMULATED
    memcpy(to, from, 16);
#else
    u32 address = (u32)__cvta_generic_to_shared(to);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(from));
#endif
}

__device__ __forceinline__ void copies_commit() {
#ifndef MONOSEM_EMULATED
    asm volatile("cp.async.commit_group;");
#endif
}

// Waits for all groups but the last `N`.
template <int N>
__device__ __forceinline__ void copies_wait() {
#ifndef MONOSEM_EMULATED
    asm volatile("cp.async.wait_group %0;" ::"n"(N));
#endif
}

// c += a b on tensor cores: a is 16 x 16 and b 16 x 8 in bf16, c is 16 x 8.
__device__ __forceinline__ void multiply_bf16(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {
#ifdef MONOSEM_EMULATED
    emulated_mma_bf16(c, a, b);
#else
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// In bf16 on tensor cores, summed in f32; operands are rounded rows `ld` apart, a multiple of 32. 8 warps of 64 rows x 32 latents each. A row of a tile takes 20 words
// of shared memory for 16 words of data: the eight rows and four words that a warp reads at once are then in 32 different banks.
#define WORDS 20
KERNEL_BOUNDED(256, 2) encode_bf16(const u16* x, const u16* w, u32 ld, Encoder by, Candidates out) {
    __shared__ __align__(16) u32 tiles[2][2][TILE * WORDS];
    __shared__ u32 counts[STAGE_ROWS], base[STAGE_ROWS];
    u32 first_latent = blockIdx.x * TILE, first_row = blockIdx.y * TILE;
    u32 warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    u32 row_of_warp = (warp & 1) * 64, latent_of_warp = (warp >> 1) * 32;
    u32 g = lane >> 2, t = lane & 3;
    float acc[4][4][4];
#pragma unroll
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++)
            for (int k = 0; k < 4; k++) acc[i][j][k] = 0;
    auto fetch = [&](u32 buffer, u32 k) {
        // 128 rows x 4 pieces of 16 bytes of each operand, two of each a thread.
        for (u32 h = 0; h < 2; h++) {
            u32 piece = threadIdx.x + 256 * h, line = piece >> 2, part = piece & 3;
            usize row = min(first_row + line, by.rows - 1), latent = min(first_latent + line, by.n_latents - 1);
            copy_async(&tiles[buffer][0][line * WORDS + part * 4], x + row * ld + k + part * 8);
            copy_async(&tiles[buffer][1][line * WORDS + part * 4], w + latent * ld + k + part * 8);
        }
        copies_commit();
    };
    fetch(0, 0);
    for (u32 k = 0, buffer = 0; k < ld; k += 32, buffer ^= 1) {
        if (k + 32 < ld) {
            fetch(buffer ^ 1, k + 32);
            copies_wait<1>();
        } else {
            copies_wait<0>();
        }
        __syncthreads();
        const u32 *xs = tiles[buffer][0], *ws = tiles[buffer][1];
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            u32 a[4][4], b[4][2];
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                const u32* at = xs + (row_of_warp + i * 16 + g) * WORDS + half * 8 + t;
                a[i][0] = at[0];
                a[i][1] = at[8 * WORDS];
                a[i][2] = at[4];
                a[i][3] = at[8 * WORDS + 4];
            }
#pragma unroll
            for (u32 j = 0; j < 4; j++) {
                const u32* at = ws + (latent_of_warp + j * 8 + g) * WORDS + half * 8 + t;
                b[j][0] = at[0];
                b[j][1] = at[4];
            }
#pragma unroll
            for (u32 i = 0; i < 4; i++)
#pragma unroll
                for (u32 j = 0; j < 4; j++) multiply_bf16(acc[i][j], a[i], b[j]);
        }
        __syncthreads();
    }
    float* stage = reinterpret_cast<float*>(&tiles[0][0][0]);
#pragma unroll
    for (u32 chunk = 0; chunk < TILE / STAGE_ROWS; chunk++) {
        __syncthreads();
        if (row_of_warp / 64 == chunk >> 1) {
#pragma unroll
            for (u32 i = 0; i < 2; i++)
#pragma unroll
                for (u32 j = 0; j < 4; j++) {
                    float* at = stage + (i * 16 + g) * TILE + latent_of_warp + j * 8 + t * 2;
                    const float* c = acc[(chunk & 1) * 2 + i][j];
                    at[0] = c[0];
                    at[1] = c[1];
                    at[8 * TILE] = c[2];
                    at[8 * TILE + 1] = c[3];
                }
        }
        list_stage(stage, first_row + chunk * STAGE_ROWS, first_latent, by, out, counts, base);
    }
}

// The same from a product that was written: rows of n_latents, the first of which is `first_row`. 32 rows and 128 latents a block.
KERNEL list_product(const float* product, u32 first_row, Encoder by, Candidates out) {
    __shared__ float stage[STAGE_ROWS * TILE];
    __shared__ u32 counts[STAGE_ROWS], base[STAGE_ROWS];
    u32 first_latent = blockIdx.x * TILE, first = blockIdx.y * STAGE_ROWS;
    for (u32 i = threadIdx.x; i < STAGE_ROWS * TILE; i += blockDim.x) {
        usize row = first + i / TILE, j = first_latent + i % TILE;
        stage[i] = first_row + row < by.rows && j < by.n_latents ? product[row * by.n_latents + j] : 0.0f;
    }
    list_stage(stage, first_row + first, first_latent, by, out, counts, base);
}

// What each row's candidates have to exceed, and how far a product may be off: multiples of the row's root mean square, besides an absolute floor.
KERNEL row_limits(const float* squares, u32 rows, u32 d, float floor, float hint, float margin, float* row_floor, float* row_margin) {
    u32 row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    float size = sqrtf(squares[row] / d);
    row_floor[row] = floor + hint * size;
    row_margin[row] = margin * size;
}
