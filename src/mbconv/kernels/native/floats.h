// Memory that begins at a cache line: elsewhere every load of 64 bytes would touch two of them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <vector>

namespace mbconv {

constexpr std::align_val_t LINE{64};

template <class T>
struct CacheLines {
    using value_type = T;
    CacheLines() = default;
    template <class U>
    CacheLines(const CacheLines<U>&) {}
    T* allocate(std::size_t count) {
        return static_cast<T*>(::operator new(count * sizeof(T), LINE));
    }
    void deallocate(T* p, std::size_t) { ::operator delete(p, LINE); }
    friend bool operator==(const CacheLines&, const CacheLines&) { return true; }
    friend bool operator!=(const CacheLines&, const CacheLines&) { return false; }
};

using Floats = std::vector<float, CacheLines<float>>;

// So many numbers for each thread or each part, not filled.
template <class T>
class Scratch {
  public:
    Scratch(int64_t count, int64_t size)
        : size(size), memory(static_cast<T*>(::operator new(count * size * sizeof(T), LINE))) {}
    T* of(int64_t number) const { return memory.get() + number * size; }

  private:
    struct Free {
        void operator()(T* p) const { ::operator delete(p, LINE); }
    };
    int64_t size;
    std::unique_ptr<T[], Free> memory;
};

}  // namespace mbconv
