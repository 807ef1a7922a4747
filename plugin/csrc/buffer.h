// Memory that is aligned for vector loads and that is kept between steps.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <new>

namespace mlff_student {

constexpr std::size_t ALIGNMENT = 64; // bytes; a cache line and the widest vector register

// An array that only grows. Its contents are undefined after a call of `reserve` that grows it.
template <typename T> class Buffer {
public:
  T *reserve(std::size_t count) {
    if (count > capacity_) {
      // A quarter more than needed: the number of neighbours changes from step to step.
      const std::size_t larger = count + count / 4;
      const std::size_t bytes = (larger * sizeof(T) + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
      memory_.reset(static_cast<T *>(std::aligned_alloc(ALIGNMENT, bytes)));
      capacity_ = memory_ ? larger : 0;
      if (!memory_) throw std::bad_alloc();
    }
    return memory_.get();
  }
  std::size_t bytes() const { return capacity_ * sizeof(T); }
  T *data() { return memory_.get(); }
  const T *data() const { return memory_.get(); }
  T &operator[](std::size_t index) { return memory_.get()[index]; }
  const T &operator[](std::size_t index) const { return memory_.get()[index]; }

private:
  struct Free {
    void operator()(T *memory) const { std::free(memory); }
  };
  std::unique_ptr<T, Free> memory_;
  std::size_t capacity_ = 0;
};

} // namespace mlff_student
