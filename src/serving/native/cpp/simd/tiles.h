// The tiles of processors that have AMX: registers of 16 rows of 64 bytes, which they multiply whole.

#pragma once

#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__AVX512BF16__)
#define HAS_TILES
#endif

#ifdef HAS_TILES

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>

#include "inputs.h"

namespace {

constexpr int64_t TILE = 16;               // rows
constexpr int64_t TILE_INPUTS = 2 * TILE;  // numbers of 16 bits in a row

// Whether the kernel gives tiles to the process, which has to ask for them.
inline bool may_use_tiles() {
    constexpr long REQUEST = 0x1023, TILE_DATA = 18;  // of arch_prctl(2), and of the processor
    static const bool is_granted = syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
    return is_granted;
}

// The tiles of a thread while it lives, all of full size.
class Tiles {
   public:
    Tiles() {
        static const Shapes shapes;
        if (may_use_tiles()) _tile_loadconfig(&shapes);
    }
    ~Tiles() {
        if (may_use_tiles()) _tile_release();
    }

   private:
    struct alignas(LINE_BYTES) Shapes {
        uint8_t palette = 1, start = 0, reserved[14] = {};
        uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
        uint8_t num_rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    };
};

// Finish what is written before tiles load it, of which the compiler knows nothing.
inline void publish() { std::atomic_signal_fence(std::memory_order_seq_cst); }

}  // namespace

#else

namespace {

inline bool may_use_tiles() { return false; }

struct Tiles {
    Tiles() {}
};

}  // namespace

#endif
