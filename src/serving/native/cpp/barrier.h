// Where all threads of a parallel region meet.

#pragma once

#include <sched.h>

#include <atomic>
#include <cstdint>

// On a busy machine those that wait leave the processor to the others.
class Barrier {
   public:
    void wait(int64_t num_threads) {
        const int64_t round = rounds.load(std::memory_order_acquire);
        if (arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == num_threads) {
            arrived.store(0, std::memory_order_relaxed);
            rounds.store(round + 1, std::memory_order_release);
            return;
        }
        for (int64_t spins = 0; rounds.load(std::memory_order_acquire) == round; spins++)
            if (spins > 2000) sched_yield();
    }

   private:
    alignas(64) std::atomic<int64_t> arrived{0};
    alignas(64) std::atomic<int64_t> rounds{0};
};
