// From candidates to entries: in order by row and latent, and only those that count.
#include "common.cuh"

// Candidates of each row: the sum over blocks of latents. One thread a row. Where there was no room for all candidates every row has none, so that nothing after this
// sees what was not written; the host makes room and begins again.
KERNEL row_totals(const u32* counts, u32 blocks, u32 rows, const u32* found, u32 capacity, u32* totals) {
    u32 row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    u32 total = 0;
    for (u32 b = 0; b < blocks && *found <= capacity; b++) total += counts[(usize)b * rows + row];
    totals[row] = total;
}

// In place, from n counts to where each begins, and the total behind them. One block of 1024 threads.
KERNEL_BOUNDED(1024, 1) exclusive_scan(u32* values, u32 n) {
    __shared__ u32 of_warp[32];
    __shared__ u32 carry;
    u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    if (threadIdx.x == 0) carry = 0;
    __syncthreads();
    for (u32 first = 0; first < n; first += blockDim.x) {
        u32 i = first + threadIdx.x, total;
        u32 before = warp_scan(i < n ? values[i] : 0, total);
        if (lane == 0) of_warp[warp] = total;
        __syncthreads();
        if (warp == 0) {
            u32 all, start = warp_scan(lane < blockDim.x >> 5 ? of_warp[lane] : 0, all);
            of_warp[lane] = carry + start;
            __syncwarp();
            if (lane == 0) carry += all;
        }
        __syncthreads();
        if (i < n) values[i] = of_warp[warp] + before;
        __syncthreads();
    }
    if (threadIdx.x == 0) values[n] = carry;
}

// Brings the candidates of a row together, latents ascending. One warp a row, a lane a block of latents.
KERNEL collect(const u32* segment_starts, const u32* segment_counts, u32 blocks, u32 rows, const u32* latents, const float* pre, const u32* starts, u32* to_latents, float* to_pre) {
    u32 row = (blockIdx.x * blockDim.x + threadIdx.x) >> 5, lane = threadIdx.x & 31;
    // Without candidates there may be counts of some that were not written.
    if (row >= rows || starts[rows] == 0) return;
    u32 at = starts[row];
    for (u32 first = 0; first < blocks; first += 32) {
        u32 b = first + lane, total;
        usize segment = (usize)b * rows + row;
        u32 count = b < blocks ? segment_counts[segment] : 0, from = b < blocks ? segment_starts[segment] : 0;
        u32 to = at + warp_scan(count, total);
        for (u32 i = 0; i < count; i++) {
            to_latents[to + i] = latents[from + i];
            to_pre[to + i] = pre[from + i];
        }
        at += total;
    }
}

// The pre-activations of candidates again, in f32. One block a row, a warp an entry.
KERNEL exact(const u32* starts, const u32* latents, float* pre, const float* x, const float* w, u32 ld, const float* scale, const float* bias) {
    usize row = blockIdx.x;
    u32 warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    for (u32 e = starts[row] + warp; e < starts[row + 1]; e += blockDim.x >> 5) {
        u32 j = latents[e];
        float dot = 0;
        for (u32 c = lane; c < ld / 4; c += 32) dot += dot4(row4(x, row, ld)[c], row4(w, j, ld)[c]);
        dot = warp_sum(dot);
        if (lane == 0) pre[e] = dot * scale[j] + bias[j];
    }
}

// How many candidates of each row are above their latent's floor by more than the row's. One warp a row.
KERNEL count_above(const u32* starts, u32 rows, const u32* latents, const float* pre, const float* floor, const float* row_floor, u32* kept) {
    u32 row = (blockIdx.x * blockDim.x + threadIdx.x) >> 5, lane = threadIdx.x & 31;
    if (row >= rows) return;
    u32 count = 0;
    for (u32 e = starts[row] + lane; e < starts[row + 1]; e += 32) count += pre[e] - floor[latents[e]] > row_floor[row];
    count = warp_sum(count);
    if (lane == 0) kept[row] = count;
}

// Entries above their floors, in order. One warp a row.
KERNEL keep_above(const u32* starts, u32 rows, const u32* latents, const float* pre, const float* floor, const float* row_floor, const u32* to_starts, u32* to_latents, float* to_pre) {
    u32 row = (blockIdx.x * blockDim.x + threadIdx.x) >> 5, lane = threadIdx.x & 31;
    if (row >= rows) return;
    u32 at = to_starts[row], end = starts[row + 1];
    for (u32 first = starts[row]; first < end; first += 32) {
        u32 e = first + lane;
        bool keep = e < end && pre[e] - floor[latents[e]] > row_floor[row];
        u32 mask = __ballot_sync(ALL, keep);
        if (keep) {
            u32 to = at + __popc(mask & ((1u << lane) - 1));
            to_latents[to] = latents[e];
            to_pre[to] = pre[e];
        }
        at += __popc(mask);
    }
}

// The bin of a histogram, counted from the top, in which the `wanted`-th value lies; `wanted` becomes its number within the bin. By one warp.
__device__ u32 pick_bin(const u32* histogram, u32& wanted) {
    u32 lane = threadIdx.x & 31, sum = 0;
    for (u32 i = 0; i < 8; i++) sum += histogram[255 - (lane * 8 + i)];
    u32 total, before = warp_scan(sum, total);
    bool here = before < wanted && before + sum >= wanted;
    u32 bin = 0, left = wanted - before;
    if (here) {
        for (u32 i = 0; i < 8; i++) {
            bin = 255 - (lane * 8 + i);
            if (histogram[bin] >= left) break;
            left -= histogram[bin];
        }
    }
    u32 at = __ffs(__ballot_sync(ALL, here)) - 1;
    bin = __shfl_sync(ALL, bin, at);
    wanted = __shfl_sync(ALL, left, at);
    return bin;
}

// For each row the k-th largest of its candidates, all of which are above 0, so that their bits have their order: found a byte at a time from the top.
// `limits` becomes that value (0 where there are fewer), `ties` how many of those equal to it belong to the k. One block of 256 threads a row.
KERNEL limits_of_rows(const u32* starts, const float* pre, u32 k, const float* squares, u32 d, float* limits, u32* ties, u32* kept, float* relative, Control* control) {
    __shared__ u32 histogram[256];
    __shared__ u32 chosen[2];
    usize row = blockIdx.x;
    u32 first = starts[row], n = starts[row + 1] - first, t = threadIdx.x;
    if (n <= k) {
        if (t == 0) {
            limits[row] = 0;
            ties[row] = 0;
            kept[row] = n;
            float smallest = ENDLESS;
            for (u32 e = first; e < first + n; e++) smallest = fminf(smallest, pre[e]);
            relative[row] = n < k ? 0.0f : smallest / sqrtf(squares[row] / d);
            if (n < k) atomicAdd(&control->short_rows, 1u);
        }
        return;
    }
    u32 prefix = 0, wanted = k;
    for (int shift = 24; shift >= 0; shift -= 8) {
        __syncthreads();
        histogram[t] = 0;
        __syncthreads();
        u32 above = shift == 24 ? 0 : 0xffffffffu << (shift + 8);
        for (u32 e = first + t; e < first + n; e += blockDim.x) {
            u32 bits = __float_as_uint(pre[e]);
            if ((bits & above) == prefix) atomicAdd(&histogram[bits >> shift & 255], 1u);
        }
        __syncthreads();
        if (t < 32) {
            u32 bin = pick_bin(histogram, wanted);
            if (t == 0) {
                chosen[0] = prefix | bin << shift;
                chosen[1] = wanted;
            }
        }
        __syncthreads();
        prefix = chosen[0];
        wanted = chosen[1];
    }
    if (t == 0) {
        limits[row] = __uint_as_float(prefix);
        ties[row] = wanted;
        kept[row] = k;
        relative[row] = __uint_as_float(prefix) / sqrtf(squares[row] / d);
    }
}

// One byte of the `wanted`-th largest candidate of the whole batch: its histogram among those that agree with what is known of it. `control->limit` are the bytes
// known so far; `histogram` has to be zero.
KERNEL batch_histogram(const u32* total, const float* pre, u32 shift, const Control* control, u32* histogram) {
    __shared__ u32 mine[256];
    u32 n = *total;
    mine[threadIdx.x] = 0;
    __syncthreads();
    u32 above = shift == 24 ? 0 : 0xffffffffu << (shift + 8);
    for (usize e = (usize)blockIdx.x * blockDim.x + threadIdx.x; e < n; e += (usize)gridDim.x * blockDim.x) {
        u32 bits = __float_as_uint(pre[e]);
        if ((bits & above) == control->limit) atomicAdd(&mine[bits >> shift & 255], 1u);
    }
    __syncthreads();
    if (mine[threadIdx.x]) atomicAdd(&histogram[threadIdx.x], mine[threadIdx.x]);
}

// The byte that the histogram says, which is cleared for the next one. One warp. Where there are no more candidates than wanted the limit stays 0: all are.
KERNEL batch_pick(const u32* total, u32 shift, u32* histogram, Control* control) {
    u32 n = *total, wanted = shift == 24 ? control->wanted : control->ties;
    if (n < control->wanted) {
        if (threadIdx.x == 0) {
            control->short_rows = 1;
            control->ties = 0;
            control->chosen = 0;
        }
    } else {
        u32 bin = pick_bin(histogram, wanted);
        if (threadIdx.x == 0) {
            control->limit |= bin << shift;
            control->ties = wanted;
            control->chosen = __uint_as_float(control->limit);
        }
    }
    __syncwarp();
    for (u32 i = threadIdx.x; i < 256; i += 32) histogram[i] = 0;
}

// How many candidates of each row are above the batch's limit, and how many equal it. One warp a row.
KERNEL count_in_batch(const u32* starts, u32 rows, const float* pre, const Control* control, u32* above, u32* equal) {
    u32 row = (blockIdx.x * blockDim.x + threadIdx.x) >> 5, lane = threadIdx.x & 31;
    if (row >= rows) return;
    float limit = __uint_as_float(control->limit);
    u32 more = 0, same = 0;
    for (u32 e = starts[row] + lane; e < starts[row + 1]; e += 32) {
        more += pre[e] > limit;
        same += pre[e] == limit;
    }
    more = warp_sum(more);
    same = warp_sum(same);
    if (lane == 0) {
        above[row] = more;
        equal[row] = same;
    }
}

// Equals are taken from the first rows on: `equal_before` are those before each row. One thread a row.
KERNEL share_ties(const u32* above, const u32* equal_before, u32 rows, const Control* control, float* limits, u32* ties, u32* kept) {
    u32 row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    u32 before = equal_before[row], same = equal_before[row + 1] - before;
    u32 left = control->ties > before ? control->ties - before : 0;
    limits[row] = __uint_as_float(control->limit);
    ties[row] = min(left, same);
    kept[row] = above[row] + ties[row];
}

// Entries above the row's limit, and so many of those equal to it, lower latents first. One warp a row.
KERNEL keep_largest(const u32* starts, u32 rows, const u32* latents, const float* pre, const float* limits, const u32* ties, const u32* to_starts, u32* to_latents, float* to_pre) {
    u32 row = (blockIdx.x * blockDim.x + threadIdx.x) >> 5, lane = threadIdx.x & 31;
    if (row >= rows) return;
    u32 at = to_starts[row], end = starts[row + 1], left = ties[row];
    float limit = limits[row];
    for (u32 first = starts[row]; first < end; first += 32) {
        u32 e = first + lane;
        float value = e < end ? pre[e] : -1.0f;
        bool same = e < end && value == limit;
        u32 equals = __ballot_sync(ALL, same), before = (1u << lane) - 1;
        bool keep = value > limit || (same && (u32)__popc(equals & before) < left);
        u32 mask = __ballot_sync(ALL, keep);
        if (keep) {
            u32 to = at + __popc(mask & before);
            to_latents[to] = latents[e];
            to_pre[to] = value;
        }
        left -= min(left, (u32)__popc(equals));
        at += __popc(mask);
    }
}
