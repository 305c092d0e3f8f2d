// Runs the threads of a block as fibers that take turns at barriers.
#include "emulator.h"

#ifndef __x86_64__
#error "the emulator switches stacks by hand, for x86-64"
#endif

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {
alignas(16) unsigned char dynamic_shared[1 << 18];
Exchange exchange[2][32][32];
unsigned generations[1024];
unsigned current;

namespace {
enum State : unsigned char { RUNS, AT_BLOCK, AT_WARP, DONE };
constexpr size_t MOST = 1024, STACK = 1 << 16;
// Stacks begin at different places within a page, so that their tops do not take each other's place in the cache.
constexpr size_t STAGGER = 192;
void* stack_pointers[MOST];
State states[MOST];
dim3 indices[MOST];
// In which order warps, and the lanes of each, take their turns.
unsigned short lanes[2][32], warps[32];
size_t threads, shared_bytes;
// The running warp: its first thread, the order of its lanes, how many there are, and whose turn it is.
size_t first_of_warp;
const unsigned short* turns;
unsigned n_turns, turn;
void* scheduler;
const std::function<void()>* kernel;

// Leaves this stack and goes on with the other. It is no function of its own, and jumps, so that the processor foresees where it and the return after it go.
__attribute__((always_inline)) inline void switch_stack(void** from, void* to) {
    asm volatile(
        "lea -128(%%rsp), %%rsp\n"
        "lea 1f(%%rip), %%rax\n"
        "push %%rbp\n"
        "push %%rbx\n"
        "push %%rax\n"
        "mov %%rsp, (%0)\n"
        "mov %1, %%rsp\n"
        "pop %%rax\n"
        "pop %%rbx\n"
        "pop %%rbp\n"
        "jmp *%%rax\n"
        "1:\n"
        "lea 128(%%rsp), %%rsp\n"
        : "+D"(from), "+S"(to)
        :
        : "rax", "rcx", "rdx", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "memory", "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7",
          "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
}

// The next lane of the running warp that can go on, else the scheduler.
inline void* next() {
    for (turn++; turn < n_turns; turn++) {
        size_t thread = first_of_warp + turns[turn];
        if (states[thread] == RUNS) {
            current = (unsigned)thread;
            threadIdx = indices[thread];
            return stack_pointers[thread];
        }
    }
    return scheduler;
}

void enter() {
    (*kernel)();
    states[current] = DONE;
    void** mine = &stack_pointers[current];
    switch_stack(mine, next());
    abort();
}

void prepare(size_t i) {
    static char* stacks = static_cast<char*>(malloc(MOST * (STACK + STAGGER) + 16));
    auto top = (reinterpret_cast<uintptr_t>(stacks) + (i + 1) * (STACK + STAGGER)) & ~uintptr_t(15);
    // As `switch_stack` leaves it: where to go, two registers, and nowhere to return.
    void** at = reinterpret_cast<void**>(top) - 4;
    at[0] = reinterpret_cast<void*>(enter);
    at[1] = at[2] = at[3] = nullptr;
    stack_pointers[i] = at;
    states[i] = RUNS;
    generations[i] = 0;
}

void die(const char* why) {
    size_t n[4] = {};
    for (size_t i = 0; i < threads; i++) n[states[i]]++;
    fprintf(stderr, "emulator: %s: of %zu threads %zu wait for the block, %zu for their warp, %zu have returned\n", why, threads, n[AT_BLOCK], n[AT_WARP], n[DONE]);
    abort();
}

// 0: as they are numbered; 1: backwards; from 2 on by steps that visit all.
void put_in_order(unsigned short* places, size_t n, size_t order) {
    size_t step = 2 * order + 1;
    while (std::__gcd(step, n) != 1) step += 2;
    for (size_t i = 0; i < n; i++) places[i] = (unsigned short)(order == 0 ? i : order == 1 ? n - 1 - i : (i * step + order) % n);
}

// Runs a warp until all of its threads wait for the block or have returned. No inlining: the switch needs registers of its own.
__attribute__((noinline)) void run_warp(size_t first) {
    size_t n = std::min(threads - first, size_t(32));
    first_of_warp = first;
    turns = lanes[n < 32];
    n_turns = (unsigned)n;
    for (;;) {
        turn = ~0u;
        void* to = next();
        if (to) switch_stack(&scheduler, to);
        size_t waiting = std::count(states + first, states + first + n, AT_WARP);
        if (waiting == 0) return;
        if (waiting + std::count(states + first, states + first + n, DONE) < n) die("a warp's threads do not meet");
        for (size_t i = first; i < first + n; i++)
            if (states[i] == AT_WARP) states[i] = RUNS;
    }
}

void run_block() {
    for (size_t i = 0; i < threads; i++) prepare(i);
    memset(dynamic_shared, 0xff, shared_bytes);
    for (auto& set : exchange) memset(set, 0, (threads + 31) / 32 * sizeof *set);
    for (;;) {
        for (size_t w = 0; w < (threads + 31) / 32; w++) run_warp(size_t(32) * warps[w]);
        size_t done = std::count(states, states + threads, DONE);
        if (done == threads) return;
        if (done > 0) die("threads returned before a barrier");
        std::fill(states, states + threads, RUNS);
    }
}
}  // namespace

void barrier(Scope scope) {
    states[current] = scope == BLOCK ? AT_BLOCK : AT_WARP;
    void** mine = &stack_pointers[current];
    switch_stack(mine, next());
}

std::map<std::string, Bind>& registry() {
    static std::map<std::string, Bind> all;
    return all;
}

void launch(dim3 grid, dim3 block, size_t shared, const std::function<void()>& body) {
    const char* text = getenv("MONOSEM_EMULATOR_ORDER");
    size_t order = text ? strtoul(text, nullptr, 10) : 0;
    threads = size_t(block.x) * block.y * block.z;
    if (shared > sizeof dynamic_shared || threads > MOST) die("the launch asks for more than a block may have");
    put_in_order(lanes[0], 32, order);
    put_in_order(lanes[1], threads % 32 ? threads % 32 : 32, order);
    put_in_order(warps, (threads + 31) / 32, order);
    for (unsigned i = 0; i < threads; i++) indices[i] = {i % block.x, i / block.x % block.y, i / block.x / block.y};
    kernel = &body;
    shared_bytes = shared;
    blockDim = block;
    gridDim = grid;
    size_t blocks = size_t(grid.x) * grid.y * grid.z;
    for (size_t i = 0; i < blocks; i++) {
        size_t b = order == 0 ? i : blocks - 1 - i;
        blockIdx = {unsigned(b % grid.x), unsigned(b / grid.x % grid.y), unsigned(b / grid.x / grid.y)};
        run_block();
    }
}
}  // namespace emulator
