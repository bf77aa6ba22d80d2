// The instruction set in use, and what every public function says.

#pragma once
#include <cstdint>
#include <exception>
#include <new>

#include "tiles.h"

#define PUBLIC extern "C" __attribute__((visibility("default")))

namespace jettison {

enum Status : int { kDone, kBadSize, kMisaligned, kOverlap, kNoMemory, kBadToken, kFull, kFailed };

// Raised whenever a function, a structure or a status that Python sees becomes another; see ABI in native.py.
constexpr int kAbi = 2;

constexpr int64_t kMostColumns = 1 << 24, kMostRows = 1 << 28, kMostCount = 1 << 28;

const Isa& current_isa();

// Remembers, for the calling thread, what jettison_fault says. Returns kNoMemory or kFailed.
int note_fault(const char* what, Status status) noexcept;

// The body of a public function: no exception leaves it. Whatever is thrown becomes a status.
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

// Whether the sizes of a weight are such that the rest may rely on them: everything then fits into 64 bits.
bool fits(const Weight& weight, int64_t tiles_bytes, int64_t zero_bytes);

}  // namespace jettison
