// The instruction set in use, and the statuses that public functions return.

#pragma once
#include <cstdint>
#include <exception>
#include <new>

#include "tiles.h"

#define PUBLIC extern "C" __attribute__((visibility("default")))

namespace jettison {

enum Status : int { kDone, kBadSize, kMisaligned, kOverlap, kNoMemory, kBadToken, kFull, kFailed };

// Version of the interface: must grow whenever a public function, structure or status changes; see ABI in native.py.
constexpr int kAbi = 5;

constexpr int64_t kMostColumns = 1 << 24, kMostRows = 1 << 28, kMostCount = 1 << 28;  // so that products fit int64

const Isa& current_isa();

// Store a message for the calling thread, which jettison_fault returns. Returns `status`.
int note_fault(const char* what, Status status) noexcept;

// Run the body of a public function. Exceptions are turned into a status, as none may reach the caller in C.
template <class Do>
int guarded(Do body) noexcept {
  try {
    return body();
  } catch (const std::bad_alloc&) {
    return note_fault("not enough memory", kNoMemory);
  } catch (const std::exception& fault) {
    return note_fault(fault.what(), kFailed);
  } catch (...) {
    return note_fault("an exception that is none of the standard library's", kFailed);
  }
}

// Return whether the sizes of a weight are valid, and its tensors as long as they must be. No product of sizes then
// overflows 64 bits.
bool fits(const Weight& weight, int64_t tiles_bytes, int64_t zero_bytes);

}  // namespace jettison
