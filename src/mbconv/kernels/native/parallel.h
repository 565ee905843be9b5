// Tasks on the threads that torch already has.
//
// The calls are libgomp's own entry points, left undefined here and found in the runtime that
// torch has loaded: no compiler flag, no dependency of this library, and never a second pool.
#pragma once

#include <atomic>
#include <cstdint>

extern "C" {
void GOMP_parallel(void (*body)(void*), void* data, unsigned threads, unsigned flags);
int omp_get_thread_num(void);
}

namespace mbconv {

// f(task, thread) for each task of 0..tasks-1. Threads take the next few whenever they are free: two
// cores are seldom equally fast for long. What a task computes must not depend on its thread: then
// results are the same bits for any number of threads. So one thread, too, runs the very code that
// several do: in a copy of its own the compiler may join other products and sums to one rounding.
template <class F>
void parallel(int64_t tasks, int threads, F&& f) {
    if (tasks < threads) threads = static_cast<int>(tasks);
    const bool alone = threads <= 1;
    struct Work {
        F& f;
        int64_t tasks, few;
        std::atomic<int64_t> next;
        void (*volatile run)(Work&, int);  // volatile: called, never copied into the caller
    } work{f, tasks, alone ? tasks : 1 + tasks / (16 * threads), {0}, [](Work& w, int thread) {
        for (int64_t t; (t = w.next.fetch_add(w.few, std::memory_order_relaxed)) < w.tasks;)
            for (const int64_t end = t + w.few; t < end && t < w.tasks; ++t) w.f(t, thread);
    }};
    if (alone) return work.run(work, 0);
    GOMP_parallel(
        [](void* data) {
            auto& w = *static_cast<Work*>(data);
            w.run(w, omp_get_thread_num());
        },
        &work, threads, 0);
}

}  // namespace mbconv
