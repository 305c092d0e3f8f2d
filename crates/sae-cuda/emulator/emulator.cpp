// Runs the threads of a block as fibers that take turns at barriers.
#include "emulator.h"

#include <vector>

#ifndef __x86_64__
#error "the emulator switches stacks by hand, for x86-64"
#endif

dim3 threadIdx, blockIdx, blockDim, gridDim;

// Saves the registers that a call keeps, leaves this stack and goes on with the other.
extern "C" void monosem_switch_stack(void** from, void* to);
asm(R"(
.globl monosem_switch_stack
.type monosem_switch_stack,@function
monosem_switch_stack:
    push %rbp
    push %rbx
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbx
    pop %rbp
    ret
)");

namespace emulator {
alignas(16) unsigned char dynamic_shared[1 << 18];
uint64_t exchange[64][32];

namespace {
enum State { RUNS, AT_BLOCK, AT_WARP, DONE };
constexpr size_t STACK = 1 << 16;
struct Fiber {
    void* stack_pointer;
    std::vector<char> stack;
    State state;
};
std::vector<Fiber> fibers;
size_t threads, current, shared_bytes;
void* scheduler;
const std::function<void()>* kernel;

void enter() {
    (*kernel)();
    fibers[current].state = DONE;
    monosem_switch_stack(&fibers[current].stack_pointer, scheduler);
    abort();
}

void prepare(Fiber& fiber) {
    if (fiber.stack.empty()) fiber.stack.resize(STACK);
    auto top = (reinterpret_cast<uintptr_t>(fiber.stack.data()) + STACK) & ~uintptr_t(15);
    // As a call of `enter` leaves it: six registers, where to go, and nowhere to return.
    void** at = reinterpret_cast<void**>(top) - 2;
    *at = reinterpret_cast<void*>(enter);
    at -= 6;
    std::fill(at, at + 6, nullptr);
    fiber.stack_pointer = at;
    fiber.state = RUNS;
}

void die(const char* why) {
    size_t states[4] = {};
    for (size_t i = 0; i < threads; i++) states[fibers[i].state]++;
    fprintf(stderr, "emulator: %s: of %zu threads %zu wait for the block, %zu for their warp, %zu have returned\n", why, threads, states[AT_BLOCK], states[AT_WARP], states[DONE]);
    abort();
}

// 0: as they are numbered; 1: backwards; from 2 on by steps that visit all.
size_t in_order(size_t i, size_t n, size_t order) {
    if (order == 0 || n == 1) return i;
    if (order == 1) return n - 1 - i;
    size_t step = 2 * order + 1;
    while (std::__gcd(step, n) != 1) step += 2;
    return (i * step + order) % n;
}

// Runs a warp until all of its threads wait for the block or have returned.
void run_warp(size_t first, size_t order) {
    size_t n = std::min(threads - first, size_t(32));
    for (;;) {
        size_t waiting = 0, done = 0;
        for (size_t i = 0; i < n; i++) {
            current = first + in_order(i, n, order);
            if (fibers[current].state == RUNS) {
                threadIdx = {unsigned(current % blockDim.x), unsigned(current / blockDim.x % blockDim.y), unsigned(current / blockDim.x / blockDim.y)};
                monosem_switch_stack(&scheduler, fibers[current].stack_pointer);
            }
            waiting += fibers[current].state == AT_WARP;
            done += fibers[current].state == DONE;
        }
        if (waiting == 0) return;
        if (waiting + done < n) die("a warp's threads do not meet");
        for (size_t i = first; i < first + n; i++)
            if (fibers[i].state == AT_WARP) fibers[i].state = RUNS;
    }
}

void run_block(size_t order) {
    for (size_t i = 0; i < threads; i++) prepare(fibers[i]);
    memset(dynamic_shared, 0xff, shared_bytes);
    size_t warps = (threads + 31) / 32;
    for (;;) {
        for (size_t w = 0; w < warps; w++) run_warp(32 * in_order(w, warps, order), order);
        size_t done = 0;
        for (size_t i = 0; i < threads; i++) done += fibers[i].state == DONE;
        if (done == threads) return;
        if (done > 0) die("threads returned before a barrier");
        for (size_t i = 0; i < threads; i++) fibers[i].state = RUNS;
    }
}
}  // namespace

void barrier(Scope scope) {
    dim3 thread = threadIdx;
    size_t me = current;
    fibers[me].state = scope == BLOCK ? AT_BLOCK : AT_WARP;
    monosem_switch_stack(&fibers[me].stack_pointer, scheduler);
    threadIdx = thread;
}

unsigned lane() { return unsigned(current % 32); }
unsigned warp() { return unsigned(current / 32); }

unsigned lanes_alive() {
    unsigned alive = 0;
    for (size_t i = 0, first = current / 32 * 32; i < 32 && first + i < threads; i++)
        if (fibers[first + i].state != DONE) alive |= 1u << i;
    return alive;
}

std::map<std::string, Bind>& registry() {
    static std::map<std::string, Bind> all;
    return all;
}

void launch(dim3 grid, dim3 block, size_t shared, const std::function<void()>& body) {
    const char* text = getenv("MONOSEM_EMULATOR_ORDER");
    size_t order = text ? strtoul(text, nullptr, 10) : 0;
    threads = size_t(block.x) * block.y * block.z;
    if (shared > sizeof dynamic_shared || threads > 1024) die("the launch asks for more than a block may have");
    if (fibers.size() < threads) fibers.resize(threads);
    kernel = &body;
    shared_bytes = shared;
    blockDim = block;
    gridDim = grid;
    size_t blocks = size_t(grid.x) * grid.y * grid.z;
    for (size_t i = 0; i < blocks; i++) {
        size_t b = order == 0 ? i : blocks - 1 - i;
        blockIdx = {unsigned(b % grid.x), unsigned(b / grid.x % grid.y), unsigned(b / grid.x / grid.y)};
        run_block(order);
    }
}
}  // namespace emulator
